//! The host of devices: from a command line to jailed device processes, and their supervision.
//! What a device does, how a wire speaks and what a jail is made of are other crates' matters.
//!
//! One binary plays two parts. Started by a user it is the **supervisor**: it parses the options,
//! opens every resource, binds every socket, starts one process per device and stays outside of
//! the jails until all have ended. Started by the supervisor, under the name `vudev-device`, it
//! is one **role**: it receives its device over the control channel, closes its jail behind
//! itself and serves one front-end after another.
//!
//! ```text
//! command line → options → Entry::open ─┐                 ┌→ jail steps → device → Session
//!                          sockets ─────┴→ spawn → Start ─┘   Ready, logs, cause of death ↑
//! ```
//!
//! A binary with devices of its own is a [`Registry`] and one call of [`run`];
//! `tests/src/bin/vudev-entropy.rs` is a whole one, and `docs/writing-a-device.md` explains it.

mod broker;
mod channel;
mod check;
pub mod kind;
pub mod kinds;
mod listen;
pub mod options;
mod policies;
mod registry;
mod remedy;
mod role;
mod supervisor;
mod text;

use std::ffi::OsStr;
use std::process::ExitCode;

pub use broker::Broker;
pub use kind::{Alias, CreateError, DeviceKind, Given, Listen, Notice, Opened, Target};
pub use registry::{Entry, PolicySource, Registry};

/// `argv[0]` of a device's process, by which the binary knows its part.
const ROLE: &str = "vudev-device";

/// The whole program: the supervisor, or one device when the supervisor has started it so.
///
/// Nothing is done before it: `main` runs once more in each device's process, which has neither the
/// arguments nor the environment nor standard output.
///
/// `check` starts no device, but a process under the name `vudev-check` that goes through the steps
/// of one.
///
/// The status is 0 if every device ended as asked, 1 if one did not or could not be started, and
/// 2 for a command line that makes no sense.
pub fn run(registry: &Registry) -> ExitCode {
    let mut arguments = std::env::args_os();
    let called = arguments.next();
    match called.as_deref().and_then(OsStr::to_str) {
        Some(ROLE) => role::main(registry),
        Some(check::ROLE) => {
            let argument = arguments.next().and_then(|a| a.into_string().ok());
            check::role::main(registry, argument.as_deref())
        }
        _ => {
            let program = registry.program(called.as_deref());
            supervisor::main(registry, &program, arguments.collect())
        }
    }
}
