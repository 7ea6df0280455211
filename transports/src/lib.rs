//! How a front-end reaches a device: the vhost-user protocol and the wires that carry it, and the
//! same without any wire. No device is here, and nothing that a virtqueue does: a transport hands
//! over memory, kicks and calls, and [`vudev_virtio::Queue`] does the rest.
//!
//! - [`message`]: the codec.
//! - [`unix`]: messages over a Unix socket.
//! - [`session`]: what the messages do to a device.
//! - [`vvu`]: messages through a virtio-vhost-user function, from inside another VM.
//! - [`direct`]: a device inside this process, by values.

pub mod direct;
mod features;
pub mod message;
mod running;
pub mod session;
mod transport;
pub mod unix;
pub mod vvu;

pub use session::{Session, SessionError, Stopper};
pub use transport::{Transport, TransportError};
