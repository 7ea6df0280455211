//! The bytes of vhost-user messages: numbers, names, header and payloads; no sockets.
//!
//! All numbers are little-endian here; the protocol says "native", which is the same on every
//! architecture that we support.

/// Length of a header: request, flags, payload size, each a `u32`.
pub const HEADER_SIZE: usize = 12;
/// The only protocol version, in the two low bits of the flags.
pub const VERSION: u32 = 1;
/// Flag of a message that answers another.
pub const REPLY: u32 = 1 << 2;
/// Flag of a request that wants an acknowledgement (needs `protocol::REPLY_ACK`).
pub const NEED_REPLY: u32 = 1 << 3;
/// Largest payload that we accept in an answer; the largest lawful one is a configuration space
/// (256 bytes and its header) or a log.
pub const PAYLOAD_MAX: usize = 4096;
/// In the payload of `SET_VRING_KICK`, `CALL` and `ERR`: no descriptor comes with the message.
pub const NO_DESCRIPTOR: u64 = 1 << 8;

macro_rules! requests {
    ($($name:ident = $number:literal),* $(,)?) => {
        /// Numbers of the front-end's requests.
        pub mod request {
            $(#[doc = concat!("`VHOST_USER_", stringify!($name), "`.")]
            pub const $name: u32 = $number;)*
        }

        /// The specification's name of a request number.
        pub fn name(request: u32) -> &'static str {
            match request {
                $($number => stringify!($name),)*
                _ => "unknown request",
            }
        }
    };
}

requests! {
    GET_FEATURES = 1, SET_FEATURES = 2, SET_OWNER = 3, RESET_OWNER = 4, SET_MEM_TABLE = 5,
    SET_LOG_BASE = 6, SET_LOG_FD = 7, SET_VRING_NUM = 8, SET_VRING_ADDR = 9, SET_VRING_BASE = 10,
    GET_VRING_BASE = 11, SET_VRING_KICK = 12, SET_VRING_CALL = 13, SET_VRING_ERR = 14,
    GET_PROTOCOL_FEATURES = 15, SET_PROTOCOL_FEATURES = 16, GET_QUEUE_NUM = 17,
    SET_VRING_ENABLE = 18, SEND_RARP = 19, NET_SET_MTU = 20, SET_BACKEND_REQ_FD = 21,
    IOTLB_MSG = 22, SET_VRING_ENDIAN = 23, GET_CONFIG = 24, SET_CONFIG = 25,
    CREATE_CRYPTO_SESSION = 26, CLOSE_CRYPTO_SESSION = 27, POSTCOPY_ADVISE = 28,
    POSTCOPY_LISTEN = 29, POSTCOPY_END = 30, GET_INFLIGHT_FD = 31, SET_INFLIGHT_FD = 32,
    GPU_SET_SOCKET = 33, RESET_DEVICE = 34, VRING_KICK = 35, GET_MAX_MEM_SLOTS = 36,
    ADD_MEM_REG = 37, REM_MEM_REG = 38, SET_STATUS = 39, GET_STATUS = 40, GET_SHARED_OBJECT = 41,
    SET_DEVICE_STATE_FD = 42, CHECK_DEVICE_STATE = 43,
}

/// Numbers of a back-end's own requests.
pub mod backend {
    /// The configuration space has changed.
    pub const CONFIG_CHANGE: u32 = 2;
}

/// Bits of the protocol features.
pub mod protocol {
    /// Several queues; `GET_QUEUE_NUM`.
    pub const MQ: u64 = 1 << 0;
    /// Acknowledgements on request.
    pub const REPLY_ACK: u64 = 1 << 3;
    /// A channel for the back-end's own requests; `SET_BACKEND_REQ_FD`.
    pub const BACKEND_REQ: u64 = 1 << 5;
    /// `GET_CONFIG` and `SET_CONFIG`.
    pub const CONFIG: u64 = 1 << 9;
    /// `RESET_DEVICE`.
    pub const RESET_DEVICE: u64 = 1 << 13;
    /// `GET_MAX_MEM_SLOTS`, `ADD_MEM_REG`, `REM_MEM_REG`.
    pub const CONFIGURE_MEM_SLOTS: u64 = 1 << 15;
}

/// Bits of the virtio features that the driver side itself knows.
pub mod feature {
    /// Chains may be in a table of their own.
    pub const INDIRECT_DESC: u64 = 1 << 28;
    /// Notifications are suppressed by ring positions.
    pub const EVENT_IDX: u64 = 1 << 29;
    /// The back-end has protocol features (vhost-user's own bit).
    pub const PROTOCOL_FEATURES: u64 = 1 << 30;
    /// virtio 1.0 or later.
    pub const VERSION_1: u64 = 1 << 32;
}

/// A header as it was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Number of the request.
    pub request: u32,
    /// Version and flags.
    pub flags: u32,
    /// Length of the payload in bytes.
    pub size: u32,
}

impl Header {
    /// Reads a header.
    pub fn parse(bytes: [u8; HEADER_SIZE]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l] = bytes;
        Self {
            request: u32::from_le_bytes([a, b, c, d]),
            flags: u32::from_le_bytes([e, f, g, h]),
            size: u32::from_le_bytes([i, j, k, l]),
        }
    }
}

/// A whole message. Its header tells the payload's true length.
pub fn frame(request: u32, flags: u32, payload: &[u8]) -> Vec<u8> {
    let size = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    frame_with_size(request, flags, size, payload)
}

/// A message whose header tells whatever length the caller likes.
pub fn frame_with_size(request: u32, flags: u32, size: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_SIZE + payload.len());
    for word in [request, flags, size] {
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes.extend_from_slice(payload);
    bytes
}

/// A payload of `u32`s.
pub fn words(values: &[u32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}

/// A payload of `u64`s.
pub fn long_words(values: &[u64]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}

/// Reads the `u64` at a byte position.
pub fn u64_at(payload: &[u8], at: usize) -> Option<u64> {
    let bytes = payload.get(at..at.checked_add(8)?)?;
    Some(u64::from_le_bytes(bytes.try_into().ok()?))
}

/// Reads the `u32` at a byte position.
pub fn u32_at(payload: &[u8], at: usize) -> Option<u32> {
    let bytes = payload.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_reads_back_what_a_frame_wrote() {
        let bytes = frame(
            request::SET_FEATURES,
            VERSION | NEED_REPLY,
            &long_words(&[7]),
        );
        let header = Header::parse(bytes[..HEADER_SIZE].try_into().unwrap());
        assert_eq!(
            header,
            Header {
                request: 2,
                flags: 9,
                size: 8
            }
        );
        assert_eq!(u64_at(&bytes, HEADER_SIZE), Some(7));
        assert_eq!(u64_at(&bytes, HEADER_SIZE + 1), None);
    }

    #[test]
    fn numbers_have_the_names_of_the_specification() {
        assert_eq!(name(request::GET_MAX_MEM_SLOTS), "GET_MAX_MEM_SLOTS");
        assert_eq!(name(request::RESET_DEVICE), "RESET_DEVICE");
        assert_eq!(name(4711), "unknown request");
    }
}
