//! What a role was started with, as owned values, and nothing else open.
#![expect(
    unsafe_code,
    reason = "descriptors given by number are adopted once, right after exec"
)]

use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::Errno;

use super::{BeginError, StepError};
use crate::last_errno;

pub(super) const STEP: &str = "inherited descriptors";

/// Takes the descriptors `numbers` (3 or above, ascending) that the supervisor kept for us, marks
/// them CLOEXEC, and closes everything else but 0, 1 and 2.
///
/// The first thing of a role: a descriptor that the process opened before is closed under its
/// owner. A second call fails with EALREADY.
pub(super) fn inherit<const N: usize>(numbers: [RawFd; N]) -> Result<[OwnedFd; N], BeginError> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    let fail = |errno, kept| BeginError {
        step: StepError { step: STEP, errno },
        kept,
    };
    if !numbers.is_sorted_by(|a, b| a < b) || numbers.first().is_some_and(|first| *first < 3) {
        return Err(fail(Errno::INVAL, Vec::new()));
    }
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Err(fail(Errno::ALREADY, Vec::new()));
    }
    let mut kept = Vec::with_capacity(N);
    for number in numbers {
        match adopt(number) {
            Ok(descriptor) => kept.push(descriptor),
            Err(errno) => return Err(fail(errno, kept)),
        }
    }
    match close_others(numbers) {
        Ok(()) => Ok(<[OwnedFd; N]>::try_from(kept).expect("there is one for each number")),
        Err(errno) => Err(fail(errno, kept)),
    }
}

/// Everything from 3 on that is none of these.
fn close_others<const N: usize>(numbers: [RawFd; N]) -> Result<(), Errno> {
    let mut next = 3;
    for number in numbers {
        close_range(next, number - 1)?;
        next = number + 1;
    }
    close_range(next, RawFd::MAX)
}

fn close_range(first: RawFd, last: RawFd) -> Result<(), Errno> {
    if first > last {
        return Ok(());
    }
    // SAFETY: a system call on numbers. Right after exec no value owns any of them but those that
    // were kept, which are left out (contract of `inherit`, which runs this once a process).
    let closed = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    if closed == 0 {
        Ok(())
    } else {
        Err(last_errno())
    }
}

fn adopt(number: RawFd) -> Result<OwnedFd, Errno> {
    // SAFETY: a system call on a number; it fails with EBADF when nothing is there.
    let marked = unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
    if marked != 0 {
        return Err(last_errno());
    }
    // SAFETY: open, and owned by no one else: the numbers are distinct and `inherit` runs once.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
