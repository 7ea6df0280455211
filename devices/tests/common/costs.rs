//! What a device does for some chains: how often it goes to the kernel and to its driver, what it
//! allocates (in binaries whose allocator counts) and what it copies.

use std::time::Duration;

use vudev_frontend::Buffer;
use vudev_virtio::Device;
use vudev_virtio::testing::allocations::allocations;
use vudev_virtio::testing::copies::copied;

use super::{Rig, wait_until};

/// Counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Costs {
    /// Of the ring, and calls that do without it.
    pub(crate) operations: u64,
    /// Enters until the last chain was back.
    pub(crate) enters: u64,
    /// Calls of the driver.
    pub(crate) calls: u64,
    /// Allocations of device and executor.
    pub(crate) allocations: u64,
    /// Bytes copied between the driver's buffers and the device's memory.
    pub(crate) copied: u64,
}

impl Costs {
    /// Makes a chain of these readable and writable buffers available so many times with one kick,
    /// does `meanwhile`, and counts until all are back and the device has come to rest.
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
        let (stats, allocated, bytes) = (handle.stats(), allocations(), copied());
        rig.ring(queue).kick().unwrap();
        meanwhile();
        let ring = rig.ring(queue);
        wait_until(&handle, || ring.used_index().unwrap() == last).await;
        let enters = handle.stats().enters - stats.enters;
        rig.settle().await;
        let after = handle.stats();
        let costs = Self {
            operations: after.operations + after.at_once - stats.operations - stats.at_once,
            enters,
            calls: after.calls - stats.calls,
            allocations: allocations() - allocated,
            copied: copied() - bytes,
        };
        for _ in 0..times {
            let _ = rig.used(queue).await;
        }
        costs
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
