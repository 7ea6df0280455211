# The proxy. A part: never loaded by itself. Messages of both its sides, kicks and readiness are in
# common_device.ring and vhost_user.ring.

# The VMM of the device VM, at socket.
IORING_OP_ACCEPT: 1
