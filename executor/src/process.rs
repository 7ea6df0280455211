//! Signals and child processes through the ring.

use std::io;
use std::mem;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::ptr;

use rustix::process::{Signal, WaitId, WaitIdOptions};

use crate::buffers::Bytes;
use crate::executor::Handle;
use crate::file::File;

/// Signals as values. They stay blocked for the thread that made this, and for the threads and
/// programs it starts: whoever spawns a process restores its mask.
pub struct Signals {
    file: File,
    buffer: Option<Bytes>,
}

impl Signals {
    /// Blocks `signals` for this thread and receives them from now on.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn new(handle: &Handle, signals: &[Signal]) -> io::Result<Self> {
        let fd = block_and_open(signals)?;
        Ok(Self {
            file: File::new(&handle.reserved(), fd),
            buffer: Some(Bytes::zeroed(size_of::<libc::signalfd_siginfo>())),
        })
    }

    /// The number of the next signal.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub async fn next(&mut self) -> io::Result<i32> {
        self.file.readable().await?;
        // A read that is dropped early takes its buffer along.
        let size = size_of::<libc::signalfd_siginfo>();
        let buffer = self.buffer.take().unwrap_or_else(|| Bytes::zeroed(size));
        let (read, buffer) = self.file.read(buffer).await;
        let number = buffer.as_slice().first_chunk().copied();
        self.buffer = Some(buffer);
        match (read?, number) {
            // `ssi_signo` is the first field, and fits: signals are few.
            (n, Some(number)) if n == size => Ok(u32::from_ne_bytes(number).cast_signed()),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

#[expect(unsafe_code, reason = "libc calls with pointers to locals")]
fn block_and_open(signals: &[Signal]) -> io::Result<OwnedFd> {
    // SAFETY: `set` is a live local, initialised by the first call.
    unsafe {
        let mut set: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in signals {
            libc::sigaddset(&raw mut set, signal.as_raw());
        }
        let errno = libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut());
        if errno != 0 {
            return Err(io::Error::from_raw_os_error(errno));
        }
        let fd = libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitStatus {
    /// By itself, with this code.
    Code(i32),
    /// Killed by this signal.
    Signal(i32),
}

/// A child process, by descriptor: no number that another process could come to bear.
pub struct ProcessFd {
    file: File,
}

impl ProcessFd {
    /// Watches the child behind `pidfd`.
    pub fn new(handle: &Handle, pidfd: OwnedFd) -> Self {
        Self {
            file: File::new(&handle.reserved(), pidfd),
        }
    }

    /// Waits for its end and reaps it.
    ///
    /// # Errors
    ///
    /// ECHILD when it was reaped before; anything else the kernel says.
    pub async fn exited(&self) -> io::Result<ExitStatus> {
        self.file.readable().await?;
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        let status = rustix::process::waitid(WaitId::PidFd(self.file.as_fd()), options)?
            .ok_or(io::ErrorKind::WouldBlock)?;
        match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => Ok(ExitStatus::Code(code)),
            (None, Some(signal)) => Ok(ExitStatus::Signal(signal)),
            (None, None) => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

impl AsFd for ProcessFd {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.file.as_fd()
    }
}
