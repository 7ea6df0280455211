//! What can be wrong with a message. Two enums, because the consequences differ: behind a
//! [`FrameError`] the stream is lost, behind a [`MessageError`] it is not.

use vudev_virtio::MemoryError;

use super::code::MessageName;

/// A header after which the stream cannot be followed: the connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The version in the flags is not 1.
    #[error("{message}: protocol version {version}, not 1")]
    Version {
        /// The message.
        message: MessageName,
        /// The version it claims.
        version: u32,
    },
    /// The flags say that it is a reply, and we send no requests.
    #[error("{message}: a reply to nothing")]
    UnexpectedReply {
        /// The message.
        message: MessageName,
    },
    /// The payload is larger than any message may be.
    #[error("{message}: payload of {size} bytes, at most {max} are allowed")]
    Oversized {
        /// The message.
        message: MessageName,
        /// Its size.
        size: u32,
        /// The limit.
        max: usize,
    },
}

/// Contents that break the rules of their message. The message was whole, so what follows can be
/// read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// Not a message that we speak.
    #[error("{message} is not supported")]
    Unsupported {
        /// The message.
        message: MessageName,
    },
    /// The payload is too short or too long for this message.
    #[error("{message}: payload of {size} bytes, {least} to {most} are allowed")]
    PayloadSize {
        /// The message.
        message: MessageName,
        /// Bytes that came.
        size: usize,
        /// The least.
        least: usize,
        /// The most.
        most: usize,
    },
    /// Descriptors where none belong, or too few, or too many.
    #[error("{message}: {count} descriptors, {expected} expected")]
    Descriptors {
        /// The message.
        message: MessageName,
        /// Descriptors that came. All are closed.
        count: usize,
        /// What the payload calls for.
        expected: usize,
    },
    /// A field has a value outside its range.
    #[error("{message}: {field} is {value:#x}, {rule}")]
    Value {
        /// The message.
        message: MessageName,
        /// The field's name.
        field: &'static str,
        /// What it holds.
        value: u64,
        /// What it must be.
        rule: &'static str,
    },
    /// An eventfd of ours that cannot be handed on.
    #[error("{message}: its eventfd cannot be duplicated (error {errno})")]
    Event {
        /// The message.
        message: MessageName,
        /// The kernel's error.
        errno: i32,
    },
    /// Memory that cannot be used as it was described.
    #[error("{message}: {source}")]
    Memory {
        /// The message.
        message: MessageName,
        /// Why not.
        source: MemoryError,
    },
}
