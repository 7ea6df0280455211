//! What kicks, calls, timers, signals and children promise, on the real kernel.
#![expect(clippy::disallowed_methods, reason = "threads play the other side")]

mod common;

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::os::fd::AsFd;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

use common::{eventfd, executor, pipe, signal};
use rustix::event::EventfdFlags;
use rustix::process::Signal;
use vudev_executor::{
    Call, CallTarget, EventError, ExitStatus, File, Kick, Notify, ProcessFd, Signals, TurnEnd,
};

#[test]
fn a_kick_and_a_call_cost_one_enter_a_round() {
    const ROUNDS: u64 = 1000;
    let executor = executor(8);
    let handle = executor.handle();
    let (kick, call) = (
        eventfd(EventfdFlags::empty()),
        eventfd(EventfdFlags::empty()),
    );
    let (their_kick, their_call) = (kick.try_clone().unwrap(), call.try_clone().unwrap());
    let other = std::thread::spawn(move || {
        for _ in 0..ROUNDS {
            signal(&their_kick, 1);
            assert_eq!(rustix::io::read(&their_call, &mut [0; 8]), Ok(8));
        }
    });
    executor
        .run(async {
            let mut kick = Kick::new(handle, kick).unwrap();
            let call = Call::new(handle, call).unwrap();
            for _ in 0..ROUNDS {
                kick.wait().await.unwrap();
                call.signal().unwrap();
            }
        })
        .unwrap();
    other.join().unwrap();
    let stats = handle.stats();
    assert_eq!(stats.calls, ROUNDS);
    assert!(stats.enters <= ROUNDS + 10, "{stats:?}");
}

#[test]
fn a_doorbell_is_rung_once_a_call_and_counted_like_one() {
    let executor = executor(8);
    let handle = executor.handle();
    let rung = Rc::new(Cell::new(0));
    let doorbell = {
        let rung = rung.clone();
        CallTarget::doorbell(move || rung.set(rung.get() + 1))
    };
    let call = Call::new(handle, doorbell).unwrap();
    call.signal().unwrap();
    call.clone().signal().unwrap();
    assert_eq!((rung.get(), handle.stats().calls), (2, 2));
    assert_eq!(handle.stats().enters, 0, "a store needs no kernel");
}

#[test]
fn a_kick_before_the_watch_is_seen() {
    let executor = executor(8);
    let fd = eventfd(EventfdFlags::empty());
    signal(&fd, 1);
    let mut kick = Kick::new(executor.handle(), fd).unwrap();
    executor.run(kick.wait()).unwrap().unwrap();
}

#[test]
fn an_endless_kicker_and_a_busy_handler_keep_memory_flat() {
    let executor = executor(8);
    let handle = executor.handle();
    let fd = eventfd(EventfdFlags::NONBLOCK);
    let theirs = fd.try_clone().unwrap();
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stopped = stop.clone();
    let other = std::thread::spawn(move || {
        while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
            let _ = rustix::io::write(&theirs, &1u64.to_ne_bytes());
        }
    });
    executor
        .run(async {
            let mut kick = Kick::new(handle, fd).unwrap();
            for round in 0..2000 {
                kick.wait().await.unwrap();
                // Busy: the kicks of many turns arrive meanwhile and are one pending bit.
                for _ in 0..10 {
                    handle.yield_now().await;
                }
                let stats = handle.stats();
                assert!(stats.in_flight <= 1, "round {round}: {stats:?}");
            }
        })
        .unwrap();
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    other.join().unwrap();
}

#[test]
fn pipes_and_files_are_no_events() {
    let executor = executor(8);
    let handle = executor.handle();
    let (read_end, write_end) = pipe();
    let refused = |result: Result<Kick, _>| matches!(result, Err(EventError::NotEventFd(_)));
    assert!(refused(Kick::new(handle, read_end)));
    assert!(refused(Kick::new(handle, common::disk(b"").into())));
    assert!(matches!(
        Call::new(handle, write_end),
        Err(EventError::NotEventFd(_))
    ));
}

#[test]
fn a_filled_eventfd_ends_the_call_and_not_the_process() {
    let executor = executor(8);
    let handle = executor.handle();
    let fd = eventfd(EventfdFlags::empty());
    signal(&fd, u64::MAX - 1);
    let call = Call::new(handle, fd).unwrap();
    let error = executor.run(async { call.signal().unwrap_err() }).unwrap();
    assert_eq!(error.raw_os_error(), Some(libc::EINTR));
}

#[test]
fn a_filled_eventfd_that_does_not_block_counts_as_signalled() {
    let executor = executor(8);
    let fd = eventfd(EventfdFlags::NONBLOCK);
    signal(&fd, u64::MAX - 1);
    let call = Call::new(executor.handle(), fd).unwrap();
    executor.run(async { call.signal().unwrap() }).unwrap();
}

#[test]
fn a_sleeping_loop_is_woken_by_nothing() {
    let executor = executor(8);
    let handle = executor.handle();
    let call = Call::new(handle, eventfd(EventfdFlags::empty())).unwrap();
    executor
        .run(async {
            call.signal().unwrap();
            // The watchdog, armed by this call, may fire once and then never again: two timers are
            // two enters.
            let before = handle.stats().enters;
            handle.sleep(Duration::from_millis(700)).await;
            handle.sleep(Duration::from_millis(1500)).await;
            assert!(handle.stats().enters - before <= 3, "{:?}", handle.stats());
        })
        .unwrap();
}

#[test]
fn timers_cost_no_operation() {
    let executor = executor(8);
    let handle = executor.handle();
    let start = Instant::now();
    executor
        .run(async {
            let order = Rc::new(Cell::new(0));
            let tasks: Vec<_> = [30, 10, 20]
                .map(|ms| {
                    let (handle, order) = (handle.clone(), order.clone());
                    handle.clone().spawn(async move {
                        handle.sleep(Duration::from_millis(ms)).await;
                        order.replace(order.get() + 1)
                    })
                })
                .into_iter()
                .collect();
            let mut finished = Vec::new();
            for task in tasks {
                finished.push(task.await);
            }
            assert_eq!(finished, [2, 0, 1]);
        })
        .unwrap();
    assert!(start.elapsed() >= Duration::from_millis(30));
    assert_eq!(handle.stats().operations, 0);
}

#[test]
fn a_timeout_drops_what_it_waited_for() {
    let executor = executor(8);
    let handle = executor.handle();
    let (read_end, _write_end) = pipe();
    let file = File::new(handle, read_end);
    executor
        .run(async {
            let limit = Duration::from_millis(1);
            assert!(handle.timeout(limit, file.readable()).await.is_none());
            assert!(handle.timeout(limit, async { 5 }).await == Some(5));
            while handle.stats().in_flight > 0 {
                handle.yield_now().await;
            }
        })
        .unwrap();
}

#[test]
fn a_notification_wakes_all_who_wait_or_the_next_who_will() {
    let executor = executor(8);
    let handle = executor.handle();
    executor
        .run(async {
            let notify = Rc::new(Notify::new());
            notify.notify();
            notify.notified().await;
            let waiters: Vec<_> = (0..3)
                .map(|_| {
                    let notify = notify.clone();
                    handle.spawn(async move { notify.notified().await })
                })
                .collect();
            handle.yield_now().await;
            notify.notify();
            for waiter in waiters {
                waiter.await;
            }
        })
        .unwrap();
}

#[test]
fn turn_end_work_runs_once_a_turn_before_the_loop_sleeps() {
    struct Count(Cell<u32>);
    impl TurnEnd for Count {
        fn turn_end(self: Rc<Self>) {
            self.0.set(self.0.get() + 1);
        }
    }
    let executor = executor(8);
    let handle = executor.handle();
    let count = Rc::new(Count(Cell::new(0)));
    executor
        .run(async {
            handle.at_turn_end(count.clone());
            assert_eq!(count.0.get(), 0);
            handle.yield_now().await;
            assert_eq!(count.0.get(), 1);
            handle.yield_now().await;
            assert_eq!(count.0.get(), 1);
        })
        .unwrap();
}

#[test]
fn turn_end_work_that_never_runs_is_let_go_with_its_executor() {
    struct Holder(#[expect(dead_code, reason = "held")] vudev_executor::Handle);
    impl TurnEnd for Holder {
        fn turn_end(self: Rc<Self>) {}
    }
    let executor = executor(8);
    let work = Rc::new(Holder(executor.handle().clone()));
    let held = Rc::downgrade(&work);
    executor.handle().at_turn_end(work);
    drop(executor);
    assert!(held.upgrade().is_none());
}

#[test]
fn a_dropped_task_is_cancelled() {
    let executor = executor(8);
    let handle = executor.handle();
    let alive = Rc::new(());
    executor
        .run(async {
            let held = alive.clone();
            let task = handle.spawn(async move {
                std::future::pending::<()>().await;
                drop(held);
            });
            handle.yield_now().await;
            assert_eq!(Rc::strong_count(&alive), 2);
            drop(task);
            handle.yield_now().await;
            assert_eq!(Rc::strong_count(&alive), 1);
        })
        .unwrap();
}

#[test]
fn signals_arrive_as_values() {
    // In a thread of its own: the mask belongs to the thread.
    std::thread::spawn(|| {
        let executor = executor(8);
        let mut signals = Signals::new(executor.handle(), &[Signal::USR1, Signal::USR2]).unwrap();
        // To this thread alone; the others of this test process have them unblocked.
        let tid = rustix::thread::gettid().as_raw_nonzero().get();
        // SAFETY: a system call without pointers.
        #[expect(unsafe_code, reason = "rustix has no tgkill")]
        unsafe {
            libc::syscall(libc::SYS_tgkill, std::process::id(), tid, libc::SIGUSR2);
        }
        let number = executor.run(signals.next()).unwrap().unwrap();
        assert_eq!(number, libc::SIGUSR2);
    })
    .join()
    .unwrap();
}

#[test]
fn a_child_is_reaped_with_its_status() {
    let executor = executor(8);
    for (script, expected) in [
        ("exit 7", ExitStatus::Code(7)),
        ("kill -9 $$", ExitStatus::Signal(9)),
    ] {
        let mut command = std::process::Command::new("sh");
        #[expect(clippy::zombie_processes, reason = "`exited` reaps it")]
        let child = command.args(["-c", script]).spawn().unwrap();
        let pid = rustix::process::Pid::from_child(&child);
        let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
        let process = ProcessFd::new(executor.handle(), pidfd);
        assert_eq!(executor.run(process.exited()).unwrap().unwrap(), expected);
        assert!(process.as_fd().try_clone_to_owned().is_ok());
    }
}

#[test]
fn tasks_the_ring_and_timers_are_due_until_they_had_their_turn() {
    let executor = executor(8);
    let handle = executor.handle().clone();
    let (_read_end, write_end) = pipe();
    let pipe = File::new(&handle, write_end);
    let test = async {
        assert!(!handle.is_due());
        let task = handle.spawn(async {});
        assert!(handle.is_due());
        task.await;
        assert!(!handle.is_due());
        let mut room = pin!(pipe.writable());
        let waits = poll_fn(|cx| Poll::Ready(room.as_mut().poll(cx).is_pending())).await;
        assert!(waits && handle.is_due());
        room.await.unwrap();
        assert!(!handle.is_due());
        for (after, passes) in [
            (Duration::from_secs(60), false),
            (Duration::from_millis(5), true),
        ] {
            let mut sleep = pin!(handle.sleep(after));
            let waits = poll_fn(|cx| Poll::Ready(sleep.as_mut().poll(cx).is_pending())).await;
            let start = Instant::now();
            while passes && start.elapsed() < after {}
            // One that was over before it was asked has no timer.
            assert_eq!(handle.is_due(), waits && passes);
        }
    };
    executor.run(test).unwrap();
}
