//! A whole device, to copy: an entropy source (virtio 1.3, 5.4) that has nothing but zeros.
//! `docs/writing-a-device.md` explains it. `cargo run -p vudev-devices --example null` uses it.

use std::error::Error;
use std::rc::Rc;

use vudev_executor::Executor;
use vudev_transports::direct::{Direct, DirectRing};
use vudev_virtio::spec::{device_id, feature};
use vudev_virtio::testing::Guest;
use vudev_virtio::{Chain, Device, Identity, Queue, QueueError};

/// The device. What it knows goes in here; everything runs on one thread, so `Cell` will do.
pub struct Null;

/// Requests of a queue worked on at once. One is enough for a device that never waits.
const DEPTH: usize = 1;
/// The greatest ring a driver may use.
const QUEUE_SIZE: u16 = 64;
/// Bytes given to one request at most, so that no guest can keep this thread busy for long.
const BYTES_MAX: usize = 4096;

impl Device for Null {
    fn identity(&self) -> Identity {
        Identity {
            device_id: device_id::ENTROPY,
            features: 0,
            queue_sizes: vec![QUEUE_SIZE],
            config_size: 0,
            operations: 0,
        }
    }

    fn read_config(&self, _offset: usize, _into: &mut [u8]) {}

    async fn serve(self: Rc<Self>, queue: Queue) -> Result<(), QueueError> {
        let answer = async |chain: &mut Chain| self.fill(chain);
        queue.serve(DEPTH, answer).await
    }
}

impl Null {
    /// Fills what the driver wants filled, and says how much that was (5.4.6.1).
    fn fill(&self, chain: &mut Chain) -> u32 {
        let zeros = [0; BYTES_MAX];
        let length = chain.writable.len().min(BYTES_MAX);
        match chain.writable.write(&zeros[..length]) {
            Ok(()) => u32::try_from(length).unwrap_or(0),
            Err(_) => 0,
        }
    }
}

/// A driver in the same process asks for sixteen bytes.
pub fn main() -> Result<(), Box<dyn Error>> {
    let executor = Executor::with_operations(8)?;
    let guest = Guest::new(1 << 20);
    let ring = guest.ring(QUEUE_SIZE);
    executor.run(async {
        let (handle, device) = (executor.handle(), Rc::new(Null));
        let mut direct = Direct::new(handle, device, guest.memory(), feature::FRAMEWORK)?;
        direct.start(DirectRing::polled(0, QUEUE_SIZE, ring.addresses()))?;
        ring.add(&[], &[16]);
        println!("{:?}", ring.next_used(handle).await);
        direct.stop(0).await?;
        Ok(())
    })?
}
