//! virtio towards the driver in the device VM: its common registers, its memory and its two
//! queues. Not the device's own configuration, and not what the queues carry.
//!
//! Numbers in comments are sections of virtio 1.3.

mod common;
mod dma;
mod ring;

pub use common::{Change, Common, QUEUE_SIZE_MAX, QUEUES, QueueRegisters};
pub use dma::{Dma, DmaError};
pub use ring::{Chain, Ring, RingError};
