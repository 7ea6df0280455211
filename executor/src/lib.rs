//! An io_uring executor for one thread: tasks, timers, files, sockets and eventfds on one ring,
//! with one `io_uring_enter` a turn. It knows nothing of virtio.
//!
//! A turn runs the tasks that are ready, does the work put off to its end (calls to guests), looks
//! at memory that others write to ([`Watched`]), enters the kernel once to submit everything and to
//! wait for a completion or the next deadline, and wakes whoever is concerned. Before it waits it
//! may poll for a while ([`Polling`]).
//!
//! ```
//! use vudev_executor::{Bytes, Executor, File};
//!
//! let executor = Executor::with_operations(8)?;
//! let file = File::new(executor.handle(), std::fs::File::open("/proc/self/comm")?);
//! let (read, bytes) = executor.run(file.read_at(Bytes::zeroed(16), 0))?;
//! assert!(read? > 0 && bytes.as_slice()[0] != 0);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Contract
//!
//! - An operation is submitted when it is first polled. Its future owns the memory and descriptors
//!   that the kernel uses; dropped early it is cancelled, and they are kept until the kernel has
//!   let go. They come back on every path, errors too.
//! - Everything is bounded: operations beyond a [`Config`]'s wait for a slot, a kick that never
//!   stops is one bit, completions that do not fit are flushed.
//! - Dropping the [`Executor`] cancels and awaits what is in flight. What does not end within five
//!   seconds is leaked, never freed under the kernel's hands.
//! - A ring may be restricted ([`Allowed`]) and is enabled late ([`Executor::enable`]), so that a
//!   process can close its jail in between.

mod at_once;
mod buffers;
mod completion;
mod driver;
mod event;
mod executor;
mod file;
mod idle;
mod latch;
mod message;
mod multishot;
mod notify;
mod op;
mod operation;
mod probe;
mod process;
mod registered;
mod ring;
mod simulation;
mod slot;
mod socket;
mod stats;
mod stream;
mod tasks;
mod timer;
mod watchdog;

pub use buffers::{Bytes, IoBuffers};
pub use driver::TurnEnd;
pub use event::{Call, CallTarget, EventError, Kick};
pub use executor::{Executor, Handle};
pub use file::{File, Vectored};
pub use idle::{ADAPTIVE_LIMIT, Polling, Watched};
pub use latch::{Latch, LatchWait};
pub use message::{MAX_DESCRIPTORS, Message};
pub use notify::Notify;
pub use probe::{Support, support};
pub use process::{ExitStatus, ProcessFd, Signals};
pub use registered::Registered;
pub use ring::{Allowed, Config, OPCODES, Ring, RingError, SLOTS_MAX};
pub use simulation::Faults;
pub use socket::{Exchange, Socket};
pub use stats::Stats;
pub use stream::{Half, Room, Stream, Transfer};
pub use tasks::Task;
pub use timer::Sleep;
