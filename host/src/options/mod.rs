//! The options as `crosvm run` spells them: grammar, tables, typed values, help, and the whole
//! command line. Everything is pure: sockets are bound by `listen`, and opening a device's own
//! resources is its kind's part.
//!
//! ```text
//! arguments → CommandLine::parse → Command::Run(RunOptions { DeviceRequest { Values } … })
//!                  │ Table            └ Values::text("path"), flag("ro") …, error("path", …)
//!                  └ help text, from the same tables
//! ```

mod address;
mod command;
mod convert;
mod error;
mod grammar;
mod help;
mod jail;
mod number;
mod poll;
mod table;
mod values;

#[cfg(test)]
mod tests;

pub use address::Vhost;
pub(crate) use address::{VvuMemory, is_like_pci_address};
pub(crate) use command::{Command, CommandLine, DeviceRequest, RunOptions, USAGE_STATUS};
pub use error::OptionError;
pub(crate) use error::{reason, repeat, shown};
#[cfg(test)]
pub(crate) use grammar::quote;
pub(crate) use jail::{JailOptions, PolicyDirectory, SeccompMode};
pub(crate) use poll::Poll;
pub use table::{Choice, Effect, FRONT_ENDS, Key, Kind, POLL_US, Table, VHOST, VVU_MEMORY};
pub use values::Values;
