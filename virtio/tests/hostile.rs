//! Arbitrary rings: whatever a guest writes, nothing panics and no buffer lies outside memory.
//!
//! A failure is run again with `VUDEV_SEED=<the printed seed>`.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::hash::{BuildHasher, RandomState};
use std::rc::Rc;

use proptest::prelude::*;
use proptest::test_runner::{RngSeed, TestRunner};
use vudev_executor::{Executor, IoBuffers};
use vudev_virtio::spec::feature;
use vudev_virtio::testing::{GUEST_BASE, Guest, RawDescriptor};
use vudev_virtio::{GuestBuffers, GuestMemory, Queue, RegionLayout};

const MEMORY: u64 = 1 << 16;
const SIZE: u16 = 16;

fn runner(cases: u32) -> TestRunner {
    let seed = std::env::var("VUDEV_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| RandomState::new().hash_one(0_u8));
    println!("VUDEV_SEED={seed}");
    TestRunner::new(ProptestConfig {
        cases,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(seed),
        ..Default::default()
    })
}

/// Mostly near the truth, so that walks go deep; sometimes anything.
fn descriptor() -> impl Strategy<Value = RawDescriptor> {
    let end = GUEST_BASE + MEMORY;
    let address = prop_oneof![
        8 => GUEST_BASE..end,
        1 => (end - 40)..(end + 40),
        1 => any::<u64>(),
    ];
    let len = prop_oneof![
        4 => 1..600_u32,
        4 => (1..40_u32).prop_map(|count| count * 16),
        1 => any::<u32>(),
    ];
    let flags = prop_oneof![8 => 0..8_u16, 1 => any::<u16>()];
    let next = prop_oneof![8 => 0..SIZE, 1 => any::<u16>()];
    (address, len, flags, next).prop_map(|(address, len, flags, next)| RawDescriptor {
        address,
        len,
        flags,
        next,
    })
}

fn lies_in(buffers: &GuestBuffers, memory: &GuestMemory) {
    let RegionLayout { size, .. } = memory.regions()[0].layout();
    // Where the region is mapped shows in any buffer that begins at its first byte.
    let base = host_base(memory, buffers);
    for piece in buffers.iovecs() {
        let start = piece.iov_base.addr();
        assert!(base <= start && start + piece.iov_len <= base + usize::try_from(size).unwrap());
    }
}

fn host_base(memory: &GuestMemory, buffers: &GuestBuffers) -> usize {
    let RegionLayout { guest_address, .. } = memory.regions()[0].layout();
    let first = buffers.memory().buffers(&[(guest_address, 1)]).unwrap();
    first.iovecs()[0].iov_base.addr()
}

/// Takes and touches all that the ring offers, until it is empty or retired.
fn drain(queue: &mut Queue, memory: &Rc<GuestMemory>) {
    for _ in 0..2 * SIZE {
        let Ok(Some(mut chain)) = queue.try_next() else {
            return;
        };
        lies_in(&chain.readable, memory);
        lies_in(&chain.writable, memory);
        let total = chain.readable.len() + chain.writable.len();
        assert!(total > 0 && u32::try_from(total).is_ok());
        let mut bytes = vec![0; chain.readable.len()];
        chain.readable.read(&mut bytes).unwrap();
        let len = chain.writable.len();
        // Written over whatever lies there, the ring itself too.
        chain.writable.write(&vec![0xa5; len]).unwrap();
        queue.complete(chain, u32::MAX);
    }
}

#[test]
fn arbitrary_descriptor_tables_neither_panic_nor_reach_outside_memory() {
    let table = proptest::collection::vec(descriptor(), usize::from(SIZE));
    let noise = proptest::collection::vec(descriptor(), 64);
    let heads = proptest::collection::vec(prop_oneof![8 => 0..SIZE, 1 => any::<u16>()], 1..40);
    let executor = Executor::with_operations(8).unwrap();
    let strategy = (table, noise, heads, any::<bool>());
    runner(500)
        .run(&strategy, |(table, noise, heads, event_idx)| {
            let guest = Guest::new(MEMORY);
            let event_idx = if event_idx { feature::EVENT_IDX } else { 0 };
            let features = feature::VERSION_1 | feature::INDIRECT_DESC | event_idx;
            let ring = guest.ring_with(SIZE, features);
            // What an indirect descriptor may find.
            let places = MEMORY / 64 / 16 * 16;
            for (index, entry) in (0..).zip(&noise) {
                guest.write(GUEST_BASE + index * places, &entry.to_bytes());
            }
            for (index, entry) in (0..).zip(&table) {
                ring.set_descriptor(index, *entry);
            }
            let (mut queue, _control) = ring.start(executor.handle(), 0);
            for head in heads {
                ring.publish(head);
            }
            drain(&mut queue, &guest.memory());
            Ok(())
        })
        .unwrap();
}

#[test]
fn arbitrary_bytes_in_all_of_memory_neither_panic_nor_reach_outside() {
    let executor = Executor::with_operations(8).unwrap();
    let bytes = proptest::collection::vec(any::<u8>(), usize::try_from(MEMORY).unwrap());
    runner(20)
        .run(&(bytes, any::<u16>()), |(bytes, next_available)| {
            let guest = Guest::new(MEMORY);
            let ring = guest.ring(SIZE);
            guest.write(GUEST_BASE, &bytes);
            let mut parts = ring.parts(executor.handle(), 0);
            parts.next_available = next_available;
            // An index that leaves something to take.
            ring.set_available_index(next_available.wrapping_add(SIZE / 2));
            let (mut queue, _control) = Queue::start(executor.handle(), parts).unwrap();
            drain(&mut queue, &guest.memory());
            Ok(())
        })
        .unwrap();
}
