//! What a device author implements. Not how a device is started, stopped or reset: the framework
//! (a session, or an embedding VMM) owns that and calls in.

use std::future::Future;
use std::rc::Rc;

use crate::queue::{Queue, QueueError};

/// What a device is, before any driver has spoken to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The virtio device type, of [`crate::spec::device_id`].
    pub device_id: u32,
    /// The device's own feature bits. Those of [`crate::spec::feature::FRAMEWORK`] come on top.
    pub features: u64,
    /// The greatest size of each queue: powers of two, at most [`crate::spec::QUEUE_SIZE_MAX`].
    pub queue_sizes: Vec<u16>,
    /// Bytes of the configuration space.
    pub config_size: usize,
    /// How many ring operations the device has in flight at most, over all queues.
    pub operations: u32,
}

/// A device, on one thread, so shared state is `Cell` and `RefCell`.
pub trait Device: 'static {
    /// What this device is. Constant while it lives, but for sizes a driver reads anew.
    fn identity(&self) -> Identity;

    /// Reads configuration space. The caller has checked that `offset + into.len()` lies within
    /// [`Identity::config_size`].
    fn read_config(&self, offset: usize, into: &mut [u8]);

    /// Writes configuration space, within bounds as for [`Device::read_config`].
    ///
    /// # Errors
    ///
    /// A device without fields for the driver to write refuses, as this default does.
    fn write_config(&self, offset: usize, from: &[u8]) -> Result<(), ConfigReadOnly> {
        let _ = from;
        Err(ConfigReadOnly { offset })
    }

    /// Told which features the driver took, before any queue starts.
    fn negotiated(&self, features: u64) {
        let _ = features;
    }

    /// Serves one queue until [`Queue::next`] gives `None`, with every chain it took completed or
    /// put back.
    fn serve(self: Rc<Self>, queue: Queue) -> impl Future<Output = Result<(), QueueError>>;

    /// Back to the state before a driver came. No queue runs when this is called.
    fn reset(&self) {}
}

/// The driver wrote to a field that only the device writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the configuration space is read-only at offset {offset}")]
pub struct ConfigReadOnly {
    /// Where the write began.
    pub offset: usize,
}
