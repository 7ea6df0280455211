//! Messages that a back-end must turn down, and the proof that it does and that nothing else
//! happens. The messages themselves are in the suites.

#![allow(dead_code, reason = "each suite uses its part")]
#![allow(
    clippy::unwrap_used,
    reason = "a suite whose own set-up fails has nothing to test"
)]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use vudev_frontend::{
    Error, Outcome, RegionLayout,
    message::{NEED_REPLY, VERSION, frame},
};

use crate::support::{Running, descriptors_at_work};

/// A message that a back-end must turn down.
pub(crate) struct Bad {
    pub(crate) name: String,
    pub(crate) bytes: Vec<u8>,
    pub(crate) fds: Vec<OwnedFd>,
}

/// A message with a header that is right and a payload that is not.
pub(crate) fn bad(name: &str, code: u32, payload: &[u8]) -> Bad {
    Bad {
        name: name.to_owned(),
        bytes: frame(code, VERSION | NEED_REPLY, payload),
        fds: vec![],
    }
}

impl Bad {
    pub(crate) fn with(mut self, fd: impl Into<OwnedFd>) -> Self {
        self.fds.push(fd.into());
        self
    }

    pub(crate) fn with_all(mut self, fds: impl IntoIterator<Item = OwnedFd>) -> Self {
        self.fds.extend(fds);
        self
    }
}

/// Sends each to a connection of its own that is negotiated and at work, and demands that it is
/// refused, that the process stays the same, serves on, and leaks nothing. All failures at once.
pub(crate) fn all_are_refused(running: &Running, all: impl IntoIterator<Item = Bad>) {
    let before = (running.device(), descriptors_at_work(running));
    let mut failures = Vec::new();
    for Bad { name, bytes, fds } in all {
        let mut block = running.block();
        let connection = block.front().connection();
        let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        let sent = connection.raw(&bytes, &borrowed);
        let outcome = match sent {
            Ok(()) => connection.outcome(),
            Err(Error::Closed { .. }) => Ok(Outcome::Closed),
            Err(error) => Err(error),
        };
        match outcome {
            Ok(outcome) if outcome.is_refusal() => {}
            other => failures.push(format!("{name}: {other:?}")),
        }
        drop(block);
        let after = (running.device(), descriptors_at_work(running));
        if after != before {
            failures.push(format!("{name}: {before:?} became {after:?}"));
        }
    }
    assert!(
        failures.is_empty(),
        "{}\n{}",
        failures.join("\n"),
        running.log()
    );
}

/// A file in memory of so many bytes.
pub(crate) fn memfd(size: u64) -> OwnedFd {
    let fd = rustix::fs::memfd_create("hostile", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&fd, size).unwrap();
    fd
}

/// An eventfd.
pub(crate) fn eventfd() -> OwnedFd {
    rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap()
}

/// A pipe, reading end first.
pub(crate) fn pipe() -> (OwnedFd, OwnedFd) {
    rustix::pipe::pipe().unwrap()
}

/// A lawful region, far from those that the driver has.
pub(crate) fn layout() -> RegionLayout {
    RegionLayout {
        guest_address: 0x77_0000_0000,
        user_address: 0x7f77_0000_0000,
        size: 0x10000,
        offset: 0,
    }
}
