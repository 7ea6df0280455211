# The socket device inside a VMM's own process: no transport.
@include ./common_device.ring
@include ./vsock.ring
