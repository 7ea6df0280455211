//! The registers of the software function, and its configuration space. What follows from a write
//! is told, not done.

use vudev_virtio::RingAddresses;

use super::super::capabilities::{CONFIGURATION_SIZE, Window};
use super::super::function::Width;
use super::{BACKEND_UP, Change, Defect, Options};

/// `VIRTIO_MSI_NO_VECTOR`.
pub(super) const NO_VECTOR: u16 = 0xffff;

/// Both features that there are, in the upper half: VERSION_1, ACCESS_PLATFORM.
const FEATURES: u32 = 3;
const DRIVER_OK: u8 = 4;
const FEATURES_OK: u8 = 8;
const NEEDS_RESET: u8 = 64;
/// An identity that says nothing (VVU: "nil").
const NO_UUID: u32 = 0;

/// The registers of a queue.
#[derive(Clone, Copy, Debug)]
pub(super) struct QueueRegisters {
    pub(super) size: u16,
    pub(super) vector: u16,
    enable: u16,
    /// Descriptor table, driver area, device area, in halves.
    addresses: [u32; 6],
}

impl QueueRegisters {
    pub(super) fn addresses(&self) -> RingAddresses {
        let address = |part: usize| {
            u64::from(self.addresses[2 * part]) | u64::from(self.addresses[2 * part + 1]) << 32
        };
        RingAddresses {
            descriptors: address(0),
            available: address(1),
            used: address(2),
        }
    }
}

/// All registers.
pub(super) struct Registers {
    options: Options,
    device_feature_select: u32,
    driver_feature_select: u32,
    driver_features: [u32; 2],
    pub(super) config_vector: u16,
    status: u8,
    queue_select: u16,
    queues: [QueueRegisters; 2],
    pub(super) vvu_status: u32,
    notification_select: u16,
    notification_vectors: Vec<u16>,
}

impl Registers {
    pub(super) fn new(options: &Options) -> Self {
        let queue = QueueRegisters {
            size: options.queue_size,
            vector: NO_VECTOR,
            enable: 0,
            addresses: [0; 6],
        };
        Self {
            options: options.clone(),
            device_feature_select: 0,
            driver_feature_select: 0,
            driver_features: [0; 2],
            config_vector: NO_VECTOR,
            status: 0,
            queue_select: 0,
            queues: [queue; 2],
            vvu_status: 0,
            notification_select: 0,
            notification_vectors: vec![NO_VECTOR; usize::from(options.max_vhost_queues)],
        }
    }

    pub(super) fn queue(&self, index: u16) -> QueueRegisters {
        self.queues[usize::from(index)]
    }

    pub(super) fn fail(&mut self) {
        self.status |= NEEDS_RESET;
    }

    /// The vector of a queue's kicks.
    pub(super) fn notification_vector(&self, queue: u16) -> u16 {
        let vector = self.notification_vectors.get(usize::from(queue));
        vector.copied().unwrap_or(NO_VECTOR)
    }

    pub(super) fn read(&self, window: Window, at: u64, width: Width) -> u32 {
        match window {
            Window::Common => self.read_common(at, width),
            Window::Device => match (at, width) {
                (0, Width::Double) => self.vvu_status,
                (4, Width::Double) => self.options.max_vhost_queues.into(),
                (8 | 12 | 16 | 20, Width::Double) => NO_UUID,
                _ => panic!("read of {width:?} at {at} of the device configuration"),
            },
            Window::Notification => match (at, width) {
                (0, Width::Word) => self.notification_select.into(),
                (2, Width::Word) => self.notification_vector(self.notification_select).into(),
                _ => panic!("read of {width:?} at {at} of the notification window"),
            },
            Window::Isr | Window::Notify | Window::Doorbell => 0,
        }
    }

    fn read_common(&self, at: u64, width: Width) -> u32 {
        let queue = self.queues.get(usize::from(self.queue_select));
        let queues = match self.options.defect {
            Some(Defect::Queues(count)) => count,
            _ => 2,
        };
        match (at, width) {
            (0, Width::Double) => self.device_feature_select,
            (4, Width::Double) => match (self.device_feature_select, self.options.defect) {
                (1, Some(Defect::Offers(features))) => features,
                (1, _) => FEATURES,
                _ => 0,
            },
            (16, Width::Word) => self.config_vector.into(),
            (18, Width::Word) => queues.into(),
            (20, Width::Byte) => self.status.into(),
            (22, Width::Word) => self.queue_select.into(),
            (24, Width::Word) => queue.map_or(0, |queue| queue.size.into()),
            (26, Width::Word) => queue.map_or(NO_VECTOR, |queue| queue.vector).into(),
            (28, Width::Word) => queue.map_or(0, |queue| queue.enable.into()),
            (30, Width::Word) => match self.options.defect {
                Some(Defect::NotifyOffset(offset)) => offset.into(),
                _ => self.queue_select.into(),
            },
            _ => panic!("read of {width:?} at {at} of the common configuration"),
        }
    }

    pub(super) fn write(&mut self, window: Window, at: u64, width: Width, value: u32) -> Change {
        let word = u16::try_from(value).unwrap_or(NO_VECTOR);
        match (window, at, width) {
            (Window::Common, 20, Width::Byte) => {
                return self.write_status(u8::try_from(value).expect("a byte"));
            }
            (Window::Common, ..) => self.write_common(at, width, value, word),
            (Window::Device, 0, Width::Double) => {
                if self.options.defect == Some(Defect::ForgetsBackend) {
                    return Change::Nothing;
                }
                // A driver without its bit takes the front-end's with it.
                self.vvu_status = match value & BACKEND_UP {
                    0 => 0,
                    up => self.vvu_status | up,
                };
                return Change::Status;
            }
            (Window::Notification, 0, Width::Word) => self.notification_select = word,
            (Window::Notification, 2, Width::Word) => {
                let vector = self.lawful_vector(word);
                let select = usize::from(self.notification_select);
                if let Some(place) = self.notification_vectors.get_mut(select) {
                    *place = vector;
                }
            }
            _ => panic!("write of {width:?} at {at} of the {window} window"),
        }
        Change::Nothing
    }

    fn write_common(&mut self, at: u64, width: Width, value: u32, word: u16) {
        let vector = self.lawful_vector(word);
        let queue = &mut self.queues[usize::from(self.queue_select)];
        match (at, width) {
            (0, Width::Double) => self.device_feature_select = value,
            (8, Width::Double) => self.driver_feature_select = value,
            (12, Width::Double) => {
                let half = usize::try_from(self.driver_feature_select).expect("a half");
                self.driver_features[half] = value;
            }
            (16, Width::Word) => self.config_vector = vector,
            (22, Width::Word) => self.queue_select = word,
            (24, Width::Word) => {
                assert!(word.is_power_of_two() && word <= self.options.queue_size);
                queue.size = word;
            }
            (26, Width::Word) => queue.vector = vector,
            (28, Width::Word) => queue.enable = word,
            (32..=52, Width::Double) if at.is_multiple_of(4) => {
                let part = usize::try_from((at - 32) / 4).expect("one of six");
                queue.addresses[part] = value;
            }
            _ => panic!("write of {width:?} at {at} of the common configuration"),
        }
    }

    fn write_status(&mut self, status: u8) -> Change {
        if status == 0 {
            if self.options.defect == Some(Defect::NeverResets) {
                self.status |= 1;
                return Change::Nothing;
            }
            *self = Self::new(&self.options);
            return Change::Reset;
        }
        let started = status & !self.status & DRIVER_OK != 0;
        self.status = status;
        if self.options.defect == Some(Defect::RefusesFeatures) {
            self.status &= !FEATURES_OK;
        }
        if !started {
            return Change::Nothing;
        }
        assert_eq!(self.driver_features, [0, FEATURES]);
        assert!(self.queues.iter().all(|queue| queue.enable == 1));
        Change::Start
    }

    /// A vector that does not exist reads back as none (virtio 1.3, 4.1.5.1.2).
    fn lawful_vector(&self, vector: u16) -> u16 {
        let count = match self.options.defect {
            Some(Defect::VectorsUpTo(last)) => last + 1,
            _ => self.options.vectors,
        };
        if vector < count { vector } else { NO_VECTOR }
    }
}

/// The capabilities, in the layout of crosvm's device: registers in bar 0, doorbells in bar 2,
/// memory in bar 4.
pub(super) fn configuration(shared_memory: u64) -> [u8; CONFIGURATION_SIZE] {
    let mut bytes = [0; CONFIGURATION_SIZE];
    (bytes[0x06], bytes[0x34]) = (0x10, 0x40);
    let mut at = 0x40;
    let (low, high) = (shared_memory & 0xffff_ffff, shared_memory >> 32);
    // Kind, bar, offset, size, and the words behind them.
    let capabilities: [(u8, u8, u64, u64, &[u64]); 7] = [
        (1, 0, 0, 0x38, &[]),
        (2, 0, 0x3000, 0x1000, &[4]),
        (3, 0, 0x1000, 1, &[]),
        (4, 0, 0x2000, 24, &[]),
        (6, 2, 0, 0x2000, &[4]),
        (7, 2, 0x2000, 0x1000, &[]),
        (8, 4, 0, low, &[0, high]),
    ];
    for (number, (kind, bar, offset, size, behind)) in capabilities.into_iter().enumerate() {
        let length = 16 + 4 * behind.len();
        let next = if number == 6 { 0 } else { at + length };
        let byte = |value: usize| u8::try_from(value).expect("within the space");
        bytes[at..at + 5].copy_from_slice(&[0x09, byte(next), byte(length), kind, bar]);
        let words = [offset, size];
        for (place, word) in (at + 8..).step_by(4).zip(words.iter().chain(behind)) {
            let word = u32::try_from(*word).expect("half a number");
            bytes[place..place + 4].copy_from_slice(&word.to_le_bytes());
        }
        at += length;
    }
    bytes
}
