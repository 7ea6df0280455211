# The socket device. A part: never loaded by itself. Messages and readiness are in
# common_device.ring.

# Programs of the host, at uds-path.
IORING_OP_ACCEPT: 1
# A guest that says it will send, or receive, no more.
IORING_OP_SHUTDOWN: 1
