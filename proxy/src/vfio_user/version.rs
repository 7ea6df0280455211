//! The version message's data: capabilities in JSON, both ways. Not which commands they allow.

use serde_json::{Map, Value};

use super::error::RequestError;
use super::request::{DATA_MAX, DESCRIPTORS_MAX};

/// What a client proposes, of what concerns us: we may name a capability only if it has named it.
/// Everything else that it can do is none of our business, and not looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Proposal {
    /// Descriptors in one message to it.
    pub max_msg_fds: Option<u64>,
    /// Bytes of data in one message to it.
    pub max_data_xfer_size: Option<u64>,
}

impl Proposal {
    /// Reads version data: nothing at all, or a JSON object with a NUL behind it. How deep it may
    /// be nested is limited by the parser, how large by the message.
    pub(super) fn parse(data: &[u8]) -> Result<Self, RequestError> {
        let json = match data {
            [] => return Ok(Self::default()),
            [json @ .., 0] => json,
            [..] => return Err(RequestError::Capabilities),
        };
        let data: Map<String, Value> =
            serde_json::from_slice(json).map_err(|_| RequestError::Capabilities)?;
        let capabilities = match data.get("capabilities") {
            Some(Value::Object(capabilities)) => capabilities,
            Some(_) => return Err(RequestError::Capabilities),
            None => return Ok(Self::default()),
        };
        let number = |name| match capabilities.get(name) {
            Some(value) => value.as_u64().map(Some).ok_or(RequestError::Capabilities),
            None => Ok(None),
        };
        Ok(Self {
            max_msg_fds: number("max_msg_fds")?,
            max_data_xfer_size: number("max_data_xfer_size")?,
        })
    }
}

/// The version data that answers a proposal which took `proposed_bytes`, NUL included: empty where
/// we have nothing to say, or no room. QEMU takes no reply that is longer than its proposal. (What
/// remains unsaid is assumed by its default, and a command beyond our limits is refused by itself.)
pub fn answer(proposal: &Proposal, proposed_bytes: usize) -> Vec<u8> {
    let ours = [
        ("max_msg_fds", proposal.max_msg_fds, DESCRIPTORS_MAX),
        ("max_data_xfer_size", proposal.max_data_xfer_size, DATA_MAX),
    ];
    let named: Vec<_> = ours
        .iter()
        .filter(|(_, proposed, _)| proposed.is_some())
        .map(|(name, _, limit)| format!("\"{name}\":{limit}"))
        .collect();
    let json = format!("{{\"capabilities\":{{{}}}}}\0", named.join(","));
    if named.is_empty() || json.len() > proposed_bytes {
        return Vec::new();
    }
    json.into_bytes()
}
