//! A driver's sleep until one of its queues is called. One system call, which a driver is measured
//! with: a front-end's own waits look at more.

use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::event::{Timespec, epoll};
use vudev_frontend::FrontEnd;

/// The calls of a driver's queues.
#[derive(Debug)]
pub(crate) struct Calls(OwnedFd);

impl Calls {
    /// Those of these queues.
    pub(crate) fn of(front: &mut FrontEnd, queues: impl IntoIterator<Item = u16>) -> Result<Self> {
        let calls = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        for queue in queues {
            let ring = front.ring(queue);
            let call = ring.call_event().context("a ring has a call")?;
            // Edges: the counter need not be read.
            let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
            epoll::add(&calls, call, epoll::EventData::new_u64(queue.into()), flags)?;
        }
        Ok(Self(calls))
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
