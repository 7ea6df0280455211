//! A queue and its memory: where a ring may lie, and memory and kicks that change under it.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::rc::Rc;

use rustix::event::{EventfdFlags, eventfd};
use vudev_executor::{Executor, Handle, Kick};
use vudev_virtio::testing::{GUEST_BASE, Guest, Ring};
use vudev_virtio::{GuestMemory, MemoryError, Queue, QueueControl, QueueError};
use vudev_virtio::{Region, RegionLayout};

const SIZE: u16 = 16;

fn ring() -> Ring {
    Guest::new(1 << 20).ring(SIZE)
}

/// Runs `test` on an executor, with a ring and both ends of its queue.
fn with_queue(test: impl AsyncFnOnce(&Handle, &Ring, Queue, QueueControl)) {
    let executor = Executor::with_operations(16).unwrap();
    let ring = ring();
    let (queue, control) = ring.start(executor.handle(), 0);
    let handle = executor.handle().clone();
    executor.run(test(&handle, &ring, queue, control)).unwrap();
}

#[test]
fn memory_may_change_between_two_chains() {
    with_queue(async |handle, ring, mut queue, control| {
        ring.add(&[b"old"], &[3]);
        let mut chain = queue.next().await.unwrap().unwrap();
        let first = Rc::downgrade(chain.readable.memory().unwrap());
        control.set_memory(ring.guest().map_again()).unwrap();
        let second = Rc::downgrade(&ring.guest().map_again());
        assert!(second.upgrade().is_none());
        ring.add(&[b"new"], &[3]);
        let mut next = queue.next().await.unwrap().unwrap();
        assert!(!Rc::ptr_eq(
            chain.readable.memory().unwrap(),
            next.readable.memory().unwrap()
        ));
        assert_eq!(&chain.readable.read_array::<3>().unwrap(), b"old");
        assert_eq!(&next.readable.read_array::<3>().unwrap(), b"new");
        chain.writable.write(b"OLD").unwrap();
        next.writable.write(b"NEW").unwrap();
        queue.complete(chain, 3);
        queue.complete(next, 3);
        assert_eq!(ring.next_used(handle).await.bytes, b"OLD");
        assert_eq!(ring.next_used(handle).await.bytes, b"NEW");
        // Only the guest's own handle holds the first mapping still: what was in flight let go.
        assert_eq!(first.strong_count(), 1);
    });
}

#[test]
fn a_sleeping_queue_goes_on_in_its_new_memory() {
    with_queue(async |handle, ring, mut queue, control| {
        let waiting = handle.spawn(async move {
            let chain = queue.next().await.unwrap().unwrap();
            let memory = chain.readable.memory().unwrap().clone();
            queue.complete(chain, 0);
            (queue, memory)
        });
        handle.yield_now().await;
        let memory = ring.guest().map_again();
        control.set_memory(memory.clone()).unwrap();
        ring.add(&[b"x"], &[]);
        let (_queue, used) = waiting.await;
        assert!(Rc::ptr_eq(&memory, &used));
    });
}

#[test]
fn new_memory_is_looked_at_without_a_kick() {
    with_queue(async |handle, ring, mut queue, control| {
        let waiting = handle.spawn(async move {
            let chain = queue.next().await.unwrap().unwrap();
            let bytes = chain.readable.len();
            queue.complete(chain, 0);
            bytes
        });
        handle.yield_now().await;
        // As if a kick had come and gone while the memory was being replaced.
        let other = self::ring();
        other.publish(other.lay_out(&[b"three"], &[]));
        assert_eq!(other.addresses(), ring.addresses());
        control.set_memory(other.guest().memory()).unwrap();
        assert_eq!(waiting.await, 5);
    });
}

#[test]
fn what_was_seen_in_the_old_memory_is_not_believed_of_the_new() {
    with_queue(async |_, ring, mut queue, control| {
        ring.add(&[b"x"], &[]);
        ring.add(&[b"x"], &[]);
        let chain = queue.try_next().unwrap().unwrap();
        queue.complete(chain, 0);
        let other = self::ring();
        other.publish(other.lay_out(&[b"only one"], &[]));
        control.set_memory(other.guest().memory()).unwrap();
        assert!(queue.try_next().unwrap().is_none());
    });
}

#[test]
fn a_kick_that_is_replaced_while_the_queue_sleeps_still_wakes_it() {
    with_queue(async |handle, ring, mut queue, control| {
        let waiting = handle.spawn(async move {
            let chain = queue.next().await.unwrap().unwrap();
            queue.complete(chain, 0);
        });
        handle.yield_now().await;
        ring.publish(ring.lay_out(&[b"x"], &[]));
        let other = eventfd(1, EventfdFlags::CLOEXEC).unwrap();
        control.set_kick(Some(Kick::new(handle, other).unwrap()));
        waiting.await;
    });
}

#[test]
fn memory_without_the_ring_retires_the_queue() {
    with_queue(async |_, ring, mut queue, control| {
        let nothing = Rc::new(GuestMemory::new(Vec::new()).unwrap());
        let error = control.set_memory(nothing).unwrap_err();
        assert!(
            matches!(&error, QueueError::Ring(error) if error.part == "descriptor table"),
            "{error}"
        );
        assert!(control.is_retired());
        assert_eq!(ring.errors(), 1);
        ring.add(&[b"x"], &[]);
        assert!(queue.try_next().unwrap().is_none());
    });
}

#[test]
fn a_ring_that_does_not_lie_in_memory_is_refused() {
    let executor = Executor::with_operations(16).unwrap();
    let handle = executor.handle();
    let ring = ring();
    let end = GUEST_BASE + (1 << 20);
    let start = |change: &dyn Fn(&mut vudev_virtio::QueueParts)| {
        let mut parts = ring.parts(handle, 0);
        change(&mut parts);
        Queue::start(handle, parts).map(drop).unwrap_err()
    };
    for size in [0, 3, 100, SIZE + 1, u16::MAX] {
        let error = start(&|parts| parts.size = size);
        assert!(
            matches!(error, QueueError::Size(refused) if refused == size),
            "{error}"
        );
    }
    let misaligned = start(&|parts| parts.rings.descriptors += 8);
    let source = MemoryError::Misaligned {
        address: ring.addresses().descriptors + 8,
        align: 16,
    };
    assert!(matches!(misaligned, QueueError::Ring(error) if error.source == source));
    assert!(matches!(
        start(&|parts| parts.rings.available += 1),
        QueueError::Ring(_)
    ));
    assert!(matches!(
        start(&|parts| parts.rings.used += 2),
        QueueError::Ring(_)
    ));
    // The used ring has 4 + 8 * 16 + 2 bytes: it fits with two to spare, and not with two too few.
    let mut parts = ring.parts(handle, 0);
    parts.rings.used = end - 136;
    assert!(Queue::start(handle, parts).is_ok());
    assert!(matches!(
        start(&|parts| parts.rings.used = end - 132),
        QueueError::Ring(_)
    ));
    // Nor does it use what is mapped behind a region that ends within a page.
    for (cut, fits) in [(2, true), (3, false)] {
        let whole = ring.guest().layout();
        let layout = RegionLayout {
            size: whole.size - cut,
            ..whole
        };
        let file = ring.guest().file().try_clone().unwrap();
        let region = Region::map(layout, file).unwrap();
        let mut parts = ring.parts(handle, 0);
        parts.memory = Rc::new(GuestMemory::new(vec![region]).unwrap());
        parts.rings.used = end - 136;
        assert_eq!(Queue::start(handle, parts).is_ok(), fits);
    }
    for outside in [0, GUEST_BASE - 16, end - 16, end, u64::MAX - 15] {
        for error in [
            start(&|parts| parts.rings.descriptors = outside),
            start(&|parts| parts.rings.available = outside),
            start(&|parts| parts.rings.used = outside),
        ] {
            let QueueError::Ring(error) = error else {
                panic!("{error}")
            };
            assert_eq!(error.address, outside);
            let source = error.source;
            assert!(matches!(source, MemoryError::OutOfRange { .. }), "{source}");
        }
    }
}

#[test]
fn chains_in_hand_are_recalled_when_memory_is_replaced_and_at_a_stop() {
    with_queue(async |handle, ring, mut queue, control| {
        control.set_memory(ring.guest().map_again()).unwrap();
        ring.add(&[], &[3]);
        let chain = queue.next().await.unwrap().unwrap();
        let forever = std::future::pending::<()>;
        let moment = handle.yield_now();
        assert_eq!(
            queue.until_recall(moment).await,
            Some(()),
            "it is of this memory"
        );
        assert_eq!(queue.until_recall(async { 7 }).await, Some(7));
        control.set_memory(ring.guest().map_again()).unwrap();
        // Even if nobody waited at that moment.
        assert_eq!(queue.until_recall(forever()).await, None);
        let old = Rc::downgrade(chain.writable.memory().unwrap());
        queue.put_back(chain);
        // Nobody keeps it.
        assert_eq!(old.strong_count(), 0);
        let chain = queue.next().await.unwrap().unwrap();
        let waiting = handle.spawn(async move {
            assert_eq!(queue.until_recall(forever()).await, None);
            queue
        });
        handle.yield_now().await;
        control.set_memory(ring.guest().map_again()).unwrap();
        let queue = waiting.await;
        control.stop();
        assert_eq!(queue.until_recall(forever()).await, None);
        queue.put_back(chain);
        assert_eq!((control.next_available(), control.in_flight()), (0, 0));
    });
}

#[test]
fn what_is_put_back_after_a_swap_is_not_believed_of_the_new_memory() {
    let executor = Executor::with_operations(16).unwrap();
    let ring = Guest::new(1 << 20).ring(16);
    let (mut queue, control) = ring.start(executor.handle(), 0);
    ring.add(&[b"old"], &[3]);
    let chain = queue.try_next().unwrap().unwrap();
    // Its ring has nothing available.
    let other = Guest::new(1 << 20).ring(16);
    other.lay_out(&[b"never made available"], &[]);
    control.set_memory(other.guest().memory()).unwrap();
    queue.put_back(chain);
    assert!(queue.try_next().unwrap().is_none());
}
