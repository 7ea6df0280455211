//! What can go wrong on the driver side, as one type; it is not a back-end's error.

use std::{io, path::PathBuf, time::Duration};

/// Why a step of the front-end failed. Waits say what they waited for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Nothing listens at this path.
    #[error("connecting to {path}: {source}")]
    Connect {
        /// The socket that was asked for.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A system call failed.
    #[error("{doing}: {source}")]
    System {
        /// What was being done.
        doing: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// A wait passed its deadline.
    #[error("waited {limit:?} for {awaited}")]
    Deadline {
        /// What was awaited.
        awaited: String,
        /// How long it was awaited.
        limit: Duration,
    },
    /// The back-end closed the connection.
    #[error("the back-end closed the connection (awaiting {awaited})")]
    Closed {
        /// What was awaited.
        awaited: String,
    },
    /// The back-end answered something that the protocol does not allow.
    #[error("{request}: {reason}")]
    BadReply {
        /// The request that was answered.
        request: &'static str,
        /// What is wrong with the answer.
        reason: String,
    },
    /// The back-end acknowledged a request with a failure.
    #[error("{request}: refused with {code}")]
    Refused {
        /// The request.
        request: &'static str,
        /// The value of the acknowledgement, never 0.
        code: u64,
    },
    /// Feature bits that the caller requires are not offered.
    #[error("{what} {wanted:#x} wanted, {offered:#x} offered")]
    NotOffered {
        /// Which set of bits.
        what: &'static str,
        /// Bits that the caller asked for.
        wanted: u64,
        /// Bits that the back-end offers.
        offered: u64,
    },
    /// No region holds this guest range.
    #[error("guest range {address:#x}+{length:#x} is not in shared memory")]
    NotMemory {
        /// First guest address.
        address: u64,
        /// Length in bytes.
        length: u64,
    },
    /// The allocator of guest addresses has no room left.
    #[error("no region has {length} bytes left (alignment {align})")]
    NoRoom {
        /// Bytes asked for.
        length: u64,
        /// Alignment asked for.
        align: u64,
    },
    /// The ring has fewer free descriptors than the chain needs.
    #[error("ring {ring}: the chain needs {needed} descriptors, {free} are free")]
    RingFull {
        /// Index of the ring.
        ring: u16,
        /// Descriptors that the chain needs.
        needed: usize,
        /// Descriptors that are free.
        free: usize,
    },
    /// The device broke the rules of the used ring.
    #[error("ring {ring}: {reason}")]
    BadUsed {
        /// Index of the ring.
        ring: u16,
        /// Which rule.
        reason: String,
    },
    /// The device signalled the ring's error eventfd.
    #[error("ring {ring}: the device reported an error")]
    RingError {
        /// Index of the ring.
        ring: u16,
    },
    /// The device answered a request with a failure status (block: 1 I/O error, 2 unsupported).
    #[error("the device answered status {status}")]
    Status {
        /// The status byte.
        status: u8,
    },
    /// The caller asked for something that this driver does not do.
    #[error("{0}")]
    Misuse(&'static str),
}

impl Error {
    /// Makes a `map_err` argument for a system call's error.
    pub(crate) fn system<E: Into<io::Error>>(doing: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::System {
            doing,
            source: source.into(),
        }
    }
}
