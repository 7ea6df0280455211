//! What end-to-end tests and `cargo xtask demo` share: real guests in QEMU, a running `vudev`, and
//! processes with deadlines. It contains no test, and fetches nothing: the guest's parts come from
//! `cargo xtask guest`.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use vudev_harness::{Assets, Guest};
//! let report = Guest::new(&Assets::find()?).script("uname -r").run()?;
//! assert_eq!(report.status, Some(0));
//! # Ok(())
//! # }
//! ```

pub mod archive;
mod assets;
mod child;
mod guest;
mod lines;
mod programs;
mod terminal;
mod vudev;

pub use assets::{Assets, Manifest};
pub use child::Child;
pub use guest::{Guest, Report, RunningGuest};
pub use lines::Lines;
pub use programs::{static_folder, static_program, static_vudev};
pub use terminal::Terminal;
pub use vudev::{Vudev, VudevCommand, wait_until_listening};
