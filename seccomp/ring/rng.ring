# The entropy device. A part: never loaded by itself.
# source=
IORING_OP_READV: 1
