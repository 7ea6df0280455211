//! `virtio-queue` at the work, used as the devices of rust-vmm use it.

use std::time::Duration;

use virtio_queue::{Queue, QueueT};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend as _, GuestMemoryMmap};
use vudev_benches::contest::ProcessorTime;

use crate::driver::{Driver, Layout, SIZE, WRITTEN};

pub(crate) fn batches(layout: Layout, batch: u16, times: u64) -> Duration {
    let mut driver = Driver::new(layout);
    let memory = memory(&driver);
    let mut queue = queue(&driver);
    let start = ProcessorTime::start();
    for _ in 0..times {
        driver.make(batch);
        loop {
            queue.disable_notification(&memory).expect("in memory");
            while let Some(chain) = queue.pop_descriptor_chain(&memory) {
                let head = chain.head_index();
                for descriptor in chain {
                    let bytes = memory.get_slice(descriptor.addr(), descriptor.len() as usize);
                    std::hint::black_box(bytes.expect("in memory"));
                }
                queue.add_used(&memory, head, WRITTEN).expect("in memory");
            }
            if !queue.enable_notification(&memory).expect("in memory") {
                break;
            }
        }
        std::hint::black_box(queue.needs_notification(&memory).expect("in memory"));
    }
    let took = start.elapsed();
    driver.check();
    took
}

fn memory(driver: &Driver) -> GuestMemoryMmap {
    let layout = driver.guest.layout();
    let file = driver.guest.file().try_clone().expect("a free descriptor");
    let size = usize::try_from(layout.size).expect("a small guest");
    let address = GuestAddress(layout.guest_address);
    let file = FileOffset::new(file.into(), layout.offset);
    GuestMemoryMmap::from_ranges_with_files([(address, size, Some(file))]).expect("mapped")
}

fn queue(driver: &Driver) -> Queue {
    let rings = driver.ring.addresses();
    let mut queue = Queue::new(SIZE).expect("a lawful size");
    let half = |address: u64| {
        let low = u32::try_from(address & u64::from(u32::MAX)).expect("masked");
        (Some(low), u32::try_from(address >> 32).ok())
    };
    let (low, high) = half(rings.descriptors);
    queue.set_desc_table_address(low, high);
    let (low, high) = half(rings.available);
    queue.set_avail_ring_address(low, high);
    let (low, high) = half(rings.used);
    queue.set_used_ring_address(low, high);
    queue.set_event_idx(true);
    queue.set_next_avail(SIZE);
    queue.set_next_used(SIZE);
    queue.set_ready(true);
    queue
}
