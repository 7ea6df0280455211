//! Guest buffers of several chains behind bytes of our own: what the kernel moves, in which order,
//! and how such chains are used together.

use vudev_executor::{Executor, File, IoBuffers as _};
use vudev_virtio::testing::{GUEST_BASE, Guest};
use vudev_virtio::{Framed, GuestBuffers, Headed};

#[test]
fn the_kernel_moves_our_bytes_and_those_of_every_chain_in_their_order() {
    let executor = Executor::with_operations(8).unwrap();
    let handle = executor.handle();
    let ring = Guest::new(1 << 20).ring(16);
    let (mut queue, _control) = ring.start(handle, 0);
    let moved = executor.run(async {
        for sizes in [&[4][..], &[2, 3]] {
            ring.add(&[], sizes);
        }
        let mut first = queue.next().await.unwrap().unwrap();
        let mut second = queue.next().await.unwrap().unwrap();
        let mut framed = Framed::<3, 2, GuestBuffers>::new();
        assert_eq!(framed.pieces(), 2, "head and tail");
        framed.push_back(first.writable.take());
        framed.push_back(second.writable.take());
        let (from, to) = std::io::pipe().unwrap();
        let (from, to) = (File::new(handle, from), File::new(handle, to));
        let sent = vudev_executor::Bytes::from(b"HEDabcdefghiTL".to_vec());
        assert_eq!(to.write(sent).await.0.unwrap(), 14);
        let (read, framed) = from.read(framed).await;
        assert_eq!((read.unwrap(), framed.head()), (14, b"HED"));
        // A look takes nothing away, and ends where the bytes do.
        let mut begin = [0; 8];
        let guest: Vec<_> = framed.guest().collect();
        assert_eq!(guest[1].peek(&mut begin), 5);
        assert_eq!(&begin, b"efghi\0\0\0");
        assert_eq!(guest[0].peek(&mut begin[..2]), 2);
        assert_eq!((&begin[..2], guest[0].len()), (&b"ab"[..], 4));
        // And back again.
        let (written, mut framed) = to.write(framed).await;
        assert_eq!(written.unwrap(), 14);
        let (read, back) = from.read(vudev_executor::Bytes::zeroed(20)).await;
        assert_eq!(&back.as_slice()[..read.unwrap()], b"HEDabcdefghiTL");
        framed.take_all();
        assert_eq!(framed.iovecs().len(), 2, "nothing of the guest's is left");
        // Neither is seen before both are.
        let before = ring.used_index();
        let chains = [(first, 4), (second, 5)].into_iter();
        queue.complete_together(chains.inspect(|_| assert_eq!(ring.used_index(), before)));
        assert_eq!(ring.used_index(), before.wrapping_add(2));
        assert_eq!(ring.next_used(handle).await.bytes, b"abcd");
        assert_eq!(ring.next_used(handle).await.bytes, b"efghi");
    });
    moved.unwrap();
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
    assert_eq!(std::rc::Rc::strong_count(&memory), 1, "no memory is kept");
}

#[test]
fn buffers_that_lie_together_are_one_piece_and_come_out_one_by_one() {
    let memory = Guest::new(1 << 20).memory();
    let at = GUEST_BASE + 0x8_0000;
    // The last one lies elsewhere.
    let buffers = [(at, 8), (at + 8, 100), (at + 108, 50), (at + 0x2000, 30)];
    let lengths = |framed: &Framed<4, 1, GuestBuffers>| -> Vec<usize> {
        framed.iovecs().iter().map(|it| it.iov_len).collect()
    };
    let mut framed = Framed::<4, 1, GuestBuffers>::skipping(12);
    for range in buffers {
        framed.push_back(memory.buffers(&[range]).unwrap());
    }
    // The place that is left out is longer than the first one.
    assert_eq!(lengths(&framed), [4, 146, 30, 1]);
    assert_eq!(framed.room(), 176);
    let first = framed.iovecs()[1].iov_base.addr();
    let taken = |framed: &mut Framed<4, 1, GuestBuffers>, bytes| -> Vec<usize> {
        framed.take_for(bytes).map(|it| it.len()).collect()
    };
    assert_eq!(taken(&mut framed, 0), [0; 0]);
    assert_eq!(taken(&mut framed, 8), [8], "with what was left out of it");
    assert_eq!(
        (lengths(&framed), framed.room()),
        (vec![4, 138, 30, 1], 168)
    );
    assert_eq!(framed.iovecs()[1].iov_base.addr(), first + 8);
    assert_eq!(framed.take_for(101).len(), 2, "those are dropped");
    assert_eq!((lengths(&framed), framed.room()), (vec![4, 18, 1], 18));
    framed.push_back(memory.buffers(&[(at, 8)]).unwrap());
    assert_eq!(lengths(&framed), [4, 18, 8, 1]);
    assert_eq!(
        taken(&mut framed, usize::MAX),
        [30, 8],
        "as many as there are"
    );
    assert_eq!((lengths(&framed), framed.room()), (vec![4, 1], 0));
    framed.push_back(memory.buffers(&[(at, 5)]).unwrap());
    assert_eq!(
        (lengths(&framed), framed.room()),
        (vec![4, 1], 0),
        "all left out"
    );
}

#[test]
fn chains_of_which_a_front_was_forgotten_leave_the_kernel_no_bytes_of_those_that_are_gone() {
    let memory = Guest::new(1 << 20).memory();
    let buffers = |index: u64| memory.buffers(&[(GUEST_BASE + 32 * index, 20)]).unwrap();
    let mut framed = Framed::<3, 1, GuestBuffers>::skipping(12);
    (0..3).for_each(|index| framed.push_back(buffers(index)));
    std::mem::forget(framed.take_for(20));
    // The first is still here, and its bytes are not among the kernel's.
    assert_eq!((framed.len(), framed.room()), (3, 28));
    assert_eq!(framed.take_for(20).len(), 1);
    let (room, piece) = (framed.room(), framed.iovecs()[1]);
    let guest: Vec<_> = framed.guest().map(|it| it.iovecs()[0].iov_base).collect();
    assert!(guest.contains(&piece.iov_base.wrapping_byte_sub(12)));
    assert_eq!((room, guest.len()), (8, 2));
    let mut all = std::panic::AssertUnwindSafe(&mut framed);
    let taken = std::panic::catch_unwind(move || all.take_for(40).len());
    assert!(taken.is_err(), "there are not as many bytes");
    framed.take_all();
    framed.push_back(buffers(0));
    assert_eq!((framed.len(), framed.room()), (1, 8));
}

mod model {
    //! Random buffers, beside the addresses that they are.

    use std::collections::VecDeque;

    use proptest::prelude::*;
    use vudev_virtio::GuestMemory;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        /// Ranges, each so far behind the one before, and so many bytes used up already.
        Push(Vec<(u64, u32)>, usize),
        Take(usize),
        TakeAll,
    }

    fn step() -> impl Strategy<Value = Step> {
        // Half of them lie right behind the one before.
        let gap = prop_oneof![Just(0), 1..100_u64];
        let ranges = proptest::collection::vec((gap, 0..30_u32), 0..4);
        prop_oneof![
            6 => (ranges, 0..20_usize).prop_map(|(ranges, used)| Step::Push(ranges, used)),
            5 => (0..80_usize).prop_map(Step::Take),
            1 => Just(Step::TakeAll),
        ]
    }

    fn addresses(iovecs: &[libc::iovec]) -> Vec<usize> {
        let bytes = |it: &libc::iovec| it.iov_base.addr()..it.iov_base.addr() + it.iov_len;
        iovecs.iter().flat_map(bytes).collect()
    }

    fn play<const HEAD: usize, const TAIL: usize>(
        memory: &std::rc::Rc<GuestMemory>,
        skip: usize,
        steps: &[Step],
    ) {
        let mut framed = Framed::<HEAD, TAIL, GuestBuffers>::skipping(skip);
        let mut model: VecDeque<Vec<usize>> = VecDeque::new();
        let mut at = GUEST_BASE;
        for step in steps {
            match step {
                Step::Push(ranges, used) => {
                    let range = |&(gap, len): &(u64, u32)| {
                        let begin = at + gap;
                        at = begin + u64::from(len);
                        (begin, len)
                    };
                    let ranges: Vec<_> = ranges.iter().map(range).collect();
                    let mut buffers = memory.buffers(&ranges).expect("in memory");
                    let used = buffers.len().min(*used);
                    buffers.advance(used).expect("as many at most");
                    model.push_back(addresses(buffers.iovecs()));
                    framed.push_back(buffers);
                }
                Step::Take(bytes) => {
                    let mut taken = framed.take_for(*bytes);
                    let mut came = 0;
                    while came < *bytes && !model.is_empty() {
                        assert_eq!(taken.len(), taken.size_hint().0);
                        let next = taken.next().map(|it| addresses(it.iovecs()));
                        came += next.as_ref().map_or(0, Vec::len);
                        assert_eq!(next, model.pop_front());
                    }
                    assert_eq!((taken.len(), taken.next().is_none()), (0, true));
                }
                Step::TakeAll => {
                    let taken = framed.take_all().into_iter();
                    let taken = taken.map(|it| addresses(it.iovecs()));
                    assert!(taken.eq(model.drain(..)));
                }
            }
            let expected: Vec<_> = model.iter().flatten().copied().skip(skip).collect();
            let (before, behind) = (usize::from(HEAD > 0), usize::from(TAIL > 0));
            let pieces = framed.iovecs();
            let guests = &pieces[before..pieces.len() - behind];
            assert_eq!(addresses(guests), expected);
            assert!(guests.iter().all(|piece| piece.iov_len > 0));
            assert_eq!((framed.room(), framed.len()), (expected.len(), model.len()));
            assert_eq!(framed.bytes(), addresses(pieces).len());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

        #[test]
        fn the_kernel_is_given_the_bytes_of_the_buffers_that_are_there_and_no_others(
            skip in 0..40_usize,
            steps in proptest::collection::vec(step(), 0..60),
        ) {
            let memory = Guest::new(1 << 20).memory();
            play::<12, 1>(&memory, skip, &steps);
            play::<12, 0>(&memory, skip, &steps);
            play::<0, 0>(&memory, skip, &steps);
        }
    }
}
