//! The jail of a device process: what puts a process into it, and the policies that say what is
//! left to it; not what runs inside, and not the channel over which its supervisor talks to it.
//!
//! Three parts, used at three moments:
//!
//! - [`spawn`], by the supervisor: a process in namespaces of its own, with an unprivileged id,
//!   only the descriptors it was given, running our own binary again in its device role.
//! - [`role`], by that process: the steps that take away the rest, in the order that the kernel
//!   requires, each with an error that names itself.
//! - [`policy`] and [`ring`], by either: seccomp policies in minijail's language compiled to BPF,
//!   and the allow-lists of io_uring operations, which seccomp does not see. Both halves are files
//!   under `seccomp/`, embedded at build time.
//!
//! Order of a role (each line is a function; *host* marks what the caller does between):
//!
//! ```text
//! role::inherit                    only the kept descriptors are left, as owned values
//! role::new_session
//! host: receive descriptors, make the ring (disabled, restricted by ring::allow_list),
//!       its own handlers (SIGBUS)
//! role::empty_root                 only with namespaces
//! role::restrict_with_landlock
//! role::drop_capabilities          only with namespaces
//! role::limit_resources
//! role::die_with_parent
//! role::forbid_dumps
//! role::report_sigsys
//! role::unblock_fault_signals
//! role::no_new_privileges
//! host: enable the ring
//! role::load_filter                or role::load_filter_and_listen, see Denials
//! ```
//!
//! [`role::confine`] is the part from `empty_root` to `no_new_privileges` in one call.

pub mod denials;
pub mod listener;
pub mod policy;
pub mod probe;
pub mod report;
pub mod ring;
pub mod role;
pub mod source;
pub mod spawn;

pub use denials::Denials;
pub use policy::{Action, Arch, PolicyError, Program};
pub use report::SigsysReport;
pub use role::StepError;
pub use source::{Directory, Embedded, Source};
pub use spawn::{Child, Namespace, Spawn, SpawnError, own_program};

/// Why the last call of the C library failed.
fn last_errno() -> rustix::io::Errno {
    rustix::io::Errno::from_io_error(&std::io::Error::last_os_error())
        .unwrap_or(rustix::io::Errno::IO)
}
