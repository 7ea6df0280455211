//! vhost-user towards the front-end of the driver VM: messages are carried both ways as they are,
//! but for those with descriptors, which stay here, and for what cannot be done over
//! virtio-vhost-user. What messages mean to a device is not known here.
//!
//! "The specification" in comments below is QEMU's `docs/interop/vhost-user.rst`, and that of
//! virtio-vhost-user by name.

mod message;
mod session;
mod table;

pub use message::{HEADER_SIZE, MESSAGE_MAX, PROTOCOL_FEATURES};
pub(crate) use session::{SessionError, serve};
pub use table::{MemoryRegion, TableError, encode, flatten, parse};
