//! The device's end of the queues: against a lawful driver, and against whatever a driver may have
//! left in its memory.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod common;

use std::rc::Rc;

use common::runner;
use proptest::collection::vec;
use proptest::prelude::*;
use vudev_proxy::testing::{Area, NEXT, Queue, WRITE};
use vudev_proxy::vfio_user::DmaMap;
use vudev_proxy::virtio::{Chain, Dma, Ring, RingError};

const SIZE: u64 = 1 << 16;

/// All of an area at the addresses that are its offsets, page by page.
fn mapped(area: &Area) -> Dma {
    let mut dma = Dma::default();
    for page in 0..SIZE / 4096 {
        dma.map(DmaMap {
            readable: true,
            writable: true,
            address: page * 4096,
            size: 4096,
            offset: page * 4096,
            file: Some(area.file().try_clone_to_owned().unwrap()),
        })
        .unwrap();
    }
    dma
}

fn prepared() -> (Rc<Area>, Dma, Queue, Ring) {
    let area = Area::new(SIZE);
    let dma = mapped(&area);
    let queue = Queue::new(&area, 0, 8);
    let ring = Ring::new(&queue.registers()).unwrap();
    (area, dma, queue, ring)
}

#[test]
fn chains_are_read_written_and_given_back_round_and_round() {
    let (area, dma, mut queue, mut ring) = prepared();
    let mut chain = Chain::default();
    let mut bytes = Vec::new();
    // Around the 16 bits of the index, and the ring many times.
    for round in 0..70_000_u32 {
        let writable = round % 2 == 0;
        let flags = if writable { WRITE } else { 0 };
        // Over the edge of a page, and an empty descriptor.
        queue.describe(3, 0x4ffe, 3, NEXT | flags, 5);
        queue.describe(5, 0x9000, 0, NEXT | flags, 1);
        queue.describe(1, 0x8000, 2, flags, 0);
        if !writable {
            area.write(0x4ffe, &round.to_le_bytes());
            area.write(0x8000, &[7, 8]);
        }
        queue.offer(3);
        assert!(ring.take(&dma, writable, &mut chain).unwrap());
        assert_eq!(chain.bytes(), 5);
        if writable {
            Ring::write(&dma, &chain, &[1, 2, 3, 4]).unwrap();
            assert_eq!(ring.complete(&dma, &chain, 4), Ok(true));
            if round < 10 {
                assert_eq!(area.read(0x4ffe, 3), [1, 2, 3]);
                assert_eq!(area.read(0x8000, 1), [4]);
            }
        } else {
            Ring::read(&dma, &chain, 5, &mut bytes).unwrap();
            let [a, b, c, _] = round.to_le_bytes();
            assert_eq!(bytes, [a, b, c, 7, 8]);
            assert_eq!(ring.complete(&dma, &chain, 0), Ok(true));
        }
        let written = if writable { 4 } else { 0 };
        assert_eq!(queue.take_used(), Some((3, written)));
        assert_eq!(ring.take(&dma, writable, &mut chain), Ok(false));
    }
    queue.area.write(0x1000, &[1, 0]);
    queue.offer(3);
    assert!(ring.take(&dma, false, &mut chain).is_ok());
    assert_eq!(ring.complete(&dma, &chain, 0), Ok(false), "NO_INTERRUPT");
}

#[test]
fn each_rule_that_a_driver_breaks_is_named() {
    let take = |prepare: fn(&mut Queue), writable| {
        let (_, dma, mut queue, mut ring) = prepared();
        prepare(&mut queue);
        let mut chain = Chain::default();
        ring.take(&dma, writable, &mut chain).unwrap_err()
    };
    let jumped = |queue: &mut Queue| queue.area.write(0x1002, &[9, 0]);
    assert_eq!(
        take(jumped, false),
        RingError::TooManyAvailable { ready: 9, size: 8 }
    );
    let head = |queue: &mut Queue| queue.offer(8);
    assert_eq!(
        take(head, false),
        RingError::IndexOutOfTable { index: 8, size: 8 }
    );
    let circle = |queue: &mut Queue| {
        queue.describe(0, 0, 1, NEXT, 1);
        queue.describe(1, 0, 1, NEXT, 0);
        queue.offer(0);
    };
    assert_eq!(take(circle, false), RingError::Circular);
    assert_eq!(take(circle, true), RingError::Flags { flags: NEXT });
    let indirect = |queue: &mut Queue| {
        queue.describe(0, 0, 16, 4, 0);
        queue.offer(0);
    };
    assert_eq!(take(indirect, false), RingError::Flags { flags: 4 });
}

#[test]
fn a_message_that_is_too_long_is_not_read_and_one_without_room_not_written_beyond() {
    let (_, dma, mut queue, mut ring) = prepared();
    for (index, len) in [(0, u32::MAX), (1, 4)] {
        queue.describe(index, 0, len, 0, 0);
        queue.offer(index);
    }
    let mut chain = Chain::default();
    let mut bytes = Vec::new();
    assert!(ring.take(&dma, false, &mut chain).unwrap());
    let error = Ring::read(&dma, &chain, 4108, &mut bytes).unwrap_err();
    assert_eq!(error, RingError::TooLong { limit: 4108 });
    assert!(ring.take(&dma, false, &mut chain).unwrap());
    let error = Ring::write(&dma, &chain, &[0; 5]).unwrap_err();
    assert_eq!(error, RingError::TooLong { limit: 4 });
}

#[test]
fn a_ring_that_is_misaligned_or_wraps_does_not_start() {
    let area = Area::new(SIZE);
    let queue = Queue::new(&area, 0, 8);
    let wrong: [fn(&mut vudev_proxy::virtio::QueueRegisters); 4] = [
        |registers| registers.descriptors = 8,
        |registers| registers.available = 1,
        |registers| registers.used = 2,
        |registers| registers.used = u64::MAX - 3,
    ];
    for change in wrong {
        let mut registers = queue.registers();
        change(&mut registers);
        assert!(matches!(
            Ring::new(&registers),
            Err(RingError::Place { .. })
        ));
    }
}

#[test]
fn whatever_is_in_the_memory_nothing_panics_and_messages_are_bounded() {
    let word = || prop_oneof![6 => 0..12_u16, 1 => any::<u16>()];
    let address = prop_oneof![6 => 0..SIZE, 1 => any::<u64>()];
    let len = prop_oneof![4 => 0..64_u32, 1 => any::<u32>()];
    let descriptor = (address, len, 0..4_u16, word());
    let all = (
        vec(descriptor, 8),
        vec(word(), 8),
        vec(word(), 1..12),
        any::<bool>(),
    );
    runner(400)
        .run(&all, |(descriptors, heads, indices, writable)| {
            let (area, dma, queue, mut ring) = prepared();
            for ((address, len, flags, next), index) in descriptors.into_iter().zip(0..) {
                queue.describe(index, address, len, flags, next);
            }
            for (head, slot) in heads.into_iter().zip(0_u64..) {
                area.write(0x1004 + 2 * slot, &head.to_le_bytes());
            }
            let mut chain = Chain::default();
            let mut bytes = Vec::new();
            for index in indices {
                area.write(0x1002, &index.to_le_bytes());
                for _ in 0..16 {
                    match ring.take(&dma, writable, &mut chain) {
                        Ok(true) => {}
                        Ok(false) | Err(_) => break,
                    }
                    if writable {
                        let _ = Ring::write(&dma, &chain, &[0x5a; 300]);
                    } else if Ring::read(&dma, &chain, 300, &mut bytes).is_ok() {
                        prop_assert!(bytes.len() <= 300);
                    }
                    let _ = ring.complete(&dma, &chain, 1);
                }
            }
            Ok(())
        })
        .unwrap();
}
