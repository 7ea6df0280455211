//! A jail for a process of one's own program: what puts it there, and the policies that say what is
//! left to it; not what runs inside, and not the channel over which its supervisor talks to it.
//! Made for the devices of `vudev`, and for any daemon that takes its orders by descriptors it was
//! given: `docs/jailing-a-daemon.md` goes through one, which is `examples/shout.rs`.
//!
//! Three parts, used at three moments:
//!
//! - [`Spawn`], by the supervisor: a process in namespaces of its own, with an unprivileged id and
//!   only the descriptors that are kept for it, running our own binary again.
//! - [`Jail`], by that process: the steps that take away the rest, in the order that the kernel
//!   requires, each with an error that names itself.
//! - [`policy`] and [`ring`], by either: seccomp policies in minijail's language compiled to BPF,
//!   and the allow-lists of io_uring operations, which seccomp does not see. Both halves of a
//!   device's are files under `seccomp/`, embedded at build time; a daemon has texts of its own.
//!
//! ```no_run
//! # use std::os::fd::{AsFd, OwnedFd};
//! # use vudev_jail::{Arch, Jail, Spawn, own_program, policy::Policy, ring::RingList};
//! # const POLICY: &str = ""; const RING_LIST: &str = "";
//! # fn supervisor(theirs: OwnedFd, listener: OwnedFd) -> Result<(), Box<dyn std::error::Error>> {
//! // The supervisor.
//! let program = own_program()?;
//! let child = Spawn::new(program.as_fd(), "my-daemon")?
//!     .keep(theirs.as_fd(), 3)
//!     .keep(listener.as_fd(), 4)
//!     .spawn()?;
//! # Ok(()) }
//! # fn daemon() -> Result<(), Box<dyn std::error::Error>> {
//! // The daemon, which is the same program under another name.
//! let (begun, [channel, listener]) = Jail::begin([3, 4])?;
//! let policy = Policy::from_text(POLICY, Arch::HOST.ok_or("no policies here")?)?.compile()?;
//! let ring = io_uring::IoUring::builder().setup_r_disabled().build(8)?;
//! RingList::from_text(RING_LIST)?.restrict(&ring)?;
//! begun
//!     .policy(&policy)
//!     .enter(channel.as_fd(), b'!', || ring.submitter().register_enable_rings())?;
//! # Ok(()) }
//! ```
//!
//! # What a jail does, in order
//!
//! ```text
//! Jail::begin      everything closed but the kept descriptors
//! the caller       receives descriptors; makes the ring, disabled and restricted by its list;
//!                  installs handlers of its own (SIGBUS)
//! Jail::enter      a session of its own
//!                  an empty read-only root                          only with namespaces
//!                  Landlock
//!                  secure bits, bounding set, capabilities          only with namespaces
//!                  resource limits
//!                  the end with the supervisor's; no dumps, no ptrace
//!                  the SIGSYS handler; SIGSYS, SIGSEGV, SIGBUS unblocked
//!                  no new privileges
//!                  the ring enabled, by the caller's function
//!                  the seccomp filter                               or a listener: see Denials
//! ```
//!
//! # Errors
//!
//! Each says which step failed ([`SpawnError::step`], [`StepError::step`]) and the kernel's errno;
//! [`spawn::hint`] knows what on this host may be the cause. A policy or list that cannot be used
//! says where, by file, line and column ([`PolicyError`]).

pub mod denials;
pub mod listener;
pub mod policy;
pub mod probe;
pub mod report;
pub mod ring;
pub mod role;
pub mod source;
pub mod spawn;
mod suggest;

pub use denials::Denials;
pub use policy::{Action, Arch, PolicyError, Program};
pub use report::SigsysReport;
pub use ring::RingList;
pub use role::{BeginError, Begun, Jail, Limits, StepError};
pub use source::{Directory, Embedded, Source};
pub use spawn::{Child, Namespace, Spawn, SpawnError, own_program};
pub use suggest::nearest;

/// Why the last call of the C library failed.
fn last_errno() -> rustix::io::Errno {
    rustix::io::Errno::from_io_error(&std::io::Error::last_os_error())
        .unwrap_or(rustix::io::Errno::IO)
}
