# The socket device as a virtio-vhost-user back-end.
@include ./common_device.ring
@include ./vvu.ring
@include ./vsock.ring
