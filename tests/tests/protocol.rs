//! Lawful front-ends of every habit against the real, jailed `vudev`: each must be served.

#![allow(clippy::unwrap_used, reason = "a test that fails here says where")]

mod support;

use std::{fs::File, io::Write};

use support::{DISK_SIZE, Running, SHORTLY, pattern};
use vudev_frontend::{
    Block, Buffer, Connection, Console, Error, FrontEnd, LIMIT, Outcome, RingStep, Step,
    block::{SECTOR, feature},
    console::{RECEIVE, TRANSMIT},
    message::{
        self, HEADER_SIZE, NEED_REPLY, REPLY, VERSION, feature::EVENT_IDX, feature::INDIRECT_DESC,
        feature::PROTOCOL_FEATURES, protocol, request,
    },
};

use RingStep::{Addresses, Base, Call, Enable, Kick, Size};
use Step::{Features, MemoryRegions, MemoryTable, Owner, Protocol, Rings, SetFeatures};

/// Orders that front-ends of the field use, and some that only the specification allows.
const ORDERS: &[(&str, &[Step])] = &[
    (
        "as QEMU",
        &[
            Features,
            Protocol,
            Owner,
            Rings(Call),
            Rings(RingStep::Error),
            SetFeatures,
            MemoryTable,
            Rings(Size),
            Rings(Base),
            Rings(Addresses),
            Rings(Kick),
            Rings(Call),
            Rings(Enable),
        ],
    ),
    (
        "as libblkio",
        &[
            Owner,
            Features,
            SetFeatures,
            Protocol,
            MemoryRegions,
            Rings(Size),
            Rings(Base),
            Rings(Addresses),
            Rings(Kick),
            Rings(Call),
            Rings(Enable),
        ],
    ),
    (
        "enabled before anything else is known",
        &[
            Features,
            Protocol,
            SetFeatures,
            Owner,
            Rings(Enable),
            Rings(Kick),
            Rings(Call),
            MemoryTable,
            Rings(Size),
            Rings(Base),
            Rings(Addresses),
        ],
    ),
    (
        "memory last but for the kick",
        &[
            Features,
            Protocol,
            Owner,
            SetFeatures,
            Rings(Size),
            Rings(Base),
            Rings(Call),
            MemoryTable,
            Rings(Addresses),
            Rings(Enable),
            Rings(Kick),
        ],
    ),
    (
        "addresses before the memory that they are in",
        &[
            Features,
            Protocol,
            Owner,
            SetFeatures,
            Rings(Size),
            Rings(Base),
            Rings(Addresses),
            Rings(Call),
            Rings(Kick),
            Rings(Enable),
            MemoryTable,
        ],
    ),
    (
        "no owner at all",
        &[
            Features,
            Protocol,
            SetFeatures,
            MemoryTable,
            Rings(Size),
            Rings(Base),
            Rings(Addresses),
            Rings(Call),
            Rings(Kick),
            Rings(Enable),
        ],
    ),
    (
        "everything said twice",
        &[
            Features,
            Features,
            Protocol,
            Protocol,
            Owner,
            Owner,
            SetFeatures,
            SetFeatures,
            MemoryTable,
            MemoryTable,
            Rings(Size),
            Rings(Size),
            Rings(Base),
            Rings(Base),
            Rings(Addresses),
            Rings(Addresses),
            Rings(Call),
            Rings(Call),
            Rings(Kick),
            Rings(Kick),
            Rings(Enable),
            Rings(Enable),
        ],
    ),
];

/// A write and a read over both queues of a disk.
fn use_both_queues(front: FrontEnd) {
    let mut block = Block::over(front, 4, 4096).unwrap();
    for queue in [0, 1] {
        let bytes = pattern(4096, 9 + u8::try_from(queue).unwrap());
        let write = block.send_write(queue, 8192, &bytes).unwrap();
        block.kick(queue).unwrap();
        let finished = block.wait(queue, LIMIT).unwrap();
        assert_eq!((finished.request, finished.status), (write, 0));
        let read = block.send_read(queue, 8192, 4096).unwrap();
        block.kick(queue).unwrap();
        assert_eq!(block.wait(queue, LIMIT).unwrap().status, 0);
        assert_eq!(block.data(read).unwrap(), bytes);
    }
    block.into_front().leave().map(drop).unwrap();
}

#[test]
fn messages_come_in_any_lawful_order() {
    let running = Running::disk("");
    for (name, script) in ORDERS {
        let front = running.front().queues(2).script(script).start();
        use_both_queues(front.unwrap_or_else(|error| panic!("{name}: {error}; {}", running.log())));
    }
    running.stop();
}

#[test]
fn every_combination_of_ring_features_works() {
    let running = Running::disk("");
    for without in [0, EVENT_IDX, INDIRECT_DESC, EVENT_IDX | INDIRECT_DESC] {
        let front = running
            .front()
            .queues(2)
            .without_features(without)
            .start()
            .unwrap();
        assert_eq!(front.features() & without, 0);
        use_both_queues(front);
    }
}

#[test]
fn without_acknowledgements_everything_works_too() {
    let running = Running::disk("");
    let front = running
        .front()
        .queues(2)
        .without_protocol_features(protocol::REPLY_ACK);
    let mut front = front.start().unwrap();
    assert!(!front.connection().acknowledges());
    use_both_queues(front);
}

#[test]
fn without_protocol_features_rings_are_enabled_from_the_start() {
    let running = Running::console(None);
    let front = running.front().without_features(PROTOCOL_FEATURES);
    let mut console = Console::start(front, 4).unwrap();
    console.send(b"no protocol features\n").unwrap();
    assert_eq!(running.output(), b"no protocol features\n");
}

#[test]
fn without_descriptors_both_sides_poll() {
    let running = Running::disk("");
    use_both_queues(running.front().queues(2).polled().start().unwrap());
    assert_eq!(
        support::descriptors_at_work(&running),
        support::descriptors_at_work(&running)
    );
}

#[test]
fn a_disk_says_what_it_is() {
    let running = Running::disk("");
    let mut block = Block::start(running.front().features(feature::FLUSH), 1, 4096).unwrap();
    assert_eq!(block.config().capacity, DISK_SIZE / SECTOR);
    let connection = block.front().connection();
    let whole = connection.config(0, 24).unwrap();
    assert_eq!(connection.config(8, 16).unwrap(), whole[8..]);
    assert_eq!(connection.config(23, 1).unwrap(), whole[23..]);
    assert!(connection.memory_slots_max().unwrap() >= 8);
    assert!(connection.queue_count().unwrap() >= 1);
}

#[test]
fn the_configuration_of_a_disk_cannot_be_written() {
    let running = Running::disk("");
    let mut block = running.block();
    let refused = block.front().connection().set_config(0, 0, &[0xff; 8]);
    assert!(matches!(refused, Err(Error::Refused { .. })), "{refused:?}");
    let mut block = running.block_after(block);
    assert_eq!(block.config().capacity, DISK_SIZE / SECTOR);
    block.read(0, &mut [0; 512]).unwrap();
}

#[test]
fn a_stopped_console_says_that_its_posted_buffers_were_not_taken() {
    let (input, mut typed) = pipe();
    let running = Running::console(Some(input));
    let mut console = running.console_driver();
    console.send(b"one line\n").unwrap();
    let used = [RECEIVE, TRANSMIT].map(|ring| console.front().ring(ring).used_index().unwrap());
    let bases = console.front().stop().unwrap();
    assert_eq!(bases, used, "4 buffers are posted, nothing came");
    assert_eq!(bases, [0, 1]);

    // The next front-end finds the buffers where they were, and input comes into them in order.
    let parked = console.leave().unwrap();
    let mut console = parked.resume().unwrap();
    typed.write_all(b"typed").unwrap();
    assert_eq!(console.receive(5, LIMIT).unwrap(), b"typed");
    let bases = console.front().stop().unwrap();
    assert_eq!(
        bases[0],
        console.front().ring(RECEIVE).used_index().unwrap()
    );
}

#[test]
fn a_device_that_was_reset_starts_over() {
    let running = Running::disk("");
    let front = running.front().protocol_features(protocol::RESET_DEVICE);
    let mut block = Block::start(front, 1, 4096).unwrap();
    for _ in 0..3 {
        block.read(0, &mut [0; 512]).unwrap();
        block.front().connection().reset_device().unwrap();
        block.front().ring(0).reset().unwrap();
        for step in [SetFeatures, MemoryTable, Step::WholeRing(0)] {
            block.front().take(step).unwrap();
        }
    }
    block.read(0, &mut [0; 512]).unwrap();
}

#[test]
fn an_owner_may_be_reset() {
    let running = Running::disk("");
    let mut block = running.block();
    block.front().connection().reset_owner().unwrap();
    block.front().connection().set_owner().unwrap();
    running.block_after(block).read(0, &mut [0; 512]).unwrap();
}

#[test]
fn an_unknown_request_that_asks_for_an_answer_is_refused_and_the_connection_lives_or_ends() {
    let running = Running::disk("");
    let mut block = running.block();
    let bytes = message::frame(4711, VERSION | NEED_REPLY, &[]);
    block.front().connection().raw(&bytes, &[]).unwrap();
    assert!(block.front().connection().outcome().unwrap().is_refusal());
    running.block_after(block).read(0, &mut [0; 512]).unwrap();
}

#[test]
fn half_a_message_does_not_hold_up_the_queues() {
    let running = Running::disk("");
    let mut block = running.block();
    let bytes = message::frame(request::GET_FEATURES, VERSION, &[]);
    for cut in [1, 4, HEADER_SIZE - 1] {
        block.front().connection().raw(&bytes[..cut], &[]).unwrap();
        block.read(0, &mut [0; 512]).unwrap();
        block.front().connection().raw(&bytes[cut..], &[]).unwrap();
        let outcome = block.front().connection().outcome().unwrap();
        let Outcome::Answered(header, _) = outcome else {
            panic!("it closed")
        };
        assert_eq!(
            (header.request, header.flags),
            (request::GET_FEATURES, VERSION | REPLY)
        );
    }
}

#[test]
fn many_requests_in_one_write_are_answered_in_order() {
    let running = Running::disk("");
    let mut block = running.block();
    let mut bytes = Vec::new();
    for code in [
        request::GET_FEATURES,
        request::GET_QUEUE_NUM,
        request::GET_MAX_MEM_SLOTS,
    ] {
        bytes.extend(message::frame(code, VERSION, &[]));
    }
    block.front().connection().raw(&bytes, &[]).unwrap();
    for code in [
        request::GET_FEATURES,
        request::GET_QUEUE_NUM,
        request::GET_MAX_MEM_SLOTS,
    ] {
        let outcome = block.front().connection().outcome().unwrap();
        let Outcome::Answered(header, _) = outcome else {
            panic!("it closed")
        };
        assert_eq!(header.request, code);
    }
}

#[test]
fn a_second_front_end_is_served_when_the_first_has_left() {
    let running = Running::disk("");
    let mut first = running.block();
    let mut second = Connection::open(running.socket()).unwrap();
    second
        .raw(&message::frame(request::GET_FEATURES, VERSION, &[]), &[])
        .unwrap();
    second.set_limit(SHORTLY);
    assert!(second.outcome().is_err(), "one at a time");
    first.read(0, &mut [0; 512]).unwrap();
    drop(first);
    second.set_limit(LIMIT);
    assert!(matches!(second.outcome(), Ok(Outcome::Answered(..))));
}

#[test]
fn a_driver_that_wants_no_calls_gets_none() {
    let running = Running::disk("");
    for without in [0, EVENT_IDX] {
        let front = running.front().without_features(without);
        let mut block = Block::start(front, 1, 4096).unwrap();
        block.read(0, &mut [0; 512]).unwrap();
        block.front().ring(0).suppress_calls(true).unwrap();
        let calls = block.front().ring(0).calls().unwrap();
        for _ in 0..10 {
            block.read(0, &mut [0; 512]).unwrap();
        }
        assert_eq!(block.front().ring(0).calls().unwrap(), calls);
    }
}

#[test]
fn a_console_carries_bytes_both_ways_and_keeps_their_order() {
    let (input, mut typed) = pipe();
    let running = Running::console(Some(input));
    let mut console = running.console_driver();
    let text = pattern(40_000, 2);
    console.send(&text).unwrap();
    assert_eq!(running.output(), text);
    typed.write_all(&text).unwrap();
    assert_eq!(console.receive(text.len(), LIMIT).unwrap(), text);
}

#[test]
fn every_size_of_a_ring_works_or_is_refused() {
    let running = Running::disk("");
    let mut works = Vec::new();
    for power in 0..=15 {
        let front = running.front().queue_size(1 << power).start();
        match front.and_then(|front| Block::over(front, 1, 4096)) {
            Ok(mut block) => {
                block.read(0, &mut [0; 4096]).unwrap();
                works.push(1 << power);
            }
            Err(error) => assert!(matches!(error, Error::Refused { .. }), "{error}"),
        }
    }
    // What QEMU, Linux and libblkio ask for.
    assert!(
        [128, 256].iter().all(|size| works.contains(size)),
        "{works:?}"
    );
}

#[test]
fn a_request_has_as_many_segments_as_the_disk_allows() {
    let running = Running::disk("");
    let front = running.front().features(feature::SEG_MAX).queue_size(256);
    let mut block = Block::start(front, 1, 4096).unwrap();
    let count = u64::from(block.config().seg_max);
    assert!(count >= 1, "SEG_MAX of nothing");
    let disk = pattern(usize::try_from(count).unwrap() * 512, 6);
    std::os::unix::fs::FileExt::write_all_at(&running.disk_file(), &disk, 0).unwrap();
    let memory = block.front().memory().clone();
    let (header, status) = (
        memory.allocate(16, 8).unwrap(),
        memory.allocate(1, 1).unwrap(),
    );
    memory.write(header, &[0; 16]).unwrap();
    // Every other 512 bytes, so that no two segments are neighbours.
    let data = memory.allocate(count * 1024, 1).unwrap();
    let mut writable: Vec<_> = (0..count)
        .map(|at| Buffer::new(data + at * 1024, 512))
        .collect();
    writable.push(Buffer::new(status, 1));
    let ring = block.front().ring(0);
    ring.add(&[Buffer::new(header, 16)], &writable).unwrap();
    ring.kick().unwrap();
    let used = ring.wait_used(LIMIT).unwrap();
    assert_eq!(u64::from(used.written), count * 512 + 1);
    for (segment, expected) in writable.iter().zip(disk.chunks(512)) {
        let mut bytes = [0; 512];
        memory.read(segment.address, &mut bytes).unwrap();
        assert_eq!(bytes, expected);
    }
}

#[test]
fn sixteen_queues_work_at_once() {
    let running = Running::disk(",queues=16");
    let front = running
        .front()
        .memory(4 << 20)
        .queues(16)
        .features(feature::MQ);
    let mut block = Block::start(front, 4, 4096).unwrap();
    assert_eq!(block.config().num_queues, 16);
    assert_eq!(block.front().connection().queue_count().unwrap(), 16);
    for queue in 0..16 {
        for at in 0..4 {
            let _request = block.send_read(queue, at * 4096, 4096).unwrap();
        }
        block.kick(queue).unwrap();
    }
    for queue in 0..16 {
        for _ in 0..4 {
            assert_eq!(block.wait(queue, LIMIT).unwrap().status, 0);
        }
    }
}

#[test]
fn a_ring_may_begin_anywhere() {
    let running = Running::disk("");
    let mut front = running.front().prepare().unwrap();
    front.start_at(0, 0xfffe).unwrap();
    let mut block = Block::over(front.resume().unwrap(), 1, 4096).unwrap();
    for _ in 0..5 {
        block.read(0, &mut [0; 512]).unwrap();
    }
    assert_eq!(block.front().stop().unwrap(), [3]);
}

fn pipe() -> (File, File) {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    (read.into(), write.into())
}
