//! Terminals, both sides of them.

#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

use std::fs::File;
use std::os::fd::OwnedFd;

use rustix::fs::OFlags;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};

/// A terminal in raw mode: the side of its user, and that of a program.
pub(crate) fn terminal() -> (File, OwnedFd) {
    let user = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&user).unwrap();
    unlockpt(&user).unwrap();
    let name = ptsname(&user, Vec::new()).unwrap();
    let flags = OFlags::RDWR | OFlags::NOCTTY;
    let program = rustix::fs::open(&name, flags, rustix::fs::Mode::empty()).unwrap();
    let mut settings = tcgetattr(&program).unwrap();
    settings.make_raw();
    tcsetattr(&program, OptionalActions::Now, &settings).unwrap();
    (user.into(), program)
}
