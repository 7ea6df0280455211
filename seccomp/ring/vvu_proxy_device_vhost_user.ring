# The proxy, whose front-ends come by vhost-user.
@include ./common_device.ring
@include ./vhost_user.ring
@include ./vvu_proxy.ring
