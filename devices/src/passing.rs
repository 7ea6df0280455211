//! Errors of a ring operation that say nothing about its file. What is done then is the device's
//! affair: ask again later, or ask by a system call.

use std::io;

use rustix::io::Errno;

/// Whether the same can be tried again: io-wq had no worker thread for it, since a limit on
/// processes was reached (ECANCELED, or EAGAIN), a stop interrupted it, or somebody else was
/// quicker at a shared descriptor (EAGAIN).
pub(crate) fn is_passing(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::AGAIN | Errno::INTR | Errno::CANCELED)
    )
}
