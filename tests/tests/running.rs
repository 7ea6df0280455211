//! Lawful front-ends that change things under queues that run: memory, eventfds, stops and starts,
//! against the real, jailed `vudev`.

#![allow(clippy::unwrap_used, reason = "a test that fails here says where")]

mod support;

use std::{os::unix::fs::FileExt, time::Duration};

use support::{Running, SHORTLY, pattern};
use vudev_frontend::{
    Block, Buffer, Error, FrontEnd, GuestMemory, LIMIT, Outcome,
    RingStep::{self, Base, Call, Kick},
    Step::{MemoryTable, Rings},
    block::kind,
    message::{self, VERSION, request},
};

#[test]
fn a_stop_waits_for_all_that_was_taken() {
    let running = Running::disk("");
    for _ in 0..20 {
        let mut block = Block::start(running.front(), 32, 16 << 10).unwrap();
        for at in 0..32 {
            let _request = block.send_read(0, at * (16 << 10), 16 << 10).unwrap();
        }
        block.kick(0).unwrap();
        let base = block.front().stop().unwrap()[0];
        assert_eq!(base, block.front().ring(0).used_index().unwrap());
        for _ in 0..base {
            assert_eq!(block.wait(0, SHORTLY).unwrap().status, 0);
        }
    }
}

#[test]
fn a_stop_comes_to_an_end_while_the_driver_goes_on_sending() {
    let running = Running::disk("");
    let mut block = Block::start(running.front(), 32, 4096).unwrap();
    for at in 0..16 {
        let _request = block.send_read(0, at * 4096, 4096).unwrap();
    }
    block.kick(0).unwrap();
    // The stop is asked for, and while it is not answered, chains keep coming.
    let stop = message::frame(request::GET_VRING_BASE, VERSION, &message::words(&[0, 0]));
    block.front().connection().raw(&stop, &[]).unwrap();
    for _ in 0..500 {
        while block.wait(0, Duration::ZERO).is_ok() {}
        while block.send_read(0, 0, 4096).is_ok() {}
        block.front().ring(0).kick_anyway().unwrap();
    }
    let outcome = block.front().connection().outcome().unwrap();
    let Outcome::Answered(_, payload) = outcome else {
        panic!("it closed")
    };
    let used = block.front().ring(0).used_index().unwrap();
    assert_eq!(message::u32_at(&payload, 4), Some(used.into()));
    while block.wait(0, Duration::ZERO).is_ok() {}
    assert!(matches!(
        block.wait(0, SHORTLY),
        Err(Error::Deadline { .. })
    ));
    assert_eq!(block.front().ring(0).used_index().unwrap(), used);
}

#[test]
fn a_stopped_queue_leaves_memory_alone_until_it_is_started_again() {
    let running = Running::disk("");
    let mut block = running.block();
    block.read(0, &mut [0; 512]).unwrap();
    block.front().stop().unwrap();
    let request = block.send_read(0, 0, 512).unwrap();
    block.front().ring(0).kick_anyway().unwrap();
    assert!(matches!(
        block.wait(0, SHORTLY),
        Err(Error::Deadline { .. })
    ));
    block.front().take(Rings(Base)).unwrap();
    block.front().take(Rings(Kick)).unwrap();
    block.front().ring(0).kick_anyway().unwrap();
    assert_eq!(block.wait(0, LIMIT).unwrap().request, request);
}

#[test]
fn a_disabled_queue_waits_until_it_is_enabled() {
    let running = Running::disk("");
    let mut block = Block::start(running.front().queues(2), 1, 4096).unwrap();
    block
        .front()
        .connection()
        .set_ring_enable(0, false)
        .unwrap();
    let request = block.send_read(0, 0, 512).unwrap();
    block.front().ring(0).kick_anyway().unwrap();
    assert!(matches!(
        block.wait(0, SHORTLY),
        Err(Error::Deadline { .. })
    ));
    let _other = block.send_read(1, 0, 512).unwrap();
    block.kick(1).unwrap();
    assert_eq!(
        block.wait(1, LIMIT).unwrap().status,
        0,
        "the other queue goes on"
    );
    block.front().connection().set_ring_enable(0, true).unwrap();
    assert_eq!(block.wait(0, LIMIT).unwrap().request, request);
}

#[test]
fn memory_comes_and_goes_while_a_queue_runs() {
    let running = Running::disk("");
    let mut block = running.block();
    for round in 0..10 {
        block.read(0, &mut [0; 512]).unwrap();
        let memory = block.front().memory().clone();
        let number = memory.add_region(1 << 20).unwrap();
        let connection = block.front().connection();
        memory
            .with_region(number, |layout, file| {
                connection.add_memory_region(layout, file)
            })
            .unwrap();
        let bytes = pattern(4096, round);
        write_from_region(&mut block, number, &bytes);
        let mut back = vec![0; 4096];
        block.read(0, &mut back).unwrap();
        assert_eq!(back, bytes);
        let layout = memory.remove_last_region().unwrap();
        block
            .front()
            .connection()
            .remove_memory_region(&layout, None)
            .unwrap();
    }
    block.read(0, &mut [0; 512]).unwrap();
}

#[test]
fn memory_comes_and_goes_with_requests_in_flight() {
    let running = Running::disk("");
    let disk = pattern(1 << 20, 4);
    running.disk_file().write_all_at(&disk, 0).unwrap();
    let mut block = Block::start(running.front(), 32, 16 << 10).unwrap();
    for _ in 0..10 {
        let send = |at: u64| block.send_read(0, at * (16 << 10), 16 << 10).unwrap();
        let requests: Vec<_> = (0..32).map(send).collect();
        block.kick(0).unwrap();
        let memory = block.front().memory().clone();
        let number = memory.add_region(1 << 20).unwrap();
        let connection = block.front().connection();
        memory
            .with_region(number, |layout, fd| {
                connection.add_memory_region(layout, fd)
            })
            .unwrap();
        let layout = memory.remove_last_region().unwrap();
        connection.remove_memory_region(&layout, None).unwrap();
        for _ in 0..32 {
            assert_eq!(block.wait(0, LIMIT).unwrap().status, 0);
        }
        for (request, expected) in requests.iter().zip(disk.chunks(16 << 10)) {
            assert!(block.data(*request).unwrap() == expected, "{request:?}");
        }
    }
}

#[test]
fn there_are_as_many_regions_as_promised_and_no_more() {
    let running = Running::disk("");
    let mut block = running.block();
    let slots = block.front().connection().memory_slots_max().unwrap();
    let more = usize::try_from(slots).unwrap() - 1;
    let many = GuestMemory::new();
    let add = |block: &mut Block, number: usize| {
        let connection = block.front().connection();
        many.with_region(number, |layout, file| {
            connection.add_memory_region(layout, file)
        })
    };
    for number in 0..more {
        many.add_region_at(0x100_0000_0000 + number as u64 * 0x1_0000, 0x1_0000)
            .unwrap();
        add(&mut block, number).unwrap_or_else(|error| panic!("region {number}: {error}"));
    }
    block.read(0, &mut [0; 512]).unwrap();
    many.add_region_at(0x200_0000_0000, 0x1_0000).unwrap();
    assert!(add(&mut block, more).is_err(), "one more than {slots}");
    let mut block = running.block_after(block);
    block.read(0, &mut [0; 512]).unwrap();
}

#[test]
fn a_new_memory_table_takes_the_place_of_the_old_while_a_queue_runs() {
    let running = Running::disk("");
    let mut block = running.block();
    for round in 0..5 {
        let number = block.front().memory().add_region(1 << 20).unwrap();
        block.front().take(MemoryTable).unwrap();
        write_from_region(&mut block, number, &pattern(4096, round));
        block.read(0, &mut [0; 512]).unwrap();
    }
}

#[test]
fn chains_may_cross_from_one_region_into_the_next() {
    let running = Running::disk("");
    let front = FrontEnd::connect(running.socket())
        .memory_at(0x4000_0000, 1 << 20)
        .memory_at(0x4010_0000, 1 << 20);
    let mut block = Block::start(front, 1, 4096).unwrap();
    let bytes = pattern(4096, 5);
    let address = 0x4010_0000 - 2048;
    block.front().memory().write(address, &bytes).unwrap();
    write_from(&mut block, address, 4096);
    let mut back = vec![0; 4096];
    block.read(0, &mut back).unwrap();
    assert_eq!(back, bytes);
}

#[test]
fn eventfds_are_replaced_while_a_queue_runs() {
    let running = Running::disk("");
    let mut block = running.block();
    let before = {
        block.read(0, &mut [0; 512]).unwrap();
        running.descriptors()
    };
    for _ in 0..50 {
        let ring = block.front().ring(0);
        ring.set_kick_event(Some(vudev_frontend::Event::new().unwrap()));
        ring.set_call_event(Some(vudev_frontend::Event::new().unwrap()));
        for step in [Call, Kick, RingStep::Error] {
            block.front().take(Rings(step)).unwrap();
        }
        block.read(0, &mut [0; 512]).unwrap();
    }
    assert_eq!(running.descriptors(), before);
}

/// Writes `bytes` to the start of the disk from memory in a region.
fn write_from_region(block: &mut Block, number: usize, bytes: &[u8]) {
    let memory = block.front().memory().clone();
    let address = memory.allocate_in(number, bytes.len() as u64, 512).unwrap();
    memory.write(address, bytes).unwrap();
    write_from(block, address, u32::try_from(bytes.len()).unwrap());
}

/// Writes to the start of the disk from memory at an address, by a chain of our own.
fn write_from(block: &mut Block, address: u64, length: u32) {
    let memory = block.front().memory().clone();
    let (header, status) = (
        memory.allocate(16, 8).unwrap(),
        memory.allocate(1, 1).unwrap(),
    );
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&kind::OUT.to_le_bytes());
    memory.write(header, &bytes).unwrap();
    memory.write(status, &[0xee]).unwrap();
    let ring = block.front().ring(0);
    let readable = [Buffer::new(header, 16), Buffer::new(address, length)];
    let token = ring.add(&readable, &[Buffer::new(status, 1)]).unwrap();
    ring.kick().unwrap();
    let used = ring.wait_used(LIMIT).unwrap();
    assert_eq!((used.token, used.written), (token, 1));
    let mut answer = [0xff];
    memory.read(status, &mut answer).unwrap();
    assert_eq!(answer, [0]);
}
