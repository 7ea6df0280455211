//! The supervisor's end of a filter that notifies (`seccomp_unotify(2)`): which call a process
//! wants to make, and the word that lets it go on. It decides nothing and never waits.
//!
//! It guards nothing either: what the arguments point at can change between the look and the
//! call. Whoever says [`let_go_on`] has chosen to have no filter and to hear of it.
#![expect(
    unsafe_code,
    reason = "the listener's ioctls take structures by pointer"
)]

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::last_errno;
use crate::report::SigsysReport;

/// What a listener has for its reader.
#[derive(Debug, PartialEq, Eq)]
pub enum Received {
    /// A process waits for an answer.
    Call(Notification),
    /// Nobody waits (any more).
    Nothing,
    /// No process is left that could ever call.
    Ended,
}

/// A process that waits in a denied call.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "the process waits until it is answered"]
pub struct Notification {
    id: u64,
    /// The call.
    pub call: SigsysReport,
}

/// The next call, if there is one.
///
/// The ioctl waits when there is none, whatever O_NONBLOCK says; so this looks first. A call that
/// was there at the look and is gone at the ioctl (its process was killed) does not make it wait:
/// its count is taken all the same, and the answer is ENOENT. That holds as long as the listener
/// has one reader.
pub fn receive(listener: BorrowedFd<'_>) -> Result<Received, Errno> {
    let mut polled = [PollFd::from_borrowed_fd(listener, PollFlags::IN)];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    rustix::io::retry_on_intr(|| poll(&mut polled, Some(&now)))?;
    let found = polled[0].revents();
    if !found.contains(PollFlags::IN) {
        let over = found.intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL);
        return Ok(if over {
            Received::Ended
        } else {
            Received::Nothing
        });
    }
    // SAFETY: all-zero is valid, and what the kernel demands.
    let mut notification: libc::seccomp_notif = unsafe { std::mem::zeroed() };
    // SAFETY: the request's number names the structure's size, so a kernel that would write more
    // refuses it; any other kind of descriptor answers ENOTTY.
    let received = unsafe {
        libc::ioctl(
            listener.as_raw_fd(),
            libc::SECCOMP_IOCTL_NOTIF_RECV,
            &raw mut notification,
        )
    };
    if received != 0 {
        return match last_errno() {
            Errno::NOENT | Errno::INTR => Ok(Received::Nothing),
            errno => Err(errno),
        };
    }
    let libc::seccomp_notif { id, data, .. } = notification;
    let call = SigsysReport {
        syscall: data.nr,
        arch: data.arch,
        ip: data.instruction_pointer,
        args: data.args,
    };
    Ok(Received::Call(Notification { id, call }))
}

/// The kernel carries the call out as if no filter had been there.
pub fn let_go_on(listener: BorrowedFd<'_>, notification: &Notification) -> Result<(), Errno> {
    // SAFETY: all-zero is valid.
    let mut answer: libc::seccomp_notif_resp = unsafe { std::mem::zeroed() };
    answer.id = notification.id;
    answer.flags = CONTINUE;
    // SAFETY: as in `receive`; the kernel only reads it.
    let sent = unsafe {
        libc::ioctl(
            listener.as_raw_fd(),
            libc::SECCOMP_IOCTL_NOTIF_SEND,
            &raw mut answer,
        )
    };
    match sent {
        0 => Ok(()),
        _ => match last_errno() {
            // It was killed meanwhile: nobody waits.
            Errno::NOENT => Ok(()),
            errno => Err(errno),
        },
    }
}

/// `SECCOMP_USER_NOTIF_FLAG_CONTINUE`, in the width of the field.
const CONTINUE: u32 = 1;

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn what_is_no_listener_is_an_error_or_nothing_and_is_not_waited_for() {
        let (read, write) = rustix::pipe::pipe().unwrap();
        assert_eq!(receive(read.as_fd()), Ok(Received::Nothing));
        rustix::io::write(&write, b"x").unwrap();
        assert_eq!(receive(read.as_fd()), Err(Errno::NOTTY));
        rustix::io::read(&read, &mut [0; 1]).unwrap();
        drop(write);
        assert_eq!(receive(read.as_fd()), Ok(Received::Ended));
    }
}
