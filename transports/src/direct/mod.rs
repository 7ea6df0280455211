//! A device inside this process: memory, rings and eventfds come by value, and no message is ever
//! written. For VMMs that embed a device, and for tests of devices. Not a driver: who fills the
//! rings is the caller's affair.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use futures_util::future::join_all;
use vudev_executor::{Call, EventError, Handle, Kick, Notify};
use vudev_virtio::spec::feature::VERSION_1;
use vudev_virtio::{
    ConfigReadOnly, Device, GuestMemory, Identity, IdentityError, QueueError, QueueParts,
    RingAddresses,
};

use crate::features;
use crate::running::{self, DRAIN_LIMIT, RunningQueue};

/// A device with its driver's memory and features. Dropping it drops its queues, with whatever they
/// have in flight; [`Direct::reset`] drains them first.
pub struct Direct<D> {
    handle: Handle,
    device: Rc<D>,
    identity: Identity,
    memory: Rc<GuestMemory>,
    features: u64,
    queues: BTreeMap<u16, RunningQueue>,
    /// Chains that the device lost on queues that were stopped.
    dropped: BTreeMap<u16, usize>,
    changed: Rc<Notify>,
}

/// A ring, ready to run.
#[derive(Debug)]
pub struct DirectRing {
    /// Which of the device's queues.
    pub index: u16,
    /// Its size: a power of two, at most what the device allows.
    pub size: u16,
    /// Where its parts are, in guest addresses.
    pub rings: RingAddresses,
    /// Where to begin: 0 for a fresh ring, or what [`Direct::stop`] said.
    pub next_available: u16,
    /// The eventfd that the driver kicks. `None`: the ring is polled.
    pub kick: Option<OwnedFd>,
    /// The eventfd by which the driver is called. `None`: the driver polls.
    pub call: Option<OwnedFd>,
    /// The eventfd that says that the queue was retired.
    pub error: Option<OwnedFd>,
}

impl DirectRing {
    /// A fresh ring without eventfds: each side looks at it now and then. With others, write
    /// `DirectRing { kick: Some(kick), ..DirectRing::polled(index, size, rings) }`.
    pub fn polled(index: u16, size: u16, rings: RingAddresses) -> Self {
        Self {
            index,
            size,
            rings,
            next_available: 0,
            kick: None,
            call: None,
            error: None,
        }
    }
}

/// Why a device cannot be used like that.
#[derive(Debug, thiserror::Error)]
pub enum DirectError {
    /// The device contradicts the specification.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The features were not offered, or VERSION_1 is missing.
    #[error("features {wanted:#x}, offered are {offered:#x}, and VERSION_1 is needed")]
    Features {
        /// What the driver would take.
        wanted: u64,
        /// What there is.
        offered: u64,
    },
    /// The device has fewer queues.
    #[error("queue {index} does not exist, the device has {count}")]
    NoSuchQueue {
        /// The queue.
        index: u16,
        /// How many there are.
        count: usize,
    },
    /// The size is no power of two, or larger than the device allows.
    #[error("queue {index}: size {size} is no power of two up to {max}")]
    Size {
        /// The queue.
        index: u16,
        /// The size.
        size: u16,
        /// The greatest.
        max: u16,
    },
    /// It runs already.
    #[error("queue {0} is running")]
    Running(u16),
    /// It does not run.
    #[error("queue {0} is not running")]
    NotRunning(u16),
    /// A descriptor that is no eventfd.
    #[error(transparent)]
    Event(#[from] EventError),
    /// The queue refuses its ring or its memory.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// Operations in flight did not end in time. The queue was dropped.
    #[error("queue {0}: operations in flight did not end in time")]
    NotDrained(u16),
    /// The range ends behind the device's configuration space.
    #[error("{length} bytes at offset {offset}, the configuration space has {size}")]
    ConfigRange {
        /// Where.
        offset: usize,
        /// How many.
        length: usize,
        /// How many there are.
        size: usize,
    },
    /// The device does not let the driver write there.
    #[error(transparent)]
    ConfigReadOnly(#[from] ConfigReadOnly),
}

impl<D: Device> Direct<D> {
    /// What a driver may take of `device`.
    pub fn offered(device: &D) -> u64 {
        features::offered(&device.identity())
    }

    /// Gives `device` its driver's memory, and the features that the driver takes.
    ///
    /// # Errors
    ///
    /// When the device says what cannot be ([`Identity::check`]), or the features were not offered
    /// or VERSION_1 is not among them.
    pub fn new(
        handle: &Handle,
        device: Rc<D>,
        memory: Rc<GuestMemory>,
        features: u64,
    ) -> Result<Self, DirectError> {
        let identity = device.identity();
        identity.check()?;
        let offered = features::offered(&identity);
        if features & !offered != 0 || features & VERSION_1 == 0 {
            return Err(DirectError::Features {
                wanted: features,
                offered,
            });
        }
        device.negotiated(features);
        let changed = Rc::new(Notify::new());
        Ok(Self {
            handle: handle.clone(),
            device,
            identity,
            memory,
            features,
            queues: BTreeMap::new(),
            dropped: BTreeMap::new(),
            changed,
        })
    }

    /// Starts a queue.
    ///
    /// # Errors
    ///
    /// When it does not exist, runs already, or cannot run like that.
    pub fn start(&mut self, ring: DirectRing) -> Result<(), DirectError> {
        let DirectRing {
            index,
            size,
            rings,
            next_available,
            kick,
            call,
            error,
        } = ring;
        let count = self.identity.queue_sizes.len();
        let Some(&max) = self.identity.queue_sizes.get(usize::from(index)) else {
            return Err(DirectError::NoSuchQueue { index, count });
        };
        if !size.is_power_of_two() || size > max {
            return Err(DirectError::Size { index, size, max });
        }
        if self.queues.contains_key(&index) {
            return Err(DirectError::Running(index));
        }
        let call_by = |event: Option<OwnedFd>| {
            event
                .map(|event| Call::new(&self.handle, event))
                .transpose()
        };
        let parts = QueueParts {
            index,
            size,
            rings,
            next_available,
            features: self.features,
            memory: self.memory.clone(),
            kick: kick
                .map(|event| Kick::new(&self.handle, event))
                .transpose()?,
            call: call_by(call)?,
            error: call_by(error)?,
        };
        let queue = RunningQueue::start(&self.handle, &self.device, parts, self.changed.clone())?;
        self.queues.insert(index, queue);
        Ok(())
    }

    /// Stops a queue, waits until nothing of it is in flight, and tells where it would go on.
    ///
    /// # Errors
    ///
    /// When it does not run, or does not drain within 30 seconds.
    pub async fn stop(&mut self, index: u16) -> Result<u16, DirectError> {
        let queue = self
            .queues
            .get_mut(&index)
            .ok_or(DirectError::NotRunning(index))?;
        let drained = queue.stop(&self.handle, DRAIN_LIMIT).await;
        let next_available = queue.control().next_available();
        *self.dropped.entry(index).or_default() += queue.control().dropped();
        self.queues.remove(&index);
        if drained {
            Ok(next_available)
        } else {
            Err(DirectError::NotDrained(index))
        }
    }

    /// Waits until a queue has ended, by itself (it was retired) or because it was stopped.
    pub async fn ended(&self, index: u16) {
        while self
            .queues
            .get(&index)
            .is_some_and(|queue| !queue.has_ended())
        {
            self.changed.notified().await;
        }
    }

    /// How many of a queue's chains the device has dropped so far, neither completed nor put back:
    /// a mistake of its author's, and the driver waits for them in vain. Those of a queue that did
    /// not end and was dropped with what it had are not counted.
    pub fn dropped(&self, index: u16) -> usize {
        let running = self.queues.get(&index);
        let now = running.map_or(0, |queue| queue.control().dropped());
        let before = self.dropped.get(&index).copied().unwrap_or_default();
        before + now
    }

    /// Puts other memory under all queues, each between two chains. What is in flight keeps the
    /// old.
    ///
    /// # Errors
    ///
    /// That of the first queue whose ring is not in the new memory. Such queues are dropped.
    pub fn set_memory(&mut self, memory: Rc<GuestMemory>) -> Result<(), DirectError> {
        let mut outcome = Ok(());
        let swapped = self.queues.extract_if(.., |_, queue| {
            let swapped = queue.control().set_memory(memory.clone());
            let failed = swapped.is_err();
            if let (Err(error), Ok(())) = (swapped, &outcome) {
                outcome = Err(error.into());
            }
            failed
        });
        drop(swapped.collect::<Vec<_>>());
        self.memory = memory;
        outcome
    }

    /// Reads configuration space.
    ///
    /// # Errors
    ///
    /// When the range ends behind it.
    pub fn read_config(&self, offset: usize, into: &mut [u8]) -> Result<(), DirectError> {
        self.check_config(offset, into.len())?;
        self.device.read_config(offset, into);
        Ok(())
    }

    /// Writes configuration space.
    ///
    /// # Errors
    ///
    /// When the range ends behind it, or the device does not let the driver write there.
    pub fn write_config(&self, offset: usize, from: &[u8]) -> Result<(), DirectError> {
        self.check_config(offset, from.len())?;
        Ok(self.device.write_config(offset, from)?)
    }

    /// Stops and drains all queues, for 30 seconds at most, and resets the device.
    pub async fn reset(mut self) {
        self.queues.values().for_each(RunningQueue::ask_to_stop);
        let drained = join_all(self.queues.values_mut().map(RunningQueue::drained));
        if self.handle.timeout(DRAIN_LIMIT, drained).await.is_none() {
            log::warn!("operations in flight did not end in time and are cancelled");
        }
        self.queues.clear();
        running::reset(&self.handle, &*self.device).await;
    }

    fn check_config(&self, offset: usize, length: usize) -> Result<(), DirectError> {
        match self.identity.config_range(offset, length) {
            Some(_) => Ok(()),
            None => Err(DirectError::ConfigRange {
                offset,
                length,
                size: self.identity.config_size,
            }),
        }
    }
}
