//! Guest buffers of several chains behind bytes of our own: what the kernel moves, in which order,
//! and how such chains are used together.

use vudev_executor::{Executor, File, IoBuffers as _};
use vudev_virtio::Framed;
use vudev_virtio::testing::{GUEST_BASE, Guest};

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
        let mut framed = Framed::<3, 2>::new();
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
        assert_eq!(framed.guest()[1].peek(&mut begin), 5);
        assert_eq!(&begin, b"efghi\0\0\0");
        assert_eq!(framed.guest()[0].peek(&mut begin[..2]), 2);
        assert_eq!((&begin[..2], framed.guest()[0].len()), (&b"ab"[..], 4));
        // And back again.
        let (written, mut framed) = to.write(framed).await;
        assert_eq!(written.unwrap(), 14);
        let (read, back) = from.read(vudev_executor::Bytes::zeroed(20)).await;
        assert_eq!(&back.as_slice()[..read.unwrap()], b"HEDabcdefghiTL");
        framed.clear();
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
fn buffers_that_lie_together_are_one_piece_and_come_out_one_by_one() {
    let memory = Guest::new(1 << 20).memory();
    let at = GUEST_BASE + 0x8_0000;
    // The last one lies elsewhere.
    let buffers = [(at, 8), (at + 8, 100), (at + 108, 50), (at + 0x2000, 30)];
    let lengths = |framed: &Framed<4, 1>| -> Vec<usize> {
        framed.iovecs().iter().map(|it| it.iov_len).collect()
    };
    let mut framed = Framed::<4, 1>::skipping(12);
    for range in buffers {
        framed.push_back(memory.buffers(&[range]).unwrap());
    }
    // The place that is left out is longer than the first one.
    assert_eq!(lengths(&framed), [4, 146, 30, 1]);
    assert_eq!(framed.room(), 176);
    let first = framed.iovecs()[1].iov_base.addr();
    let taken = |framed: &mut Framed<4, 1>, count| -> Vec<usize> {
        (0..count)
            .map_while(|_| framed.pop_front())
            .map(|it| it.len())
            .collect()
    };
    assert_eq!(taken(&mut framed, 1), [8], "with what was left out of it");
    assert_eq!(
        (lengths(&framed), framed.room()),
        (vec![4, 138, 30, 1], 168)
    );
    assert_eq!(framed.iovecs()[1].iov_base.addr(), first + 8);
    assert_eq!(taken(&mut framed, 2), [100, 50]);
    assert_eq!((lengths(&framed), framed.room()), (vec![4, 18, 1], 18));
    framed.push_back(memory.buffers(&[(at, 8)]).unwrap());
    assert_eq!(lengths(&framed), [4, 18, 8, 1]);
    assert_eq!(taken(&mut framed, 7), [30, 8], "as many as there are");
    assert_eq!((lengths(&framed), framed.room()), (vec![4, 1], 0));
    framed.push_back(memory.buffers(&[(at, 5)]).unwrap());
    assert_eq!(
        (lengths(&framed), framed.room()),
        (vec![4, 1], 0),
        "all left out"
    );
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
        Pop,
        Clear,
    }

    fn step() -> impl Strategy<Value = Step> {
        // Half of them lie right behind the one before.
        let gap = prop_oneof![Just(0), 1..100_u64];
        let ranges = proptest::collection::vec((gap, 0..30_u32), 0..4);
        prop_oneof![
            6 => (ranges, 0..20_usize).prop_map(|(ranges, used)| Step::Push(ranges, used)),
            5 => Just(Step::Pop),
            1 => Just(Step::Clear),
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
        let mut framed = Framed::<HEAD, TAIL>::skipping(skip);
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
                Step::Pop => {
                    let popped = framed.pop_front().map(|it| addresses(it.iovecs()));
                    assert_eq!(popped, model.pop_front());
                }
                Step::Clear => {
                    framed.clear();
                    model.clear();
                }
            }
            let expected: Vec<_> = model.iter().flatten().copied().skip(skip).collect();
            let (before, behind) = (usize::from(HEAD > 0), usize::from(TAIL > 0));
            let pieces = framed.iovecs();
            let guests = &pieces[before..pieces.len() - behind];
            assert_eq!(addresses(guests), expected);
            assert!(guests.iter().all(|piece| piece.iov_len > 0));
            assert_eq!(framed.room(), expected.len());
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
