//! Inside: a started process takes away from itself all that it does not need, in the one order
//! that works. What it was started with is [`crate::spawn`].
//!
//! Three stages, each a type that the one before gives away:
//!
//! 1. [`Jail::begin`], the first thing in `main`: only the kept descriptors are left.
//! 2. [`Begun`]: the process does what needs rights that it is about to lose. It receives
//!    descriptors, compiles its policy, makes its ring (disabled, and restricted by a
//!    [`RingList`](crate::ring::RingList)), installs its own handlers.
//! 3. [`Jail::enter`] closes the jail, enables the ring in passing, and loads the filter last.
//!
//! A step that fails says its name and errno ([`StepError`]); the process is then half jailed and
//! should tell its supervisor and end.

mod capabilities;
mod descriptors;
mod filter;
mod landlock;
mod limits;
mod parent;
mod root;
mod signals;

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};

use rustix::io::Errno;

use self::capabilities::drop_capabilities;
use self::descriptors::inherit;
pub(crate) use self::filter::STEP_LISTENER;
use self::filter::{load_filter, load_filter_and_listen};
pub use self::landlock::Landlock;
use self::landlock::restrict_with_landlock;
pub use self::limits::Limits;
use self::limits::limit_resources;
use self::parent::die_with_parent;
pub(crate) use self::root::STEP_PIVOT;
use self::root::empty_root;
use self::signals::{report_sigsys, unblock_fault_signals};
use crate::policy::Program;

/// A step of the jail that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("jail: {step}: {errno}")]
pub struct StepError {
    /// The step by name; often a system call.
    pub step: &'static str,
    /// What the kernel said.
    pub errno: Errno,
}

impl StepError {
    pub(crate) fn at(step: &'static str) -> impl Fn(Errno) -> Self {
        move |errno| Self { step, errno }
    }
}

/// A process that could not even begin: [`Jail::begin`] failed.
#[derive(Debug, thiserror::Error)]
#[error("{step}")]
pub struct BeginError {
    /// What failed.
    pub step: StepError,
    /// Of the kept descriptors the first ones, as many as there were: to tell somebody over them.
    pub kept: Vec<OwnedFd>,
}

/// Steps that fail for want of a user namespace, or of capabilities in it
/// (see [`crate::spawn::hint`]).
pub(crate) const STEPS_OF_NAMESPACES: [&str; 6] = [
    root::STEP_PRIVATE,
    root::STEP_TMPFS,
    root::STEP_MOVE,
    STEP_PIVOT,
    capabilities::STEP_SECUREBITS,
    capabilities::STEP_BOUNDING_SET,
];

/// Steps that any process may make, if nothing forbids it.
pub(crate) const OTHER_STEPS: [&str; 14] = [
    root::STEP_UNMOUNT,
    root::STEP_NESTING,
    "landlock",
    "PR_CAP_AMBIENT_CLEAR_ALL",
    "capset",
    "RLIMIT_CORE",
    "RLIMIT_NOFILE",
    "RLIMIT_MEMLOCK",
    "RLIMIT_DATA",
    "PR_SET_DUMPABLE",
    "sigaction SIGSYS",
    "unblock fault signals",
    filter::STEP,
    STEP_LISTENER,
];

/// Such steps that are made without a jail too ([`Begun::stay_outside`]).
pub(crate) const STEPS_OUTSIDE_TOO: [&str; 4] = [
    descriptors::STEP,
    "setsid",
    "PR_SET_PDEATHSIG",
    "PR_SET_NO_NEW_PRIVS",
];

/// This process, with nothing open but what it was given, and all its rights.
#[derive(Debug)]
#[must_use = "the process has all its rights until it enters a jail"]
pub struct Begun(());

/// A jail that is about to be entered. Its layers are all of them, unless it is told otherwise.
#[derive(Debug)]
#[must_use = "the process has all its rights until it enters"]
pub struct Jail<'a> {
    policy: Option<&'a Program>,
    namespaces: bool,
    limits: Limits,
    listener_tag: Option<u8>,
}

/// A step of [`Jail::enter`] that has succeeded, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// An empty, read-only root directory; only with namespaces.
    EmptyRoot,
    /// Landlock, with what it gave.
    Landlock(Landlock),
    /// Secure bits and capabilities; only with namespaces.
    Capabilities,
    /// Resource limits.
    Limits,
    /// The end that comes with the supervisor's, no dumps, the handlers, no new privileges.
    Process,
    /// The ring is enabled.
    Ring,
    /// The policy is in force; only with one.
    Filter,
}

impl Jail<'_> {
    /// The first thing in a process that [`Spawn`](crate::Spawn) has started, before it opens
    /// anything: takes the descriptors that were kept under `numbers` (3 or above, ascending) as
    /// owned values, and closes everything else but 0, 1 and 2.
    ///
    /// # Errors
    ///
    /// EBADF if nothing was kept under a number, EINVAL if the numbers are not as they should be,
    /// EALREADY the second time in a process.
    pub fn begin<const N: usize>(numbers: [RawFd; N]) -> Result<(Begun, [OwnedFd; N]), BeginError> {
        let kept = inherit(numbers)?;
        Ok((Begun(()), kept))
    }
}

impl Begun {
    /// A jail with this policy: of [`policy::compile`](crate::policy::compile), or what
    /// [`Denials`](crate::Denials) made of one.
    pub fn policy(self, program: &Program) -> Jail<'_> {
        Jail {
            policy: Some(program),
            ..self.without_policy()
        }
    }

    /// A jail without a seccomp filter: to see what the other layers hold by themselves.
    pub fn without_policy(self) -> Jail<'static> {
        Jail {
            policy: None,
            namespaces: true,
            limits: Limits::default(),
            listener_tag: None,
        }
    }

    /// No jail, for debugging: the process keeps its rights, but has a session of its own and does
    /// not outlive its supervisor, and nothing that it executes gains any. `channel` and
    /// `enable_ring` are as in [`Jail::enter`].
    ///
    /// # Errors
    ///
    /// The step that failed.
    pub fn stay_outside(
        self,
        channel: BorrowedFd<'_>,
        enable_ring: impl FnOnce() -> io::Result<()>,
    ) -> Result<(), StepError> {
        new_session()?;
        die_with_parent(channel)?;
        no_new_privileges()?;
        enable(enable_ring)
    }
}

impl Jail<'_> {
    /// `false` for a process that was started without namespaces
    /// ([`Spawn::namespaces`](crate::Spawn::namespaces)). It keeps the host's root directory and
    /// its capabilities, if it had any, and has only the other layers.
    pub fn namespaces(self, namespaces: bool) -> Self {
        Self { namespaces, ..self }
    }

    /// Other limits than [`Limits::default`].
    pub fn limits(self, limits: Limits) -> Self {
        Self { limits, ..self }
    }

    /// A denied call is told to the supervisor, which lets it go on: the filter's listener is sent
    /// up the channel, in a packet of `tag` alone, to be read by [`crate::listener`]. For a policy
    /// that [`Denials::Notify`](crate::Denials::Notify) was applied to, for this channel.
    pub fn listen(self, tag: u8) -> Self {
        Self {
            listener_tag: Some(tag),
            ..self
        }
    }

    /// Closes the jail. From the return on, the process can do what its policy allows.
    ///
    /// `channel` is the process's end of a socket pair (one that keeps packets apart) whose other
    /// end only the supervisor has: its end is the supervisor's death, and a forbidden system call
    /// is reported there, as `tag` and the bytes of a [`SigsysReport`](crate::SigsysReport), before
    /// the process ends with [`SIGSYS_EXIT_STATUS`](crate::report::SIGSYS_EXIT_STATUS). It must
    /// stay open under its number; the policy must allow `sendto` and `exit_group`.
    ///
    /// From here on the process is killed when the *thread* ends that has called
    /// [`Spawn::spawn`](crate::Spawn::spawn), even if its program goes on. Of a thread that has
    /// ended before this call nothing is noticed as long as its program lives: the other end of
    /// `channel` is still open, and another of its threads is the parent now.
    ///
    /// `enable_ring` enables the process's ring, if it has one, or does nothing. It is called where
    /// that is still allowed, and where nothing can be done with the ring any more that the jail
    /// forbids.
    ///
    /// # Errors
    ///
    /// The step that failed. EPIPE if the supervisor has died already.
    pub fn enter(
        self,
        channel: BorrowedFd<'_>,
        tag: u8,
        enable_ring: impl FnOnce() -> io::Result<()>,
    ) -> Result<(), StepError> {
        self.enter_step_by_step(channel, tag, enable_ring, |_| ())
    }

    /// As [`enter`](Self::enter); `done` hears of each step that has succeeded. After
    /// [`Step::Filter`] it can do only what the policy allows.
    ///
    /// # Errors
    ///
    /// As [`enter`](Self::enter).
    pub fn enter_step_by_step(
        self,
        channel: BorrowedFd<'_>,
        tag: u8,
        enable_ring: impl FnOnce() -> io::Result<()>,
        mut done: impl FnMut(Step),
    ) -> Result<(), StepError> {
        new_session()?;
        if self.namespaces {
            empty_root()?;
            done(Step::EmptyRoot);
        }
        done(Step::Landlock(restrict_with_landlock()?));
        if self.namespaces {
            // After the mounts, which need one.
            drop_capabilities()?;
            done(Step::Capabilities);
        }
        limit_resources(self.limits)?;
        done(Step::Limits);
        // After the last change of ids, which clears both of these.
        die_with_parent(channel)?;
        forbid_dumps()?;
        report_sigsys(channel, tag)?;
        unblock_fault_signals()?;
        no_new_privileges()?;
        done(Step::Process);
        enable(enable_ring)?;
        done(Step::Ring);
        if let Some(program) = self.policy {
            match self.listener_tag {
                Some(tag) => load_filter_and_listen(program, channel, tag)?,
                None => load_filter(program)?,
            }
            done(Step::Filter);
        }
        Ok(())
    }
}

fn enable(ring: impl FnOnce() -> io::Result<()>) -> Result<(), StepError> {
    ring().map_err(|error| {
        let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
        StepError::at("enable the ring")(errno)
    })
}

/// A session of its own: no controlling terminal, so no terminal's signals.
fn new_session() -> Result<(), StepError> {
    match rustix::process::setsid() {
        // The leader of a process group has EPERM: init of a pid namespace may be one already.
        Ok(_) | Err(Errno::PERM) => Ok(()),
        Err(errno) => Err(StepError {
            step: "setsid",
            errno,
        }),
    }
}

/// No core file of guest memory, no ptrace by the same user. To come after the last id change,
/// which sets it anew.
fn forbid_dumps() -> Result<(), StepError> {
    use rustix::process::{DumpableBehavior, set_dumpable_behavior};
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(StepError::at("PR_SET_DUMPABLE"))
}

/// Nothing executed later can gain anything; a seccomp filter needs it from a process without
/// capabilities.
fn no_new_privileges() -> Result<(), StepError> {
    rustix::thread::set_no_new_privs(true).map_err(StepError::at("PR_SET_NO_NEW_PRIVS"))
}
