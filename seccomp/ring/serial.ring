# The console device. A part: never loaded by itself.
IORING_OP_READV: 1
IORING_OP_WRITEV: 1
