//! The common configuration (4.1.4.3) and the device status (2.1): what the driver may write when,
//! and what it reads back. What a change means for queues that run is the caller's.

use crate::pci::NO_VECTOR;
use crate::pci::layout::{COMMON, VECTORS};

/// Queue 0 is rx, from the device to the driver; queue 1 is tx.
pub const QUEUES: usize = 2;

/// Entries of a queue at most, as crosvm's.
pub const QUEUE_SIZE_MAX: u16 = 256;

/// `VIRTIO_F_VERSION_1` and `VIRTIO_F_ACCESS_PLATFORM`: addresses are those that DMA_MAP gave.
const FEATURES: u64 = VERSION_1 | 1 << 33;
const VERSION_1: u64 = 1 << 32;

/// Bytes of the registers.
const IMAGE_SIZE: usize = 0x38;
const _: () = assert!(COMMON.end - COMMON.start == IMAGE_SIZE as u64);
/// The lower byte of `num_queues`.
const QUEUES_LOW: u8 = 2;
const _: () = assert!(QUEUES == QUEUES_LOW as usize);

const FEATURES_OK: u8 = 8;
const DRIVER_OK: u8 = 4;
const NEEDS_RESET: u8 = 0x40;
/// ACKNOWLEDGE, DRIVER, FAILED: theirs alone.
const INFORMATIVE: u8 = 1 | 2 | 0x80;

/// What a write did, beyond being read back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a reset is for the whole device"]
pub enum Change {
    /// Nothing.
    None,
    /// The driver wrote status 0: these registers are reset already.
    Reset,
    /// The driver is ready: queues that are enabled run.
    DriverOk,
}

/// The registers.
#[derive(Clone, Debug)]
pub struct Common {
    device_feature_select: u32,
    driver_feature_select: u32,
    driver_features: u64,
    config_vector: u16,
    status: u8,
    config_generation: u8,
    queue_select: u16,
    queues: [QueueRegisters; QUEUES],
}

/// What the driver says of one queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueRegisters {
    /// Entries: a power of two, at most [`QUEUE_SIZE_MAX`].
    pub size: u16,
    /// The vector that tells of used buffers.
    pub vector: u16,
    /// Whether it may run. Nothing but the vector changes any more then.
    pub enabled: bool,
    /// The descriptor table.
    pub descriptors: u64,
    /// The available ring, "driver area".
    pub available: u64,
    /// The used ring, "device area".
    pub used: u64,
}

impl QueueRegisters {
    const fn new() -> Self {
        Self {
            size: QUEUE_SIZE_MAX,
            vector: NO_VECTOR,
            enabled: false,
            descriptors: 0,
            available: 0,
            used: 0,
        }
    }
}

impl Default for Common {
    fn default() -> Self {
        Self {
            device_feature_select: 0,
            driver_feature_select: 0,
            driver_features: 0,
            config_vector: NO_VECTOR,
            status: 0,
            config_generation: 0,
            queue_select: 0,
            queues: [QueueRegisters::new(); QUEUES],
        }
    }
}

impl Common {
    /// A queue's registers.
    pub fn queue(&self, index: usize) -> &QueueRegisters {
        &self.queues[index]
    }

    /// The vector that tells of changes of the configuration.
    pub fn config_vector(&self) -> u16 {
        self.config_vector
    }

    /// Whether the driver is ready, and nothing went wrong since.
    pub fn is_running(&self) -> bool {
        self.status & (DRIVER_OK | NEEDS_RESET) == DRIVER_OK
    }

    /// Tells of a change of the configuration.
    pub fn config_changed(&mut self) {
        self.config_generation = self.config_generation.wrapping_add(1);
    }

    /// Gives the device up until it is reset (2.1.2).
    pub fn needs_reset(&mut self) {
        self.status |= NEEDS_RESET;
    }

    /// Reads a range; what is no register reads as zeros.
    pub fn read(&self, offset: usize, into: &mut [u8]) {
        let image = self.image();
        let there = image.get(offset..).unwrap_or_default();
        let zeros = std::iter::repeat(&0);
        for (into, byte) in into.iter_mut().zip(there.iter().chain(zeros)) {
            *into = *byte;
        }
    }

    /// All registers as they are read.
    fn image(&self) -> [u8; IMAGE_SIZE] {
        let mut image = [0; IMAGE_SIZE];
        let mut at = 0;
        let mut put = |bytes: &[u8]| {
            image[at..at + bytes.len()].copy_from_slice(bytes);
            at += bytes.len();
        };
        put(&self.device_feature_select.to_le_bytes());
        put(&half(FEATURES, self.device_feature_select).to_le_bytes());
        put(&self.driver_feature_select.to_le_bytes());
        put(&half(self.driver_features, self.driver_feature_select).to_le_bytes());
        put(&self.config_vector.to_le_bytes());
        put(&[QUEUES_LOW, 0]);
        put(&[self.status, self.config_generation]);
        put(&self.queue_select.to_le_bytes());
        // 4.1.4.3: "0 means the queue is unavailable".
        let absent = QueueRegisters {
            size: 0,
            ..QueueRegisters::new()
        };
        let selected = self.queues.get(usize::from(self.queue_select));
        let queue = selected.unwrap_or(&absent);
        put(&queue.size.to_le_bytes());
        put(&queue.vector.to_le_bytes());
        put(&u16::from(queue.enabled).to_le_bytes());
        // `queue_notify_off`: a queue's notification address is at its own index.
        put(&selected.map_or(0, |_| self.queue_select).to_le_bytes());
        put(&queue.descriptors.to_le_bytes());
        put(&queue.available.to_le_bytes());
        put(&queue.used.to_le_bytes());
        image
    }

    /// Writes a register in its own width, or half of a 64-bit one (4.1.3.1); other writes do
    /// nothing.
    pub fn write(&mut self, offset: usize, data: &[u8]) -> Change {
        match (offset, data) {
            (0x00, &[a, b, c, d]) => self.device_feature_select = u32::from_le_bytes([a, b, c, d]),
            (0x08, &[a, b, c, d]) => self.driver_feature_select = u32::from_le_bytes([a, b, c, d]),
            (0x0c, &[a, b, c, d]) => self.set_features(u32::from_le_bytes([a, b, c, d])),
            (0x10, &[a, b]) => self.config_vector = vector(u16::from_le_bytes([a, b])),
            (0x14, &[status]) => return self.set_status(status),
            (0x16, &[a, b]) => self.queue_select = u16::from_le_bytes([a, b]),
            _ => self.write_queue(offset, data),
        }
        Change::None
    }

    fn set_features(&mut self, value: u32) {
        // 3.1.1: no longer once FEATURES_OK is set.
        if self.status & FEATURES_OK != 0 {
            return;
        }
        let value = u64::from(value);
        let features = &mut self.driver_features;
        match self.driver_feature_select {
            0 => *features = *features >> 32 << 32 | value,
            1 => *features = *features & u64::from(u32::MAX) | value << 32,
            _ => {}
        }
    }

    fn set_status(&mut self, value: u8) -> Change {
        if value == 0 {
            *self = Self::default();
            return Change::Reset;
        }
        let before = self.status;
        // A driver never takes a bit back but by a reset (2.1.1).
        self.status |= value & INFORMATIVE;
        let understood = self.driver_features & !FEATURES == 0;
        let modern = self.driver_features & VERSION_1 != 0;
        if value & FEATURES_OK != 0 && understood && modern {
            self.status |= FEATURES_OK;
        }
        if value & DRIVER_OK != 0 && self.status & FEATURES_OK != 0 {
            self.status |= DRIVER_OK;
        }
        match before & DRIVER_OK != self.status & DRIVER_OK {
            true => Change::DriverOk,
            false => Change::None,
        }
    }

    fn write_queue(&mut self, offset: usize, data: &[u8]) {
        let may_enable = self.status & FEATURES_OK != 0;
        let Some(queue) = self.queues.get_mut(usize::from(self.queue_select)) else {
            return;
        };
        if let (0x1a, &[a, b]) = (offset, data) {
            queue.vector = vector(u16::from_le_bytes([a, b]));
            return;
        }
        if queue.enabled {
            return;
        }
        match (offset, data) {
            (0x18, &[a, b]) => {
                let size = u16::from_le_bytes([a, b]);
                if size.is_power_of_two() && size <= QUEUE_SIZE_MAX {
                    queue.size = size;
                }
            }
            (0x1c, [1, 0]) => queue.enabled = may_enable,
            (0x20..0x28, _) => set_part(&mut queue.descriptors, offset - 0x20, data),
            (0x28..0x30, _) => set_part(&mut queue.available, offset - 0x28, data),
            (0x30..0x38, _) => set_part(&mut queue.used, offset - 0x30, data),
            _ => {}
        }
    }
}

/// A vector that exists, or none: what the driver reads back to know (4.1.5.1.2).
fn vector(value: u16) -> u16 {
    if value < VECTORS { value } else { NO_VECTOR }
}

fn half(value: u64, select: u32) -> u32 {
    let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
    match select {
        0 => u32::from_le_bytes([a, b, c, d]),
        1 => u32::from_le_bytes([e, f, g, h]),
        _ => 0,
    }
}

fn set_part(register: &mut u64, at: usize, data: &[u8]) {
    if !matches!((at, data.len()), (0, 4 | 8) | (4, 4)) {
        return;
    }
    let mut bytes = register.to_le_bytes();
    bytes[at..at + data.len()].copy_from_slice(data);
    *register = u64::from_le_bytes(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read<const N: usize>(common: &Common, offset: usize) -> [u8; N] {
        let mut bytes = [0; N];
        common.read(offset, &mut bytes);
        bytes
    }

    fn quiet(common: &mut Common, offset: usize, data: &[u8]) {
        assert_eq!(common.write(offset, data), Change::None);
    }

    /// Up to FEATURES_OK, with these features.
    fn negotiated(features: u64) -> Common {
        let mut common = Common::default();
        quiet(&mut common, 0x14, &[1]);
        quiet(&mut common, 0x14, &[3]);
        for select in 0..2_u32 {
            quiet(&mut common, 0x08, &select.to_le_bytes());
            quiet(&mut common, 0x0c, &half(features, select).to_le_bytes());
        }
        quiet(&mut common, 0x14, &[11]);
        common
    }

    #[test]
    fn a_driver_that_keeps_the_order_comes_to_driver_ok() {
        let mut common = negotiated(FEATURES);
        assert_eq!(read(&common, 0x14), [11]);
        assert!(!common.is_running());
        assert_eq!(common.write(0x14, &[15]), Change::DriverOk);
        assert!(common.is_running());
        quiet(&mut common, 0x14, &[15]);
        common.needs_reset();
        assert!(!common.is_running());
        assert_eq!(read(&common, 0x14), [0x4f]);
        // The driver cannot take that back.
        quiet(&mut common, 0x14, &[15]);
        assert_eq!(read(&common, 0x14), [0x4f]);
        assert_eq!(common.write(0x14, &[0]), Change::Reset);
        assert_eq!(read(&common, 0x14), [0]);
    }

    #[test]
    fn features_that_are_not_ours_or_not_modern_are_not_ok() {
        for features in [
            0,
            1 << 33,
            FEATURES | 1,
            FEATURES | 1 << 29,
            FEATURES | 1 << 40,
        ] {
            let mut common = negotiated(features);
            assert_eq!(read(&common, 0x14), [3], "{features:#x}");
            // Nor is DRIVER_OK then, nor a queue enabled.
            quiet(&mut common, 0x14, &[7]);
            quiet(&mut common, 0x1c, &[1, 0]);
            assert_eq!(read(&common, 0x14), [3]);
            assert!(!common.queue(0).enabled);
        }
        let mut common = negotiated(1 << 32);
        quiet(&mut common, 0x0c, &[0xff; 4]);
        assert_eq!(read(&common, 0x0c), [1, 0, 0, 0]);
        quiet(&mut common, 0x00, &[1, 0, 0, 0]);
        assert_eq!(read(&common, 0x04), [3, 0, 0, 0]);
        quiet(&mut common, 0x00, &[2, 0, 0, 0]);
        assert_eq!(read(&common, 0x04), [0; 4]);
    }

    #[test]
    fn a_queue_is_set_up_once_and_then_fixed_but_for_its_vector() {
        let mut common = negotiated(FEATURES);
        quiet(&mut common, 0x16, &[1, 0]);
        assert_eq!(read(&common, 0x18), [0, 1, 0xff, 0xff, 0, 0, 1, 0]);
        for wrong in [[0, 0], [3, 0], [0, 2]] {
            quiet(&mut common, 0x18, &wrong);
        }
        assert_eq!(common.queue(1).size, 256);
        quiet(&mut common, 0x18, &[64, 0]);
        quiet(&mut common, 0x20, &0x1_0000_2000_u64.to_le_bytes());
        quiet(&mut common, 0x28, &[1, 2, 3, 4]);
        quiet(&mut common, 0x2c, &[5, 6, 7, 8]);
        quiet(&mut common, 0x30, &[9; 2]);
        quiet(&mut common, 0x1a, &[66, 0]);
        quiet(&mut common, 0x1c, &[1, 0]);
        quiet(&mut common, 0x1c, &[0, 0]);
        quiet(&mut common, 0x18, &[32, 0]);
        let queue = QueueRegisters {
            size: 64,
            vector: 66,
            enabled: true,
            descriptors: 0x1_0000_2000,
            available: 0x0807_0605_0403_0201,
            used: 0,
        };
        assert_eq!(common.queue(1), &queue);
        quiet(&mut common, 0x1a, &[67, 0]);
        assert_eq!(read(&common, 0x1a), [0xff, 0xff]);
        quiet(&mut common, 0x10, &[66, 0]);
        assert_eq!(
            (common.config_vector(), common.queue(0)),
            (66, &QueueRegisters::new())
        );
    }

    #[test]
    fn a_queue_that_is_not_there_has_no_size_and_takes_nothing() {
        let mut common = negotiated(FEATURES);
        quiet(&mut common, 0x16, &[2, 0]);
        quiet(&mut common, 0x18, &[8, 0]);
        quiet(&mut common, 0x1c, &[1, 0]);
        assert_eq!(read(&common, 0x18), [0, 0, 0xff, 0xff, 0, 0, 0, 0]);
    }

    #[test]
    fn no_write_of_any_width_anywhere_panics_or_changes_what_is_read_only() {
        let mut common = negotiated(FEATURES);
        for width in 0..9 {
            for offset in (0..0x48).chain([usize::MAX]) {
                if offset != 0x14 {
                    let _ = common.write(offset, &vec![0x5a; width]);
                }
                let mut bytes = vec![0; width];
                common.read(offset, &mut bytes);
            }
        }
        assert_eq!(read(&common, 0x12), [2, 0, 11, 0]);
    }
}
