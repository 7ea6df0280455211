//! The packets of the control channel and their bytes. No descriptors and no sockets: those are
//! the ends' matter.

use log::Level;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use vudev_jail::SigsysReport;

use crate::kind::Notice;
use crate::options::{Poll, SeccompMode, VvuMemory};
use crate::policies::Texts;
use crate::text::{TEXT_MAX, prefix};

/// The greatest packet to a device. A description is a few hundred bytes, an operator's policies
/// some ten KiB; the socket's default buffer (net.core.wmem_default, 208 KiB) takes it at once.
pub(crate) const DOWN_MAX: usize = 128 * 1024;

/// The greatest packet from a device: a text and what precedes it.
pub(crate) const UP_MAX: usize = TEXT_MAX + 64;

const START: u8 = 1;
const STOP: u8 = 2;
const NOTICE: u8 = 3;
const CONNECTED: u8 = 4;

const READY: u8 = 1;
const STEP_FAILED: u8 = 2;
const LOG: u8 = 3;
const DIED: u8 = 4;
/// The jail's handler sends this packet itself: this tag and a [`SigsysReport`].
pub(crate) const SIGSYS: u8 = 5;
/// The jail sends this packet itself too: this tag, and the listener's descriptor.
pub(crate) const LISTENER: u8 = 6;
const CONNECT: u8 = 7;

/// The greatest packet to a device that runs.
pub(crate) const RUNNING_DOWN_MAX: usize = 64;

/// A packet to a device.
#[derive(Debug)]
pub(crate) enum Down {
    /// The device to be, with the descriptors of its wire first, then the device's own.
    Start(Box<Start>),
    /// Drain, then end.
    Stop,
    /// Something outside has changed.
    Notice(Notice),
    /// The answer to [`Up::Connect`], with the socket if `errno` is 0.
    Connected {
        /// The question's.
        ticket: u32,
        /// Why there is none.
        errno: i32,
    },
}

/// What a role is told before anything else.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Start {
    /// The instance, `block-0`.
    pub(crate) name: String,
    /// The registry's name of the kind, `block`.
    pub(crate) kind: String,
    /// The wire to the front-end.
    pub(crate) transport: Transport,
    /// For how long it polls its queues.
    pub(crate) poll: Poll,
    /// False under `--disable-sandbox`: no namespaces, no filter, an unrestricted ring.
    pub(crate) sandbox: bool,
    /// An operator's policies instead of the embedded ones.
    pub(crate) policies: Option<Texts>,
    /// What becomes of a call that they deny.
    pub(crate) seccomp_mode: SeccompMode,
    /// What the device's log lines must be worth to be sent.
    pub(crate) verbosity: Verbosity,
    /// What the kind's `open` had to say.
    pub(crate) description: Value,
}

/// The wire to the front-end, which also names the policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Transport {
    /// vhost-user over a Unix socket.
    VhostUser,
    /// vhost-user through a virtio-vhost-user PCI function.
    Vvu(VvuMemory),
}

impl Transport {
    /// The last part of its policies' names, and the part that they include.
    pub(crate) fn policy_part(self) -> &'static str {
        match self {
            Self::VhostUser => "vhost_user",
            Self::Vvu(_) => "vvu",
        }
    }
}

/// `log::LevelFilter` as a number, for a crate that has no serde by default.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Verbosity(u8);

impl From<log::LevelFilter> for Verbosity {
    fn from(filter: log::LevelFilter) -> Self {
        Self(filter.to_level().map_or(0, level_number))
    }
}

impl From<Verbosity> for log::LevelFilter {
    fn from(verbosity: Verbosity) -> Self {
        level(verbosity.0).map_or(Self::Off, |level| level.to_level_filter())
    }
}

/// A packet from a device.
#[derive(Debug, PartialEq)]
pub(crate) enum Up {
    /// The jail is closed and the first front-end may come.
    Ready,
    /// The start ended here.
    StepFailed {
        /// What was being done.
        step: String,
        /// The kernel's answer; 0 when the reason is no system call's.
        errno: i32,
        /// What more there is to say.
        text: String,
    },
    /// A line for the log.
    Log {
        /// Its level.
        level: Level,
        /// How many lines were lost before it, because the channel was full.
        dropped: u32,
        /// The line.
        text: String,
    },
    /// The panic hook's last words.
    Died(String),
    /// What the SIGSYS handler saw.
    Sigsys(SigsysReport),
    /// Brings the listener of a filter that notifies: under `seccomp-mode=log`, once, and before
    /// [`Up::Ready`].
    Listener,
    /// Wants to be connected; answered by [`Down::Connected`].
    Connect {
        /// Comes back with the answer.
        ticket: u32,
        /// Which of the targets in the device's reach.
        target: u8,
        /// The number of a [`crate::kind::Target::NumberedStream`].
        number: u32,
    },
}

/// A packet that the other end must not have sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PacketError {
    /// No tag byte at all.
    #[error("an empty packet")]
    Empty,
    /// A tag that means nothing in this direction.
    #[error("a packet of unknown kind {0}")]
    UnknownTag(u8),
    /// The payload is not what the tag promises.
    #[error("a malformed packet of kind {tag}: {reason}")]
    Malformed {
        /// The packet's tag.
        tag: u8,
        /// What is wrong with it.
        reason: String,
    },
    /// The packet did not fit, or its descriptors did not.
    #[error("a packet that is too large or has too many descriptors")]
    TooLarge,
    /// Descriptors where none belong.
    #[error("descriptors in a packet that takes none")]
    Descriptors,
    /// It was to bring its listener first, or has brought one that it was not asked for, or wants
    /// to be connected before it is ready.
    #[error("a packet that is not due, or a listener without its descriptor")]
    NotDue,
}

impl Down {
    /// The packet's bytes.
    pub(crate) fn encode(&self) -> Result<Vec<u8>, PacketError> {
        let bytes = match self {
            Self::Start(start) => {
                let mut bytes = vec![START];
                serde_json::to_writer(&mut bytes, start)
                    .map_err(|error| malformed(START, &error.to_string()))?;
                bytes
            }
            Self::Stop => vec![STOP],
            Self::Notice(notice) => {
                let mut bytes = vec![NOTICE];
                serde_json::to_writer(&mut bytes, notice)
                    .map_err(|error| malformed(NOTICE, &error.to_string()))?;
                bytes
            }
            Self::Connected { ticket, errno } => {
                let mut bytes = vec![CONNECTED];
                bytes.extend(ticket.to_le_bytes());
                bytes.extend(errno.to_le_bytes());
                bytes
            }
        };
        if bytes.len() > DOWN_MAX {
            Err(PacketError::TooLarge)
        } else {
            Ok(bytes)
        }
    }

    /// Of the packet's bytes.
    pub(crate) fn decode(packet: &[u8]) -> Result<Self, PacketError> {
        let (tag, payload) = packet.split_first().ok_or(PacketError::Empty)?;
        match (*tag, payload) {
            (START, json) => serde_json::from_slice(json)
                .map(Self::Start)
                .map_err(|error| malformed(START, &error.to_string())),
            (STOP, []) => Ok(Self::Stop),
            (STOP, _) => Err(malformed(STOP, "a payload where none belongs")),
            (NOTICE, json) => serde_json::from_slice(json)
                .map(Self::Notice)
                .map_err(|error| malformed(NOTICE, &error.to_string())),
            (CONNECTED, payload) => decode_connected(payload),
            (tag, _) => Err(PacketError::UnknownTag(tag)),
        }
    }
}

impl Up {
    /// The packet's bytes; long texts are cut.
    pub(crate) fn encode(&self) -> Vec<u8> {
        match self {
            Self::Ready => vec![READY],
            Self::StepFailed { step, errno, text } => {
                let step = prefix(step, STEP_MAX);
                let mut packet = vec![STEP_FAILED];
                packet.extend(errno.to_le_bytes());
                packet.push(u8::try_from(step.len()).unwrap_or(0));
                packet.extend(step.as_bytes());
                packet.extend(prefix(text, TEXT_MAX - STEP_MAX).as_bytes());
                packet
            }
            Self::Log {
                level,
                dropped,
                text,
            } => {
                let mut packet = vec![LOG, level_number(*level)];
                packet.extend(dropped.to_le_bytes());
                packet.extend(prefix(text, TEXT_MAX).as_bytes());
                packet
            }
            Self::Died(text) => {
                let mut packet = vec![DIED];
                packet.extend(prefix(text, TEXT_MAX).as_bytes());
                packet
            }
            Self::Sigsys(report) => {
                let mut packet = vec![SIGSYS];
                packet.extend(report.to_bytes());
                packet
            }
            Self::Listener => vec![LISTENER],
            Self::Connect {
                ticket,
                target,
                number,
            } => {
                let mut packet = vec![CONNECT, *target];
                packet.extend(ticket.to_le_bytes());
                packet.extend(number.to_le_bytes());
                packet
            }
        }
    }

    /// Of the packet's bytes. Texts are printable lines afterwards.
    pub(crate) fn decode(packet: &[u8]) -> Result<Self, PacketError> {
        let (tag, payload) = packet.split_first().ok_or(PacketError::Empty)?;
        match *tag {
            READY if payload.is_empty() => Ok(Self::Ready),
            READY => Err(malformed(READY, "a payload where none belongs")),
            STEP_FAILED => decode_step(payload),
            LOG => decode_log(payload),
            DIED => Ok(Self::Died(crate::text::printable(payload))),
            SIGSYS => SigsysReport::from_bytes(payload)
                .map(Self::Sigsys)
                .ok_or_else(|| malformed(SIGSYS, "not the size of a report")),
            LISTENER if payload.is_empty() => Ok(Self::Listener),
            LISTENER => Err(malformed(LISTENER, "a payload where none belongs")),
            CONNECT => decode_connect(payload),
            tag => Err(PacketError::UnknownTag(tag)),
        }
    }
}

fn decode_connected(payload: &[u8]) -> Result<Down, PacketError> {
    let wrong = |_| malformed(CONNECTED, "not the size of an answer");
    let [a, b, c, d, rest @ ..] = <[u8; 8]>::try_from(payload).map_err(wrong)?;
    Ok(Down::Connected {
        ticket: u32::from_le_bytes([a, b, c, d]),
        errno: i32::from_le_bytes(rest),
    })
}

fn decode_connect(payload: &[u8]) -> Result<Up, PacketError> {
    let wrong = |_| malformed(CONNECT, "not the size of a question");
    let [target, a, b, c, d, rest @ ..] = <[u8; 9]>::try_from(payload).map_err(wrong)?;
    Ok(Up::Connect {
        ticket: u32::from_le_bytes([a, b, c, d]),
        target,
        number: u32::from_le_bytes(rest),
    })
}

/// The longest name of a step, in bytes.
const STEP_MAX: usize = 128;

fn decode_step(payload: &[u8]) -> Result<Up, PacketError> {
    let short = || malformed(STEP_FAILED, "too short");
    let (errno, rest) = payload.split_first_chunk::<4>().ok_or_else(short)?;
    let (length, rest) = rest.split_first().ok_or_else(short)?;
    let (step, text) = rest
        .split_at_checked(usize::from(*length))
        .ok_or_else(short)?;
    Ok(Up::StepFailed {
        step: crate::text::printable(step),
        errno: i32::from_le_bytes(*errno),
        text: crate::text::printable(text),
    })
}

fn decode_log(payload: &[u8]) -> Result<Up, PacketError> {
    let short = || malformed(LOG, "too short");
    let (number, rest) = payload.split_first().ok_or_else(short)?;
    let (dropped, text) = rest.split_first_chunk::<4>().ok_or_else(short)?;
    Ok(Up::Log {
        level: level(*number).ok_or_else(|| malformed(LOG, "no such level"))?,
        dropped: u32::from_le_bytes(*dropped),
        text: crate::text::printable(text),
    })
}

fn level_number(level: Level) -> u8 {
    match level {
        Level::Error => 1,
        Level::Warn => 2,
        Level::Info => 3,
        Level::Debug => 4,
        Level::Trace => 5,
    }
}

fn level(number: u8) -> Option<Level> {
    Level::iter().find(|level| level_number(*level) == number)
}

fn malformed(tag: u8, reason: &str) -> PacketError {
    PacketError::Malformed {
        tag,
        reason: reason.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start() -> Start {
        Start {
            name: "block-0".to_owned(),
            kind: "block".to_owned(),
            transport: Transport::VhostUser,
            poll: Poll::Us(20),
            sandbox: true,
            policies: None,
            seccomp_mode: SeccompMode::Log,
            verbosity: log::LevelFilter::Info.into(),
            description: serde_json::json!({ "capacity": u64::MAX }),
        }
    }

    #[test]
    fn every_packet_comes_back_as_it_was_sent() {
        let bytes = Down::Start(Box::new(start())).encode().unwrap();
        let Down::Start(back) = Down::decode(&bytes).unwrap() else {
            panic!("not a start")
        };
        assert_eq!(*back, start());
        assert!(matches!(
            Down::decode(&Down::Stop.encode().unwrap()),
            Ok(Down::Stop)
        ));

        let step = Up::StepFailed {
            step: "pivot_root".to_owned(),
            errno: 1,
            text: "no".to_owned(),
        };
        let line = Up::Log {
            level: Level::Warn,
            dropped: 7,
            text: "slow".to_owned(),
        };
        let sigsys = Up::Sigsys(SigsysReport {
            syscall: 257,
            arch: 1,
            ip: 2,
            args: [3; 6],
        });
        for up in [
            Up::Ready,
            step,
            line,
            Up::Died("at x.rs:1".to_owned()),
            sigsys,
            Up::Listener,
            Up::Connect {
                ticket: u32::MAX,
                target: 255,
                number: 1024,
            },
        ] {
            assert_eq!(Up::decode(&up.encode()).unwrap(), up);
        }
    }

    #[test]
    fn what_a_running_device_is_told_comes_back_and_is_short() {
        let window = Notice::Window {
            place: 255,
            columns: u16::MAX,
            rows: u16::MAX,
        };
        for notice in [Notice::Refresh, window] {
            let packet = Down::Notice(notice).encode().unwrap();
            assert!(packet.len() <= RUNNING_DOWN_MAX, "{}", packet.len());
            assert!(matches!(Down::decode(&packet), Ok(Down::Notice(back)) if back == notice));
        }
        let answer = Down::Connected {
            ticket: 7,
            errno: -1,
        };
        assert!(matches!(
            Down::decode(&answer.encode().unwrap()),
            Ok(Down::Connected {
                ticket: 7,
                errno: -1
            })
        ));
    }

    #[test]
    fn no_packet_from_a_device_is_larger_than_its_limit() {
        let long = "x".repeat(100_000);
        for up in [
            Up::StepFailed {
                step: long.clone(),
                errno: 0,
                text: long.clone(),
            },
            Up::Log {
                level: Level::Info,
                dropped: 0,
                text: long.clone(),
            },
            Up::Died(long),
        ] {
            let packet = up.encode();
            assert!(packet.len() <= UP_MAX);
            assert!(Up::decode(&packet).is_ok());
        }
    }

    #[test]
    fn what_is_not_a_packet_is_refused() {
        assert_eq!(Up::decode(&[]), Err(PacketError::Empty));
        assert_eq!(Up::decode(&[99]), Err(PacketError::UnknownTag(99)));
        for packet in [
            &[READY, 0][..],
            &[LOG, 3, 0, 0],
            &[LOG, 9, 0, 0, 0, 0],
            &[STEP_FAILED, 0, 0, 0, 0],
            &[STEP_FAILED, 0, 0, 0, 0, 9, b'x'],
            &[SIGSYS, 1],
            &[LISTENER, 1],
            &[CONNECT, 1],
        ] {
            assert!(
                matches!(Up::decode(packet), Err(PacketError::Malformed { .. })),
                "{packet:?}"
            );
        }
        for packet in [
            &[STOP, 1][..],
            b"\x01{}",
            b"\x03{}",
            &[CONNECTED, 1, 2, 3, 4],
        ] {
            assert!(
                matches!(Down::decode(packet), Err(PacketError::Malformed { .. })),
                "{packet:?}"
            );
        }
    }

    #[test]
    fn any_bytes_are_either_a_packet_or_an_error() {
        let mut state = 1_u64;
        for length in 0..200 {
            for _ in 0..50 {
                let mut packet = Vec::new();
                for _ in 0..length {
                    state = state
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1);
                    packet.push(state.to_le_bytes()[7] % 16);
                }
                let _ = Up::decode(&packet);
                let _ = Down::decode(&packet);
            }
        }
    }
}
