//! The framing of vhost-user, the numbers of those messages that are more than carried, and which
//! features cannot cross.

use super::session::SessionError;

/// Bytes of a header: request, flags and payload size, 32 bits each.
pub const HEADER_SIZE: usize = 12;

/// The longest message that is carried. The longest that the specification has is below 300 bytes;
/// one page leaves room.
pub const MESSAGE_MAX: usize = HEADER_SIZE + 4096;

const VERSION: u32 = 0x1;
const VERSION_MASK: u32 = 0x3;
const REPLY: u32 = 0x4;

/// Front-end requests that are more than carried.
pub(crate) mod request {
    pub(crate) const GET_FEATURES: u32 = 1;
    pub(crate) const SET_FEATURES: u32 = 2;
    pub(crate) const SET_MEM_TABLE: u32 = 5;
    pub(crate) const SET_VRING_KICK: u32 = 12;
    pub(crate) const SET_VRING_CALL: u32 = 13;
    pub(crate) const SET_VRING_ERR: u32 = 14;
    pub(crate) const GET_PROTOCOL_FEATURES: u32 = 15;
    pub(crate) const SET_PROTOCOL_FEATURES: u32 = 16;
    pub(crate) const SET_BACKEND_REQ_FD: u32 = 21;
}

/// The protocol features that work without descriptors crossing, and without memory that comes and
/// goes: MQ, REPLY_ACK, BACKEND_REQ, CONFIG, RESET_DEVICE, STATUS. Of the others, logs, inflight
/// buffers, host notifiers, page faults and shared objects are descriptors; CONFIGURE_MEM_SLOTS
/// would move the regions of the shared memory.
pub const PROTOCOL_FEATURES: u64 = 1 << 0 | 1 << 3 | 1 << 5 | 1 << 9 | 1 << 13 | 1 << 16;

/// `VHOST_F_LOG_ALL`: the log is a descriptor.
const LOG_ALL: u64 = 1 << 26;

/// A message's header. Right by construction: of our version, and with a payload that is carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) request: u32,
    pub(crate) is_reply: bool,
    pub(crate) payload_size: usize,
}

impl Header {
    pub(crate) fn parse(bytes: [u8; HEADER_SIZE]) -> Result<Self, SessionError> {
        let word = |at: usize| {
            u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let (request, flags, size) = (word(0), word(4), word(8));
        if flags & VERSION_MASK != VERSION {
            return Err(SessionError::Version { request });
        }
        let payload_size = usize::try_from(size).unwrap_or(usize::MAX);
        if payload_size > MESSAGE_MAX - HEADER_SIZE {
            return Err(SessionError::Oversized { request, size });
        }
        Ok(Self {
            request,
            is_reply: flags & REPLY != 0,
            payload_size,
        })
    }

    /// Of a whole message, which must be as long as its header says.
    pub(crate) fn of(message: &[u8]) -> Result<Self, SessionError> {
        let wrong = SessionError::Length {
            bytes: message.len(),
        };
        let Some(bytes) = message.first_chunk() else {
            return Err(wrong);
        };
        let header = Self::parse(*bytes)?;
        match message.len() == HEADER_SIZE + header.payload_size {
            true => Ok(header),
            false => Err(wrong),
        }
    }
}

/// Takes out of a request what cannot cross, in case the front-end does not heed what it was told.
pub(crate) fn mask_request(header: &Header, payload: &mut [u8]) {
    match header.request {
        request::SET_FEATURES => mask(payload, !LOG_ALL),
        request::SET_PROTOCOL_FEATURES => mask(payload, PROTOCOL_FEATURES),
        _ => {}
    }
}

/// Takes out of a reply what cannot cross.
pub(crate) fn mask_reply(header: &Header, payload: &mut [u8]) {
    match header.request {
        request::GET_FEATURES => mask(payload, !LOG_ALL),
        request::GET_PROTOCOL_FEATURES => mask(payload, PROTOCOL_FEATURES),
        _ => {}
    }
}

/// Only a payload of one number is a set of features.
fn mask(payload: &mut [u8], mask: u64) {
    if let Ok(bytes) = <&mut [u8; 8]>::try_from(payload) {
        *bytes = (u64::from_ne_bytes(*bytes) & mask).to_ne_bytes();
    }
}
