//! A queue's word to its driver and its framework: calls, kicks, stops, errors and put-backs. Over
//! real rings and eventfds.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::Context;
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use vudev_executor::{Call, Executor, Handle, Kick};
use vudev_virtio::spec::{feature, ring_flag};
use vudev_virtio::testing::{Guest, Ring};
use vudev_virtio::{Queue, QueueControl, QueueError};

const SIZE: u16 = 16;
const WITHOUT_EVENT_IDX: u64 = feature::VERSION_1 | feature::INDIRECT_DESC;

fn ring(features: u64) -> Ring {
    Guest::new(1 << 20).ring_with(SIZE, features)
}

/// Runs `test` on an executor, with a ring and both ends of its queue.
fn with_queue(features: u64, test: impl AsyncFnOnce(&Handle, &Ring, Queue, QueueControl)) {
    let executor = Executor::with_operations(16).unwrap();
    let ring = ring(features);
    let (queue, control) = ring.start(executor.handle(), 0);
    let handle = executor.handle().clone();
    executor.run(test(&handle, &ring, queue, control)).unwrap();
}

/// Takes what is there, completes it and lets the turn end.
async fn complete_all(queue: &mut Queue) -> usize {
    let mut count = 0;
    while let Some(chain) = queue.try_next().unwrap() {
        queue.complete(chain, 0);
        count += 1;
    }
    queue.handle().clone().yield_now().await;
    count
}

#[test]
fn one_call_tells_of_all_that_a_turn_used() {
    for features in [feature::FRAMEWORK, WITHOUT_EVENT_IDX] {
        with_queue(features, async |_, ring, mut queue, _control| {
            for _ in 0..10 {
                ring.add(&[b"x"], &[]);
            }
            assert_eq!(complete_all(&mut queue).await, 10);
            assert_eq!((ring.calls(), ring.used_index()), (1, 10));
            assert_eq!(complete_all(&mut queue).await, 0);
            assert_eq!(ring.calls(), 0, "nothing used, nothing told");
        });
    }
}

#[test]
fn a_driver_is_called_when_its_event_index_is_passed_and_not_before() {
    with_queue(feature::FRAMEWORK, async |_, ring, mut queue, _control| {
        // The first call of a queue comes in any case: nobody knows what was told before.
        ring.add(&[b"x"], &[]);
        complete_all(&mut queue).await;
        assert_eq!(ring.calls(), 1);
        ring.set_used_event(5);
        for used in 2..=8 {
            ring.add(&[b"x"], &[]);
            complete_all(&mut queue).await;
            // Entry 5 is the sixth.
            assert_eq!(ring.calls(), u64::from(used == 6), "after {used}");
            while ring.used().is_some() {}
        }
    });
}

#[test]
fn a_driver_that_asks_for_no_interrupts_gets_none() {
    with_queue(WITHOUT_EVENT_IDX, async |_, ring, mut queue, _control| {
        ring.set_no_interrupt(true);
        ring.add(&[b"x"], &[]);
        complete_all(&mut queue).await;
        assert_eq!((ring.used_index(), ring.calls()), (1, 0));
        ring.set_no_interrupt(false);
        ring.add(&[b"x"], &[]);
        complete_all(&mut queue).await;
        assert_eq!((ring.used_index(), ring.calls()), (2, 1));
    });
}

#[test]
fn kicks_are_spared_while_the_queue_is_drained_and_wanted_before_it_sleeps() {
    with_queue(
        WITHOUT_EVENT_IDX,
        async |handle, ring, mut queue, _control| {
            ring.add(&[b"x"], &[]);
            let chain = queue.next().await.unwrap().unwrap();
            assert_eq!(ring.used_flags(), ring_flag::NO_NOTIFY);
            queue.complete(chain, 0);
            // In which the loop sleeps.
            let wait = Duration::from_millis(1);
            assert!(handle.timeout(wait, queue.next()).await.is_none());
            assert_eq!(ring.used_flags(), 0);
        },
    );
    with_queue(
        feature::FRAMEWORK,
        async |handle, ring, mut queue, _control| {
            for _ in 0..3 {
                ring.add(&[b"x"], &[]);
            }
            for _ in 0..3 {
                let chain = queue.next().await.unwrap().unwrap();
                assert_eq!(
                    ring.available_event(),
                    0,
                    "not said anew while there is work"
                );
                queue.complete(chain, 0);
            }
            let wait = Duration::from_millis(1);
            assert!(handle.timeout(wait, queue.next()).await.is_none());
            assert_eq!(ring.available_event(), 3);
        },
    );
}

#[test]
fn a_successor_finds_kicks_wanted() {
    with_queue(WITHOUT_EVENT_IDX, async |_, ring, mut queue, _control| {
        ring.add(&[b"x"], &[]);
        complete_all(&mut queue).await;
        assert_eq!(ring.used_flags(), ring_flag::NO_NOTIFY);
        drop(queue);
        assert_eq!(ring.used_flags(), 0);
    });
}

/// Kicks only when the device asked for it, as Linux does; so a wish that is made too late, or a
/// ring that is not looked at after it, leaves this driver waiting for ever.
#[test]
fn a_driver_that_kicks_only_when_asked_is_never_left_waiting() {
    const CHAINS: u16 = 2000;
    with_queue(feature::FRAMEWORK, async |handle, ring, queue, control| {
        let server = handle.spawn(queue.serve(4, {
            let handle = handle.clone();
            async move |_chain| {
                if handle.random() % 3 == 0 {
                    handle.yield_now().await;
                }
                0
            }
        }));
        let mut kicks = 0;
        let mut added = 0_u16;
        while ring.used_index() != CHAINS {
            let room = SIZE - (added - ring.used_index());
            let burst = u16::try_from(handle.random() % 4).unwrap();
            for _ in 0..burst.min(room).min(CHAINS - added) {
                while ring.used().is_some() {}
                let head = ring.lay_out(&[b"x"], &[]);
                ring.publish(head);
                if ring.available_event() == added {
                    ring.kick();
                    kicks += 1;
                }
                added += 1;
            }
            handle.yield_now().await;
        }
        control.stop();
        server.await.unwrap();
        assert!(kicks <= CHAINS);
    });
}

#[test]
fn indices_wrap() {
    let executor = Executor::with_operations(16).unwrap();
    let ring = Guest::new(1 << 20).ring(4);
    let mut parts = ring.parts(executor.handle(), 0);
    ring.start_at(u16::MAX - 2);
    parts.next_available = u16::MAX - 2;
    let (mut queue, control) = Queue::start(executor.handle(), parts).unwrap();
    executor
        .run(async {
            for round in 0..6 {
                ring.set_used_event(ring.used_index());
                let head = ring.add(&[b"x"], &[1]);
                assert_eq!(complete_all(&mut queue).await, 1);
                assert_eq!(
                    (ring.used().unwrap().head, ring.calls()),
                    (head, 1),
                    "round {round}"
                );
            }
            assert_eq!((control.next_available(), ring.used_index()), (3, 3));
        })
        .unwrap();
}

#[test]
fn chains_put_back_newest_first_were_never_taken() {
    with_queue(feature::FRAMEWORK, async |_, ring, mut queue, control| {
        let heads: Vec<u16> = (0..4_u32).map(|at| ring.add(&[], &[100 + at])).collect();
        let mut taken = Vec::new();
        while let Some(mut chain) = queue.try_next().unwrap() {
            chain.writable.advance(50).unwrap();
            taken.push(chain);
        }
        assert_eq!((control.next_available(), control.in_flight()), (4, 4));
        queue.complete(taken.remove(0), 0);
        while let Some(chain) = taken.pop() {
            queue.put_back(chain);
        }
        assert_eq!((control.next_available(), control.in_flight()), (1, 0));
        assert_eq!(ring.used_index(), control.next_available());
        for (&head, len) in heads[1..].iter().zip(101..) {
            let chain = queue.next().await.unwrap().unwrap();
            assert_eq!(
                (chain.head(), chain.writable.len()),
                (head, len),
                "whole again"
            );
            queue.complete(chain, 0);
        }
    });
}

#[test]
fn a_chain_put_back_out_of_order_goes_back_empty_rather_than_never() {
    with_queue(feature::FRAMEWORK, async |_, ring, mut queue, control| {
        let older = ring.add(&[], &[10]);
        ring.add(&[], &[10]);
        let first = queue.try_next().unwrap().unwrap();
        let second = queue.try_next().unwrap().unwrap();
        queue.put_back(first);
        let used = ring.used().unwrap();
        assert_eq!((used.head, used.written), (older, 0));
        queue.put_back(second);
        assert_eq!((control.next_available(), control.in_flight()), (1, 0));
    });
}

#[test]
fn a_device_cannot_claim_to_have_written_more_than_the_guest_gave() {
    with_queue(feature::FRAMEWORK, async |_, ring, mut queue, _control| {
        ring.add(&[b"x"], &[10, 10]);
        let mut chain = queue.try_next().unwrap().unwrap();
        chain.writable.truncate(1);
        queue.complete(chain, 1000);
        assert_eq!(ring.used().unwrap().written, 20);
    });
}

#[test]
fn a_dropped_chain_is_counted_and_harms_nobody() {
    with_queue(feature::FRAMEWORK, async |_, ring, mut queue, control| {
        ring.add(&[b"lost"], &[]);
        ring.add(&[b"kept"], &[]);
        drop(queue.try_next().unwrap());
        assert_eq!((control.dropped(), control.in_flight()), (1, 0));
        assert_eq!(complete_all(&mut queue).await, 1);
        assert_eq!(ring.used_index(), 1);
    });
}

#[test]
fn a_stop_ends_a_wait_and_what_is_available_stays() {
    with_queue(
        feature::FRAMEWORK,
        async |handle, ring, mut queue, control| {
            let waiting = handle.spawn(async move { queue.next().await.unwrap().is_none() });
            handle.yield_now().await;
            control.stop();
            assert!(waiting.await);
            ring.add(&[b"x"], &[]);
            assert_eq!(control.next_available(), 0);
        },
    );
    with_queue(feature::FRAMEWORK, async |_, ring, mut queue, control| {
        ring.add(&[b"x"], &[]);
        control.stop();
        assert!(queue.next().await.unwrap().is_none());
        assert!(queue.is_stopping());
    });
}

#[test]
fn a_stop_ends_a_wait_for_something_else() {
    with_queue(feature::FRAMEWORK, async |handle, _, queue, control| {
        assert_eq!(queue.until_stop(async { 1 }).await, Some(1));
        let never = std::future::pending::<()>();
        let waiting = handle.spawn(async move {
            let stopped = queue.until_stop(never).await.is_none();
            // What is there already is not lost to a stop.
            stopped && queue.until_stop(async { 2 }).await == Some(2)
        });
        handle.yield_now().await;
        control.stop();
        assert!(waiting.await);
    });
}

#[test]
fn a_retired_queue_waits_for_its_stop() {
    with_queue(
        feature::FRAMEWORK,
        async |handle, ring, mut queue, control| {
            ring.set_available_index(SIZE + 1);
            ring.kick();
            let error = queue.next().await.unwrap_err();
            assert!(
                matches!(error, QueueError::TooManyAvailable { ready: 17, .. }),
                "{error}"
            );
            let polls = Rc::new(Cell::new(0));
            let counted = polls.clone();
            let waiting = handle.spawn(async move {
                let mut next = pin!(queue.next());
                let count = |cx: &mut Context<'_>| {
                    counted.set(counted.get() + 1);
                    next.as_mut().poll(cx)
                };
                poll_fn(count).await.unwrap().is_none()
            });
            for _ in 0..100 {
                handle.yield_now().await;
            }
            assert!(!waiting.is_finished());
            assert_eq!(polls.get(), 1, "it does not spin");
            control.stop();
            assert!(waiting.await);
            assert_eq!(ring.errors(), 1);
        },
    );
}

#[test]
fn no_more_chains_can_be_out_than_the_ring_has_entries() {
    with_queue(feature::FRAMEWORK, async |_, ring, mut queue, _control| {
        let head = ring.lay_out(&[b"x"], &[]);
        for _ in 0..SIZE {
            ring.publish(head);
        }
        let mut taken = Vec::new();
        while let Some(chain) = queue.try_next().unwrap() {
            taken.push(chain);
        }
        assert_eq!(taken.len(), usize::from(SIZE));
        ring.publish(head);
        let error = queue.try_next().unwrap_err();
        let QueueError::TooManyAvailable {
            ready,
            outstanding,
            size,
        } = error
        else {
            panic!("{error}");
        };
        assert_eq!((ready, outstanding, size), (1, SIZE, SIZE));
        // They are completed all the same.
        taken.into_iter().for_each(|chain| queue.complete(chain, 0));
        assert_eq!(ring.used_index(), SIZE);
    });
}

#[test]
fn without_a_kick_the_ring_is_polled() {
    let executor = Executor::with_operations(16).unwrap();
    let ring = ring(feature::FRAMEWORK);
    let mut parts = ring.parts(executor.handle(), 0);
    parts.kick = None;
    let (mut queue, control) = Queue::start(executor.handle(), parts).unwrap();
    let handle = executor.handle().clone();
    executor
        .run(async {
            for _ in 0..3 {
                let publish = async {
                    handle.yield_now().await;
                    ring.publish(ring.lay_out(&[b"x"], &[]));
                };
                let (chain, ()) = futures_util::join!(queue.next(), publish);
                queue.complete(chain.unwrap().unwrap(), 0);
            }
            // A kick that comes takes over.
            let kick = Kick::new(&handle, ring.kick_descriptor()).unwrap();
            control.set_kick(Some(kick));
            let kicked = async {
                handle.yield_now().await;
                ring.add(&[b"x"], &[]);
            };
            let (chain, ()) = futures_util::join!(queue.next(), kicked);
            queue.complete(chain.unwrap().unwrap(), 0);
        })
        .unwrap();
}

#[test]
fn a_call_descriptor_that_comes_late_gets_the_call_that_it_may_have_missed() {
    with_queue(
        feature::FRAMEWORK,
        async |handle, ring, mut queue, control| {
            let call = || Some(Call::new(handle, ring.call_descriptor()).unwrap());
            control.set_call(call());
            assert_eq!(ring.calls(), 0, "there was nothing to tell");
            control.set_call(None);
            ring.add(&[b"x"], &[]);
            complete_all(&mut queue).await;
            assert_eq!(ring.calls(), 0);
            control.set_call(call());
            assert_eq!(ring.calls(), 1);
            // The one before may have been signalled after its owner looked there last.
            control.set_call(call());
            assert_eq!(ring.calls(), 1);
        },
    );
}

#[test]
fn a_call_descriptor_for_a_queue_that_was_given_up_is_not_called() {
    with_queue(
        feature::FRAMEWORK,
        async |handle, ring, mut queue, control| {
            ring.add(&[b"x"], &[]);
            complete_all(&mut queue).await;
            control.retire(&QueueError::MemoryLost);
            assert_eq!(ring.calls(), 1);
            control.set_call(Some(Call::new(handle, ring.call_descriptor()).unwrap()));
            assert_eq!((ring.calls(), ring.errors()), (0, 1));
        },
    );
}

#[test]
fn a_call_descriptor_that_its_owner_filled_retires_the_queue() {
    with_queue(
        feature::FRAMEWORK,
        async |handle, ring, mut queue, control| {
            let full = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
            rustix::io::write(&full, &(u64::MAX - 1).to_ne_bytes()).unwrap();
            control.set_call(Some(Call::new(handle, full).unwrap()));
            ring.add(&[b"x"], &[]);
            complete_all(&mut queue).await;
            assert!(control.is_retired());
            assert_eq!(ring.errors(), 1);
        },
    );
}

/// Refills the ring as fast as it is drained: the queue never runs dry, and a `next` that never
/// gave up its turn would keep every other task from running.
#[test]
fn a_guest_that_never_lets_its_ring_run_dry_starves_nobody() {
    with_queue(
        feature::FRAMEWORK,
        async |handle, ring, mut queue, control| {
            let head = ring.lay_out(&[b"x"], &[]);
            for _ in 0..SIZE {
                ring.publish(head);
            }
            let others = handle.spawn({
                let (handle, control) = (handle.clone(), control.clone());
                async move {
                    for _ in 0..5 {
                        handle.yield_now().await;
                    }
                    control.stop();
                }
            });
            let mut served = 0;
            while let Some(chain) = queue.next().await.unwrap() {
                queue.complete(chain, 0);
                ring.publish(head);
                served += 1;
                assert!(served < 10_000, "the other task never came to its turn");
            }
            others.await;
        },
    );
}
