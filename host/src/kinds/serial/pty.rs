//! A pseudo-terminal for a console, whose users come and go. Not the terminal that somebody sits
//! at: that one is the supervisor's to put into raw mode.

use std::os::fd::OwnedFd;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::fs::{Mode, OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::{Errno, FdFlags, fcntl_setfd};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};

/// A terminal that nobody has open.
pub(super) struct Pty {
    /// Its path.
    pub(super) name: String,
    /// With O_NONBLOCK, and nobody else's.
    pub(super) master: OwnedFd,
    /// Tells when it is opened: its master only says whether it is, and a device has to know when
    /// to ask. (We do not keep it open ourselves: then the master could not say it.)
    pub(super) opens: OwnedFd,
}

impl Pty {
    /// A new terminal, in raw mode: what a guest prints is not for a line discipline to change.
    pub(super) fn make() -> Result<Self, Errno> {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY)?;
        fcntl_setfd(&master, FdFlags::CLOEXEC)?;
        fcntl_setfl(&master, fcntl_getfl(&master)? | OFlags::NONBLOCK)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let name = ptsname(&master, Vec::new())?;
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        // Once opened and closed, the master says that nobody has it open; before, it would not.
        let user = rustix::fs::open(&name, flags, Mode::empty())?;
        let mut settings = tcgetattr(&user)?;
        settings.make_raw();
        tcsetattr(&user, OptionalActions::Now, &settings)?;
        drop(user);
        let opens = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        inotify::add_watch(&opens, &name, WatchFlags::OPEN)?;
        let name = name.into_string().map_err(|_| Errno::ILSEQ)?;
        Ok(Self {
            name,
            master,
            opens,
        })
    }
}
