//! The two ends of a queue's notifications: kicks come in by one multishot poll for the life of
//! the queue, calls go out by `write(2)`, or by a store where the other side is behind a device.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::task::{Context, Poll};

use rustix::io::Errno;

use crate::executor::Handle;
use crate::multishot::MultishotPoll;

/// `ANON_INODE_FS_MAGIC`: what `fstatfs` says of eventfds, and never of files, pipes or sockets.
const ANON_INODE_FS_MAGIC: u64 = 0x0904_1934;

/// Why a descriptor cannot serve as a kick or a call.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EventError {
    /// It is no eventfd. A pipe or a file would give its owner ways to block or fill us.
    #[error("not an eventfd (file system type {0:#x})")]
    NotEventFd(u64),
    /// A system call failed.
    #[error("{call}: {source}")]
    System {
        /// Which one.
        call: &'static str,
        /// With what.
        #[source]
        source: io::Error,
    },
}

fn check(fd: &OwnedFd) -> Result<(), EventError> {
    let status = rustix::fs::fstatfs(fd).map_err(|errno| EventError::System {
        call: "fstatfs",
        source: errno.into(),
    })?;
    let kind = u64::from_ne_bytes(status.f_type.to_ne_bytes());
    if kind == ANON_INODE_FS_MAGIC {
        Ok(())
    } else {
        Err(EventError::NotEventFd(kind))
    }
}

/// An eventfd that the other side signals. It is watched without ever being read, by a multishot
/// poll that completes once a signal; any number of signals is one pending bit.
pub struct Kick(MultishotPoll<OwnedFd>);

impl Kick {
    /// Watches `fd`.
    ///
    /// # Errors
    ///
    /// [`EventError`], for what is no eventfd.
    pub fn new(handle: &Handle, fd: OwnedFd) -> Result<Self, EventError> {
        check(&fd)?;
        Ok(Self(MultishotPoll::new(handle, &Rc::new(fd), libc::POLLIN)))
    }

    /// Completes when signalled since the last call. May complete without a signal: a queue with
    /// nothing in it just waits again.
    ///
    /// # Errors
    ///
    /// The kernel's, if the descriptor cannot be polled.
    pub async fn wait(&mut self) -> io::Result<()> {
        self.0.wait().await
    }

    /// [`Kick::wait`] for hand-written futures.
    ///
    /// # Errors
    ///
    /// As [`Kick::wait`].
    pub fn poll_wait(&mut self, cx: &Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_wait(cx)
    }
}

/// What a [`Call`] signals.
#[derive(Clone)]
pub enum CallTarget {
    /// An eventfd, by `write(2)`.
    Event(Rc<OwnedFd>),
    /// A doorbell of a device, by what stores to it. It is ours: it neither blocks nor fails.
    Doorbell(Rc<dyn Fn()>),
}

impl CallTarget {
    /// A doorbell that is rung by `store`.
    pub fn doorbell(store: impl Fn() + 'static) -> Self {
        Self::Doorbell(Rc::new(store))
    }
}

impl From<OwnedFd> for CallTarget {
    fn from(event: OwnedFd) -> Self {
        Self::Event(Rc::new(event))
    }
}

impl fmt::Debug for CallTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Event(fd) => f.debug_tuple("Event").field(fd).finish(),
            Self::Doorbell(_) => f.write_str("Doorbell"),
        }
    }
}

/// An eventfd or a doorbell that we signal.
#[derive(Clone)]
pub struct Call {
    handle: Handle,
    target: CallTarget,
}

impl Call {
    /// Signals through an eventfd, or a doorbell.
    ///
    /// # Errors
    ///
    /// [`EventError`], for a descriptor that is no eventfd.
    pub fn new(handle: &Handle, target: impl Into<CallTarget>) -> Result<Self, EventError> {
        let target = target.into();
        if let CallTarget::Event(fd) = &target {
            check(fd)?;
            handle
                .driver()
                .guard_calls()
                .map_err(|source| EventError::System {
                    call: "timer_create",
                    source,
                })?;
        }
        Ok(Self {
            handle: handle.clone(),
            target,
        })
    }

    /// Signals now. A plain `write` to an eventfd: as a ring operation it costs three times as
    /// much, and on an eventfd without `EFD_NONBLOCK` two hundred times, since the kernel hands it
    /// to a worker.
    ///
    /// # Errors
    ///
    /// EINTR when the peer has filled the eventfd so that the call would block for ever (the
    /// watchdog has ended it); anything else the kernel says. A doorbell never fails.
    #[inline]
    pub fn signal(&self) -> io::Result<()> {
        let driver = self.handle.driver();
        let fd = match &self.target {
            CallTarget::Event(fd) => fd.as_fd(),
            CallTarget::Doorbell(store) => {
                driver.call(|| store());
                return Ok(());
            }
        };
        let write = || rustix::io::write(fd, &1u64.to_ne_bytes());
        match driver.call(write) {
            // A full counter that does not block: the signal is there already.
            Ok(_) | Err(Errno::AGAIN) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}
