# The socket device as a vhost-user back-end.
@include ./common_device.ring
@include ./vhost_user.ring
@include ./vsock.ring
