# The entropy device as a vhost-user back-end.
@include ./common_device.ring
@include ./vhost_user.ring
@include ./rng.ring
