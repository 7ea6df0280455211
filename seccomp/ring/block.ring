# The block device. A part: never loaded by itself.
IORING_OP_READV: 1
IORING_OP_WRITEV: 1
# VIRTIO_BLK_T_FLUSH
IORING_OP_FSYNC: 1
# VIRTIO_BLK_T_DISCARD and VIRTIO_BLK_T_WRITE_ZEROES
IORING_OP_FALLOCATE: 1
# With `direct`, through memory that was registered before the ring was enabled: what is not
# aligned, and what lies in a bar. They reach no other memory (EFAULT).
IORING_OP_READ_FIXED: 1
IORING_OP_WRITE_FIXED: 1
