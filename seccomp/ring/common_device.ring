# What every device process submits to its ring, whatever its device and transport. A part: never
# loaded by itself. An operation or flag that no part names completes with EACCES.

# Kicks (multishot, on eventfds that are never read) and readiness of anything else.
IORING_OP_POLL_ADD: 1
# Whatever is dropped early; also ends a multishot poll.
IORING_OP_ASYNC_CANCEL: 1
# The control channel, and a signalfd.
IORING_OP_SENDMSG: 1
IORING_OP_RECVMSG: 1
IORING_OP_READV: 1

# A cancel that succeeded says so by the completion of what it cancelled.
IOSQE_CQE_SKIP_SUCCESS: 1
