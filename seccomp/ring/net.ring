# The network device: frames from the tap, and to it. A part: never loaded by itself.
IORING_OP_READV: 1
IORING_OP_WRITEV: 1
