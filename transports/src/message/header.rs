//! The twelve bytes before every message, and whether the stream behind them can be trusted.

use super::code::{Code, MessageName};
use super::error::FrameError;

/// Bytes of a header: request, flags and payload size, 32 bits each.
pub const HEADER_SIZE: usize = 12;

/// The largest payload that is read. The largest message we speak has 268 bytes; one page leaves
/// room for those that we only read in order to refuse them, and bounds what a front-end can make
/// us hold.
pub const PAYLOAD_SIZE_MAX: usize = 4096;

/// The protocol's version, in the two low bits of the flags.
const VERSION: u32 = 0x1;
const VERSION_MASK: u32 = 0x3;
const REPLY: u32 = 0x4;
const NEED_REPLY: u32 = 0x8;

/// A request's header. Right by construction: the version is ours, it is no reply, and its payload
/// is within [`PAYLOAD_SIZE_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    request: u32,
    code: Option<Code>,
    need_reply: bool,
    payload_size: usize,
}

impl Header {
    /// Reads a header. An error means that the stream cannot be followed any further.
    pub fn parse(bytes: [u8; HEADER_SIZE]) -> Result<Self, FrameError> {
        let word = |at: usize| {
            u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let (request, flags, size) = (word(0), word(4), word(8));
        let message = MessageName(request);

        if flags & VERSION_MASK != VERSION {
            return Err(FrameError::Version {
                message,
                version: flags & VERSION_MASK,
            });
        }
        if flags & REPLY != 0 {
            return Err(FrameError::UnexpectedReply { message });
        }
        match usize::try_from(size) {
            Ok(payload_size) if payload_size <= PAYLOAD_SIZE_MAX => Ok(Self {
                request,
                code: Code::from_wire(request),
                need_reply: flags & NEED_REPLY != 0,
                payload_size,
            }),
            Ok(_) | Err(_) => Err(FrameError::Oversized {
                message,
                size,
                max: PAYLOAD_SIZE_MAX,
            }),
        }
    }

    /// The request's number, which may be none that we speak.
    pub fn request(&self) -> u32 {
        self.request
    }

    /// The request, if it is one that we speak.
    pub fn code(&self) -> Option<Code> {
        self.code
    }

    /// The request's name for people.
    pub fn name(&self) -> MessageName {
        MessageName(self.request)
    }

    /// Whether the front-end wants an answer to a message that has none of its own.
    pub fn need_reply(&self) -> bool {
        self.need_reply
    }

    /// Bytes of payload that follow.
    pub fn payload_size(&self) -> usize {
        self.payload_size
    }

    /// The header of a request of ours, which has no payload and wants no answer.
    pub(crate) fn request_bytes(request: u32) -> [u8; HEADER_SIZE] {
        let mut bytes = [0; HEADER_SIZE];
        bytes[0..4].copy_from_slice(&request.to_ne_bytes());
        bytes[4..8].copy_from_slice(&VERSION.to_ne_bytes());
        bytes
    }

    /// The header of a reply to `request`.
    pub(super) fn reply_bytes(request: u32, payload_size: u32) -> [u8; HEADER_SIZE] {
        let mut bytes = [0; HEADER_SIZE];
        bytes[0..4].copy_from_slice(&request.to_ne_bytes());
        bytes[4..8].copy_from_slice(&(VERSION | REPLY).to_ne_bytes());
        bytes[8..12].copy_from_slice(&payload_size.to_ne_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(request: u32, flags: u32, size: u32) -> [u8; HEADER_SIZE] {
        let mut bytes = [0; HEADER_SIZE];
        for (slot, word) in bytes.chunks_exact_mut(4).zip([request, flags, size]) {
            slot.copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }

    #[test]
    fn a_header_tells_the_request_its_size_and_the_wish_for_an_answer() {
        let header = Header::parse(bytes(12, 0x9, 8)).unwrap();
        assert_eq!((header.request(), header.payload_size()), (12, 8));
        assert_eq!(header.code(), Some(Code::SetVringKick));
        assert_eq!(Header::parse(bytes(31, 0x1, 0)).unwrap().code(), None);
        assert!(header.need_reply());
        assert!(!Header::parse(bytes(12, 0x1, 8)).unwrap().need_reply());
    }

    #[test]
    fn a_version_that_is_not_ours_is_refused() {
        for version in [0, 2, 3] {
            let error = Header::parse(bytes(1, version, 0)).unwrap_err();
            assert!(matches!(error, FrameError::Version { version: v, .. } if v == version));
        }
    }

    #[test]
    fn a_reply_that_nobody_asked_for_is_refused() {
        let error = Header::parse(bytes(1, 0x5, 0)).unwrap_err();
        assert!(matches!(error, FrameError::UnexpectedReply { .. }));
    }

    #[test]
    fn a_payload_above_the_limit_is_refused_before_it_is_read() {
        assert!(Header::parse(bytes(1, 0x1, 4096)).is_ok());
        for size in [4097, u32::MAX] {
            let error = Header::parse(bytes(1, 0x1, size)).unwrap_err();
            assert!(matches!(error, FrameError::Oversized { size: s, .. } if s == size));
        }
    }

    #[test]
    fn flags_that_the_spec_does_not_name_are_ignored() {
        assert!(Header::parse(bytes(1, 0xffff_fff1, 0)).is_ok());
    }
}
