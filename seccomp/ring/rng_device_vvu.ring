# The entropy device as a virtio-vhost-user back-end.
@include ./common_device.ring
@include ./vvu.ring
@include ./rng.ring
