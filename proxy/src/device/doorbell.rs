//! A doorbell: what a store of the device VM's signals in the driver VM's VMM. Not which store.

use std::io;
use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vudev_executor::{Call, EventError, Handle};

/// An eventfd of the front-end's. It may be one that blocks, and the front-end may have filled it;
/// but a store to a register must not wait.
pub(crate) struct Doorbell {
    call: Call,
    event: OwnedFd,
}

impl Doorbell {
    /// Signals through `event`.
    pub(crate) fn new(handle: &Handle, event: OwnedFd) -> Result<Self, EventError> {
        let copy = event.try_clone().map_err(|source| EventError::System {
            call: "fcntl",
            source,
        })?;
        let call = Call::new(handle, event)?;
        Ok(Self { call, event: copy })
    }

    /// Signals now. One that has no room for a signal has one already.
    pub(super) fn ring(&self) -> io::Result<()> {
        let mut ready = [PollFd::new(&self.event, PollFlags::OUT)];
        let no_wait = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        match poll(&mut ready, Some(&no_wait))? {
            0 => Ok(()),
            _ => self.call.signal(),
        }
    }
}
