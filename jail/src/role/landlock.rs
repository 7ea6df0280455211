//! Landlock: a layer below the mount namespace and seccomp, and without them the only one that
//! refuses paths.

use landlock::{
    ABI, Access, AccessFs, AccessNet, LandlockStatus, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetStatus, Scope,
};
use rustix::io::Errno;

use super::StepError;

/// The newest interface that this was written for; older kernels get what they have.
const NEWEST: ABI = ABI::V9;

/// What this kernel's Landlock took from us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Landlock {
    /// The kernel's Landlock interface, 0 = none (not built in, or not enabled at boot).
    pub abi: u32,
    /// Whether every restriction we know of is in force: files, TCP, abstract sockets, signals.
    pub complete: bool,
}

/// Forbids every path, TCP bind and connect, abstract sockets and signals outside of ourselves:
/// all rights that the kernel handles, and no rule that gives any back. Open descriptors keep
/// working. A kernel without Landlock is not an error: the other layers refuse the same.
pub(super) fn restrict_with_landlock() -> Result<Landlock, StepError> {
    let restricted = Ruleset::default()
        .handle_access(AccessFs::from_all(NEWEST))
        .and_then(|ruleset| ruleset.handle_access(AccessNet::from_all(NEWEST)))
        .and_then(|ruleset| ruleset.scope(Scope::from_all(NEWEST)))
        .and_then(Ruleset::create)
        // Set by a step of its own. Needed here only from a process without CAP_SYS_ADMIN in its
        // namespace, which is the one without namespaces.
        .and_then(|ruleset| ruleset.no_new_privs(true).restrict_self());
    let status = restricted.map_err(|_| StepError {
        step: "landlock",
        // The crate's errors wrap what the last call left; its own checks cannot fail here.
        errno: Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL),
    })?;
    let abi = match status.landlock {
        LandlockStatus::NotEnabled | LandlockStatus::NotImplemented => 0,
        LandlockStatus::Available { effective_abi, .. } => effective_abi as u32,
    };
    Ok(Landlock {
        abi,
        complete: status.ruleset == RulesetStatus::FullyEnforced,
    })
}
