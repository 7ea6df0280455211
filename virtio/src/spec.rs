//! The numbers of "Virtual I/O Device (VIRTIO) Version 1.3" that more than one crate needs. Not the
//! layouts: those stand where they are read.

/// Feature bits that belong to queues and transports (chapter 6), as masks.
pub mod feature {
    /// `VIRTIO_F_INDIRECT_DESC` (2.7.5.3): a descriptor may name a table of descriptors.
    pub const INDIRECT_DESC: u64 = 1 << 28;
    /// `VIRTIO_F_EVENT_IDX` (2.7.7, 2.7.10): notifications are asked for by ring position.
    pub const EVENT_IDX: u64 = 1 << 29;
    /// `VIRTIO_F_VERSION_1`: not a legacy device. Without it nothing is little-endian for certain.
    pub const VERSION_1: u64 = 1 << 32;
    /// What every queue of ours can do, and what the framework offers for every device.
    pub const FRAMEWORK: u64 = VERSION_1 | INDIRECT_DESC | EVENT_IDX;
}

/// Flags of a split ring's descriptor (2.7.5).
pub mod descriptor_flag {
    /// `VIRTQ_DESC_F_NEXT`: the chain goes on at the descriptor's `next`.
    pub const NEXT: u16 = 1;
    /// `VIRTQ_DESC_F_WRITE`: the device writes; without it, it reads.
    pub const WRITE: u16 = 2;
    /// `VIRTQ_DESC_F_INDIRECT`: the buffer is a table of descriptors.
    pub const INDIRECT: u16 = 4;
}

/// Flags of the rings themselves, heeded only without `VIRTIO_F_EVENT_IDX`.
pub mod ring_flag {
    /// `VIRTQ_AVAIL_F_NO_INTERRUPT` (2.7.7): the driver asks not to be called.
    pub const NO_INTERRUPT: u16 = 1;
    /// `VIRTQ_USED_F_NO_NOTIFY` (2.7.10): the device asks not to be kicked.
    pub const NO_NOTIFY: u16 = 1;
}

/// Device types (chapter 5): those of the devices that there are.
pub mod device_id {
    /// Network device (5.1).
    pub const NET: u32 = 1;
    /// Block device (5.2).
    pub const BLOCK: u32 = 2;
    /// Console device (5.3).
    pub const CONSOLE: u32 = 3;
    /// Entropy device (5.4).
    pub const ENTROPY: u32 = 4;
    /// Socket device (5.10).
    pub const SOCKET: u32 = 19;
}

/// Bytes of one descriptor (2.7.5), in the queue's table and in an indirect one.
pub const DESCRIPTOR_BYTES: usize = 16;

/// The greatest size of a split queue (2.7: "maximum Queue Size value is 32768").
pub const QUEUE_SIZE_MAX: u16 = 32768;
