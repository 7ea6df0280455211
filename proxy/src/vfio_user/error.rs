//! What can be wrong with a message. Two enums, because the consequences differ: behind a
//! [`FrameError`] the stream is lost, behind a [`RequestError`] it is not; [`MapError`] is why
//! memory is one of the latter.

use rustix::io::Errno;
use vudev_virtio::MemoryError;

use super::header::{CommandName, HEADER_SIZE, SKIPPED_MAX};

/// A header after which the stream cannot be followed: the connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A message that is shorter than its own header.
    #[error("{command}: a message of {size} bytes, and its header has {HEADER_SIZE}")]
    Undersized {
        /// What it was to be.
        command: CommandName,
        /// Its size.
        size: u32,
    },
    /// A message so long that reading past it is not worth the time.
    #[error("{command}: a message of {size} bytes, and {SKIPPED_MAX} are the most")]
    Oversized {
        /// What it was to be.
        command: CommandName,
        /// Its size.
        size: u32,
    },
    /// A reply to nothing, for we send no commands, or a type that does not exist.
    #[error("{command}: a message of type {kind}, and only commands are awaited")]
    NoCommand {
        /// What it was to be.
        command: CommandName,
        /// The type in its flags.
        kind: u32,
    },
}

/// A command that is answered with an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// Not a command that we speak.
    #[error("{0} is not supported")]
    Unsupported(CommandName),
    /// More payload than any command of ours has.
    #[error("{command}: a payload of {size} bytes")]
    Oversized {
        /// The command.
        command: CommandName,
        /// Bytes of payload.
        size: usize,
    },
    /// The payload's size is not what the command, or its own contents, call for.
    #[error("{command}: a payload of {size} bytes, and {expected} belong there")]
    PayloadSize {
        /// The command.
        command: CommandName,
        /// Bytes that came.
        size: usize,
        /// Bytes that belong there.
        expected: usize,
    },
    /// Descriptors where none belong, or not as many.
    #[error("{command}: {count} descriptors, and {expected} belong there")]
    Descriptors {
        /// The command.
        command: CommandName,
        /// Descriptors that came. All are closed.
        count: usize,
        /// How many there may be.
        expected: usize,
    },
    /// A field has a value outside its range.
    #[error("{command}: {field} is {value:#x}, {rule}")]
    Value {
        /// The command.
        command: CommandName,
        /// The field's name.
        field: &'static str,
        /// What it holds.
        value: u64,
        /// What is wrong with that.
        rule: &'static str,
    },
    /// The version data is not what the specification makes of JSON.
    #[error("VERSION: its capabilities are no JSON of the specification's")]
    Capabilities,
    /// VERSION comes first, and once.
    #[error("{0}: VERSION comes before all other commands, and once")]
    OutOfOrder(CommandName),
    /// The function has refused.
    #[error("{command}: refused with {errno}")]
    Refused {
        /// The command.
        command: CommandName,
        /// Why.
        errno: Errno,
    },
    /// The function does not take memory.
    #[error("DMA_MAP: {0}")]
    Map(#[from] MapError),
}

/// Why a range of memory is not taken. The client is told the errno only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// Some of it is there.
    #[error("it overlaps a range that is there")]
    Overlap,
    /// As many as there may be.
    #[error("{0} ranges are the most, and are there")]
    Ranges(usize),
    /// As many as there may be.
    #[error("{0} files are the most, and are mapped")]
    Files(usize),
    /// The file ends too early.
    #[error("its file has {size} bytes, and the range ends at {end}")]
    Short {
        /// Bytes of the file.
        size: u64,
        /// Where the range ends in it.
        end: u64,
    },
    /// The file is no memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The file cannot be looked at.
    #[error("its file: {0}")]
    Stat(#[from] Errno),
}

impl MapError {
    /// What the error reply says.
    pub fn errno(&self) -> Errno {
        match self {
            Self::Overlap => Errno::EXIST,
            Self::Ranges(_) | Self::Files(_) => Errno::NOSPC,
            Self::Short { .. } | Self::Memory(_) => Errno::INVAL,
            Self::Stat(errno) => *errno,
        }
    }
}

impl RequestError {
    /// What the error reply says.
    pub fn errno(&self) -> Errno {
        match self {
            Self::Unsupported(_) => Errno::OPNOTSUPP,
            Self::Oversized { .. } => Errno::TOOBIG,
            Self::PayloadSize { .. }
            | Self::Descriptors { .. }
            | Self::Value { .. }
            | Self::Capabilities
            | Self::OutOfOrder(_) => Errno::INVAL,
            Self::Refused { errno, .. } => *errno,
            Self::Map(error) => error.errno(),
        }
    }
}
