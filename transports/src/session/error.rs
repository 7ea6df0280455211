//! Why a request is refused, and why a session ends. Not what is wrong with bytes: that is
//! [`MessageError`].

use std::time::Duration;

use vudev_executor::EventError;
use vudev_virtio::{ConfigReadOnly, MemoryError, QueueError, RegionLayout};

use crate::message::{MessageError, MessageName, ProtocolFeatures};
use crate::transport::TransportError;

/// Why a session ended that was not ended by its front-end leaving.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// Nothing more can be received or sent.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// A request was refused, and the front-end had not asked to be told, so it would go on in the
    /// belief that it was done.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// A file behind guest memory shrank under us.
    #[error("guest memory was lost: its file has shrunk")]
    MemoryLost,
}

/// A request that was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// It breaks the rules of its message.
    #[error(transparent)]
    Malformed(#[from] MessageError),
    /// It is not allowed now, or not possible.
    #[error("{message}: {reason}")]
    Denied {
        /// The message.
        message: MessageName,
        /// Why not.
        #[source]
        reason: Reason,
    },
}

/// Why a well-formed request cannot be carried out.
#[derive(Debug, thiserror::Error)]
pub enum Reason {
    /// The message belongs to a feature that was not agreed upon.
    #[error("protocol feature {0} was not negotiated")]
    NotNegotiated(ProtocolFeatures),
    /// The driver takes what was not offered.
    #[error("feature bits {extra:#x} were not offered")]
    FeaturesNotOffered {
        /// The bits.
        extra: u64,
    },
    /// Features are constant while a ring runs.
    #[error("features cannot change while a ring runs")]
    FeaturesWhileRunning,
    /// The device has fewer rings.
    #[error("ring {index} does not exist, the device has {count}")]
    NoSuchRing {
        /// The ring.
        index: u16,
        /// How many there are.
        count: usize,
    },
    /// A ring cannot do that.
    #[error("ring {index}: {reason}")]
    Ring {
        /// The ring.
        index: u16,
        /// Why not.
        #[source]
        reason: RingError,
    },
    /// A backend channel is a Unix stream socket.
    #[error("the backend channel is not a Unix stream socket")]
    NotASocket,
    /// Memory cannot be put together like that.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// More regions than slots.
    #[error("all {0} memory slots are in use")]
    NoMemorySlot(usize),
    /// REM_MEM_REG of what was never added.
    #[error("no memory region like {0:x?}")]
    NoSuchRegion(RegionLayout),
    /// Operations hold on to memory that is to go.
    #[error("memory is still in use by operations that do not end")]
    MemoryInUse,
    /// The range ends behind the device's configuration space.
    #[error("{length} bytes at offset {offset}, the configuration space has {size}")]
    ConfigRange {
        /// Where.
        offset: u16,
        /// How many.
        length: usize,
        /// How many there are.
        size: usize,
    },
    /// The device does not let the driver write there.
    #[error(transparent)]
    ConfigReadOnly(#[from] ConfigReadOnly),
}

impl Reason {
    /// Whether an answer would be a lie, so that only the connection's end is left: the front-end
    /// must not reuse memory or indices of a ring that still has operations in flight.
    pub(super) fn is_fatal(&self) -> bool {
        match self {
            Self::Ring { index: _, reason } => reason.is_fatal(),
            Self::MemoryInUse => true,
            Self::NotNegotiated(_)
            | Self::FeaturesNotOffered { .. }
            | Self::FeaturesWhileRunning
            | Self::NoSuchRing { .. }
            | Self::NotASocket
            | Self::Memory(_)
            | Self::NoMemorySlot(_)
            | Self::NoSuchRegion(_)
            | Self::ConfigRange { .. }
            | Self::ConfigReadOnly(_) => false,
        }
    }
}

/// Why a ring cannot be set up, started or stopped.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// Larger than the device allows.
    #[error("size {size}, the device allows {max}")]
    Size {
        /// The size.
        size: u16,
        /// The greatest.
        max: u16,
    },
    /// Size, addresses and base belong to a ring that stands still.
    #[error("it is running: {field} cannot change")]
    Running {
        /// What was to change.
        field: &'static str,
    },
    /// Kick, call or error is not what it should be.
    #[error("{which}: {source}")]
    Event {
        /// Which of the three.
        which: &'static str,
        /// Why not.
        source: EventError,
    },
    /// A part of the ring is not in the memory that was shared.
    #[error("{part} at user address {address:#x} is in no memory region")]
    AddressOutside {
        /// Which part.
        part: &'static str,
        /// Where the front-end says it is.
        address: u64,
    },
    /// A legacy driver, whose rings have another layout and byte order.
    #[error("the driver has not accepted VIRTIO_F_VERSION_1; legacy drivers are not served")]
    LegacyDriver,
    /// The queue refuses.
    #[error("it cannot start: {0}")]
    Start(#[source] QueueError),
    /// What it has in flight did not end.
    #[error("operations in flight did not end within {limit:?}")]
    NotDrained {
        /// How long we waited.
        limit: Duration,
    },
}

impl RingError {
    /// As [`Reason::is_fatal`].
    fn is_fatal(&self) -> bool {
        match self {
            Self::NotDrained { .. } => true,
            Self::Size { .. }
            | Self::Running { .. }
            | Self::Event { .. }
            | Self::AddressOutside { .. }
            | Self::LegacyDriver
            | Self::Start(_) => false,
        }
    }
}
