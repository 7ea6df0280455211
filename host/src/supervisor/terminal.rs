//! A terminal in raw mode for as long as the devices run. Keys go to the guest one by one, Ctrl-C
//! too; our own lines still begin at the left edge.

use std::io;
use std::os::fd::OwnedFd;

use rustix::termios::{LocalModes, OptionalActions, Termios, isatty, tcgetattr, tcsetattr};

/// Restores the terminal when it is dropped, which includes unwinding.
#[derive(Debug)]
pub(crate) struct RawTerminal {
    terminal: OwnedFd,
    before: Termios,
}

impl RawTerminal {
    /// Nothing is done to what is not a terminal.
    ///
    /// The caller has blocked SIGTTOU: the kernel then lets a background process change and, more
    /// to the point, restore its terminal (`tty_check_change`) instead of stopping it.
    pub(crate) fn enter(terminal: OwnedFd) -> io::Result<Option<Self>> {
        if !isatty(&terminal) {
            return Ok(None);
        }
        let before = tcgetattr(&terminal)?;
        let mut raw = before.clone();
        // As crosvm does: no lines, no echo, no signals; output processing stays.
        raw.local_modes -= LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG;
        tcsetattr(&terminal, OptionalActions::Now, &raw)?;
        Ok(Some(Self { terminal, before }))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // Not `Drain`: output stopped by Ctrl-S must not hold up the end.
        if let Err(errno) = tcsetattr(&self.terminal, OptionalActions::Now, &self.before) {
            log::warn!("the terminal could not be restored: {errno}");
        }
    }
}
