//! The virtio devices of vudev: what a guest's driver finds. Not how a guest reaches them (see
//! `vudev-transports`), and not how they are jailed or configured (see `vudev-host`).
//!
//! A device is a [`vudev_virtio::Device`] over a few open descriptors, on one thread; all its I/O
//! goes through the ring of the executor whose handle it is given. Whatever a guest sends gets the
//! answer of the virtio specification, and never more than that guest's own data or a closed
//! queue; each device says in its documentation what it does with a chain that it cannot use.
//!
//! `examples/null.rs` is a whole device to copy; `docs/writing-a-device.md` explains it.

pub mod block;
pub mod console;
mod counter;
pub mod net;
mod no_wait;
mod passing;
pub mod rng;
pub mod vsock;

pub use block::{Block, BlockConfig, BlockError};
pub use console::{Console, ConsoleConfig};
pub use net::{Net, NetConfig};
pub use rng::{RateLimit, Rng};
pub use vsock::Vsock;
