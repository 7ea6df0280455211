//! What is writable of several chains, between bytes of our own: what the kernel moves, in which
//! order, and what chains that are refused leave of it. When chains come and go: `taken.rs`.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use vudev_executor::{Bytes, Executor, File, Handle, IoBuffers as _};
use vudev_virtio::spec::descriptor_flag::{INDIRECT, NEXT, WRITE};
use vudev_virtio::testing::{GUEST_BASE, Guest, RawDescriptor, Ring};
use vudev_virtio::{ChainError, MemoryError, QueueError, ShortBuffers, Taken};
use vudev_virtio::{Framed, GuestBuffers, GuestMemory, Headed, Queue, QueueControl};
use vudev_virtio::{Region, RegionLayout};

const BYTES: u64 = 1 << 20;
/// Where nothing is but what a test puts there.
const AT: u64 = GUEST_BASE + 0x8_0000;

/// Runs `test` on an executor, with a ring and both ends of its queue.
fn with_queue(test: impl AsyncFnOnce(&Handle, &Ring, Queue, QueueControl)) {
    let executor = Executor::with_operations(16).unwrap();
    let ring = Guest::new(BYTES).ring(256);
    let (queue, control) = ring.start(executor.handle(), 0);
    let handle = executor.handle().clone();
    executor.run(test(&handle, &ring, queue, control)).unwrap();
}

/// Descriptors of these ranges, which stand one behind the other from `first` on.
fn descriptors(first: u16, ranges: &[(u64, u32)]) -> impl Iterator<Item = RawDescriptor> {
    let count = ranges.len();
    (1_u16..).zip(ranges).map(move |(index, &(address, len))| {
        let more = usize::from(index) < count;
        RawDescriptor {
            address,
            len,
            flags: if more { WRITE | NEXT } else { WRITE },
            next: if more { first + index } else { 0 },
        }
    })
}

/// Makes a chain available whose head is `first`, of ranges that are to be written.
fn add_at(ring: &Ring, first: u16, ranges: &[(u64, u32)]) {
    for (index, descriptor) in (first..).zip(descriptors(first, ranges)) {
        ring.set_descriptor(index, descriptor);
    }
    ring.publish(first);
}

/// The same through an indirect table.
fn add_table_at(ring: &Ring, head: u16, ranges: &[(u64, u32)]) {
    let entries = descriptors(0, ranges).map(RawDescriptor::to_bytes);
    let entries: Vec<u8> = entries.flatten().collect();
    let len = u32::try_from(entries.len()).unwrap();
    let address = ring.guest().allocate(len.into(), 16);
    ring.guest().write(address, &entries);
    let (flags, next) = (INDIRECT, 0);
    ring.set_descriptor(
        head,
        RawDescriptor {
            address,
            len,
            flags,
            next,
        },
    );
    ring.publish(head);
}

fn take<const HEAD: usize, const TAIL: usize>(
    queue: &mut Queue,
    frame: &mut Framed<HEAD, TAIL>,
    count: usize,
) {
    for _ in 0..count {
        assert_eq!(queue.take_into(frame).unwrap(), Taken::Chain);
    }
}

/// Address and length of each piece, room, chains.
type State = (Vec<(usize, usize)>, usize, usize);

fn state<const HEAD: usize, const TAIL: usize>(frame: &Framed<HEAD, TAIL>) -> State {
    let piece = |it: &libc::iovec| (it.iov_base.addr(), it.iov_len);
    let pieces: Vec<_> = frame.iovecs().iter().map(piece).collect();
    assert_eq!(frame.pieces(), pieces.len());
    let bytes: usize = pieces.iter().map(|piece| piece.1).sum();
    assert_eq!(frame.bytes(), bytes);
    assert_eq!(frame.room(), bytes - HEAD - TAIL);
    (pieces, frame.room(), frame.chains())
}

fn lengths<const HEAD: usize, const TAIL: usize>(frame: &Framed<HEAD, TAIL>) -> Vec<usize> {
    state(frame).0.into_iter().map(|piece| piece.1).collect()
}

/// Heads and written bytes of all that came back since the last question.
fn used(ring: &Ring) -> Vec<(u16, u32)> {
    let next = || ring.used().map(|used| (used.head, used.written));
    std::iter::from_fn(next).collect()
}

#[test]
fn the_kernel_moves_our_bytes_and_those_of_every_chain_in_their_order() {
    with_queue(async |handle, ring, mut queue, control| {
        for sizes in [&[4][..], &[2, 3], &[6]] {
            ring.add(&[b"nobody reads it"], sizes);
        }
        let mut frame = Framed::<3, 2>::new();
        assert_eq!(lengths(&frame), [3, 2]);
        assert_eq!(frame.head(), &[0; 3]);
        take(&mut queue, &mut frame, 3);
        assert_eq!(lengths(&frame), [3, 4, 5, 6, 2]);
        let (from, to) = std::io::pipe().unwrap();
        let (from, to) = (File::new(handle, from), File::new(handle, to));
        let sent = b"HEDabcdefghijklmnoTL";
        assert_eq!(to.write(Bytes::from(sent.to_vec())).await.0.unwrap(), 20);
        let (read, frame) = from.read(frame).await;
        assert_eq!((read.unwrap(), frame.head()), (20, b"HED"));
        // And back again, with the bytes that nobody else can see.
        let (written, mut frame) = to.write(frame).await;
        assert_eq!(written.unwrap(), 20);
        let (read, back) = from.read(Bytes::zeroed(30)).await;
        assert_eq!(&back.as_slice()[..read.unwrap()], sent);
        // Twelve of the bytes are a frame: the last chain has three.
        assert_eq!(frame.chains_for(12), 3);
        queue.complete_first(&mut frame, 3, 12);
        assert_eq!((lengths(&frame), frame.chains()), (vec![3, 2], 0));
        assert_eq!(control.in_flight(), 0);
        for (written, bytes) in [(4, &b"abcd"[..]), (5, b"efghi"), (3, b"jklmno")] {
            let used = ring.next_used(handle).await;
            assert_eq!((used.written, &used.bytes[..]), (written, bytes));
        }
        handle.yield_now().await;
        assert_eq!((ring.used_index(), ring.calls()), (3, 1));
    });
}

/// The driver looks at the used ring from another processor all the while.
#[test]
fn a_driver_sees_all_chains_of_a_frame_or_none() {
    const CHAINS: u16 = 128;
    const LOOKS: u64 = 200_000;
    with_queue(async |handle, ring, mut queue, _control| {
        let file = ring.guest().file().try_clone().unwrap();
        let offset = ring.addresses().used + 2 - GUEST_BASE;
        let (looks, over) = (
            Arc::new(AtomicU64::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        #[expect(clippy::disallowed_methods, reason = "the driver is another thread")]
        let driver = std::thread::spawn({
            let (looks, over) = (looks.clone(), over.clone());
            move || {
                let mut seen = Vec::new();
                while !over.load(Ordering::Relaxed) {
                    let mut index = [0; 2];
                    rustix::io::pread(&file, &mut index, offset).unwrap();
                    let index = u16::from_le_bytes(index);
                    if !index.is_multiple_of(CHAINS) {
                        seen.push(index);
                    }
                    looks.fetch_add(1, Ordering::Relaxed);
                }
                seen
            }
        });
        let heads: Vec<u16> = (0..CHAINS).map(|_| ring.lay_out(&[], &[1])).collect();
        let mut frame = Framed::<1, 1>::new();
        while looks.load(Ordering::Relaxed) < LOOKS {
            heads.iter().for_each(|&head| ring.publish(head));
            take(&mut queue, &mut frame, CHAINS.into());
            queue.complete_first(&mut frame, CHAINS.into(), CHAINS.into());
            handle.yield_now().await;
        }
        over.store(true, Ordering::Relaxed);
        assert_eq!(driver.join().unwrap(), [0; 0]);
    });
}

#[test]
fn a_header_of_ours_is_in_front_of_one_chain_at_a_time() {
    let guest = Guest::new(1 << 20);
    let memory = guest.memory();
    guest.write(GUEST_BASE, b"abcdefgh");
    let mut headed = Headed::<3, GuestBuffers>::new();
    assert_eq!((headed.iovecs().len(), headed.bytes()), (1, 3));
    let (from, to) = std::io::pipe().unwrap();
    let executor = Executor::with_operations(8).unwrap();
    let to = File::new(executor.handle(), to);
    let frames = [
        (
            *b"ONE",
            &[(GUEST_BASE, 2), (GUEST_BASE + 5, 3)][..],
            &b"ONEabfgh"[..],
        ),
        (*b"TWO", &[(GUEST_BASE + 1, 4)], b"TWObcde"),
    ];
    for (head, ranges, expected) in frames {
        let buffers = memory.buffers(ranges).unwrap();
        headed.set(head, buffers);
        assert_eq!(headed.iovecs().len(), 1 + ranges.len());
        assert_eq!(headed.bytes(), expected.len());
        let (written, back) = executor.run(to.write(headed)).unwrap();
        headed = back;
        assert_eq!(written.unwrap(), expected.len());
        let mut read = vec![0; expected.len()];
        std::io::Read::read_exact(&mut &from, &mut read).unwrap();
        assert_eq!(read, expected);
    }
    assert_eq!(headed.take().map(|it| it.len()), Some(4));
    assert_eq!((headed.iovecs().len(), headed.bytes()), (1, 3));
    drop(guest);
    assert_eq!(Rc::strong_count(&memory), 1, "no memory is kept");
}

#[test]
fn what_lies_together_is_one_piece_across_chains_and_comes_out_chain_by_chain() {
    with_queue(async |_, ring, mut queue, control| {
        let mut frame = Framed::<4, 1>::skipping(12);
        add_at(ring, 0, &[(AT, 8), (AT + 8, 12)]);
        add_at(ring, 2, &[(AT + 20, 100)]);
        add_at(ring, 3, &[(AT + 120, 50), (AT + 0x2000, 30)]);
        add_at(ring, 5, &[(AT + 0x3000, 13)]);
        take(&mut queue, &mut frame, 4);
        assert_eq!(lengths(&frame), [4, 158, 30, 13, 1]);
        let begin = frame.iovecs()[1].iov_base.addr();
        let counts = [0, 1, 20, 21, 120, 121, 200, 201, 213, usize::MAX];
        let chains = counts.map(|bytes| frame.chains_for(bytes));
        assert_eq!(chains, [0, 1, 1, 2, 2, 3, 3, 4, 4, 4]);
        queue.complete_first(&mut frame, 1, 20);
        assert_eq!(lengths(&frame), [4, 138, 30, 13, 1]);
        assert_eq!(frame.iovecs()[1].iov_base.addr(), begin + 20);
        // One that is joined to what came before others went.
        add_at(ring, 0, &[(AT + 0x3000 + 13, 12), (AT, 1)]);
        take(&mut queue, &mut frame, 1);
        assert_eq!(lengths(&frame), [4, 138, 30, 25, 1, 1]);
        queue.complete_first(&mut frame, 2, 180);
        assert_eq!((lengths(&frame), frame.chains()), (vec![4, 13, 1, 1], 2));
        // All of the first is left out, and what comes is no part of our own bytes.
        queue.complete_first(&mut frame, 1, 13);
        queue.complete_first(&mut frame, 1, 2);
        add_at(ring, 0, &[(AT, 12)]);
        take(&mut queue, &mut frame, 1);
        assert_eq!((lengths(&frame), frame.room()), (vec![4, 1], 0));
        add_at(ring, 1, &[(AT + 12, 12)]);
        take(&mut queue, &mut frame, 1);
        assert_eq!((lengths(&frame), control.in_flight()), (vec![4, 12, 1], 2));
        let expected = [(0, 20), (2, 100), (3, 80), (5, 13), (0, 2)];
        assert_eq!(used(ring), expected);
    });
}

/// Memory in two regions, the second of which is mapped where the first ends: where the kernel maps
/// what is not asked for at an address.
fn side_by_side(guest: &Guest, edge: u64) -> Rc<GuestMemory> {
    let region = |from: u64, to: u64| {
        let layout = RegionLayout {
            guest_address: GUEST_BASE + from,
            user_address: GUEST_BASE + from,
            size: to - from,
            offset: from,
        };
        Region::map(layout, guest.file().try_clone().unwrap()).unwrap()
    };
    // Those that failed stay, so that no hole is tried twice.
    let mut others = Vec::new();
    for _ in 0..500 {
        let second = region(edge, BYTES);
        let memory = GuestMemory::new(vec![region(0, edge), second]).unwrap();
        let memory = Rc::new(memory);
        let host = |at: u64| {
            let buffers = memory.buffers(&[(GUEST_BASE + at, 1)]).unwrap();
            buffers.iovecs()[0].iov_base.addr()
        };
        if host(edge - 1) + 1 == host(edge) {
            return memory;
        }
        others.push(memory);
    }
    panic!("the kernel maps no two regions side by side");
}

#[test]
fn what_lies_in_two_regions_is_two_pieces_wherever_they_are_mapped() {
    with_queue(async |_, ring, mut queue, control| {
        let edge = 0x8_0000;
        control
            .set_memory(side_by_side(ring.guest(), edge))
            .unwrap();
        let at = GUEST_BASE + edge;
        let mut frame = Framed::<1, 1>::new();
        // Chains that meet there, and a descriptor that lies over it.
        add_at(ring, 0, &[(at - 20, 20)]);
        add_at(ring, 1, &[(at, 10), (at + 10, 5)]);
        take(&mut queue, &mut frame, 2);
        assert_eq!(lengths(&frame), [1, 20, 15, 1]);
        add_at(ring, 3, &[(at - 7, 14)]);
        take(&mut queue, &mut frame, 1);
        assert_eq!(lengths(&frame), [1, 20, 15, 7, 7, 1]);
        queue.complete_first(&mut frame, 2, 35);
        assert_eq!(lengths(&frame), [1, 7, 7, 1]);
        let frames: [usize; 2] = [1, 2].map(|at| frame.iovecs()[at].iov_base.addr());
        assert_eq!(frames[0] + 7, frames[1], "they are mapped side by side");
    });
}

#[test]
fn what_is_left_out_is_the_first_chains_first_bytes_wherever_they_lie() {
    let together = [(AT, 40)];
    let alone = [(AT, 12), (AT + 0x100, 28)];
    let scattered = [(AT, 1), (AT + 0x100, 3), (AT + 0x200, 8), (AT + 0x300, 28)];
    let within = [(AT, 5), (AT + 0x100, 35)];
    // Right behind the chain before it; and so that only what is left out is there.
    let behind = [(AT + 0x1014, 40)];
    let begins_behind = [(AT + 0x1014, 12), (AT, 28)];
    let all_ways = [
        &together[..],
        &alone,
        &scattered,
        &within,
        &behind,
        &begins_behind,
    ];
    for ranges in all_ways {
        with_queue(async |_, ring, mut queue, _control| {
            let guest = ring.guest();
            let mut frame = Framed::<2, 0>::skipping(12);
            let none = |wanted, available| Err(ShortBuffers { wanted, available });
            assert_eq!(frame.write_front(b"!"), none(1, 0));
            assert_eq!(frame.peek(&mut [0; 4]), 0);
            // What comes first may come later.
            add_at(ring, 100, &[(AT + 0x1000, 20)]);
            add_at(ring, 0, ranges);
            take(&mut queue, &mut frame, 2);
            guest.write(AT + 0x1000, b"abcdefghijklmnopqrst");
            let mut bytes = vec![b'a'; 40];
            bytes[12..14].copy_from_slice(b"MN");
            let mut rest = &bytes[..];
            for &(at, len) in ranges {
                let (part, after) = rest.split_at(len as usize);
                guest.write(at, part);
                rest = after;
            }
            let all = || -> Vec<u8> {
                let part = |&(at, len): &(u64, u32)| guest.read(at, len as usize);
                ranges.iter().flat_map(part).collect()
            };
            assert_eq!(frame.room(), 48);
            frame.write_front(b"0123456789AB").unwrap();
            let mut begin = [0; 22];
            assert_eq!(frame.peek(&mut begin), 22);
            assert_eq!(&begin, b"0123456789ABmnopqrstaa");
            queue.complete_first(&mut frame, 1, 20);
            assert_eq!((frame.room(), all()), (28, bytes.clone()));
            assert_eq!(frame.write_front(&[b'!'; 13]), none(13, 12));
            assert_eq!(all(), bytes);
            assert_eq!(frame.peek(&mut begin), 22);
            assert_eq!(begin, bytes[..22]);
            frame.write_front(b"0123456789AB").unwrap();
            bytes[..12].copy_from_slice(b"0123456789AB");
            assert_eq!(all(), bytes);
            // Fewer are the first ones.
            frame.write_front(b"abcde").unwrap();
            bytes[..5].copy_from_slice(b"abcde");
            assert_eq!(all(), bytes);
            let mut longer = [0; 50];
            assert_eq!(frame.peek(&mut longer), 40);
            assert_eq!(longer[..40], bytes);
            queue.put_back_all(&mut frame);
            assert_eq!(frame.write_front(b"!"), none(1, 0));
            assert_eq!(frame.peek(&mut longer), 0);
        });
    }
}

#[test]
fn no_chains_completed_leave_the_frame_as_it_was() {
    // Left out of a longer one, whole pieces, and all that there is.
    let chains: [&[(u64, u32)]; 4] = [
        &[(AT, 40)],
        &[(AT, 12), (AT + 0x100, 3)],
        &[(AT, 4), (AT + 0x100, 8), (AT + 0x200, 3)],
        &[(AT, 12)],
    ];
    for ranges in chains {
        with_queue(async |_, ring, mut queue, control| {
            let mut frame = Framed::<3, 1>::skipping(12);
            add_at(ring, 0, ranges);
            take(&mut queue, &mut frame, 1);
            let before = state(&frame);
            queue.complete_first(&mut frame, 0, 5);
            assert_eq!((state(&frame), control.in_flight()), (before, 1));
            assert_eq!(ring.used_index(), 0);
            frame.write_front(&[7; 12]).unwrap();
            let part = |&(at, len): &(u64, u32)| ring.guest().read(at, len as usize);
            let bytes: Vec<u8> = ranges.iter().flat_map(part).collect();
            assert!(bytes[..12].iter().all(|&byte| byte == 7));
            assert!(bytes[12..].iter().all(|&byte| byte == 0));
        });
    }
}

#[test]
fn a_chain_that_is_too_short_is_completed_empty_and_leaves_the_frame_as_it_was() {
    with_queue(async |handle, ring, mut queue, control| {
        let mut whole = Framed::<0, 1>::new();
        let mut frame = Framed::<1, 1>::skipping(12);
        let memory = ring.guest().memory();
        let holders = Rc::strong_count(&memory);
        let read = ring.add(&[b"it is only read"], &[]);
        assert_eq!(queue.take_into(&mut whole).unwrap(), Taken::Unfit);
        let short = ring.add(&[b"it is read and written"], &[5, 6]);
        assert_eq!(queue.take_into(&mut frame).unwrap(), Taken::Unfit);
        assert_eq!((lengths(&whole), lengths(&frame)), (vec![1], vec![1, 1]));
        assert_eq!(Rc::strong_count(&memory), holders);
        assert_eq!(used(ring), [(read, 0), (short, 0)]);
        handle.yield_now().await;
        assert_eq!(ring.calls(), 1, "the driver is told");
        add_at(ring, 0, &[(AT, 20)]);
        take(&mut queue, &mut frame, 1);
        let before = state(&frame);
        // One piece with what is here, one and another, and another.
        let unfit: [&[(u64, u32)]; 4] = [
            &[(AT + 20, 11)],
            &[(AT + 20, 4), (AT + 24, 7)],
            &[(AT + 20, 5), (AT + 0x100, 6)],
            &[(AT + 0x100, 11)],
        ];
        for (head, ranges) in (10..).step_by(2).zip(unfit) {
            add_at(ring, head, ranges);
            assert_eq!(queue.take_into(&mut frame).unwrap(), Taken::Unfit);
            assert_eq!((state(&frame), control.in_flight()), (before.clone(), 1));
            assert_eq!(used(ring), [(head, 0)]);
        }
        add_at(ring, 20, &[(AT + 20, 12)]);
        take(&mut queue, &mut frame, 1);
        assert_eq!(lengths(&frame), [1, 20, 1]);
        assert_eq!((control.in_flight(), control.dropped()), (2, 0));
    });
}

#[test]
fn a_chain_in_more_pieces_than_an_operation_moves_with_the_others_is_completed_empty() {
    // Pieces of their own, behind one that is joined to the frame's last.
    let scattered = |count: u64| -> Vec<(u64, u32)> {
        let piece = |index| (AT + 0x100 + 4 * index, 2);
        [(AT + 20, 12)]
            .into_iter()
            .chain((0..count).map(piece))
            .collect()
    };
    with_queue(async |_, ring, mut queue, control| {
        let mut frame = Framed::<1, 1>::skipping(12);
        add_at(ring, 0, &[(AT, 20)]);
        take(&mut queue, &mut frame, 1);
        let before = state(&frame);
        assert_eq!(before.0.len(), 3);
        add_table_at(ring, 1, &scattered(1022));
        assert_eq!(queue.take_into(&mut frame).unwrap(), Taken::Unfit);
        assert_eq!((state(&frame), control.in_flight()), (before, 1));
        add_table_at(ring, 2, &scattered(1021));
        take(&mut queue, &mut frame, 1);
        assert_eq!((frame.pieces(), frame.room()), (1024, 20 + 2 * 1021));
        let before = state(&frame);
        add_at(ring, 3, &[(AT, 12)]);
        assert_eq!(queue.take_into(&mut frame).unwrap(), Taken::Unfit);
        assert_eq!((state(&frame), control.in_flight()), (before, 2));
        // What is joined needs no other.
        add_at(ring, 4, &[(AT + 0x100 + 4 * 1020 + 2, 12)]);
        take(&mut queue, &mut frame, 1);
        assert_eq!((frame.pieces(), frame.chains()), (1024, 3));
        assert_eq!(used(ring), [(1, 0), (3, 0)]);
        // The same where there are no others; the first piece is left out then.
        queue.complete_first(&mut frame, 3, 0);
        add_table_at(ring, 1, &scattered(1021));
        take(&mut queue, &mut frame, 1);
        assert_eq!((frame.pieces(), frame.room()), (1023, 2 * 1021));
    });
}

/// What a chain is refused for, and descriptors from the eighth on of one that is.
fn broken() -> Vec<(ChainError, Vec<RawDescriptor>)> {
    let end = GUEST_BASE + BYTES;
    let outside = |address, len: u32| {
        let len = len.into();
        ChainError::Memory(MemoryError::OutOfRange { address, len })
    };
    let raw = |address, len, flags, next| RawDescriptor {
        address,
        len,
        flags,
        next,
    };
    // Behind what the frame has, and elsewhere.
    let joined = raw(end - 30, 10, WRITE | NEXT, 9);
    let other = raw(AT + 0x100, 10, WRITE | NEXT, 10);
    let chain = |last| vec![joined, other, last];
    vec![
        (outside(end, 4), chain(raw(end, 4, WRITE, 0))),
        (outside(end - 2, 4), chain(raw(end - 2, 4, WRITE, 0))),
        // A part of it is joined before the end is found.
        (outside(end - 30, 31), vec![raw(end - 30, 31, WRITE, 0)]),
        (
            ChainError::ReadableAfterWritable { index: 10 },
            chain(raw(AT, 4, 0, 0)),
        ),
        (
            ChainError::ZeroLength { index: 10 },
            chain(raw(AT, 0, WRITE, 0)),
        ),
        (
            ChainError::TooLong { limit: 256 },
            chain(raw(AT, 4, WRITE | NEXT, 10)),
        ),
    ]
}

#[test]
fn a_broken_chain_retires_the_queue_and_leaves_the_frame_as_it_was() {
    let cases = broken()
        .into_iter()
        .flat_map(|it| [(it.clone(), true), (it, false)]);
    for ((expected, chain), is_put_back) in cases {
        with_queue(async |_, ring, mut queue, control| {
            let mut frame = Framed::<1, 1>::skipping(12);
            let own = lengths(&frame);
            add_at(ring, 0, &[(GUEST_BASE + BYTES - 50, 20)]);
            take(&mut queue, &mut frame, 1);
            let before = state(&frame);
            for (index, descriptor) in (8..).zip(chain) {
                ring.set_descriptor(index, descriptor);
            }
            ring.publish(8);
            add_at(ring, 1, &[(AT, 20)]);
            let error = queue.take_into(&mut frame).unwrap_err();
            let QueueError::Chain { head: 8, source } = error else {
                panic!("{error}");
            };
            assert_eq!((*source, state(&frame)), (expected, before));
            assert_eq!((control.is_retired(), ring.errors()), (true, 1));
            assert_eq!((control.in_flight(), control.next_available()), (1, 1));
            assert_eq!(queue.take_into(&mut frame).unwrap(), Taken::None);
            match is_put_back {
                true => queue.put_back_all(&mut frame),
                false => queue.complete_first(&mut frame, 1, 15),
            }
            assert_eq!((lengths(&frame), control.in_flight()), (own, 0));
            let (next, entries) = if is_put_back {
                (0, vec![])
            } else {
                (1, vec![(0, 15)])
            };
            assert_eq!((control.next_available(), used(ring)), (next, entries));
            assert_eq!(control.dropped(), 0);
        });
    }
}
