//! Terminals as input or output without holding up the loop. Not raw mode, and not sizes.
//!
//! A write to a terminal whose reader is slow waits inside the kernel, and through the ring it
//! waits inside `io_uring_enter`, with the whole device: the terminal layer says that it can do
//! without waiting, and then heeds only O_NONBLOCK (seen on Linux 6.18). That flag belongs to the
//! open file description, which a shell and its other programs share; so a terminal is opened a
//! second time, for us alone.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags, fcntl_getfl, fstat, major, minor};
use rustix::termios::isatty;

/// `/dev/ptmx`, which makes a new terminal whenever it is opened.
const PTMX: (u32, u32) = (5, 2);

/// Gives `descriptor` back, or if it is a terminal's, one of its own to the same terminal, with
/// O_NONBLOCK. For whoever opens a console's input and output outside of the jail. A terminal that
/// cannot be opened again (another user's) stays as it is.
#[must_use]
pub fn detached(descriptor: OwnedFd) -> OwnedFd {
    reopened(&descriptor).unwrap_or(descriptor)
}

fn reopened(descriptor: &OwnedFd) -> Option<OwnedFd> {
    let device = fstat(descriptor).ok()?.st_rdev;
    if !isatty(descriptor) || (major(device), minor(device)) == PTMX {
        return None;
    }
    let access = fcntl_getfl(descriptor).ok()? & OFlags::RWMODE;
    let flags = access | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let path = format!("/proc/self/fd/{}", descriptor.as_raw_fd());
    rustix::fs::open(path, flags, Mode::empty()).ok()
}

/// Whether a write of more than there is room for would wait.
pub(super) fn can_block(descriptor: impl AsFd) -> bool {
    let flags = fcntl_getfl(&descriptor);
    isatty(&descriptor) && !flags.is_ok_and(|flags| flags.contains(OFlags::NONBLOCK))
}
