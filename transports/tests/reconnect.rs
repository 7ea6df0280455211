//! Many front-ends, one after the other. In a process of its own, because descriptors are counted.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests, outside of any #[test]"
)]

mod common;

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use vudev_frontend::message::{frame, long_words, request};
use vudev_frontend::{Connection, FrontEnd};

use crate::common::{Mirror, Wire, mirror, serve_over};

/// Each test says its own.
const WIRE: Wire = Wire::Socket;

/// Front-ends that come and go between two counts.
const ROUNDS: usize = 30;

/// Held by the test that counts: there is one descriptor table for all threads.
static ALONE: Mutex<()> = Mutex::new(());

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// One front-end that leaves in good order, one that vanishes with its rings running, and one that
/// misbehaves while it holds descriptors of ours.
fn come_and_go(path: &Path) {
    let mut front = FrontEnd::connect(path).queues(2).start().unwrap();
    mirror(&mut front, 0);
    let mut front = front.leave().unwrap().resume().unwrap();
    mirror(&mut front, 1);
    drop(front.vanish().unwrap());

    let connection = Connection::open(path).unwrap();
    let sent = [rustix::fd::AsFd::as_fd(&connection); 3];
    connection
        .raw(&frame(request::SET_FEATURES, 1, &long_words(&[0])), &sent)
        .unwrap();
    connection.shut_down_sending().unwrap();
    connection.wait_closed().unwrap();
}

/// How many of them end with an error. Over the function it is the function that ends the
/// connection of those that misbehave.
fn come_and_go_without_a_trace(wire: Wire) -> usize {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let served = serve_over(
        wire,
        |_| Mirror::new(),
        |path| {
            come_and_go(path);
            // The back-end has let go of a front-end when it answers the next.
            let settled = |path| {
                let connection = Connection::open(path).unwrap();
                connection.features().unwrap();
                open_descriptors()
            };
            let before = settled(path);
            for _ in 0..ROUNDS {
                come_and_go(path);
            }
            assert_eq!(settled(path), before);
        },
    );
    let failed = served
        .outcomes
        .iter()
        .filter(|outcome| outcome.is_err())
        .count();
    assert_eq!(served.device.resets.get() as usize, served.outcomes.len());
    failed
}

#[test]
fn front_ends_that_come_and_go_leave_no_descriptors_behind() {
    assert_eq!(come_and_go_without_a_trace(Wire::Socket), ROUNDS + 1);
}

#[test]
fn front_ends_that_come_and_go_at_a_function_leave_no_descriptors_behind() {
    assert_eq!(come_and_go_without_a_trace(Wire::Vvu), 0);
}

#[test]
fn setting_the_same_thing_again_and_again_leaves_no_descriptors_behind() {
    set_the_same_again_and_again(Wire::Socket);
}

#[test]
fn setting_the_same_thing_again_at_a_function_leaves_no_descriptors_behind() {
    set_the_same_again_and_again(Wire::Vvu);
}

fn set_the_same_again_and_again(wire: Wire) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let served = serve_over(
        wire,
        |_| Mirror::new(),
        |path| {
            use vudev_frontend::{RingStep, Step};
            let mut front = FrontEnd::connect(path).start().unwrap();
            front.connection().set_acknowledge(true);
            let again = |front: &mut FrontEnd| {
                for step in [RingStep::Kick, RingStep::Call, RingStep::Error] {
                    front.take(Step::Ring(0, step)).unwrap();
                }
                front.take(Step::MemoryTable).unwrap();
                mirror(front, 0);
            };
            again(&mut front);
            let before = open_descriptors();
            for _ in 0..ROUNDS {
                again(&mut front);
            }
            assert_eq!(open_descriptors(), before);
        },
    );
    served.assert_all_left();
}
