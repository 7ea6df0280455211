//! A role does not outlive its supervisor.

use std::os::fd::BorrowedFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Signal, set_parent_process_death_signal};

use super::StepError;

/// Asks for SIGKILL when the supervisor's thread that started us ends. To come after the last
/// change of ids, which clears it (prctl(2)).
///
/// If only that thread has ended before, another thread of the supervisor's is our parent, and this
/// is about that one's end.
///
/// The supervisor may have died before we asked; then nobody holds the other end of `channel`, and
/// this fails with EPIPE.
pub(super) fn die_with_parent(channel: BorrowedFd<'_>) -> Result<(), StepError> {
    set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(StepError::at("PR_SET_PDEATHSIG"))?;
    let fail = StepError::at("look for the supervisor");
    let mut polled = [PollFd::from_borrowed_fd(channel, PollFlags::empty())];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    rustix::io::retry_on_intr(|| poll(&mut polled, Some(&now))).map_err(&fail)?;
    match polled[0]
        .revents()
        .intersects(PollFlags::HUP | PollFlags::ERR)
    {
        true => Err(fail(Errno::PIPE)),
        false => Ok(()),
    }
}
