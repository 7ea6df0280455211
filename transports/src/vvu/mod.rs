//! vhost-user through a virtio-vhost-user PCI function, from inside a device VM: one buffer of a
//! virtqueue is one message, a kick is an interrupt of the function, a call a store to one of its
//! doorbells, and memory a part of its bar. No byte stream and no helper thread.
//!
//! A function is opened before the jail closes. After that there are loads and stores, eventfds
//! through the ring, and a mapping of the bar for each region of memory.

mod capabilities;

pub use capabilities::{BARS, CONFIGURATION_SIZE, Layout, LayoutError, Range, What, Window};
