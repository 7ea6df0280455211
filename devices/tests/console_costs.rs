//! What a console's output and input cost: operations, enters, calls, allocations and copies. In a
//! binary of its own, since the allocator is replaced.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test panics where it fails, and its numbers are small"
)]

use std::io::{Read, Write, pipe};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use rustix::fs::{MemfdFlags, memfd_create};
use vudev_devices::Console;
use vudev_virtio::testing::allocations::CountingAllocator;

mod common;

use common::costs::{Costs, wake_ups};
use common::terminal::terminal;
use common::{Rig, run};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;

/// Bytes of a write: many such fit into a socket.
const LENGTH: usize = 1000;
/// Rounds after which everything that is kept for later has been made.
const WARM: usize = 20;

fn output(depth: usize) -> Costs {
    // A pipe can say what would wait only since Linux 6.4.
    let (mut screen, output) = UnixStream::pair().unwrap();
    run(async |handle| {
        let console = Console::new(&handle, None, Some(output.into()));
        let mut console = Rig::start(&handle, console, 0);
        let text: Vec<u8> = (0..LENGTH).map(|at| (at * 31) as u8).collect();
        let buffer = console.put(&text);
        let mut costs = None;
        for _ in 0..=WARM {
            let chain = (&[buffer][..], &[][..]);
            costs = Some(Costs::of(&mut console, TRANSMIT, chain, depth, || ()).await);
            let mut seen = vec![0; depth * LENGTH];
            screen.read_exact(&mut seen).unwrap();
            assert_eq!(seen, text.repeat(depth));
        }
        assert_eq!(wake_ups(&console).await, 0);
        costs.unwrap()
    })
}

#[test]
fn a_write_costs_one_call_of_the_system_and_no_copy_and_all_of_a_kick_one_call() {
    for depth in [1, 32] {
        let costs = output(depth);
        // One enter sees the kick, unless the loop was awake.
        assert!(costs.enters <= 1, "{depth}: {costs:?}");
        let expected = Costs {
            operations: 0,
            at_once: depth as u64,
            enters: costs.enters,
            calls: 1,
            allocations: 0,
            copied: 0,
        };
        assert_eq!(costs, expected, "{depth}");
    }
}

/// Operations and system calls of one write after the other.
fn of_writes(output: OwnedFd) -> [(u64, u64); 3] {
    run(async |handle| {
        let console = Console::new(&handle, None, Some(output));
        let mut console = Rig::start(&handle, console, 0);
        let buffer = console.put(b"login: ");
        let mut each = [(0, 0); 3];
        for each in &mut each {
            let chain = (&[buffer][..], &[][..]);
            let costs = Costs::of(&mut console, TRANSMIT, chain, 1, || ()).await;
            *each = (costs.operations, costs.at_once);
        }
        each
    })
}

#[test]
fn a_terminal_that_others_share_is_asked_for_room_and_written_by_the_ring() {
    // It says that it cannot tell, or waits whatever it is told.
    let (_user, terminal) = terminal();
    assert_eq!(of_writes(terminal), [(2, 0); 3]);
}

#[test]
fn a_file_that_cannot_say_what_would_wait_is_tried_once() {
    // As one in memory cannot.
    let file = memfd_create("output", MemfdFlags::CLOEXEC).unwrap();
    assert_eq!(of_writes(file), [(1, 1), (1, 0), (1, 0)]);
}

#[test]
fn what_is_typed_is_read_into_the_driver_s_buffer_without_a_copy() {
    let (input, mut keyboard) = pipe().unwrap();
    run(async |handle| {
        let console = Console::new(&handle, Some(input.into()), None);
        let mut console = Rig::start(&handle, console, 0);
        let buffer = console.allocate(LENGTH, 1);
        let typed = [b'.'; LENGTH];
        for round in 0..=WARM {
            let chain = (&[][..], &[buffer][..]);
            let type_it = || keyboard.write_all(&typed).unwrap();
            let costs = Costs::of(&mut console, RECEIVE, chain, 1, type_it).await;
            assert_eq!(console.bytes(buffer), typed);
            // A wait for input, which holds no buffer, and a read.
            let (operations, enters, calls) = (2, 2, 1);
            let expected = Costs {
                operations,
                at_once: 0,
                enters,
                calls,
                allocations: 0,
                copied: 0,
            };
            assert!(round < WARM || costs == expected, "{costs:?}");
        }
    });
}
