# The vhost-user transport. A part: never loaded by itself.

# The next front-end, after the last one left.
IORING_OP_ACCEPT: 1
# Messages, with descriptors.
IORING_OP_RECVMSG: 1
IORING_OP_SENDMSG: 1
