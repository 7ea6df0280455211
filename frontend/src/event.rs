//! Eventfds as the driver side uses them: signal, wait with a deadline, fill; not an event loop.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use crate::Error;

/// An eventfd.
#[derive(Debug)]
pub struct Event {
    fd: OwnedFd,
}

impl Event {
    /// An eventfd at 0 whose writes and reads never block, as VMMs make them.
    pub fn new() -> Result<Self, Error> {
        Self::with_flags(EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
    }

    /// An eventfd on which a write *blocks* once it is full: the hostile kind.
    pub fn blocking() -> Result<Self, Error> {
        Self::with_flags(EventfdFlags::CLOEXEC)
    }

    fn with_flags(flags: EventfdFlags) -> Result<Self, Error> {
        let fd = eventfd(0, flags).map_err(Error::system("eventfd"))?;
        Ok(Self { fd })
    }

    /// Adds 1.
    pub fn signal(&self) -> Result<(), Error> {
        self.add(1)
    }

    /// Fills the counter to its maximum, so that the next write blocks or fails with `EAGAIN`.
    pub fn fill(&self) -> Result<(), Error> {
        self.add(u64::MAX - 1)
    }

    /// Adds a value to the counter.
    pub fn add(&self, value: u64) -> Result<(), Error> {
        rustix::io::write(&self.fd, &value.to_ne_bytes())
            .map_err(Error::system("write eventfd"))?;
        Ok(())
    }

    /// Takes the counter, 0 if it was not signalled.
    pub fn take(&self) -> Result<u64, Error> {
        if !readable(&[self.fd.as_fd()], Duration::ZERO).map_err(Error::system("poll"))?[0] {
            return Ok(0);
        }
        let mut value = [0; 8];
        match rustix::io::read(&self.fd, &mut value) {
            Ok(_) => Ok(u64::from_ne_bytes(value)),
            Err(rustix::io::Errno::AGAIN) => Ok(0),
            Err(error) => Err(Error::system("read eventfd")(error)),
        }
    }

    /// Waits until it is signalled, and takes the counter.
    pub fn wait(&self, awaited: &str, limit: Duration) -> Result<u64, Error> {
        let deadline = Instant::now() + limit;
        loop {
            let taken = self.take()?;
            if taken > 0 {
                return Ok(taken);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::Deadline {
                    awaited: awaited.to_owned(),
                    limit,
                });
            }
            readable(&[self.fd.as_fd()], left).map_err(Error::system("poll"))?;
        }
    }
}

impl AsFd for Event {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Waits until one of the descriptors is readable or has ended, or the time is over; a signal ends
/// the wait early. One flag a descriptor.
pub(crate) fn readable(fds: &[BorrowedFd<'_>], limit: Duration) -> io::Result<Vec<bool>> {
    wait_for(fds, PollFlags::IN, limit)
}

/// Like [`readable`], for writing.
pub(crate) fn writable(fd: BorrowedFd<'_>, limit: Duration) -> io::Result<bool> {
    wait_for(&[fd], PollFlags::OUT, limit).map(|ready| ready[0])
}

fn wait_for(fds: &[BorrowedFd<'_>], what: PollFlags, limit: Duration) -> io::Result<Vec<bool>> {
    let mut entries: Vec<_> = fds
        .iter()
        .map(|fd| PollFd::from_borrowed_fd(*fd, what))
        .collect();
    let timeout = Timespec::try_from(limit).map_err(|_| io::ErrorKind::InvalidInput)?;
    match poll(&mut entries, Some(&timeout)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(entries
        .iter()
        .map(|entry| !entry.revents().is_empty())
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_is_taken_once() {
        let event = Event::new().unwrap();
        assert_eq!(event.take().unwrap(), 0);
        event.signal().unwrap();
        event.signal().unwrap();
        assert_eq!(
            event.wait("two signals", Duration::from_secs(1)).unwrap(),
            2
        );
        assert_eq!(event.take().unwrap(), 0);
    }

    #[test]
    fn a_wait_that_fails_says_what_was_awaited() {
        let event = Event::new().unwrap();
        let error = event
            .wait("a call of ring 3", Duration::from_millis(1))
            .unwrap_err();
        assert!(error.to_string().contains("a call of ring 3"), "{error}");
    }

    #[test]
    fn a_full_event_takes_no_more() {
        let event = Event::new().unwrap();
        event.fill().unwrap();
        assert!(event.signal().is_err());
        assert_eq!(event.take().unwrap(), u64::MAX - 1);
    }
}
