//! How a driver waits: it sleeps until one of its queues is called, by one system call, for a
//! front-end's own waits look at more; or it spins.

use std::hint::spin_loop;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::event::{Timespec, epoll};
use vudev_frontend::Ring;

/// A limit is waited for in so many parts. The clock of a machine that stood still jumps over a
/// whole part, of which nobody had anything; the next ones are for whoever was about to call.
const PARTS: u32 = 10;

/// Looks between two looks at the clock.
const LOOKS_PER_CLOCK: usize = 1 << 12;

/// How a driver waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Until it is called.
    Asleep,
    /// It asks for a call too, and looks until there is something, as Linux's driver of a console
    /// does for a terminal, which prints under a lock.
    Spinning,
}

/// Looks until there is something; an error after `limit`.
pub(crate) fn spin(limit: Duration, mut look: impl FnMut() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    while start.elapsed() < limit {
        for _ in 0..LOOKS_PER_CLOCK {
            if look()? {
                return Ok(());
            }
            spin_loop();
        }
    }
    bail!("nothing came back for {} s", limit.as_secs())
}

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
        match in_parts(limit, |part| self.wait(part))? {
            true => Ok(()),
            false => bail!("nothing came back for {} s", limit.as_secs()),
        }
    }

    /// Whether there is one, or a signal, before `limit`.
    fn wait(&self, limit: Duration) -> Result<bool> {
        let mut events = [epoll::Event {
            flags: epoll::EventFlags::empty(),
            data: epoll::EventData::new_u64(0),
        }; 4];
        match epoll::wait(&self.0, &mut events, Some(&Timespec::try_from(limit)?)) {
            Ok(count) => Ok(count > 0),
            Err(rustix::io::Errno::INTR) => Ok(true),
            Err(error) => Err(error.into()),
        }
    }
}

/// Waits until something comes, in parts of `limit`; whether it did.
fn in_parts(limit: Duration, mut wait: impl FnMut(Duration) -> Result<bool>) -> Result<bool> {
    for _ in 0..PARTS {
        if wait(limit / PARTS)? {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_that_stood_still_costs_a_part_of_the_limit() {
        // It stands still in the first part, and what was about to come comes in the next.
        let mut parts = 0;
        let came = in_parts(Duration::from_secs(5), |_| {
            parts += 1;
            Ok(parts > 1)
        });
        assert!(came.unwrap());
    }

    #[test]
    fn who_spins_ends_with_what_is_there_or_with_its_limit() {
        let mut looks = 0;
        let third = || {
            looks += 1;
            Ok(looks == 3)
        };
        spin(Duration::from_secs(5), third).unwrap();
        assert_eq!(looks, 3);
        let error = spin(Duration::ZERO, || Ok(false)).unwrap_err();
        assert_eq!(error.to_string(), "nothing came back for 0 s");
    }

    #[test]
    fn all_parts_together_are_the_limit() {
        let mut waited = Duration::ZERO;
        let came = in_parts(Duration::from_secs(5), |part| {
            waited += part;
            Ok(false)
        });
        assert!(!came.unwrap());
        assert_eq!(waited, Duration::from_secs(5));
    }
}
