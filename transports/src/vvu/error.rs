//! What a virtio-vhost-user function can do wrong, or lack. Each says what can be done about it.

use std::io;
use std::time::Duration;

use vudev_executor::EventError;
use vudev_virtio::MemoryError;

use super::capabilities::Window;

/// Why a function cannot be used, or not any more.
#[derive(Debug, thiserror::Error)]
pub enum FunctionError {
    /// Fewer vectors than it takes.
    #[error("the VVU device has {actual} MSI-X vectors, and {least} is the least")]
    Vectors {
        /// What it has.
        actual: usize,
        /// What is needed.
        least: u16,
    },
    /// Fewer doorbells than the device behind us has queues.
    #[error(
        "the VVU device forwards {actual} queues, and this device has {wanted}: give it fewer, or \
         the VVU device more"
    )]
    Queues {
        /// What it forwards.
        actual: u32,
        /// What is needed.
        wanted: u16,
    },
    /// The window that it shows memory through does not hold the DMA area, or memory cannot be had.
    #[error("the DMA area: {0}")]
    Dma(#[source] MemoryError),
    /// A window that cannot be mapped.
    #[error("the {window} window of the VVU device cannot be mapped: {source}")]
    Map {
        /// Which one.
        window: Window,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A register that it names is not in the window.
    #[error(
        "the VVU device names a register at {at:#x} of its {window} window, which has {size:#x}"
    )]
    RegisterOutside {
        /// The window.
        window: Window,
        /// Where it was to be.
        at: u64,
        /// The window's bytes.
        size: u64,
    },
    /// Its status does not become 0.
    #[error(
        "the VVU device was told to reset and has not within {limit:?}: restart its other side"
    )]
    NoReset {
        /// How long we waited.
        limit: Duration,
    },
    /// A feature that we cannot do without is not offered.
    #[error("the VVU device does not offer {name}: {remedy}")]
    FeatureMissing {
        /// The feature.
        name: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// It does not accept the features that it offered.
    #[error("the VVU device does not accept the features that it offered")]
    FeaturesRefused,
    /// It has not both queues.
    #[error("the VVU device has no queue {0}: not a virtio-vhost-user device")]
    QueueMissing(u16),
    /// A vector that was set reads back as another.
    #[error("the VVU device does not take MSI-X vector {vector} for {what}")]
    VectorRefused {
        /// The vector.
        vector: u16,
        /// What for.
        what: &'static str,
    },
    /// It says so itself.
    #[error("the VVU device has failed and wants a reset")]
    NeedsReset,
    /// More buffers came back than it was given.
    #[error("queue {queue} of the VVU device: {used} buffers came back of {outstanding}")]
    TooManyUsed {
        /// The queue.
        queue: u16,
        /// How many it says.
        used: u16,
        /// How many it had.
        outstanding: u16,
    },
    /// A buffer came back that it does not have.
    #[error("queue {queue} of the VVU device: buffer {buffer} came back, which it does not have")]
    UnknownBuffer {
        /// The queue.
        queue: u16,
        /// The buffer.
        buffer: u32,
    },
    /// It says that it has written more than there was room for.
    #[error("queue {queue} of the VVU device: {length} bytes in a buffer of {room}")]
    UsedLength {
        /// The queue.
        queue: u16,
        /// How many it says.
        length: u32,
        /// How many fit.
        room: u32,
    },
    /// The eventfd of a vector cannot be used.
    #[error("the eventfd of an MSI-X vector: {0}")]
    Event(#[from] EventError),
    /// The kernel refused.
    #[error("{operation}: {source}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl FunctionError {
    pub(super) fn io(operation: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { operation, source }
    }
}
