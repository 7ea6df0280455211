# The console device. A part: never loaded by itself.
IORING_OP_READV: 1
IORING_OP_WRITEV: 1
# The clients of a socket that the supervisor has bound, type=unix-stream,listen: one after another.
IORING_OP_ACCEPT: 1
