//! What can be asked of a ring, as plain data. Nothing here knows a submission entry: `ring` turns
//! an operation into one, `simulation` plays it.

use std::os::fd::RawFd;

use libc::{iovec, msghdr};

/// The most pieces of a vectored operation (`UIO_MAXIOV`); longer lists are done in parts.
pub(crate) const PIECES_MAX: usize = 1024;

/// The offset that stands for "the descriptor's own position": pipes, terminals, append.
pub(crate) const STREAM_POSITION: u64 = u64::MAX;

/// One operation. Pointers are owned by whoever submits it; see [`crate::op::Request`].
#[derive(Clone, Copy, Debug)]
pub(crate) enum Operation {
    /// `preadv(2)` into `count` pieces; into one only if it is of `registered` memory.
    ReadVectored {
        fd: RawFd,
        pieces: *const iovec,
        count: u32,
        offset: u64,
        registered: bool,
    },
    /// `pwritev(2)` from `count` pieces; from one only if it is of `registered` memory.
    WriteVectored {
        fd: RawFd,
        pieces: *const iovec,
        count: u32,
        offset: u64,
        registered: bool,
    },
    /// `fsync(2)`, or `fdatasync(2)`.
    Sync { fd: RawFd, data_only: bool },
    /// `fallocate(2)`.
    Allocate {
        fd: RawFd,
        mode: i32,
        offset: u64,
        len: u64,
    },
    /// `poll(2)` for `events`, once or until cancelled.
    Poll {
        fd: RawFd,
        events: u32,
        multishot: bool,
    },
    /// `accept4(2)`, close-on-exec.
    Accept { fd: RawFd },
    /// `recvmsg(2)`.
    ReceiveMessage {
        fd: RawFd,
        header: *mut msghdr,
        flags: u32,
    },
    /// `sendmsg(2)`.
    SendMessage {
        fd: RawFd,
        header: *const msghdr,
        flags: u32,
    },
    /// `shutdown(2)`, `how` one of `SHUT_*`.
    Shutdown { fd: RawFd, how: i32 },
}

impl Operation {
    /// `poll(2)` for `events` (`POLL*`), once.
    pub(crate) fn poll_once(fd: RawFd, events: i16) -> Self {
        Self::Poll {
            fd,
            events: u32::from(events.cast_unsigned()),
            multishot: false,
        }
    }

    /// Whether it waits for a disk at most, and neither for a peer nor for the world.
    pub(crate) fn is_of_disk(&self) -> bool {
        match self {
            Self::ReadVectored { offset, .. } | Self::WriteVectored { offset, .. } => {
                *offset != STREAM_POSITION
            }
            Self::Sync { .. } | Self::Allocate { .. } => true,
            Self::Poll { .. }
            | Self::Accept { .. }
            | Self::ReceiveMessage { .. }
            | Self::SendMessage { .. }
            | Self::Shutdown { .. } => false,
        }
    }

    /// Whether the kernel reads or writes memory for it, which somebody must own until it is done.
    pub(crate) fn has_pointers(&self) -> bool {
        match self {
            Self::ReadVectored { .. }
            | Self::WriteVectored { .. }
            | Self::ReceiveMessage { .. }
            | Self::SendMessage { .. } => true,
            Self::Sync { .. }
            | Self::Allocate { .. }
            | Self::Poll { .. }
            | Self::Accept { .. }
            | Self::Shutdown { .. } => false,
        }
    }
}
