//! Every bad chain is refused as a whole and costs its queue; every lawful one comes through.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::rc::Rc;

use vudev_executor::{Executor, IoBuffers};
use vudev_virtio::spec::{DESCRIPTOR_BYTES, descriptor_flag, feature};
use vudev_virtio::testing::{GUEST_BASE, Guest, RawDescriptor, Ring};
use vudev_virtio::{
    Chain, ChainError, GuestMemory, MemoryError, Queue, QueueError, QueueParts, Region,
    RegionLayout, Sides,
};

const MEMORY: u64 = 1 << 20;
const SIZE: u16 = 8;
const NEXT: u16 = descriptor_flag::NEXT;
const WRITE: u16 = descriptor_flag::WRITE;
const INDIRECT: u16 = descriptor_flag::INDIRECT;

fn raw(address: u64, len: u32, flags: u16, next: u16) -> RawDescriptor {
    RawDescriptor {
        address,
        len,
        flags,
        next,
    }
}

/// What the queue says of a chain that begins at descriptor 0 and is laid out by `lay_out`.
fn refused_with(features: u64, lay_out: impl Fn(&Ring, &Rc<Guest>)) -> ChainError {
    let executor = Executor::with_operations(8).unwrap();
    let guest = Guest::new(MEMORY);
    let ring = guest.ring_with(SIZE, features);
    let (mut queue, control) = ring.start(executor.handle(), 3);
    lay_out(&ring, &guest);
    ring.publish(0);
    let error = queue.try_next().unwrap_err();
    assert!(control.is_retired());
    assert_eq!(ring.errors(), 1, "reported once");
    assert_eq!(
        (control.next_available(), control.in_flight()),
        (0, 0),
        "nothing was taken"
    );
    assert!(queue.try_next().unwrap().is_none(), "and nothing more is");
    assert_eq!(ring.errors(), 0);
    match error {
        QueueError::Chain { head: 0, source } => *source,
        other => panic!("{other}"),
    }
}

fn refused(lay_out: impl Fn(&Ring, &Rc<Guest>)) -> ChainError {
    refused_with(feature::FRAMEWORK, lay_out)
}

/// A descriptor 0 that refers to a table of these, `bytes` long.
fn indirect(ring: &Ring, guest: &Guest, table: &[RawDescriptor], bytes: u32) {
    let address = guest.allocate(table.len() as u64 * DESCRIPTOR_BYTES as u64, 16);
    for (index, entry) in table.iter().enumerate() {
        guest.write(
            address + (index * DESCRIPTOR_BYTES) as u64,
            &entry.to_bytes(),
        );
    }
    ring.set_descriptor(0, raw(address, bytes, INDIRECT, 0));
}

#[test]
fn a_chain_in_circles_is_refused() {
    let circle = |ring: &Ring, _: &Rc<Guest>| {
        ring.set_descriptor(0, raw(GUEST_BASE, 1, NEXT, 1));
        ring.set_descriptor(1, raw(GUEST_BASE, 1, NEXT, 0));
    };
    assert_eq!(refused(circle), ChainError::TooLong { limit: SIZE });
    let own_tail = |ring: &Ring, _: &Rc<Guest>| {
        ring.set_descriptor(0, raw(GUEST_BASE, 1, NEXT, 0));
    };
    assert_eq!(refused(own_tail), ChainError::TooLong { limit: SIZE });
}

#[test]
fn a_next_outside_the_table_is_refused() {
    for index in [SIZE, u16::MAX] {
        let error = refused(|ring, _| ring.set_descriptor(0, raw(GUEST_BASE, 1, NEXT, index)));
        assert_eq!(error, ChainError::IndexOutOfTable { index, len: SIZE });
    }
}

#[test]
fn a_head_outside_the_table_is_refused() {
    let executor = Executor::with_operations(8).unwrap();
    let ring = Guest::new(MEMORY).ring(SIZE);
    let (mut queue, _control) = ring.start(executor.handle(), 0);
    ring.publish(SIZE);
    let error = queue.try_next().unwrap_err();
    let source = ChainError::IndexOutOfTable {
        index: SIZE,
        len: SIZE,
    };
    assert!(matches!(error, QueueError::Chain { head: SIZE, source: ref s } if **s == source));
}

#[test]
fn a_buffer_without_bytes_is_refused() {
    let error = refused(|ring, _| ring.set_descriptor(0, raw(GUEST_BASE, 0, 0, 0)));
    assert_eq!(error, ChainError::ZeroLength { index: 0 });
}

#[test]
fn a_readable_buffer_after_a_writable_one_is_refused() {
    let error = refused(|ring, _| {
        ring.set_descriptor(0, raw(GUEST_BASE, 1, NEXT | WRITE, 5));
        ring.set_descriptor(5, raw(GUEST_BASE, 1, 0, 0));
    });
    assert_eq!(error, ChainError::ReadableAfterWritable { index: 5 });
}

#[test]
fn a_buffer_outside_memory_is_refused_even_by_one_byte() {
    let end = GUEST_BASE + MEMORY;
    for (address, len) in [
        (GUEST_BASE - 1, 2),
        (end - 1, 2),
        (end, 1),
        (0, 1),
        (u64::MAX, 1),
        (u64::MAX - 10, 20),
        (GUEST_BASE, u32::MAX),
    ] {
        let error = refused(|ring, _| ring.set_descriptor(0, raw(address, len, 0, 0)));
        let len = len.into();
        assert_eq!(
            error,
            ChainError::Memory(MemoryError::OutOfRange { address, len })
        );
    }
}

#[test]
fn a_chain_of_four_gigabytes_is_refused() {
    // The file is sparse: nobody writes these bytes.
    let executor = Executor::with_operations(8).unwrap();
    let guest = Guest::new(3 << 30);
    let ring = guest.ring(SIZE);
    let (mut queue, _control) = ring.start(executor.handle(), 0);
    ring.set_descriptor(0, raw(GUEST_BASE, 1 << 31, NEXT, 1));
    ring.set_descriptor(1, raw(GUEST_BASE, 1 << 31, 0, 0));
    ring.publish(0);
    let error = queue.try_next().unwrap_err();
    let source = ChainError::TooManyBytes;
    assert!(
        matches!(error, QueueError::Chain { head: 0, source: ref s } if **s == source),
        "{error}"
    );
}

#[test]
fn an_indirect_table_must_be_a_whole_number_of_descriptors() {
    for bytes in [0, 1, 15, 17, 33] {
        let error = refused(|ring, guest| {
            indirect(ring, guest, &[raw(GUEST_BASE, 1, 0, 0); 4], bytes);
        });
        assert_eq!(error, ChainError::IndirectLength { bytes });
    }
}

#[test]
fn an_indirect_table_in_an_indirect_table_is_refused() {
    let error = refused(|ring, guest| {
        let nested = [
            raw(GUEST_BASE, 1, NEXT, 1),
            raw(GUEST_BASE, 16, INDIRECT, 0),
        ];
        indirect(ring, guest, &nested, 32);
    });
    assert_eq!(error, ChainError::IndirectNested);
}

#[test]
fn an_indirect_descriptor_with_a_next_one_is_refused() {
    let error = refused(|ring, _| {
        ring.set_descriptor(0, raw(GUEST_BASE, 16, INDIRECT | NEXT, 1));
    });
    assert_eq!(error, ChainError::IndirectWithNext);
}

#[test]
fn an_indirect_table_longer_than_any_chain_is_refused() {
    let error = refused(|ring, _| {
        ring.set_descriptor(0, raw(GUEST_BASE, 16 * 1025, INDIRECT, 0));
    });
    assert_eq!(error, ChainError::TooLong { limit: 1024 });
}

#[test]
fn an_indirect_table_that_ends_outside_memory_is_refused_unread() {
    let address = GUEST_BASE + MEMORY - 16;
    let error = refused(|ring, guest| {
        guest.write(address, &raw(GUEST_BASE, 1, 0, 0).to_bytes());
        ring.set_descriptor(0, raw(address, 32, INDIRECT, 0));
    });
    assert_eq!(
        error,
        ChainError::Memory(MemoryError::OutOfRange { address, len: 32 })
    );
}

#[test]
fn a_next_outside_its_indirect_table_or_in_circles_is_refused() {
    let outside = [raw(GUEST_BASE, 1, NEXT, 2), raw(GUEST_BASE, 1, 0, 0)];
    let error = refused(|ring, guest| indirect(ring, guest, &outside, 32));
    assert_eq!(error, ChainError::IndexOutOfTable { index: 2, len: 2 });
    let circle = [raw(GUEST_BASE, 1, NEXT, 1), raw(GUEST_BASE, 1, NEXT, 0)];
    let error = refused(|ring, guest| indirect(ring, guest, &circle, 32));
    assert_eq!(error, ChainError::TooLong { limit: 2 });
}

#[test]
fn an_indirect_descriptor_that_nobody_negotiated_is_refused() {
    let plain = feature::VERSION_1 | feature::EVENT_IDX;
    let error = refused_with(plain, |ring, guest| {
        indirect(ring, guest, &[raw(GUEST_BASE, 1, 0, 0)], 16);
    });
    assert_eq!(error, ChainError::IndirectNotNegotiated);
}

#[test]
fn lawful_chains_come_through_direct_indirect_and_mixed() {
    let executor = Executor::with_operations(8).unwrap();
    let guest = Guest::new(MEMORY);
    let ring = guest.ring(SIZE);
    let (mut queue, _control) = ring.start(executor.handle(), 0);
    let direct = ring.add(&[b"head", b"er"], &[3, 4]);
    let table = ring.add_indirect(&[b"in", b"direct"], &[1, 2, 3]);
    // 2.7.5.3.2: direct descriptors, then an indirect one.
    let entries = guest.allocate(32, 16);
    guest.write(entries, &raw(GUEST_BASE, 1, NEXT, 1).to_bytes());
    guest.write(entries + 16, &raw(GUEST_BASE, 7, WRITE, 0).to_bytes());
    ring.set_descriptor(6, raw(GUEST_BASE, 2, NEXT, 7));
    ring.set_descriptor(7, raw(entries, 32, INDIRECT, 0));
    ring.publish(6);
    for (head, readable, writable) in [(direct, 6, 7), (table, 8, 6), (6, 3, 7)] {
        let chain = queue.try_next().unwrap().unwrap();
        assert_eq!(chain.head(), head);
        assert_eq!(
            (chain.readable.len(), chain.writable.len()),
            (readable, writable)
        );
        queue.complete(chain, 0);
    }
    assert!(queue.try_next().unwrap().is_none());
}

#[test]
fn an_indirect_table_may_be_longer_than_a_small_queue_as_linux_sends_them() {
    let executor = Executor::with_operations(8).unwrap();
    let ring = Guest::new(MEMORY).ring(SIZE);
    let (mut queue, _control) = ring.start(executor.handle(), 0);
    ring.add_indirect(&[b"one"], &[512; 200]);
    let chain = queue.try_next().unwrap().unwrap();
    assert_eq!(chain.writable.len(), 200 * 512);
    queue.complete(chain, 0);
}

/// A table at an odd address, and one whose second descriptor is cut by the edge of two regions.
#[test]
fn an_indirect_table_is_read_wherever_it_lies() {
    let executor = Executor::with_operations(8).unwrap();
    let guest = Guest::new(MEMORY);
    let ring = guest.ring(SIZE);
    let odd = guest.allocate(64, 16) + 1;
    let cut = guest.allocate(64, 16);
    let whole = guest.layout();
    let region = |from: u64, to: u64| {
        let at = from - whole.guest_address;
        let layout = RegionLayout {
            guest_address: from,
            user_address: whole.user_address + at,
            size: to - from,
            offset: at,
        };
        Region::map(layout, guest.file().try_clone().unwrap()).unwrap()
    };
    let edge = cut + 20;
    let regions = vec![
        region(whole.guest_address, edge),
        region(edge, whole.guest_address + whole.size),
    ];
    let parts = QueueParts {
        memory: Rc::new(GuestMemory::new(regions).unwrap()),
        ..ring.parts(executor.handle(), 0)
    };
    let (mut queue, _control) = Queue::start(executor.handle(), parts).unwrap();
    for table in [odd, cut] {
        guest.write(table, &raw(GUEST_BASE, 3, NEXT, 1).to_bytes());
        guest.write(
            table + 16,
            &raw(GUEST_BASE + 8, 5, NEXT | WRITE, 2).to_bytes(),
        );
        guest.write(table + 32, &raw(GUEST_BASE + 16, 1, WRITE, 0).to_bytes());
        ring.set_descriptor(0, raw(table, 48, INDIRECT, 0));
        ring.publish(0);
        let chain = queue.try_next().unwrap().unwrap();
        assert_eq!((chain.readable.len(), chain.writable.len()), (3, 6));
        assert_eq!(chain.writable.iovecs().len(), 2);
        queue.complete(chain, 0);
    }
}

#[test]
fn a_chain_over_hundreds_of_tiny_regions_is_bounded_in_its_pieces() {
    const TINY: u64 = 100;
    let executor = Executor::with_operations(8).unwrap();
    let guest = Guest::new(MEMORY);
    let region = |layout| Region::map(layout, guest.file().try_clone().unwrap()).unwrap();
    let whole = guest.layout();
    let end = whole.guest_address + whole.size;
    let mut regions = vec![region(whole)];
    // Each byte of a buffer behind the ordinary memory lies in a region of its own.
    regions.extend((0..TINY).map(|at| {
        region(RegionLayout {
            guest_address: end + at,
            user_address: whole.user_address + whole.size + at,
            size: 1,
            offset: at * 2,
        })
    }));
    let ring = guest.ring(SIZE);
    let parts = QueueParts {
        memory: Rc::new(GuestMemory::new(regions).unwrap()),
        ..ring.parts(executor.handle(), 0)
    };
    let (mut queue, _control) = Queue::start(executor.handle(), parts).unwrap();

    ring.set_descriptor(0, raw(end, 100, WRITE, 0));
    ring.publish(0);
    let chain = queue.try_next().unwrap().unwrap();
    assert_eq!(chain.writable.iovecs().len(), 100);
    queue.complete(chain, 0);

    let table: Vec<_> = (1..=40).map(|next| raw(end, 100, NEXT, next)).collect();
    indirect(&ring, &guest, &table, 40 * 16);
    ring.publish(0);
    let error = queue.try_next().unwrap_err();
    let source = ChainError::TooManyPieces { limit: 2048 };
    assert!(
        matches!(error, QueueError::Chain { head: 0, source: ref s } if **s == source),
        "{error}"
    );
}

#[test]
fn what_a_queue_gives_out_is_two_words_and_the_next_chain_has_nothing_of_the_one_before() {
    assert_eq!(size_of::<Chain>(), size_of::<usize>());
    assert!(size_of::<Result<Option<Chain>, QueueError>>() <= 2 * size_of::<usize>());
    let executor = Executor::with_operations(8).unwrap();
    let ring = Guest::new(MEMORY).ring(SIZE);
    let (mut queue, control) = ring.start(executor.handle(), 0);
    ring.add(&[b"of the first"], &[5, 7]);
    let mut chain = queue.try_next().unwrap().unwrap();
    // Both sides at once, as a handler has them.
    let handed: &mut Chain = &mut chain;
    let Sides {
        readable, writable, ..
    } = &mut **handed;
    writable
        .write(&readable.read_array::<6>().unwrap())
        .unwrap();
    queue.complete(chain, 12);
    ring.add(&[b"x"], &[]);
    let chain = queue.try_next().unwrap().unwrap();
    assert_eq!((chain.readable.len(), chain.writable.len()), (1, 0));
    assert!(chain.writable.memory().is_none());
    queue.complete(chain, 7);
    assert_eq!(ring.used().map(|used| used.written), Some(12));
    assert_eq!(ring.used().map(|used| used.written), Some(0));
    assert_eq!(control.in_flight(), 0);
}
