//! Devices whose kernel is short of something, or that are stopped or signalled from outside. What
//! they call then, they call nowhere else, and their policies have it for this.

#![allow(clippy::unwrap_used, reason = "a test that fails here says where")]

mod support;

use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};
use support::{Running, pattern};
use vudev_frontend::Block;

#[test]
fn a_device_that_was_stopped_goes_on_where_it_was() {
    let running = Running::disk("");
    let mut block = running.block();
    for round in 0..20 {
        kill_process(process(&running), Signal::STOP).unwrap();
        kill_process(process(&running), Signal::CONT).unwrap();
        write_and_read(&mut block, round);
    }
    running.stop();
}

#[test]
fn a_disk_whose_ring_gets_no_worker_serves_without_it() {
    let running = Running::disk("");
    // The kernel counts workers among the user's processes.
    limit(&running, Resource::Nproc);
    let mut block = running.block();
    for round in 0..20 {
        write_and_read(&mut block, round);
        block.flush().unwrap();
    }
    running.stop();
}

#[test]
fn a_device_that_finds_no_memory_ends_and_is_named() {
    let running = Running::disk("");
    limit(&running, Resource::Data);
    // More requests at a time than what the allocator still has is enough for; it may end at any.
    let front = running.front().memory(32 << 20).queues(16);
    let mut block = Block::start(front, 256, 4096);
    if let Ok(block) = &mut block {
        for queue in 0..16 {
            for at in 0..250 {
                let _request = block.send_read(queue, at * 4096, 4096);
            }
        }
        for queue in 0..16 {
            let _ = block.kick(queue);
        }
    }
    // abort(3) has raised its signal, which the first process of a namespace does not die of, and
    // then run into an instruction that nobody survives: hlt, or brk.
    let signal = match cfg!(target_arch = "x86_64") {
        true => "SIGSEGV",
        false => "SIGTRAP",
    };
    let died = format!("block-0: error: has died: killed by signal {signal}");
    running.wait_for(&died, 1);
}

#[test]
fn a_bus_error_from_outside_ends_a_device() {
    let running = Running::disk("");
    kill_process(process(&running), Signal::BUS).unwrap();
    running.wait_for("block-0: error: has died", 1);
}

fn process(running: &Running) -> Pid {
    Pid::from_raw(running.device().try_into().unwrap()).unwrap()
}

/// Allows the device nothing more of this.
fn limit(running: &Running, resource: Resource) {
    let nothing = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    prlimit(Some(process(running)), resource, nothing).unwrap();
}

fn write_and_read(block: &mut Block, seed: u8) {
    let data = pattern(4096, seed);
    block.write(0, &data).unwrap();
    let mut back = vec![0; 4096];
    block.read(0, &mut back).unwrap();
    assert_eq!(back, data);
}
