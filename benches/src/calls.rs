//! A driver's sleep until one of its queues is called. One system call, which a driver is measured
//! with: a front-end's own waits look at more.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::event::{Timespec, epoll};
use vudev_frontend::Ring;

/// The calls of some queues.
#[derive(Debug)]
pub(crate) struct Calls(OwnedFd);

impl Calls {
    /// Of none yet.
    pub(crate) fn new() -> Result<Self> {
        Ok(Self(epoll::create(epoll::CreateFlags::CLOEXEC)?))
    }

    /// Of this eventfd too.
    pub(crate) fn add(&self, event: impl AsFd) -> Result<()> {
        // Edges: the counter need not be read.
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        Ok(epoll::add(
            &self.0,
            event,
            epoll::EventData::new_u64(0),
            flags,
        )?)
    }

    /// Of this queue too.
    pub(crate) fn add_queue(&self, ring: &Ring) -> Result<()> {
        self.add(ring.call_event().context("a ring has a call")?)
    }

    /// Until there is one; an error after `limit`.
    pub(crate) fn sleep(&self, limit: Duration) -> Result<()> {
        let mut events = [epoll::Event {
            flags: epoll::EventFlags::empty(),
            data: epoll::EventData::new_u64(0),
        }; 4];
        match epoll::wait(&self.0, &mut events, Some(&Timespec::try_from(limit)?)) {
            Ok(0) => bail!("nothing came back for {} s", limit.as_secs()),
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}
