//! What a device does for some chains: how often it goes to the kernel and to its driver, what it
//! allocates (in binaries whose allocator counts) and what it copies.

use std::ops::Sub;
use std::time::Duration;

use vudev_executor::Handle;
use vudev_frontend::Buffer;
use vudev_virtio::Device;
use vudev_virtio::testing::allocations::allocations;
use vudev_virtio::testing::copies::copied;

use super::{Rig, wait_until};

/// Counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Costs {
    /// Of the ring.
    pub(crate) operations: u64,
    /// Reads and writes without it.
    pub(crate) at_once: u64,
    pub(crate) enters: u64,
    /// Calls of the driver.
    pub(crate) calls: u64,
    /// Allocations of device and executor.
    pub(crate) allocations: u64,
    /// Bytes copied between the driver's buffers and the device's memory.
    pub(crate) copied: u64,
}

impl Costs {
    /// All until now.
    pub(crate) fn so_far(handle: &Handle) -> Self {
        let stats = handle.stats();
        Self {
            operations: stats.operations,
            at_once: stats.at_once,
            enters: stats.enters,
            calls: stats.calls,
            allocations: allocations(),
            copied: copied(),
        }
    }

    /// Makes a chain of these readable and writable buffers available so many times with one kick,
    /// does `meanwhile`, and counts until all are back (the enters) and the device has come to
    /// rest.
    pub(crate) async fn of<D: Device>(
        rig: &mut Rig<D>,
        queue: usize,
        (readable, writable): (&[Buffer], &[Buffer]),
        times: usize,
        meanwhile: impl FnOnce(),
    ) -> Self {
        let handle = rig.handle.clone();
        // It looks into the ring at its start, without a kick.
        rig.settle().await;
        for _ in 0..times {
            rig.ring(queue).add(readable, writable).unwrap();
        }
        let last = rig.ring(queue).used_index().unwrap();
        let last = last.wrapping_add(times.try_into().unwrap());
        rig.ring(queue).suppress_calls(false).unwrap();
        let before = Self::so_far(&handle);
        rig.ring(queue).kick().unwrap();
        meanwhile();
        let ring = rig.ring(queue);
        wait_until(&handle, || ring.used_index().unwrap() == last).await;
        let Self { enters, .. } = Self::so_far(&handle) - before;
        rig.settle().await;
        let costs = Self {
            enters,
            ..Self::so_far(&handle) - before
        };
        for _ in 0..times {
            let _ = rig.used(queue).await;
        }
        costs
    }
}

impl Sub for Costs {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            operations: self.operations - before.operations,
            at_once: self.at_once - before.at_once,
            enters: self.enters - before.enters,
            calls: self.calls - before.calls,
            allocations: self.allocations - before.allocations,
            copied: self.copied - before.copied,
        }
    }
}

/// How long a device is looked at that has nothing to do.
const SPAN: Duration = Duration::from_millis(100);

/// How often the device wakes in a while in which nobody asks anything of it: the fewer of two
/// spans, since the guard over calls may wake the loop half a second after one, and only once.
pub(crate) async fn wake_ups<D: Device>(rig: &Rig<D>) -> u64 {
    rig.settle().await;
    let first = wake_ups_in_span(rig).await;
    first.min(wake_ups_in_span(rig).await)
}

async fn wake_ups_in_span<D: Device>(rig: &Rig<D>) -> u64 {
    let before = rig.handle.stats().enters;
    rig.handle.sleep(SPAN).await;
    // One of them sleeps for this test.
    rig.handle.stats().enters - before - 1
}
