//! Where things lie in the function's BARs: crosvm's layout. A driver knows it from capabilities
//! alone.

use std::ops::Range;

/// The queues of the device that is served (`max_vhost_queues`): twice what QEMU gives a block
/// device of 32 CPUs, and few enough that all MSI-X vectors fit one page.
pub const VHOST_QUEUES_MAX: u16 = 64;

/// MSI-X vectors: rx, tx, configuration, and one for each kick.
pub const VECTORS: u16 = 3 + VHOST_QUEUES_MAX;

/// Bytes of the configuration space.
pub const CONFIGURATION_SIZE: usize = 256;

/// Regions by their vfio index.
pub mod region {
    /// virtio's registers.
    pub const VIRTIO: u32 = 0;
    /// MSI-X.
    pub const MSIX: u32 = 1;
    /// Doorbells and the notification registers.
    pub const DOORBELLS: u32 = 2;
    /// Shared memory: a 64-bit BAR, which takes number 5 too.
    pub const SHARED_MEMORY: u32 = 4;
    /// The configuration space (`VFIO_PCI_CONFIG_REGION_INDEX`).
    pub const CONFIGURATION: u32 = 7;
}

/// Bytes of BAR 0.
pub const VIRTIO_SIZE: u64 = 0x4000;
/// The common configuration.
pub const COMMON: Range<u64> = 0x0000..0x0038;
/// The interrupt status.
pub const ISR: Range<u64> = 0x1000..0x1004;
/// The device's configuration: status, `max_vhost_queues`, uuid.
pub const DEVICE: Range<u64> = 0x2000..0x2018;
/// Notifications of the two virtqueues, [`NOTIFY_MULTIPLIER`] apart.
pub const NOTIFY: Range<u64> = 0x3000..0x3008;
/// Bytes between two notification addresses.
pub const NOTIFY_MULTIPLIER: u32 = 4;

/// Bytes of BAR 1.
pub const MSIX_SIZE: u64 = 0x1000;
/// The MSI-X table.
pub const TABLE: Range<u64> = 0x000..16 * VECTORS as u64;
/// The pending bits.
pub const PENDING: Range<u64> = 0x800..0x800 + 8 * (VECTORS as u64).div_ceil(64);

/// Bytes of BAR 2.
pub const DOORBELLS_SIZE: u64 = 0x4000;
/// Doorbells, [`DOORBELL_MULTIPLIER`] apart: calls, errors, and the log's, which is never live.
pub const DOORBELLS: Range<u64> = 0x0000..0x2000;
/// Bytes between two doorbells.
pub const DOORBELL_MULTIPLIER: u32 = 4;
/// `notification_select` and `notification_msix_vector`, of 16 bits each.
pub const NOTIFICATION: Range<u64> = 0x2000..0x3000;

const _: () = assert!(TABLE.end <= PENDING.start && PENDING.end <= MSIX_SIZE);
const _: () =
    assert!(DOORBELLS.end >= (2 * VHOST_QUEUES_MAX as u64 + 1) * DOORBELL_MULTIPLIER as u64);
