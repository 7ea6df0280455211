//! The virtio device's side: guest memory, virtqueues, chains and the [`Device`] trait. Not any
//! device, and not any wire: nothing here knows where memory, kicks and calls come from.
//!
//! Trust: everything read from guest memory is foreign. Bytes are copied once, checked, and only
//! then believed; a guest that breaks the rules loses its queue, never the process.

mod chain;
mod device;
mod memory;
mod queue;
pub mod spec;
#[cfg(feature = "testing")]
pub mod testing;

pub use chain::{Chain, ChainError, Sides};
pub use device::{ConfigReadOnly, Device, Identity, IdentityError};
pub use memory::{
    Framed, GuestBuffers, GuestMemory, Headed, LastByte, MemoryError, REGIONS_MAX, Region,
    RegionLayout, ShortBuffers, install_sigbus_guard,
};
pub use queue::{Queue, QueueControl, QueueError, QueueParts, RingAddresses, RingError, Taken};
