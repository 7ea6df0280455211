//! Chains on their way between a queue and a frame: when they come, when they wait, and how they go
//! back. What a frame makes of them: `framed.rs`.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::Poll;

use vudev_executor::{Executor, Handle, IoBuffers as _};
use vudev_virtio::testing::{Guest, Ring};
use vudev_virtio::{Framed, GuestMemory, Queue, QueueControl, QueueError, Taken};

/// How many chains a queue gives out in one turn.
const CHAINS_PER_TURN: usize = 128;

type Frame = Framed<4, 1>;

/// Runs `test` on an executor, with a ring and both ends of its queue.
fn with_queue(test: impl AsyncFnOnce(&Handle, &Ring, Queue, QueueControl)) {
    let executor = Executor::with_operations(16).unwrap();
    let ring = Guest::new(1 << 20).ring(512);
    let (queue, control) = ring.start(executor.handle(), 0);
    let handle = executor.handle().clone();
    executor.run(test(&handle, &ring, queue, control)).unwrap();
}

/// Makes so many chains available, of 20 bytes each, no two of which lie together.
fn add(ring: &Ring, count: usize) -> Vec<u16> {
    let one = |_| {
        ring.guest().allocate(1, 1);
        ring.add(&[], &[20])
    };
    (0..count).map(one).collect()
}

/// One that has no room for what is left out of a first one.
fn add_unfit(ring: &Ring) -> u16 {
    ring.add(&[b"read"], &[11])
}

fn frame() -> Frame {
    Frame::skipping(12)
}

fn take(queue: &mut Queue, frame: &mut Frame, count: usize) {
    for _ in 0..count {
        assert_eq!(queue.take_into(frame).unwrap(), Taken::Chain);
    }
}

/// Address and length of each piece.
fn pieces(frame: &Frame) -> Vec<(usize, usize)> {
    let piece = |it: &libc::iovec| (it.iov_base.addr(), it.iov_len);
    frame.iovecs().iter().map(piece).collect()
}

/// Heads and written bytes of all that came back since the last question.
fn used(ring: &Ring) -> Vec<(u16, u32)> {
    let next = || ring.used().map(|used| (used.head, used.written));
    std::iter::from_fn(next).collect()
}

/// What a future gives at once.
async fn now<F: Future>(mut future: Pin<&mut F>) -> Option<F::Output> {
    poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

/// Memory of the guest's that nobody has but the queue.
fn swap(ring: &Ring, control: &QueueControl) -> std::rc::Weak<GuestMemory> {
    let memory = ring.guest().map_again();
    control.set_memory(memory.clone()).unwrap();
    Rc::downgrade(&memory)
}

#[test]
fn chains_of_other_memory_wait_until_those_of_the_old_are_put_back() {
    with_queue(async |_, ring, mut queue, control| {
        let mut frame = frame();
        add(ring, 3);
        let old = swap(ring, &control);
        take(&mut queue, &mut frame, 2);
        let before = pieces(&frame);
        let new = swap(ring, &control);
        assert_eq!(old.strong_count(), 1, "the frame's");
        for _ in 0..2 {
            assert_eq!(queue.take_into(&mut frame).unwrap(), Taken::Elsewhere);
            assert_eq!((pieces(&frame), control.in_flight()), (before.clone(), 2));
        }
        // It is nothing to them that there are none.
        queue.put_back_all(&mut frame);
        assert_eq!((old.strong_count(), control.in_flight()), (0, 0));
        assert_eq!((control.next_available(), frame.room()), (0, 0));
        take(&mut queue, &mut frame, 2);
        let (after, memory) = (pieces(&frame), new.upgrade().unwrap());
        let begin = memory.regions()[0].layout().guest_address;
        let first = memory.buffers(&[(begin, 1)]).unwrap();
        let host = first.iovecs()[0].iov_base.addr();
        let in_new = |piece: &(usize, usize)| (host..host + (1 << 20)).contains(&piece.0);
        assert!(after[1..3].iter().all(in_new) && !before[1..3].iter().any(in_new));
        assert_eq!(ring.used_index(), 0);
    });
}

#[test]
fn chains_of_another_queue_wait_until_those_of_the_first_are_gone() {
    with_queue(async |handle, ring, mut queue, control| {
        let other = ring.guest().ring(16);
        let (mut second, its_control) = other.start(handle, 1);
        let mut frame = frame();
        add(ring, 1);
        add(&other, 1);
        take(&mut queue, &mut frame, 1);
        let before = pieces(&frame);
        assert_eq!(second.take_into(&mut frame).unwrap(), Taken::Elsewhere);
        assert_eq!(pieces(&frame), before);
        assert_eq!((control.in_flight(), its_control.in_flight()), (1, 0));
        queue.complete_first(&mut frame, 1, 20);
        take(&mut second, &mut frame, 1);
        assert_eq!((control.in_flight(), its_control.in_flight()), (0, 1));
        assert_eq!(queue.take_into(&mut frame).unwrap(), Taken::None);
        second.put_back_all(&mut frame);
        assert_eq!((ring.used_index(), other.used_index()), (1, 0));
    });
}

#[test]
fn memory_goes_with_the_last_chain_that_lies_in_it() {
    with_queue(async |_, ring, mut queue, control| {
        let mut frame = frame();
        let memory = swap(ring, &control);
        add(ring, 6);
        let of_queue = memory.strong_count();
        take(&mut queue, &mut frame, 3);
        assert_eq!(memory.strong_count(), of_queue + 1);
        queue.complete_first(&mut frame, 2, 40);
        assert_eq!(memory.strong_count(), of_queue + 1);
        queue.complete_first(&mut frame, 1, 20);
        assert_eq!(memory.strong_count(), of_queue);
        take(&mut queue, &mut frame, 2);
        queue.put_back_all(&mut frame);
        assert_eq!(memory.strong_count(), of_queue);
        take(&mut queue, &mut frame, 2);
        swap(ring, &control);
        assert_eq!(memory.strong_count(), 1);
        // There are not as many.
        queue.complete_first(&mut frame, 5, 40);
        assert_eq!((memory.strong_count(), frame.chains()), (0, 0));
    });
}

#[test]
fn a_frame_that_is_dropped_loses_its_chains_and_each_is_counted() {
    with_queue(async |_, ring, mut queue, control| {
        let memory = swap(ring, &control);
        let of_queue = memory.strong_count();
        let mut lost = frame();
        add(ring, 5);
        take(&mut queue, &mut lost, 4);
        queue.complete_first(&mut lost, 1, 1);
        assert_eq!((control.in_flight(), control.dropped()), (3, 0));
        drop(lost);
        assert_eq!((control.in_flight(), control.dropped()), (0, 3));
        assert_eq!(memory.strong_count(), of_queue);
        // One without chains loses none.
        let mut next = frame();
        take(&mut queue, &mut next, 1);
        queue.complete_first(&mut next, 1, 1);
        drop(next);
        assert_eq!((control.in_flight(), control.dropped()), (0, 3));
        assert_eq!(ring.used_index(), 2);
    });
}

#[test]
fn chains_that_are_put_back_are_taken_again_in_their_order() {
    with_queue(async |_, ring, mut queue, control| {
        let mut frame = frame();
        let own = pieces(&frame);
        let heads = add(ring, 4);
        take(&mut queue, &mut frame, 3);
        let before = pieces(&frame);
        queue.put_back_all(&mut frame);
        assert_eq!((pieces(&frame), frame.chains()), (own.clone(), 0));
        assert_eq!((control.next_available(), control.in_flight()), (0, 0));
        take(&mut queue, &mut frame, 3);
        assert_eq!((pieces(&frame), control.in_flight()), (before, 3));
        // Those that are left when the first went.
        queue.complete_first(&mut frame, 1, 7);
        queue.put_back_all(&mut frame);
        assert_eq!((control.next_available(), control.in_flight()), (1, 0));
        queue.put_back_all(&mut frame);
        take(&mut queue, &mut frame, 3);
        queue.complete_first(&mut frame, 3, 45);
        let entries = [(heads[0], 7), (heads[1], 20), (heads[2], 20), (heads[3], 5)];
        assert_eq!((used(ring), pieces(&frame)), (entries.to_vec(), own));
        assert_eq!((control.in_flight(), control.dropped()), (0, 0));
    });
}

#[test]
fn what_it_is_too_late_to_put_back_comes_back_empty() {
    with_queue(async |handle, ring, mut queue, control| {
        let mut frame = frame();
        let heads = add(ring, 2);
        let unfit = add_unfit(ring);
        let later = add(ring, 2);
        take(&mut queue, &mut frame, 2);
        assert_eq!(queue.take_into(&mut frame).unwrap(), Taken::Unfit);
        assert_eq!((control.in_flight(), ring.used_index()), (2, 1));
        take(&mut queue, &mut frame, 2);
        assert_eq!((control.in_flight(), control.next_available()), (4, 5));
        let last = pieces(&frame)[3..5].to_vec();
        handle.yield_now().await;
        assert_eq!(ring.calls(), 1);
        assert_eq!(used(ring), [(unfit, 0)]);
        ring.set_used_event(1);
        queue.put_back_all(&mut frame);
        assert_eq!((control.in_flight(), control.next_available()), (0, 3));
        assert_eq!(used(ring), [(heads[1], 0), (heads[0], 0)]);
        handle.yield_now().await;
        assert_eq!(ring.calls(), 1, "the driver is told of them");
        take(&mut queue, &mut frame, 2);
        let again = pieces(&frame)[1..3].to_vec();
        let begin = |(at, len): (usize, usize)| (at + len - 20, 20);
        assert_eq!(again.into_iter().map(begin).collect::<Vec<_>>(), last);
        queue.complete_first(&mut frame, 2, 40);
        assert_eq!(used(ring), [(later[0], 20), (later[1], 20)]);
        assert_eq!((control.in_flight(), control.dropped()), (0, 0));
    });
}

#[test]
fn a_turns_share_of_chains_is_the_same_for_a_frame() {
    with_queue(async |handle, ring, mut queue, control| {
        let mut frame = frame();
        add(ring, CHAINS_PER_TURN - 1);
        add_unfit(ring);
        add(ring, 1);
        take(&mut queue, &mut frame, CHAINS_PER_TURN - 1);
        assert_eq!(queue.take_into(&mut frame).unwrap(), Taken::Unfit);
        let before = pieces(&frame);
        assert_eq!(queue.take_into(&mut frame).unwrap(), Taken::None);
        assert_eq!(pieces(&frame), before);
        assert!(queue.try_next().unwrap().is_none());
        {
            let mut available = pin!(queue.available_until_recall());
            assert!(now(available.as_mut()).await.is_none());
            assert!(available.await.unwrap());
        }
        take(&mut queue, &mut frame, 1);
        assert_eq!(queue.take_into(&mut frame).unwrap(), Taken::None);
        assert_eq!(control.in_flight(), CHAINS_PER_TURN);
        // What waits elsewhere is no part of it.
        handle.yield_now().await;
        add(ring, CHAINS_PER_TURN - 1);
        let memory = swap(ring, &control);
        for _ in 0..2 * CHAINS_PER_TURN {
            assert_eq!(queue.take_into(&mut frame).unwrap(), Taken::Elsewhere);
        }
        queue.complete_first(&mut frame, CHAINS_PER_TURN, 0);
        take(&mut queue, &mut frame, CHAINS_PER_TURN - 1);
        assert!(memory.upgrade().is_some());
        assert_eq!(control.next_available(), 256);
    });
}

#[test]
fn a_wait_with_chains_in_hand_takes_none_and_ends_with_a_recall_or_a_stop() {
    with_queue(async |handle, ring, mut queue, control| {
        let mut frame = frame();
        add(ring, 1);
        for _ in 0..2 {
            assert!(queue.available_until_recall().await.unwrap());
            assert_eq!((control.in_flight(), control.next_available()), (0, 0));
        }
        // A recall from before the first chain is not one of it.
        swap(ring, &control);
        take(&mut queue, &mut frame, 1);
        {
            let mut available = pin!(queue.available_until_recall());
            assert!(now(available.as_mut()).await.is_none());
            handle.yield_now().await;
            add(ring, 1);
            assert!(available.await.unwrap());
        }
        take(&mut queue, &mut frame, 1);
        {
            let mut available = pin!(queue.available_until_recall());
            assert!(now(available.as_mut()).await.is_none());
            swap(ring, &control);
            assert!(!available.await.unwrap());
        }
        queue.put_back_all(&mut frame);
        assert!(queue.available_until_recall().await.unwrap());
        take(&mut queue, &mut frame, 2);
        {
            let mut available = pin!(queue.available_until_recall());
            assert!(now(available.as_mut()).await.is_none());
            control.stop();
            assert!(!available.await.unwrap());
        }
        add(ring, 1);
        assert!(!queue.available_until_recall().await.unwrap());
        queue.put_back_all(&mut frame);
        assert_eq!((control.next_available(), ring.used_index()), (0, 0));
    });
}

#[test]
fn a_chain_that_does_not_fit_does_not_make_a_recall_forgotten() {
    with_queue(async |handle, ring, mut queue, control| {
        add(ring, 1);
        let chain = queue.try_next().unwrap().unwrap();
        swap(ring, &control);
        add_unfit(ring);
        assert_eq!(queue.take_into(&mut frame()).unwrap(), Taken::Unfit);
        let moment = handle.yield_now();
        assert!(queue.until_recall(moment).await.is_none());
        queue.complete(chain, 0);
    });
}

#[test]
fn a_retired_queue_gives_a_frame_nothing_and_takes_back_what_it_has() {
    with_queue(async |_, ring, mut queue, control| {
        let mut frame = frame();
        let heads = add(ring, 3);
        take(&mut queue, &mut frame, 2);
        // More than the ring can hold. What was seen before is taken as it is.
        ring.set_available_index(1000);
        queue.complete_first(&mut frame, 1, 20);
        take(&mut queue, &mut frame, 1);
        let before = pieces(&frame);
        let error = queue.take_into(&mut frame).unwrap_err();
        assert!(
            matches!(error, QueueError::TooManyAvailable { outstanding: 2, .. }),
            "{error}"
        );
        assert_eq!((control.is_retired(), ring.errors()), (true, 1));
        assert_eq!(queue.take_into(&mut frame).unwrap(), Taken::None);
        assert_eq!(pieces(&frame), before);
        {
            let mut available = pin!(queue.available_until_recall());
            assert!(now(available.as_mut()).await.is_none());
            control.stop();
            assert!(!available.await.unwrap());
        }
        queue.put_back_all(&mut frame);
        assert_eq!((control.in_flight(), control.next_available()), (0, 1));
        assert_eq!(used(ring), [(heads[0], 20)]);
    });
    with_queue(async |_, ring, mut queue, control| {
        ring.set_available_index(1000);
        let error = queue.available_until_recall().await.unwrap_err();
        assert!(
            matches!(error, QueueError::TooManyAvailable { ready: 1000, .. }),
            "{error}"
        );
        assert_eq!((control.is_retired(), ring.errors()), (true, 1));
    });
}
