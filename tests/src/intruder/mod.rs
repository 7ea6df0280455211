//! What code that has taken over a device's process would try, as a table: each attempt with its
//! name, what must come of it under the device's real policy, and what must come of it when
//! seccomp is off and namespaces, capabilities, Landlock and the ring's list are left. It starts
//! no process and judges nothing: `vudev-escape` makes the attempts, `tests/intruder.rs` judges.
//!
//! An attempt that passes by mistake must do no harm to the host that tests it: signals are 0,
//! magic numbers wrong, the clock is set to what it shows.

mod alone;
mod files;
#[cfg(target_arch = "x86_64")]
mod foreign;
mod hands;
mod kernel;
pub mod leaks;
mod memory;
mod namespaces;
mod processes;
mod reports;
pub mod ring;
mod rings;
mod sockets;
pub mod vfio;

use std::os::fd::RawFd;

use self::leaks::Leaked;
use self::ring::RawRing;
use self::vfio::Vfio;

pub use self::alone::names as names_alone;
pub use self::hands::Outside;
pub use self::memory::Keyed;

/// `argv[0]` of a device's process without a host.
pub const BARE_NAME: &str = "vudev-escape-bare";

/// First byte of its report of a forbidden call; a result's is another, for it is small or minus.
pub const BARE_TAG: u8 = 0x7e;

/// One way out that must be closed.
#[derive(Debug)]
pub struct Attempt {
    /// Begins with the system call, or is of the ring.
    pub name: &'static str,
    /// What comes of it in a whole jail, and in one without namespaces.
    pub filtered: Filtered,
    /// What comes of it in a jail without its filter.
    pub unfiltered: Unfiltered,
    run: fn(&Hands) -> i64,
}

/// What the filter, or where it does not see, the ring's list or the kernel makes of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filtered {
    /// The process ends with a report of the call that the attempt's name begins with.
    Killed,
    /// The process ends so, and reports nothing.
    Dies(Death),
    /// It fails with one of these.
    Fails(&'static [i32]),
}

/// How a process ends that reports nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Death {
    /// By a signal.
    Signal(i32),
    /// With an exit status.
    Status(i32),
}

/// What the layers beside seccomp make of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unfiltered {
    /// It fails with one of these.
    Fails(&'static [i32]),
    /// It passes; why that is no way out.
    Passes(&'static str),
    /// It passes, or fails with one of these where the kernel lacks what is asked for.
    PassesOrLacks(&'static str, &'static [i32]),
}

/// What an intruder has at hand.
#[derive(Debug)]
pub struct Hands {
    /// The ring of the process.
    pub ring: RawRing,
    /// A file of the device's own.
    pub file: RawFd,
    /// A terminal that the device was given, if it was.
    pub terminal: Option<RawFd>,
    /// A function that front-ends come through, if they do.
    pub vfio: Vfio,
    /// What there is outside.
    pub outside: Outside,
    /// What has leaked.
    pub leaked: Leaked,
    /// For attempts that are a family: which of it.
    pub member: u16,
}

impl Attempt {
    /// Makes the attempt: 0 or more if it has passed, else a negative errno.
    pub fn make(&self, hands: &Hands) -> i64 {
        (self.run)(hands)
    }

    /// What comes of it in a jail with neither namespaces nor filter, of an ordinary user.
    pub fn alone(&self) -> Unfiltered {
        alone::exception(self.name).unwrap_or(self.unfiltered)
    }

    /// The system call that a report must name.
    pub fn call(&self) -> &'static str {
        self.name.split(' ').next().unwrap_or(self.name)
    }
}

/// All of them; the order is their number.
pub fn attempts() -> Vec<&'static Attempt> {
    [
        // Before others leave descriptors of their own.
        rings::ATTEMPTS,
        leaks::ATTEMPTS,
        #[cfg(target_arch = "x86_64")]
        foreign::ATTEMPTS,
        reports::ATTEMPTS,
        files::ATTEMPTS,
        sockets::ATTEMPTS,
        processes::ATTEMPTS,
        namespaces::ATTEMPTS,
        memory::ATTEMPTS,
        kernel::ATTEMPTS,
        vfio::ATTEMPTS,
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// The families, by the name of their attempt; the member is a number.
pub use self::rings::{FLAG, OPERATION, REGISTER, Refusals};

/// An attempt that dies of seccomp and fails otherwise.
const fn refused(name: &'static str, errnos: &'static [i32], run: fn(&Hands) -> i64) -> Attempt {
    Attempt {
        name,
        filtered: Filtered::Killed,
        unfiltered: Unfiltered::Fails(errnos),
        run,
    }
}

/// An attempt that seccomp alone refuses.
const fn by_seccomp(name: &'static str, reason: &'static str, run: fn(&Hands) -> i64) -> Attempt {
    Attempt {
        name,
        filtered: Filtered::Killed,
        unfiltered: Unfiltered::Passes(reason),
        run,
    }
}

/// An attempt that no filter sees.
const fn unseen(name: &'static str, errnos: &'static [i32], run: fn(&Hands) -> i64) -> Attempt {
    Attempt {
        name,
        filtered: Filtered::Fails(errnos),
        unfiltered: Unfiltered::Fails(errnos),
        run,
    }
}

/// An attempt that seccomp alone refuses, if the kernel has what it asks for.
const fn by_seccomp_if_there(
    name: &'static str,
    reason: &'static str,
    lacks: &'static [i32],
    run: fn(&Hands) -> i64,
) -> Attempt {
    Attempt {
        name,
        filtered: Filtered::Killed,
        unfiltered: Unfiltered::PassesOrLacks(reason, lacks),
        run,
    }
}

/// An attempt that dies of seccomp before anything could be reported, and fails otherwise.
const fn dies(name: &'static str, errnos: &'static [i32], run: fn(&Hands) -> i64) -> Attempt {
    Attempt {
        name,
        filtered: Filtered::Dies(Death::Signal(libc::SIGSYS)),
        unfiltered: Unfiltered::Fails(errnos),
        run,
    }
}
