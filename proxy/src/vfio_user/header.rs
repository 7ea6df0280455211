//! The sixteen bytes before every message, and whether the stream behind them can be followed.

use std::fmt;

use super::error::FrameError;
use super::request::{Command, DATA_MAX};

/// Bytes of a header: id and command of 16 bits each, size, flags and error of 32 bits each.
pub const HEADER_SIZE: usize = 16;

/// The largest payload that is read: REGION_WRITE with all the data that we take.
pub const PAYLOAD_MAX: usize = 16 + DATA_MAX;

/// The longest message that is read past and refused, where one byte more ends the connection: a
/// REGION_WRITE of the specification's default `max_data_xfer_size`.
pub const SKIPPED_MAX: u32 = 16 + 16 + (1 << 20);

const TYPE_MASK: u32 = 0xf;
const TYPE_REPLY: u32 = 0x1;
const NO_REPLY: u32 = 1 << 4;
const ERROR: u32 = 1 << 5;

/// A command's header. Right by construction: it is a command, and its payload can be read or read
/// past.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    id: u16,
    command: u16,
    no_reply: bool,
    payload_size: usize,
}

/// A command's name for people: `REGION_READ`, or `command 99` for one that the specification does
/// not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommandName(pub u16);

impl Header {
    /// Reads a header.
    ///
    /// # Errors
    ///
    /// When the stream cannot be followed any further.
    pub fn parse(bytes: [u8; HEADER_SIZE]) -> Result<Self, FrameError> {
        let half = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        let word = |at: usize| {
            u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let (id, number, size, flags) = (half(0), half(2), word(4), word(8));
        let command = CommandName(number);
        let kind = flags & TYPE_MASK;
        if kind != 0 {
            return Err(FrameError::NoCommand { command, kind });
        }
        if size > SKIPPED_MAX {
            return Err(FrameError::Oversized { command, size });
        }
        let payload_size = usize::try_from(size)
            .ok()
            .and_then(|size| size.checked_sub(HEADER_SIZE))
            .ok_or(FrameError::Undersized { command, size })?;
        Ok(Self {
            id,
            command: number,
            no_reply: flags & NO_REPLY != 0,
            payload_size,
        })
    }

    /// The command, if it is one that we speak.
    pub fn command(&self) -> Option<Command> {
        Command::from_wire(self.command)
    }

    /// The command's name for people.
    pub fn name(&self) -> CommandName {
        CommandName(self.command)
    }

    /// Whether the client wants no answer, not even an error.
    pub fn no_reply(&self) -> bool {
        self.no_reply
    }

    /// Bytes of payload that follow, at most [`SKIPPED_MAX`] and not all of them readable:
    /// [`PAYLOAD_MAX`].
    pub fn payload_size(&self) -> usize {
        self.payload_size
    }

    /// The header of the reply, with `payload` bytes behind it, or with an error and nothing.
    pub(super) fn reply(&self, payload: usize, error: Option<u32>) -> [u8; HEADER_SIZE] {
        let size = u32::try_from(HEADER_SIZE + payload).expect("a reply is short");
        let flags = match error {
            Some(_) => TYPE_REPLY | ERROR,
            None => TYPE_REPLY,
        };
        let mut bytes = [0; HEADER_SIZE];
        bytes[0..2].copy_from_slice(&self.id.to_ne_bytes());
        bytes[2..4].copy_from_slice(&self.command.to_ne_bytes());
        bytes[4..8].copy_from_slice(&size.to_ne_bytes());
        bytes[8..12].copy_from_slice(&flags.to_ne_bytes());
        bytes[12..16].copy_from_slice(&error.unwrap_or(0).to_ne_bytes());
        bytes
    }
}

/// By number. An empty name is a number that the specification does not use.
const SPEC_NAMES: [&str; 19] = [
    "",
    "VERSION",
    "DMA_MAP",
    "DMA_UNMAP",
    "DEVICE_GET_INFO",
    "DEVICE_GET_REGION_INFO",
    "DEVICE_GET_REGION_IO_FDS",
    "DEVICE_GET_IRQ_INFO",
    "DEVICE_SET_IRQS",
    "REGION_READ",
    "REGION_WRITE",
    "DMA_READ",
    "DMA_WRITE",
    "DEVICE_RESET",
    "",
    "REGION_WRITE_MULTI",
    "DEVICE_FEATURE",
    "MIG_DATA_READ",
    "MIG_DATA_WRITE",
];

impl fmt::Display for CommandName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match SPEC_NAMES.get(usize::from(self.0)) {
            Some(name) if !name.is_empty() => f.write_str(name),
            Some(_) | None => write!(f, "command {}", self.0),
        }
    }
}
