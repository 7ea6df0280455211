//! A driver that acts in the call that tells it of what is done: it gives more, or ends its queue.
//! How many turns it is served in when nobody else has something to do is in `polling`.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::time::Duration;

use vudev_executor::{Call, CallTarget, Executor, Handle};
use vudev_virtio::spec::feature;
use vudev_virtio::testing::{Guest, Ring};
use vudev_virtio::{Queue, QueueControl};

/// Long beside every lawful wait.
const LIMIT: Duration = Duration::from_secs(5);

fn executor() -> (Executor, Handle) {
    let executor = Executor::with_operations(16).unwrap();
    let handle = executor.handle().clone();
    (executor, handle)
}

/// A queue whose driver does this in each call.
fn start(handle: &Handle, ring: &Ring, called: impl Fn() + 'static) -> (Queue, Rc<QueueControl>) {
    let mut parts = ring.parts(handle, 0);
    let doorbell = CallTarget::doorbell(called);
    parts.call = Some(Call::new(handle, doorbell).unwrap());
    let (queue, control) = Queue::start(handle, parts).unwrap();
    (queue, Rc::new(control))
}

fn ring() -> Ring {
    Guest::new(1 << 20).ring_with(64, feature::VERSION_1)
}

fn add(ring: &Ring) {
    let head = ring.lay_out(&[], &[1]);
    ring.publish(head);
}

#[test]
fn a_stop_in_the_middle_of_a_call_is_heard() {
    // The test's own future is woken in the first turn, so that somebody has something to do.
    for in_first_turn in [true, false] {
        let (executor, handle) = executor();
        let ring = ring();
        let called: Rc<RefCell<Weak<QueueControl>>> = Rc::default();
        let told = called.clone();
        let stop = move || told.borrow().upgrade().unwrap().stop();
        let (queue, control) = start(&handle, &ring, stop);
        called.replace(Rc::downgrade(&control));
        // It is there before the queue's task looks first, so that nobody waits yet.
        add(&ring);
        let spawn = || handle.spawn(queue.serve(4, async |_| 1));
        let test = async |server| handle.timeout(LIMIT, server).await;
        let ended = if in_first_turn {
            let server = spawn();
            executor.run(test(server))
        } else {
            executor.run(async { test(spawn()).await })
        };
        let ended = ended.unwrap();
        ended.expect("it ends").unwrap();
    }
}

/// Turns of a task that has something to do in each, beside a driver that gives its next chain in
/// the call for the last one.
fn turns_beside_a_prompt_driver(chains: u32, comes_first: bool) -> u32 {
    let (executor, handle) = executor();
    let (ring, left) = (Rc::new(ring()), Rc::new(Cell::new(chains)));
    let (driver, given) = (ring.clone(), left.clone());
    let (queue, control) = start(&handle, &ring, move || {
        if given.get() > 0 {
            given.set(given.get() - 1);
            assert!(driver.used().is_some());
            add(&driver);
        }
    });
    let yielding = handle.clone();
    let other = async move {
        let mut turns = 0;
        while left.get() > 0 {
            turns += 1;
            yielding.yield_now().await;
        }
        turns
    };
    let test = async {
        add(&ring);
        let serve = queue.serve(4, async |_| 1);
        let (server, other) = if comes_first {
            let other = handle.spawn(other);
            (handle.spawn(serve), other)
        } else {
            (handle.spawn(serve), handle.spawn(other))
        };
        let turns = other.await;
        control.stop();
        server.await.unwrap();
        turns
    };
    executor.run(test).unwrap()
}

#[test]
fn tasks_of_the_same_turn_do_not_wait_for_a_driver_that_answers_its_call() {
    for comes_first in [true, false] {
        let turns = turns_beside_a_prompt_driver(64, comes_first);
        assert!(turns >= 64, "{comes_first}: {turns}");
    }
}
