//! The control channel between the supervisor and one device: a SOCK_SEQPACKET pair, one packet a
//! message. Both ends parse, bound and distrust what comes; the device waits at most
//! half a second for room, and of the supervisor only what answers this device waits for it.
//!
//! Down come [`Down::Start`] with the device's descriptors, notices of changes outside, sockets
//! that the device asked for, and [`Down::Stop`]. Up go the listener under `seccomp-mode=log`,
//! [`Up::Ready`], a jail step that failed, log lines, wishes to be connected, and the cause of
//! death. The packet is a tag byte and its payload; numbers are little-endian.

pub(crate) mod device;
pub(crate) mod logger;
mod packet;

pub(crate) use packet::{
    DOWN_MAX, Down, LISTENER, PacketError, RUNNING_DOWN_MAX, SIGSYS, Start, Transport, UP_MAX, Up,
};

/// The most descriptors of a [`Down::Start`]: those of its wire (a socket, or container, group and
/// device of a function), then the device's own.
pub(crate) const START_DESCRIPTORS_MAX: usize = 3 + crate::kind::DESCRIPTORS_MAX;

/// Where a role finds its end of the channel.
pub(crate) const CHANNEL: std::os::fd::RawFd = 3;
