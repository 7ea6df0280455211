//! The messages we speak and the rule of each: a table, not a match, so that a reader sees the
//! whole protocol on one page.

use std::fmt;
use std::ops::RangeInclusive;

use super::request::{CONFIG_HEADER_SIZE, CONFIG_SIZE_MAX, MEMORY_TABLE_REGIONS_MAX, REGION_SIZE};

/// The messages that we speak, with their numbers on the wire (spec, "Front-end message types").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
#[expect(
    missing_docs,
    reason = "the names are the spec's; the table below says the rest"
)]
pub enum Code {
    GetFeatures = 1,
    SetFeatures = 2,
    SetOwner = 3,
    ResetOwner = 4,
    SetMemTable = 5,
    SetVringNum = 8,
    SetVringAddr = 9,
    SetVringBase = 10,
    GetVringBase = 11,
    SetVringKick = 12,
    SetVringCall = 13,
    SetVringErr = 14,
    GetProtocolFeatures = 15,
    SetProtocolFeatures = 16,
    GetQueueNum = 17,
    SetVringEnable = 18,
    SetBackendReqFd = 21,
    GetConfig = 24,
    SetConfig = 25,
    ResetDevice = 34,
    GetMaxMemSlots = 36,
    AddMemReg = 37,
    RemMemReg = 38,
}

/// What must have been agreed upon before a message may be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// Nothing. This includes what needs `VHOST_USER_F_PROTOCOL_FEATURES` only: we offer it always,
    /// and the spec allows these messages before it is acknowledged.
    Open,
    /// These protocol features.
    Protocol(ProtocolFeatures),
}

/// How a message is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Success by a reply of its own, and never by a second one. Failure by an acknowledgement, if
    /// REPLY_ACK was agreed upon and the message asks for one.
    Own,
    /// Success by a reply of its own, and failure by the same without a payload, asked or not
    /// (spec, `VHOST_USER_GET_CONFIG`).
    OwnOrEmpty,
    /// Both by an acknowledgement, if REPLY_ACK was agreed upon and the message asks for one.
    Acknowledgement,
}

/// What a message must look like.
#[derive(Debug)]
pub struct Rule {
    /// The message.
    pub code: Code,
    /// Its name in the spec, without the prefix.
    pub name: &'static str,
    /// Payload bytes, least and most.
    pub payload: RangeInclusive<usize>,
    /// Descriptors, least and most. The exact number follows from the payload.
    pub descriptors: RangeInclusive<usize>,
    /// What allows it.
    pub gate: Gate,
    /// How it is answered.
    pub answer: Answer,
}

impl Code {
    /// The message with this number, if we speak it.
    pub fn from_wire(number: u32) -> Option<Self> {
        RULES
            .iter()
            .map(|rule| rule.code)
            .find(|code| code.number() == number)
    }

    /// The number on the wire.
    pub fn number(self) -> u32 {
        self as u32
    }

    /// The message's rule.
    pub fn rule(self) -> &'static Rule {
        RULES
            .iter()
            .find(|rule| rule.code == self)
            .expect("every message has its line")
    }
}

/// A message's name for people: `SET_VRING_KICK`, or `message 99` for one that the spec does not
/// know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageName(pub u32);

impl fmt::Display for MessageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let index = usize::try_from(self.0).unwrap_or(usize::MAX);
        match SPEC_NAMES.get(index) {
            Some(name) if !name.is_empty() => f.write_str(name),
            Some(_) | None => write!(f, "message {}", self.0),
        }
    }
}

/// A set of protocol features (spec, "Protocol features").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProtocolFeatures(u64);

impl ProtocolFeatures {
    /// Several queues; GET_QUEUE_NUM.
    pub const MQ: Self = Self(1 << 0);
    /// A message may ask for an acknowledgement.
    pub const REPLY_ACK: Self = Self(1 << 3);
    /// The back-end has a channel of its own to the front-end; SET_BACKEND_REQ_FD.
    pub const BACKEND_REQ: Self = Self(1 << 5);
    /// The device's configuration space goes over this connection.
    pub const CONFIG: Self = Self(1 << 9);
    /// RESET_DEVICE.
    pub const RESET_DEVICE: Self = Self(1 << 13);
    /// Memory is added and removed region by region.
    pub const CONFIGURE_MEM_SLOTS: Self = Self(1 << 15);

    /// What we offer.
    pub const OFFERED: Self = Self(
        Self::MQ.0
            | Self::REPLY_ACK.0
            | Self::BACKEND_REQ.0
            | Self::CONFIG.0
            | Self::RESET_DEVICE.0
            | Self::CONFIGURE_MEM_SLOTS.0,
    );

    /// What we offer where messages carry no descriptors: memory comes as a table, since a region's
    /// place follows from those before it.
    pub const OFFERED_WITHOUT_DESCRIPTORS: Self =
        Self(Self::OFFERED.0 & !Self::CONFIGURE_MEM_SLOTS.0);

    /// What was agreed upon when this was offered and a front-end answers `bits`. Bits that we did
    /// not offer are ignored, not refused: front-ends send what they know.
    pub fn agreed(self, bits: u64) -> Self {
        Self(bits & self.0)
    }

    /// The set as the wire has it.
    pub fn bits(self) -> u64 {
        self.0
    }

    /// Whether all of `others` are in the set.
    pub fn contains(self, others: Self) -> bool {
        self.0 & others.0 == others.0
    }
}

impl fmt::Display for ProtocolFeatures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = [
            (Self::MQ, "MQ"),
            (Self::REPLY_ACK, "REPLY_ACK"),
            (Self::BACKEND_REQ, "BACKEND_REQ"),
            (Self::CONFIG, "CONFIG"),
            (Self::RESET_DEVICE, "RESET_DEVICE"),
            (Self::CONFIGURE_MEM_SLOTS, "CONFIGURE_MEM_SLOTS"),
        ];
        let mut separator = "";
        for (_, name) in names.iter().filter(|(feature, _)| self.contains(*feature)) {
            write!(f, "{separator}{name}")?;
            separator = " ";
        }
        Ok(())
    }
}

const U64: usize = 8;
/// `{ index: u32, number: u32 }`.
const STATE: usize = 8;
/// `{ index, flags: u32, descriptors, used, available, log: u64 }`.
const ADDRESSES: usize = 40;
/// `{ padding: u64, region }`.
const REGION: usize = 8 + REGION_SIZE;
/// `{ count, padding: u32, regions… }`.
const TABLE_MAX: usize = 8 + MEMORY_TABLE_REGIONS_MAX * REGION_SIZE;
/// `{ offset, size, flags: u32 }`, and bytes behind it.
const HEADER: usize = CONFIG_HEADER_SIZE;
const CONFIG_MAX: usize = HEADER + CONFIG_SIZE_MAX;

const BACK: Gate = Gate::Protocol(ProtocolFeatures::BACKEND_REQ);
const CONFIG: Gate = Gate::Protocol(ProtocolFeatures::CONFIG);
const SLOTS: Gate = Gate::Protocol(ProtocolFeatures::CONFIGURE_MEM_SLOTS);
const RESET: Gate = Gate::Protocol(ProtocolFeatures::RESET_DEVICE);

/// A line of the table.
const fn rule(
    code: Code,
    name: &'static str,
    payload: (usize, usize),
    descriptors: (usize, usize),
    gate: Gate,
    answer: Answer,
) -> Rule {
    Rule {
        code,
        name,
        payload: payload.0..=payload.1,
        descriptors: descriptors.0..=descriptors.1,
        gate,
        answer,
    }
}

/// Every message we speak. GET_QUEUE_NUM is open although MQ names it: the spec wants it answered
/// by devices of one queue too.
#[rustfmt::skip]
static RULES: [Rule; 23] = {
    use Answer::{Acknowledgement as Ack, Own, OwnOrEmpty as Nil};
    use Code::*;
    use Gate::Open;
    [
    //   message              name                     payload bytes           fds    gate    reply
    rule(GetFeatures,         "GET_FEATURES",          (0, 0),                 (0, 0), Open,   Own),
    rule(SetFeatures,         "SET_FEATURES",          (U64, U64),             (0, 0), Open,   Ack),
    rule(SetOwner,            "SET_OWNER",             (0, 0),                 (0, 0), Open,   Ack),
    rule(ResetOwner,          "RESET_OWNER",           (0, 0),                 (0, 0), Open,   Ack),
    rule(SetMemTable,         "SET_MEM_TABLE",         (8, TABLE_MAX),         (0, 8), Open,   Ack),
    rule(SetVringNum,         "SET_VRING_NUM",         (STATE, STATE),         (0, 0), Open,   Ack),
    rule(SetVringAddr,        "SET_VRING_ADDR",        (ADDRESSES, ADDRESSES), (0, 0), Open,   Ack),
    rule(SetVringBase,        "SET_VRING_BASE",        (STATE, STATE),         (0, 0), Open,   Ack),
    rule(GetVringBase,        "GET_VRING_BASE",        (STATE, STATE),         (0, 0), Open,   Own),
    rule(SetVringKick,        "SET_VRING_KICK",        (U64, U64),             (0, 1), Open,   Ack),
    rule(SetVringCall,        "SET_VRING_CALL",        (U64, U64),             (0, 1), Open,   Ack),
    rule(SetVringErr,         "SET_VRING_ERR",         (U64, U64),             (0, 1), Open,   Ack),
    rule(GetProtocolFeatures, "GET_PROTOCOL_FEATURES", (0, 0),                 (0, 0), Open,   Own),
    rule(SetProtocolFeatures, "SET_PROTOCOL_FEATURES", (U64, U64),             (0, 0), Open,   Ack),
    rule(GetQueueNum,         "GET_QUEUE_NUM",         (0, 0),                 (0, 0), Open,   Own),
    rule(SetVringEnable,      "SET_VRING_ENABLE",      (STATE, STATE),         (0, 0), Open,   Ack),
    rule(SetBackendReqFd,     "SET_BACKEND_REQ_FD",    (0, 0),                 (1, 1), BACK,   Ack),
    rule(GetConfig,           "GET_CONFIG",            (HEADER, CONFIG_MAX),   (0, 0), CONFIG, Nil),
    rule(SetConfig,           "SET_CONFIG",            (HEADER, CONFIG_MAX),   (0, 0), CONFIG, Ack),
    rule(ResetDevice,         "RESET_DEVICE",          (0, 0),                 (0, 0), RESET,  Ack),
    rule(GetMaxMemSlots,      "GET_MAX_MEM_SLOTS",     (0, 0),                 (0, 0), SLOTS,  Own),
    rule(AddMemReg,           "ADD_MEM_REG",           (REGION, REGION),       (1, 1), SLOTS,  Ack),
    // The spec lets a front-end send the region's descriptor along; `virtio-driver` does.
    rule(RemMemReg,           "REM_MEM_REG",           (REGION, REGION),       (0, 1), SLOTS,  Ack),
    ]
};

/// The spec's names by number, so that a refusal can name what we do not speak.
const SPEC_NAMES: [&str; 44] = [
    "",
    "GET_FEATURES",
    "SET_FEATURES",
    "SET_OWNER",
    "RESET_OWNER",
    "SET_MEM_TABLE",
    "SET_LOG_BASE",
    "SET_LOG_FD",
    "SET_VRING_NUM",
    "SET_VRING_ADDR",
    "SET_VRING_BASE",
    "GET_VRING_BASE",
    "SET_VRING_KICK",
    "SET_VRING_CALL",
    "SET_VRING_ERR",
    "GET_PROTOCOL_FEATURES",
    "SET_PROTOCOL_FEATURES",
    "GET_QUEUE_NUM",
    "SET_VRING_ENABLE",
    "SEND_RARP",
    "NET_SET_MTU",
    "SET_BACKEND_REQ_FD",
    "IOTLB_MSG",
    "SET_VRING_ENDIAN",
    "GET_CONFIG",
    "SET_CONFIG",
    "CREATE_CRYPTO_SESSION",
    "CLOSE_CRYPTO_SESSION",
    "POSTCOPY_ADVISE",
    "POSTCOPY_LISTEN",
    "POSTCOPY_END",
    "GET_INFLIGHT_FD",
    "SET_INFLIGHT_FD",
    "GPU_SET_SOCKET",
    "RESET_DEVICE",
    "VRING_KICK",
    "GET_MAX_MEM_SLOTS",
    "ADD_MEM_REG",
    "REM_MEM_REG",
    "SET_STATUS",
    "GET_STATUS",
    "GET_SHARED_OBJECT",
    "SET_DEVICE_STATE_FD",
    "CHECK_DEVICE_STATE",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_each_message_once_under_the_name_of_the_spec() {
        for (position, rule) in RULES.iter().enumerate() {
            assert_eq!(MessageName(rule.code.number()).to_string(), rule.name);
            assert_eq!(Code::from_wire(rule.code.number()), Some(rule.code));
            assert_eq!(rule.code.rule().name, rule.name);
            assert!(
                RULES[..position]
                    .iter()
                    .all(|other| other.code != rule.code)
            );
        }
    }

    #[test]
    fn no_payload_of_the_table_is_larger_than_a_message_may_be() {
        assert!(
            RULES
                .iter()
                .all(|rule| *rule.payload.end() <= super::super::PAYLOAD_SIZE_MAX)
        );
    }

    #[test]
    fn a_message_the_spec_does_not_know_is_named_by_its_number() {
        assert_eq!(MessageName(31).to_string(), "GET_INFLIGHT_FD");
        assert_eq!(MessageName(0).to_string(), "message 0");
        assert_eq!(MessageName(u32::MAX).to_string(), "message 4294967295");
    }

    #[test]
    fn protocol_features_that_were_not_offered_are_ignored() {
        let agreed = ProtocolFeatures::OFFERED.agreed(u64::MAX);
        assert_eq!(agreed, ProtocolFeatures::OFFERED);
        assert_eq!(
            agreed.to_string(),
            "MQ REPLY_ACK BACKEND_REQ CONFIG RESET_DEVICE CONFIGURE_MEM_SLOTS"
        );
    }
}
