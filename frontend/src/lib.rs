//! The driver side of vhost-user: connects to a back-end, shares memory, runs split virtqueues with
//! real eventfds. It is for tests, benches and probing a back-end, not for running guests, and it
//! shares no code with our back-end, so that it is an independent opinion on the protocol.
//!
//! A test is a few lines:
//!
//! ```no_run
//! use vudev_frontend::{Buffer, FrontEnd};
//!
//! let mut front = FrontEnd::connect("/run/vu-serial").memory(1 << 20).queues(2).start()?;
//! let text = front.memory().allocate(4096, 1)?;
//! front.memory().write(text, b"hello")?;
//! let token = front.ring(1).add(&[Buffer::new(text, 5)], &[])?;
//! front.ring(1).kick()?;
//! assert_eq!(front.ring(1).wait_used(vudev_frontend::LIMIT)?.token, token);
//! # Ok::<(), vudev_frontend::Error>(())
//! ```
//!
//! Everything here is synchronous and every wait has a deadline whose error says what was awaited.
//! For hostile scripts there is [`Connection::raw`] on the wire, direct access to descriptor tables
//! and available rings in [`Ring`], and region layouts that need not be true in [`RegionLayout`].

pub mod block;
pub mod builder;
pub mod connection;
pub mod console;
mod error;
pub mod event;
pub mod memory;
pub mod message;
pub mod net;
pub mod requests;
pub mod ring;
pub mod rng;
pub mod vsock;

pub use block::Block;
pub use builder::{Builder, FrontEnd, Parked, RingStep, Step};
pub use connection::{Connection, Outcome};
pub use console::{Console, ParkedConsole};
pub use error::Error;
pub use event::Event;
pub use memory::{GuestMemory, RegionLayout};
pub use net::Net;
pub use ring::{Buffer, Descriptor, Ring, Token, Used};
pub use rng::Rng;
pub use vsock::Vsock;

use std::time::Duration;

/// How long a wait lasts before it is an error, where the caller says nothing else: long beside any
/// lawful answer (a drain on a slow disk takes tens of milliseconds), short beside a test's limit.
pub const LIMIT: Duration = Duration::from_secs(5);
