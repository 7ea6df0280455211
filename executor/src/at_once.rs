//! Reads and writes in the turn that asks for them, by a system call and not through the ring: what
//! the page cache has, or takes, costs less so. Not when that is wise: the caller knows its file.

use std::ffi::c_long;
use std::io;

use crate::operation::Operation;

/// How many bytes a turn moves at once, whoever asks: about a quarter of a millisecond of copying.
/// What is more goes through the ring, so that nobody's cached bytes hold up the turn for long.
pub(crate) const BYTES_PER_TURN: usize = 1 << 20;

/// How often this thread has slept: not how often others had the processor instead, which it does
/// not notice but by the clock.
pub(crate) fn thread_sleeps() -> u64 {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: `usage` is a live local, which the call fills; all zeros are valid too.
    #[expect(unsafe_code, reason = "libc call with a pointer to a local")]
    let usage = unsafe {
        libc::getrusage(libc::RUSAGE_THREAD, usage.as_mut_ptr());
        usage.assume_init()
    };
    u64::try_from(usage.ru_nvcsw).unwrap_or(0)
}

/// Carries `operation`, a read or a write at an offset, out now; a count, or a negated errno. With
/// `wait` it may sleep, else the answer is EAGAIN where it would.
///
/// # Safety
///
/// What `operation` points at must be valid now.
#[inline]
#[expect(unsafe_code, reason = "hands pointers to the kernel")]
pub(crate) unsafe fn call(operation: &Operation, wait: bool) -> i32 {
    let (number, fd, pieces, count, offset) = match *operation {
        Operation::ReadVectored {
            fd,
            pieces,
            count,
            offset,
            registered: _,
        } => (libc::SYS_preadv2, fd, pieces, count, offset),
        Operation::WriteVectored {
            fd,
            pieces,
            count,
            offset,
            registered: _,
        } => (libc::SYS_pwritev2, fd, pieces, count, offset),
        Operation::Sync { .. }
        | Operation::Allocate { .. }
        | Operation::Poll { .. }
        | Operation::Accept { .. }
        | Operation::ReceiveMessage { .. }
        | Operation::SendMessage { .. }
        | Operation::Shutdown { .. } => unreachable!("{operation:?} is no read or write"),
    };
    // A whole word: a policy with a rule for the flags sees more of it than the kernel does.
    let flags = c_long::from(if wait { 0 } else { libc::RWF_NOWAIT });
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        reason = "the kernel takes an offset in two words, and puts them together; on 64 bits the \
                  first has all of it"
    )]
    let (low, high) = (offset as c_long, (offset >> 32) as c_long);
    // SAFETY: the caller's contract. The C library has no such call on every system.
    let result = unsafe { libc::syscall(number, fd, pieces, count, low, high, flags) };
    if result < 0 {
        let errno = io::Error::last_os_error().raw_os_error();
        return -errno.unwrap_or(libc::EIO);
    }
    i32::try_from(result).unwrap_or(i32::MAX)
}
