//! What a device author implements. Not how a device is started, stopped or reset: the framework
//! (a session, or an embedding VMM) owns that and calls in.

use std::future::Future;
use std::ops::Range;
use std::rc::Rc;

use crate::queue::{Queue, QueueError};
use crate::spec::QUEUE_SIZE_MAX;

/// Feature bits of queues and transports, and those kept back for them (virtio 1.3, 2.2): a device
/// has 0 to 23 and 50 to 63 of this word.
const FEATURES_NOT_OF_DEVICES: u64 = ((1 << 50) - 1) & !((1 << 24) - 1);

/// What a device is, before any driver has spoken to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The virtio device type, of [`crate::spec::device_id`].
    pub device_id: u32,
    /// The device's own feature bits. Those of [`crate::spec::feature::FRAMEWORK`] come on top.
    pub features: u64,
    /// The greatest size of each queue: powers of two, at most [`crate::spec::QUEUE_SIZE_MAX`].
    pub queue_sizes: Vec<u16>,
    /// Bytes of the configuration space: all that [`Device::read_config`] is ever asked for. Over
    /// vhost-user a driver sees the first 256.
    pub config_size: usize,
    /// How many ring operations the device has in flight at most, over all queues: reads, writes,
    /// syncs and waits for readiness, its own tasks' too. Timers are none. The ring is made this
    /// large; what goes beyond it waits for a slot, so a count too small costs speed and no more.
    pub operations: u32,
}

impl Identity {
    /// Whether a device can be this. A host asks before a driver comes, so that a mistake of the
    /// author's is not reported as one of the driver's.
    ///
    /// # Errors
    ///
    /// The first thing that cannot be.
    pub fn check(&self) -> Result<(), IdentityError> {
        if self.device_id == 0 {
            return Err(IdentityError::DeviceId);
        }
        let bits = self.features & FEATURES_NOT_OF_DEVICES;
        if bits != 0 {
            return Err(IdentityError::Features { bits });
        }
        let sizes = self.queue_sizes.iter().enumerate();
        let unlawful = |size: u16| !size.is_power_of_two() || size > QUEUE_SIZE_MAX;
        match sizes
            .map(|(queue, &size)| (queue, size))
            .find(|&(_, size)| unlawful(size))
        {
            Some((queue, size)) => Err(IdentityError::QueueSize { queue, size }),
            None => Ok(()),
        }
    }

    /// `length` bytes of configuration space from `offset` on, or `None` if they end behind it.
    pub fn config_range(&self, offset: usize, length: usize) -> Option<Range<usize>> {
        let end = offset.checked_add(length)?;
        (end <= self.config_size).then_some(offset..end)
    }
}

/// What a device says of itself cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// 0 is no device, for a driver (5).
    #[error("device_id 0 is no device: virtio 1.3, 5, has the numbers")]
    DeviceId,
    /// Bits that the framework offers, or that nobody may.
    #[error("features {bits:#x} are not a device's to offer (0 to 23, 50 to 63)")]
    Features {
        /// Those bits.
        bits: u64,
    },
    /// No driver could make a ring of it.
    #[error("queue {queue}: size {size} is no power of two up to {QUEUE_SIZE_MAX}")]
    QueueSize {
        /// Which queue.
        queue: usize,
        /// Its size.
        size: u16,
    },
}

/// A device, on one thread, so shared state is `Cell` and `RefCell`.
pub trait Device: 'static {
    /// What this device is. Constant while it lives, but for sizes a driver reads anew.
    fn identity(&self) -> Identity;

    /// Reads configuration space, any range of it and not field by field. The caller has checked
    /// that `offset + into.len()` lies within [`Identity::config_size`], so of a space that is an
    /// array of that size this is `into.copy_from_slice(&space[offset..offset + into.len()])`.
    fn read_config(&self, offset: usize, into: &mut [u8]);

    /// Writes configuration space, within bounds as for [`Device::read_config`].
    ///
    /// # Errors
    ///
    /// A device without fields for the driver to write refuses, as this default does.
    fn write_config(&self, offset: usize, from: &[u8]) -> Result<(), ConfigReadOnly> {
        let _ = from;
        Err(ConfigReadOnly { offset })
    }

    /// Completes when the configuration space has changed since this last completed, and not by the
    /// driver's doing: a driver that wants to know is then told to read it again. One waits at a
    /// time, and a wait that is dropped loses nothing; `vudev_executor::Notify` is made for it. A
    /// device whose configuration never changes waits for ever, as this default does.
    fn config_changed(&self) -> impl Future<Output = ()> {
        std::future::pending()
    }

    /// Told which features the driver took, those of the framework among them, before any queue
    /// starts. [`Queue::features`] says the same.
    fn negotiated(&self, features: u64) {
        let _ = features;
    }

    /// Serves one queue, in a task of its own, until [`Queue::next`] gives `None`, and returns with
    /// every chain it took completed or put back. [`Queue::serve`] does all of that. Called anew
    /// each time the driver starts the queue.
    ///
    /// A return before that is warned of, and the queue is dead until the driver starts it again.
    /// A future that does not return is dropped when the time for draining is over.
    ///
    /// # Errors
    ///
    /// Those of [`Queue::next`], passed on: the queue is retired, if it is not yet.
    fn serve(self: Rc<Self>, queue: Queue) -> impl Future<Output = Result<(), QueueError>>;

    /// Back to the state before a driver came: it is called when a front-end leaves or resets the
    /// device, and the next one must find nothing of the last. No queue runs then. A queue's own
    /// stop and restart is no reset: what a driver set up outlives it.
    fn reset(&self) {}
}

/// The driver wrote to a field that only the device writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the configuration space is read-only at offset {offset}")]
pub struct ConfigReadOnly {
    /// Where the write began.
    pub offset: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_of_configuration_space_ends_within_it() {
        let identity = Identity {
            device_id: 4,
            features: 0,
            queue_sizes: Vec::new(),
            config_size: 8,
            operations: 0,
        };
        assert_eq!(identity.config_range(0, 8), Some(0..8));
        assert_eq!(identity.config_range(8, 0), Some(8..8));
        for (offset, length) in [(8, 1), (0, 9), (9, 0), (1, usize::MAX), (usize::MAX, 1)] {
            assert_eq!(identity.config_range(offset, length), None);
        }
    }

    #[test]
    fn what_a_device_cannot_be_is_told_with_its_place() {
        let lawful = Identity {
            device_id: 4,
            features: 1 << 23 | 1 << 50,
            queue_sizes: vec![1, QUEUE_SIZE_MAX],
            config_size: 0,
            operations: 0,
        };
        assert_eq!(lawful.check(), Ok(()));
        let reserved = Identity {
            device_id: 0,
            ..lawful.clone()
        };
        assert_eq!(reserved.check(), Err(IdentityError::DeviceId));
        for bits in [1 << 24, crate::spec::feature::VERSION_1, 1 << 49] {
            let features = bits | 1;
            let identity = Identity {
                features,
                ..lawful.clone()
            };
            assert_eq!(identity.check(), Err(IdentityError::Features { bits }));
        }
        for size in [0, 63] {
            let queue_sizes = vec![64, size];
            let identity = Identity {
                queue_sizes,
                ..lawful.clone()
            };
            let refused = IdentityError::QueueSize { queue: 1, size };
            assert_eq!(identity.check(), Err(refused));
        }
    }
}
