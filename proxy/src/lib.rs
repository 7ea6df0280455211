//! The device side of virtio-vhost-user: a PCI function that any VMM with a vfio-user client plugs
//! into a VM, and that lets a program in this VM be the vhost-user back-end of another VM. Not a
//! device of any kind itself: what the messages mean is the business of both their ends.
//!
//! A [`Proxy`], made of its [`Parts`], is all of it; `examples/embedded.rs` is a program that has
//! one of its own:
//!
//! - [`pci`]: configuration space, BARs, MSI-X.
//! - [`vfio_user`]: the protocol towards the VMM of the device VM.
//! - [`vhost_user`]: the protocol towards the front-end of the driver VM.
//! - [`virtio`]: the driver of the device VM: registers, memory, queues.

mod device;
pub mod pci;
mod proxy;
#[cfg(feature = "testing")]
pub mod testing;
pub mod vfio_user;
pub mod vhost_user;
pub mod virtio;
mod wire;

pub use device::{SharedMemory, SharedMemoryError};
pub use proxy::{OPERATIONS, Parts, Proxy, ProxyError};
pub use wire::WireError;
