//! A queue whose loop polls: the driver is not asked to kick while somebody looks, and is asked
//! before nobody does. The driver acts in a look of the loop's, as it would meanwhile; or in the
//! call that tells it of what is done, as it does on the same processor.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::cell::Cell;
use std::future::{pending, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use futures_util::future::select;
use vudev_executor::{Call, CallTarget, Executor, Faults, Handle, Notify, Polling, Watched};
use vudev_virtio::spec::{feature, ring_flag};
use vudev_virtio::testing::{Guest, Ring};
use vudev_virtio::{Chain, Queue, QueueControl};

const WITHOUT_EVENT_IDX: u64 = feature::VERSION_1 | feature::INDIRECT_DESC;

/// A driver that makes a chain available in the tenth look, and kicks for it only if asked to.
struct Driver {
    ring: Rc<Ring>,
    event_idx: bool,
    looks: Cell<u32>,
    added: Cell<u16>,
    kicks: Cell<u32>,
}

impl Driver {
    /// As Linux decides it, for the entry at `added` (`vring_need_event`, or NO_NOTIFY).
    fn is_asked_to_kick(&self) -> bool {
        match self.event_idx {
            true => self.ring.available_event() == self.added.get(),
            false => self.ring.used_flags() & ring_flag::NO_NOTIFY == 0,
        }
    }

    fn add(&self) {
        let head = self.ring.lay_out(&[b"x"], &[1]);
        self.ring.publish(head);
        if self.is_asked_to_kick() {
            self.kicks.set(self.kicks.get() + 1);
            self.ring.kick();
        }
        self.added.set(self.added.get() + 1);
    }
}

impl Watched for Driver {
    fn look(&self) -> bool {
        self.looks.set(self.looks.get() + 1);
        if self.looks.get() == 10 {
            self.add();
        }
        // It is the queue that has news, in the next one.
        self.looks.get() > 10
    }

    fn ask(&self) -> bool {
        false
    }
}

fn with_queue(
    features: u64,
    polling: Polling,
    test: impl AsyncFnOnce(&Handle, Rc<Driver>, Queue, QueueControl),
) {
    let executor = Executor::with_operations(16).unwrap();
    executor.set_polling(polling);
    let ring = Rc::new(Guest::new(1 << 20).ring_with(64, features));
    let (queue, control) = ring.start(executor.handle(), 0);
    let driver = Rc::new(Driver {
        ring,
        event_idx: features & feature::EVENT_IDX != 0,
        looks: Cell::new(0),
        added: Cell::new(0),
        kicks: Cell::new(0),
    });
    let handle = executor.handle().clone();
    executor.run(test(&handle, driver, queue, control)).unwrap();
}

#[test]
fn a_queue_that_is_polled_is_served_without_a_kick() {
    for features in [feature::FRAMEWORK, WITHOUT_EVENT_IDX] {
        let ages = Polling::For(Duration::from_secs(60));
        with_queue(features, ages, async |handle, driver, queue, control| {
            let served = Rc::new(Notify::new());
            let answer = {
                let served = served.clone();
                async move |_: &mut Chain| {
                    served.notify();
                    1
                }
            };
            let server = handle.spawn(queue.serve(4, answer));
            driver.add();
            served.notified().await;
            driver.ring.next_used(handle).await;
            driver.kicks.set(0);
            // The watch of the kick, and what it has seen.
            for _ in 0..3 {
                handle.yield_now().await;
            }
            let before = handle.stats();
            for _ in 0..20 {
                driver.looks.set(0);
                handle.watch(driver.clone());
                // Nothing here wakes the loop.
                served.notified().await;
                driver.ring.next_used(handle).await;
            }
            let after = handle.stats();
            assert_eq!((driver.kicks.get(), after.enters), (0, before.enters));
            assert_eq!(after.finds - before.finds, 20);
            control.stop();
            server.await.unwrap();
        });
    }
}

#[test]
fn a_queue_asks_for_kicks_again_before_its_loop_sleeps() {
    for features in [feature::FRAMEWORK, WITHOUT_EVENT_IDX] {
        for polling in [Polling::Off, Polling::For(Duration::from_micros(20))] {
            with_queue(features, polling, async |handle, driver, queue, control| {
                let server = handle.spawn(queue.serve(4, async |_| 1));
                for round in 1..=20 {
                    driver.add();
                    driver.ring.next_used(handle).await;
                    // In which the loop sleeps, unless others had the processor for as long.
                    let sleeps = handle.stats().sleeps;
                    while handle.stats().sleeps == sleeps {
                        handle.sleep(Duration::from_millis(1)).await;
                    }
                    assert!(driver.is_asked_to_kick(), "round {round}, {polling:?}");
                }
                control.stop();
                server.await.unwrap();
            });
        }
    }
}

#[test]
fn a_queue_that_was_dropped_keeps_no_memory_while_its_loop_is_busy() {
    with_queue(
        feature::FRAMEWORK,
        Polling::Off,
        async |handle, driver, mut queue, control| {
            let memory = driver.ring.guest().map_again();
            let kept = Rc::downgrade(&memory);
            control.set_memory(memory).unwrap();
            {
                let mut next = pin!(queue.next());
                poll_fn(|cx| Poll::Ready(next.as_mut().poll(cx).is_pending())).await;
            }
            // Cancelled, as a queue is whose operations do not end: it was never asked to stop.
            drop((queue, control));
            for _ in 0..3 {
                handle.yield_now().await;
            }
            assert_eq!(kept.strong_count(), 0);
        },
    );
}

/// A driver that gives a batch of chains in a look of the loop's.
struct Refill {
    ring: Ring,
    looks_left: Cell<u32>,
    served: Cell<u16>,
    all_served: Notify,
}

impl Refill {
    const BATCH: u16 = 32;

    fn serve(&self) {
        self.served.set(self.served.get() + 1);
        if self.served.get().is_multiple_of(Self::BATCH) {
            self.all_served.notify();
        }
    }

    /// A batch, so many looks from now, and how many calls it took.
    async fn calls(self: &Rc<Self>, handle: &Handle, looks: u32) -> u64 {
        self.looks_left.set(looks);
        handle.watch(self.clone());
        // Nothing here wakes the loop.
        self.all_served.notified().await;
        handle.yield_now().await;
        while self.ring.used().is_some() {}
        self.ring.calls()
    }
}

impl Watched for Refill {
    fn look(&self) -> bool {
        let left = self.looks_left.get().saturating_sub(1);
        let acts = self.looks_left.replace(left) == 1;
        for _ in 0..if acts { Self::BATCH } else { 0 } {
            let head = self.ring.lay_out(&[], &[1]);
            self.ring.publish(head);
        }
        // It is the queue that has news, in the next one.
        left == 0 && !acts
    }

    fn ask(&self) -> bool {
        unreachable!("the loop sleeps only when it has waited in vain");
    }
}

#[test]
fn a_driver_that_was_waited_for_is_called_before_its_batch_is_done() {
    // Whoever wants a call for each chain shows all of them; with event indices nobody asks for
    // another after the first.
    for (features, early) in [
        (WITHOUT_EVENT_IDX, [1, 3, 3, 1]),
        (feature::FRAMEWORK, [1, 0, 0, 0]),
    ] {
        assert_eq!(calls_of_batches(features, |_| ()), early);
    }
    // As Linux does: the next one that is used is to be told of.
    let rearm = |ring: &Ring| ring.set_used_event(ring.used_index());
    assert_eq!(calls_of_batches(feature::FRAMEWORK, rearm), [1, 1, 1, 1]);
}

/// Calls for a batch that comes before anybody waits, for one that comes after 12 µs, for the next
/// one, that is back before anybody waits, and for one after the loop has slept. The driver does
/// `before_each`.
fn calls_of_batches(features: u64, before_each: impl Fn(&Ring)) -> [u64; 4] {
    // On a played clock, on which a look takes 40 ns.
    let executor = Executor::simulated(1, Faults::default());
    let handle = executor.handle().clone();
    let window = Duration::from_micros(100);
    executor.set_polling(Polling::For(window));
    let ring = Guest::new(1 << 20).ring_with(64, features);
    // Without a kick, which stands in a played ring: the queue's timer ends a sleep.
    let mut parts = ring.parts(&handle, 0);
    parts.kick = None;
    let (queue, control) = Queue::start(&handle, parts).unwrap();
    let driver = Rc::new(Refill {
        ring,
        looks_left: Cell::default(),
        served: Cell::default(),
        all_served: Notify::new(),
    });
    let serving = driver.clone();
    let answer = async move |_: &mut Chain| {
        serving.serve();
        1
    };
    let test = async {
        let server = handle.spawn(queue.serve(64, answer));
        handle.yield_now().await;
        let mut calls = [0; 4];
        for (calls, (looks, sleeps)) in
            calls
                .iter_mut()
                .zip([(2, false), (300, false), (2, false), (2, true)])
        {
            if sleeps {
                handle.sleep(2 * window).await;
            }
            before_each(&driver.ring);
            *calls = driver.calls(&handle, looks).await;
        }
        control.stop();
        server.await.unwrap();
        calls
    };
    executor.run(test).unwrap()
}

/// A driver that gives its next chain in the call for the last one.
struct Prompt {
    ring: Ring,
    left: Cell<u32>,
    /// Turns in which the loop did not wait.
    turns: Cell<u32>,
    all_served: Notify,
}

impl Prompt {
    const CHAINS: u32 = 64;

    fn add(&self) {
        let left = self.left.get();
        if left == 0 {
            return self.all_served.notify();
        }
        self.left.set(left - 1);
        assert_eq!(self.ring.used().is_some(), left < Self::CHAINS);
        let head = self.ring.lay_out(&[], &[1]);
        self.ring.publish(head);
    }
}

impl Watched for Prompt {
    fn look(&self) -> bool {
        self.turns.set(self.turns.get() + 1);
        false
    }

    fn ask(&self) -> bool {
        false
    }
}

/// How many turns it takes to serve it, beside `others`.
fn turns_of_a_prompt_driver(others: impl AsyncFnOnce(Handle)) -> u32 {
    let executor = Executor::with_operations(16).unwrap();
    let handle = executor.handle().clone();
    let driver = Rc::new(Prompt {
        ring: Guest::new(1 << 20).ring_with(64, WITHOUT_EVENT_IDX),
        left: Cell::new(Prompt::CHAINS),
        turns: Cell::default(),
        all_served: Notify::new(),
    });
    let mut parts = driver.ring.parts(&handle, 0);
    let told = driver.clone();
    let doorbell = CallTarget::doorbell(move || told.add());
    parts.call = Some(Call::new(&handle, doorbell).unwrap());
    let (queue, control) = Queue::start(&handle, parts).unwrap();
    let test = async {
        let server = handle.spawn(queue.serve(4, async |_| 1));
        driver.add();
        driver.ring.kick();
        handle.watch(driver.clone());
        let served = pin!(driver.all_served.notified());
        let beside = pin!(others(handle.clone()));
        select(served, beside).await;
        control.stop();
        server.await.unwrap();
    };
    executor.run(test).unwrap();
    driver.turns.get()
}

#[test]
fn a_driver_that_answers_its_call_is_served_in_the_same_turn_eight_times() {
    let alone = async |_| pending().await;
    let turns = turns_of_a_prompt_driver(alone);
    let expected = Prompt::CHAINS / 8;
    // And the one in which the queue's watch begins.
    assert!((expected..=expected + 1).contains(&turns), "{turns}");
}

#[test]
fn a_driver_that_answers_its_call_waits_for_others_who_have_something_to_do() {
    let busy = async |handle: Handle| {
        loop {
            handle.yield_now().await;
        }
    };
    let turns = turns_of_a_prompt_driver(busy);
    assert!(turns >= Prompt::CHAINS, "{turns}");
}
