//! Device side: the steps by which a started process takes away from itself all that a device does
//! not need. What it was started with is [`crate::spawn`].
//!
//! Each step is a function of its own; the order, and why, is in `lib.rs`. A step that fails says
//! its name and errno, which the role sends to its supervisor before it ends.

mod capabilities;
mod descriptors;
mod filter;
mod landlock;
mod limits;
mod parent;
mod root;
mod signals;

use std::os::fd::BorrowedFd;

use rustix::io::Errno;

pub use self::descriptors::inherit;
pub(crate) use self::filter::STEP_LISTENER;
pub use self::filter::{load_filter, load_filter_and_listen};
pub use self::landlock::Landlock;
pub use self::limits::Limits;
pub use self::parent::die_with_parent;
pub use self::root::empty_root;

use self::capabilities::drop_capabilities;
use self::landlock::restrict_with_landlock;
use self::limits::limit_resources;
use self::signals::{report_sigsys, unblock_fault_signals};

/// A step of the jail that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("jail: {step}: {errno}")]
pub struct StepError {
    /// The step by name; one of this module's constants or a system call.
    pub step: &'static str,
    /// What the kernel said.
    pub errno: Errno,
}

impl StepError {
    pub(crate) fn at(step: &'static str) -> impl Fn(Errno) -> Self {
        move |errno| Self { step, errno }
    }
}

/// Steps that fail for want of a user namespace, or of capabilities in it
/// (see [`crate::spawn::hint`]).
pub(crate) const STEPS_OF_NAMESPACES: [&str; 6] = [
    root::STEP_PRIVATE,
    root::STEP_TMPFS,
    root::STEP_MOVE,
    root::STEP_PIVOT,
    capabilities::STEP_SECUREBITS,
    capabilities::STEP_BOUNDING_SET,
];

/// What [`confine`] needs to know.
#[derive(Clone, Copy, Debug)]
pub struct Confinement<'a> {
    /// Whether the process was started with namespaces. Without them it keeps the host's root
    /// directory and its capabilities, if it had any, and has only the other layers.
    pub namespaces: bool,
    /// The control channel: its other end is the supervisor's life, and where a SIGSYS is reported.
    pub channel: BorrowedFd<'a>,
    /// First byte of a SIGSYS report, by which the supervisor knows the message.
    pub sigsys_tag: u8,
    /// Resource limits.
    pub limits: Limits,
}

/// What [`confine`] did beyond what it always does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Confined {
    /// What Landlock gave on this kernel.
    pub landlock: Landlock,
}

/// A step of [`confine`], in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// [`empty_root`]; only with namespaces.
    EmptyRoot,
    /// Landlock, with what it gave.
    Landlock(Landlock),
    /// Secure bits and capabilities; only with namespaces.
    Capabilities,
    /// Resource limits.
    Limits,
    /// The end that comes with the supervisor's, no dumps, the handlers, [`no_new_privileges`].
    Process,
}

/// All steps between the making of the ring and its enabling, in order.
pub fn confine(confinement: &Confinement<'_>) -> Result<Confined, StepError> {
    confine_step_by_step(confinement, |_| ())
}

/// As [`confine`]; `done` hears of each step that has succeeded.
pub fn confine_step_by_step(
    confinement: &Confinement<'_>,
    mut done: impl FnMut(Step),
) -> Result<Confined, StepError> {
    if confinement.namespaces {
        empty_root()?;
        done(Step::EmptyRoot);
    }
    let landlock = restrict_with_landlock()?;
    done(Step::Landlock(landlock));
    if confinement.namespaces {
        drop_capabilities()?;
        done(Step::Capabilities);
    }
    limit_resources(confinement.limits)?;
    done(Step::Limits);
    die_with_parent(confinement.channel)?;
    forbid_dumps()?;
    report_sigsys(confinement.channel, confinement.sigsys_tag)?;
    unblock_fault_signals()?;
    no_new_privileges()?;
    done(Step::Process);
    Ok(Confined { landlock })
}

/// A session of its own: no controlling terminal, so no terminal's signals.
pub fn new_session() -> Result<(), StepError> {
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
pub fn no_new_privileges() -> Result<(), StepError> {
    rustix::thread::set_no_new_privs(true).map_err(StepError::at("PR_SET_NO_NEW_PRIVS"))
}
