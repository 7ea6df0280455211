//! What we say back. It is not about when to answer: that is the session's to decide.

use super::code::Code;
use super::header::{HEADER_SIZE, Header};

/// The value of an acknowledgement that says no. Any value but zero does; with all bits set it is
/// no plausible answer either where a message has a reply of its own that is as long
/// (GET_VRING_BASE).
const FAILED: u64 = u64::MAX;

/// An answer to one message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The request's number: the reply repeats it.
    pub request: u32,
    /// What it says.
    pub body: Body,
}

/// The contents of a reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// An acknowledgement: it was done, or it was not.
    Acknowledgement {
        /// Whether it was done.
        done: bool,
    },
    /// A number, or a set of features.
    Number(u64),
    /// GET_VRING_BASE.
    RingBase {
        /// The ring.
        index: u16,
        /// The next available index, free-running.
        base: u16,
    },
    /// GET_CONFIG: as many bytes as were asked for.
    Config {
        /// Where in the configuration space they begin.
        offset: u16,
        /// The flags of the request, repeated.
        flags: u32,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// GET_CONFIG that failed: the spec wants a payload of length zero.
    NoConfig,
}

impl Reply {
    /// A reply to one of the messages that we speak.
    pub fn to(code: Code, body: Body) -> Self {
        Self {
            request: code.number(),
            body,
        }
    }

    /// The whole reply as it goes over the wire.
    pub fn encode(&self) -> Vec<u8> {
        let mut payload = Vec::new();
        match &self.body {
            Body::Acknowledgement { done } => {
                let value = if *done { 0 } else { FAILED };
                payload.extend(value.to_ne_bytes());
            }
            Body::Number(number) => payload.extend(number.to_ne_bytes()),
            Body::RingBase { index, base } => {
                payload.extend(u32::from(*index).to_ne_bytes());
                payload.extend(u32::from(*base).to_ne_bytes());
            }
            Body::Config {
                offset,
                flags,
                bytes,
            } => {
                payload.extend(u32::from(*offset).to_ne_bytes());
                payload.extend(wire_length(bytes).to_ne_bytes());
                payload.extend(flags.to_ne_bytes());
                payload.extend_from_slice(bytes);
            }
            Body::NoConfig => {}
        }
        let mut message = Vec::with_capacity(HEADER_SIZE + payload.len());
        message.extend(Header::reply_bytes(self.request, wire_length(&payload)));
        message.extend(payload);
        message
    }
}

/// A length that we made ourselves and that is small by construction.
fn wire_length(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).expect("a reply is shorter than a page")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(bytes: &[u8]) -> Vec<u32> {
        bytes
            .chunks_exact(4)
            .map(|word| u32::from_ne_bytes(word.try_into().unwrap()))
            .collect()
    }

    #[test]
    fn an_acknowledgement_is_a_number_that_is_zero_only_when_it_was_done() {
        let done = Reply::to(Code::SetOwner, Body::Acknowledgement { done: true }).encode();
        assert_eq!(words(&done), [3, 0x5, 8, 0, 0]);
        let failed = Reply::to(Code::SetOwner, Body::Acknowledgement { done: false }).encode();
        assert_eq!(words(&failed), [3, 0x5, 8, u32::MAX, u32::MAX]);
    }

    #[test]
    fn a_ring_base_repeats_the_index() {
        let reply = Reply::to(
            Code::GetVringBase,
            Body::RingBase {
                index: 2,
                base: 0xffff,
            },
        );
        assert_eq!(words(&reply.encode()), [11, 0x5, 8, 2, 0xffff]);
    }

    #[test]
    fn a_config_reply_is_as_long_as_its_request_and_a_failed_one_is_empty() {
        let body = Body::Config {
            offset: 4,
            flags: 0,
            bytes: vec![0; 8],
        };
        assert_eq!(
            words(&Reply::to(Code::GetConfig, body).encode()),
            [24, 0x5, 20, 4, 8, 0, 0, 0]
        );
        assert_eq!(
            words(&Reply::to(Code::GetConfig, Body::NoConfig).encode()),
            [24, 0x5, 0]
        );
    }
}
