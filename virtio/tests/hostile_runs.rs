//! Chains of a hostile driver in one run: whatever they are made of and wherever they lie, the
//! kernel is given the bytes of those that are there, and nothing is written but where they are.

use vudev_executor::{Executor, IoBuffers as _};
use vudev_virtio::spec::descriptor_flag;
use vudev_virtio::testing::{GUEST_BASE, Guest, RawDescriptor, Ring};
use vudev_virtio::{Framed, QueueError, Taken};

/// What a frame leaves out.
const HEADER: usize = 12;
const HEADER_LEN: u32 = 12;

/// Where buffers are: far behind the ring, and with memory of nobody in front of each.
const PLACES: [u64; 3] = [
    GUEST_BASE + 0x1_0000,
    GUEST_BASE + 0x2_0000,
    GUEST_BASE + 0x3_0000,
];

/// Makes a chain of these buffers available, from descriptor `head` on.
fn publish(ring: &Ring, head: u16, buffers: &[(u64, u32)]) {
    for (index, &(address, len)) in (head..).zip(buffers) {
        let is_last = usize::from(index - head) + 1 == buffers.len();
        let more = if is_last { 0 } else { descriptor_flag::NEXT };
        let descriptor = RawDescriptor {
            address,
            len,
            flags: descriptor_flag::WRITE | more,
            next: index + 1,
        };
        ring.set_descriptor(index, descriptor);
    }
    ring.publish(head);
}

fn pieces<const HEAD: usize, const TAIL: usize>(
    frame: &Framed<HEAD, TAIL>,
) -> (usize, Vec<(usize, usize)>) {
    let piece = |it: &libc::iovec| (it.iov_base.addr(), it.iov_len);
    (frame.room(), frame.iovecs().iter().map(piece).collect())
}

#[test]
fn to_complete_no_chain_changes_nothing() {
    let [first, second, third] = PLACES;
    let cases: [&[(u64, u32)]; 5] = [
        // What is left out lies before the rest, elsewhere, in two places, and is all there is.
        &[(first, 100)],
        &[(first, HEADER_LEN), (second, 100)],
        &[(first, 5), (third, 100)],
        &[(first, 5), (second, 3), (third, 100)],
        &[(first, HEADER_LEN)],
    ];
    for buffers in cases {
        let executor = Executor::with_operations(8).unwrap();
        let guest = Guest::new(1 << 20);
        let ring = guest.ring(16);
        let (mut queue, control) = ring.start(executor.handle(), 0);
        publish(&ring, 0, buffers);
        let mut frame = Framed::<4, 1>::skipping(HEADER);
        assert_eq!(queue.take_into(&mut frame).unwrap(), Taken::Chain);
        let before = pieces(&frame);
        // As of a read that gave nothing.
        assert_eq!(frame.chains_for(0), 0);
        queue.complete_first(&mut frame, 0, 0);
        assert_eq!(pieces(&frame), before, "{buffers:?}");
        assert_eq!((ring.used_index(), control.in_flight()), (0, 1));
        frame.write_front(&[7; HEADER]).unwrap();
        let mut left = HEADER;
        for &(address, len) in buffers {
            let filled = left.min(len as usize);
            left -= filled;
            let around = guest.read(address - 64, 64 + len as usize);
            let mut expected = vec![0; around.len()];
            expected[64..64 + filled].fill(7);
            assert_eq!(around, expected, "{buffers:?}");
        }
        queue.put_back_all(&mut frame);
        assert_eq!((control.next_available(), control.in_flight()), (0, 0));
    }
}

#[test]
fn a_chain_that_is_refused_or_does_not_fit_leaves_the_run_as_it_was() {
    let executor = Executor::with_operations(8).unwrap();
    let guest = Guest::new(1 << 20);
    let ring = guest.ring(2048);
    let (mut queue, control) = ring.start(executor.handle(), 0);
    let mut frame = Framed::<4, 1>::skipping(HEADER);
    let [first, ..] = PLACES;
    publish(&ring, 0, &[(first, 100)]);
    assert_eq!(queue.take_into(&mut frame).unwrap(), Taken::Chain);
    let before = pieces(&frame);
    // Each goes on where the first one ends. This one has more pieces than there can be, so that it
    // is given back at once.
    let many: Vec<_> = (0..1100).map(|at| (first + 100 + 2 * at, 1)).collect();
    publish(&ring, 1, &many);
    assert_eq!(queue.take_into(&mut frame).unwrap(), Taken::Unfit);
    assert_eq!(pieces(&frame), before);
    assert_eq!((ring.used_index(), control.in_flight()), (1, 1));
    // And too short.
    publish(&ring, 1, &[(first + 100, HEADER_LEN - 1)]);
    assert_eq!(queue.take_into(&mut frame).unwrap(), Taken::Unfit);
    assert_eq!(pieces(&frame), before);
    // A second buffer, of which only the first bytes are in memory.
    let end = GUEST_BASE + (1 << 20);
    publish(&ring, 1, &[(first + 100, 50), (end - 8, 16)]);
    let refused = queue.take_into(&mut frame).unwrap_err();
    assert!(
        matches!(refused, QueueError::Chain { head: 1, .. }),
        "{refused}"
    );
    assert_eq!(pieces(&frame), before);
    // A later one was completed, so this is too late to be put back.
    queue.put_back_all(&mut frame);
    assert_eq!((ring.used_index(), control.in_flight()), (3, 0));
    assert_eq!(control.next_available(), 3);
}

#[test]
fn a_chain_that_does_not_fit_is_none_in_hand_and_recalls_are_told_of_all_the_same() {
    let executor = Executor::with_operations(8).unwrap();
    let handle = executor.handle();
    let ring = Guest::new(1 << 20).ring(16);
    let (mut queue, control) = ring.start(handle, 0);
    ring.add(&[], &[100]);
    let held = queue.try_next().unwrap().unwrap();
    control.set_memory(ring.guest().map_again()).unwrap();
    ring.add(&[], &[4]);
    let mut frame = Framed::<0, 0>::skipping(HEADER);
    assert_eq!(queue.take_into(&mut frame).unwrap(), Taken::Unfit);
    let told = executor.run(queue.until_recall(handle.yield_now()));
    assert_eq!(told.unwrap(), None);
    queue.complete(held, 0);
}
