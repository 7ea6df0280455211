//! A pseudo-terminal whose other end a program under test believes to be a person's. It types and
//! reads; it does not interpret escape sequences.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::fs::{Mode, OFlags, open};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

use crate::Lines;

/// Our end of a pseudo-terminal.
#[derive(Debug)]
pub struct Terminal {
    keyboard: OwnedFd,
    screen: Lines,
    program_end: OwnedFd,
}

impl Terminal {
    /// A new pseudo-terminal in its default state: echo on, lines edited by the kernel.
    pub fn open() -> Result<Self> {
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
            .context("openpt")?;
        grantpt(&ours).context("grantpt")?;
        unlockpt(&ours).context("unlockpt")?;
        let name = ptsname(&ours, Vec::new()).context("ptsname")?;
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let program_end = open(name.as_c_str(), flags, Mode::empty()).context("open pts")?;
        let keyboard = ours.try_clone()?;
        Ok(Self {
            keyboard,
            screen: Lines::new(ours),
            program_end,
        })
    }

    /// The program's end, for its standard input or output.
    pub fn program_end(&self) -> Result<File> {
        Ok(File::from(self.program_end.try_clone()?))
    }

    /// Types these characters; a line ends in `\r`, as on a keyboard.
    pub fn type_text(&mut self, text: &str) -> Result<()> {
        let mut left = text.as_bytes();
        while !left.is_empty() {
            let written = rustix::io::write(&self.keyboard, left)?;
            left = left.get(written..).context("more written than asked for")?;
        }
        Ok(())
    }

    /// Reads the screen until a line contains `wanted`, and returns that line.
    pub fn until(&mut self, wanted: &str, limit: Duration) -> Result<String> {
        self.screen.until(wanted, limit)
    }

    /// Whether the kernel echoes what is typed: false while a program has it in raw mode.
    pub fn echoes(&self) -> Result<bool> {
        let modes = rustix::termios::tcgetattr(&self.program_end).context("tcgetattr")?;
        Ok(modes
            .local_modes
            .contains(rustix::termios::LocalModes::ECHO))
    }
}
