//! Calls that do not wait (RWF_NOWAIT), which are made before the ring is asked. Not the disk's
//! writes, which where need be may wait: those are `block/at_once.rs`.

use std::cell::Cell;
use std::io;

use rustix::io::Errno;

/// Whether a file can be asked for what needs no waiting: reads and writes are two answers.
pub(crate) struct NoWait {
    is_possible: Cell<bool>,
    /// How the kernel says that it is not.
    refusals: &'static [Errno],
}

impl NoWait {
    /// Of a device, whose EINVAL is about what is written.
    pub(crate) fn of_device() -> Self {
        Self::refused_by(&[Errno::OPNOTSUPP])
    }

    /// Of any file. Where a file system knows of such calls, but not of this one (a write to the
    /// page cache of f2fs, say), the kernel answers EINVAL.
    pub(crate) fn of_file() -> Self {
        Self::refused_by(&[Errno::OPNOTSUPP, Errno::INVAL])
    }

    /// Nothing is tried: it waits whatever it is told.
    pub(crate) fn never() -> Self {
        let never = Self::of_file();
        never.is_possible.set(false);
        never
    }

    fn refused_by(refusals: &'static [Errno]) -> Self {
        Self {
            is_possible: Cell::new(true),
            refusals,
        }
    }

    /// What a `call` that does not wait came to; `None` if it is one for the ring.
    pub(crate) fn attempt<T>(&self, call: impl FnOnce() -> io::Result<T>) -> Option<io::Result<T>> {
        if !self.is_possible.get() {
            return None;
        }
        let result = call();
        match result.as_ref().err().and_then(Errno::from_io_error) {
            Some(Errno::AGAIN | Errno::INTR) => None,
            Some(errno) if self.refusals.contains(&errno) => {
                self.is_possible.set(false);
                None
            }
            Some(_) | None => Some(result),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often it is called of twice, when it fails so; and whether that is its answer.
    fn attempts(no_wait: &NoWait, errno: Errno) -> (u32, bool) {
        let mut calls = 0;
        let mut call = || -> io::Result<()> {
            calls += 1;
            Err(errno.into())
        };
        let first = no_wait.attempt(&mut call);
        let second = no_wait.attempt(&mut call);
        assert_eq!(first.is_some(), second.is_some());
        (calls, first.is_some())
    }

    #[test]
    fn what_would_wait_is_for_the_ring_and_tried_again() {
        for errno in [Errno::AGAIN, Errno::INTR] {
            assert_eq!(attempts(&NoWait::of_file(), errno), (2, false));
            assert_eq!(attempts(&NoWait::of_device(), errno), (2, false));
        }
    }

    #[test]
    fn what_cannot_say_is_tried_once() {
        for errno in [Errno::OPNOTSUPP, Errno::INVAL] {
            assert_eq!(attempts(&NoWait::of_file(), errno), (1, false));
        }
        assert_eq!(attempts(&NoWait::of_device(), Errno::OPNOTSUPP), (1, false));
        assert_eq!(attempts(&NoWait::never(), Errno::IO), (0, false));
    }

    #[test]
    fn any_other_error_is_an_answer() {
        assert_eq!(attempts(&NoWait::of_file(), Errno::PIPE), (2, true));
        assert_eq!(attempts(&NoWait::of_device(), Errno::INVAL), (2, true));
    }
}
