//! The loop of a request/response device: many at a time, each completed when it is done, none
//! left behind.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use vudev_executor::{Executor, Handle, Notify};
use vudev_virtio::testing::{Guest, Ring};
use vudev_virtio::{Chain, Queue, QueueControl, QueueError};

/// After which nothing comes any more.
const LIMIT: Duration = Duration::from_secs(10);

fn with_queue(test: impl AsyncFnOnce(&Handle, &Ring, Queue, QueueControl)) {
    let executor = Executor::with_operations(16).unwrap();
    let ring = Guest::new(1 << 20).ring(128);
    let (queue, control) = ring.start(executor.handle(), 0);
    let handle = executor.handle().clone();
    executor.run(test(&handle, &ring, queue, control)).unwrap();
}

/// Gates that handlers wait at, by the first byte of their request.
#[derive(Default)]
struct Gates {
    open: RefCell<Vec<u8>>,
    changed: Notify,
    waiting: Cell<usize>,
    most: Cell<usize>,
}

impl Gates {
    fn open(&self, gate: u8) {
        self.open.borrow_mut().push(gate);
        self.changed.notify();
    }

    async fn pass(&self, chain: &mut Chain) -> u32 {
        let [gate] = chain.readable.read_array().unwrap();
        self.waiting.set(self.waiting.get() + 1);
        self.most.set(self.most.get().max(self.waiting.get()));
        while !self.open.borrow().contains(&gate) {
            self.changed.notified().await;
        }
        self.waiting.set(self.waiting.get() - 1);
        chain.writable.write(&[gate]).unwrap();
        1
    }
}

async fn turns(handle: &Handle) {
    for _ in 0..5 {
        handle.yield_now().await;
    }
}

#[test]
fn each_chain_is_completed_as_it_finishes() {
    with_queue(async |handle, ring, queue, control| {
        let gates = Rc::new(Gates::default());
        let server = handle.spawn(queue.serve(8, {
            let gates = gates.clone();
            async move |chain: &mut Chain| gates.pass(chain).await
        }));
        let heads: Vec<u16> = (0..3).map(|gate| ring.add(&[&[gate]], &[1])).collect();
        for gate in [2, 0, 1] {
            turns(handle).await;
            assert_eq!(ring.used(), None);
            gates.open(gate);
            let used = ring.next_used(handle).await;
            assert_eq!(
                (used.head, used.bytes),
                (heads[usize::from(gate)], vec![gate])
            );
        }
        control.stop();
        server.await.unwrap();
    });
}

#[test]
fn a_handler_that_wakes_itself_when_it_begins_is_not_forgotten() {
    with_queue(async |handle, ring, queue, control| {
        let yielding = handle.clone();
        let server = handle.spawn(queue.serve(8, async move |_: &mut Chain| {
            yielding.yield_now().await;
            1
        }));
        // Each alone and without a kick, so that nothing else wakes the queue's task.
        for _ in 0..3 {
            turns(handle).await;
            let head = ring.lay_out(&[], &[1]);
            ring.publish(head);
            let used = handle.timeout(LIMIT, ring.next_used(handle)).await;
            assert_eq!(used.map(|used| used.head), Some(head));
        }
        control.stop();
        server.await.unwrap();
    });
}

#[test]
fn no_more_run_at_once_than_the_depth_says() {
    with_queue(async |handle, ring, queue, control| {
        let gates = Rc::new(Gates::default());
        let server = handle.spawn(queue.serve(70, {
            let gates = gates.clone();
            async move |chain: &mut Chain| gates.pass(chain).await
        }));
        for _ in 0..64 {
            ring.add(&[&[7]], &[1]);
        }
        turns(handle).await;
        assert_eq!((gates.waiting.get(), control.in_flight()), (64, 64));
        gates.open(7);
        for _ in 0..64 {
            ring.next_used(handle).await;
        }
        control.stop();
        server.await.unwrap();
    });
    with_queue(async |handle, ring, queue, control| {
        let gates = Rc::new(Gates::default());
        let server = handle.spawn(queue.serve(3, {
            let gates = gates.clone();
            async move |chain: &mut Chain| gates.pass(chain).await
        }));
        for _ in 0..10 {
            ring.add(&[&[7]], &[1]);
        }
        turns(handle).await;
        assert_eq!((gates.waiting.get(), control.in_flight()), (3, 3));
        gates.open(7);
        for _ in 0..10 {
            ring.next_used(handle).await;
        }
        assert_eq!(gates.most.get(), 3);
        control.stop();
        server.await.unwrap();
    });
}

#[test]
fn a_stop_drains_what_runs_and_takes_no_more() {
    with_queue(async |handle, ring, queue, control| {
        let gates = Rc::new(Gates::default());
        let server = handle.spawn(queue.serve(2, {
            let gates = gates.clone();
            async move |chain: &mut Chain| gates.pass(chain).await
        }));
        for _ in 0..4 {
            ring.add(&[&[1]], &[1]);
        }
        turns(handle).await;
        control.stop();
        turns(handle).await;
        assert!(!server.is_finished(), "two are in flight");
        gates.open(1);
        server.await.unwrap();
        assert_eq!((ring.used_index(), control.next_available()), (2, 2));
        assert_eq!((control.in_flight(), control.dropped()), (0, 0));
        handle.yield_now().await;
        assert_eq!(ring.calls(), 1);
    });
}

#[test]
fn a_broken_ring_ends_it_after_what_runs() {
    with_queue(async |handle, ring, queue, control| {
        let gates = Rc::new(Gates::default());
        let server = handle.spawn(queue.serve(4, {
            let gates = gates.clone();
            async move |chain: &mut Chain| gates.pass(chain).await
        }));
        ring.add(&[&[1]], &[1]);
        turns(handle).await;
        ring.publish(500);
        ring.kick();
        turns(handle).await;
        assert!(control.is_retired() && !server.is_finished());
        gates.open(1);
        let error = server.await.unwrap_err();
        assert!(
            matches!(error, QueueError::Chain { head: 500, .. }),
            "{error}"
        );
        assert_eq!((ring.used_index(), control.in_flight()), (1, 0));
    });
}

#[test]
fn a_handler_that_never_rests_lets_the_others_work() {
    with_queue(async |handle, ring, queue, control| {
        let done = Rc::new(Cell::new(false));
        let server = handle.spawn(queue.serve(4, {
            let (handle, done) = (handle.clone(), done.clone());
            async move |chain: &mut Chain| {
                while chain.readable.len() == 1 && !done.get() {
                    handle.yield_now().await;
                }
                0
            }
        }));
        ring.add(&[b"1"], &[]);
        for _ in 0..20 {
            let head = ring.add(&[b"22"], &[]);
            assert_eq!(ring.next_used(handle).await.head, head);
        }
        done.set(true);
        ring.next_used(handle).await;
        control.stop();
        server.await.unwrap();
    });
}
