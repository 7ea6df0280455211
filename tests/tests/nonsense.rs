//! Drivers whose rings are nonsense, memory that goes away, and eventfds that are full, against the
//! real, jailed `vudev`: the queue is retired or the request fails; the process and the other queue
//! go on.

#![allow(clippy::unwrap_used, reason = "a test that fails here says where")]

mod support;

use std::{
    os::fd::AsFd,
    time::{Duration, Instant},
};

use support::{DISK_SIZE, Running, descriptors_at_work};
use vudev_frontend::{
    Block, Buffer, Descriptor, Error, Event, LIMIT, Ring, RingStep, Step,
    block::kind,
    ring::flag::{INDIRECT, NEXT, WRITE},
};

/// A place in memory for requests, and where nothing is.
struct Places {
    header: u64,
    data: u64,
    status: u64,
    table: u64,
    nowhere: u64,
}

fn places(block: &mut Block) -> Places {
    let memory = block.front().memory().clone();
    let places = Places {
        header: memory.allocate(16, 16).unwrap(),
        data: memory.allocate(4096, 4096).unwrap(),
        status: memory.allocate(16, 16).unwrap(),
        table: memory.allocate(32 << 10, 16).unwrap(),
        nowhere: 0x6666_0000_0000,
    };
    memory.write(places.header, &[0; 16]).unwrap();
    places
}

fn descriptor(address: u64, length: u32, flags: u16, next: u16) -> Descriptor {
    Descriptor {
        address,
        length,
        flags,
        next,
    }
}

/// Writes nonsense into ring 0 of a disk with two queues, and demands that the ring is retired:
/// reported by its error eventfd, once, while the other ring goes on.
fn retires(running: &Running, name: &str, nonsense: impl FnOnce(&mut Ring, &Places, &Guest)) {
    let before = running.device();
    let mut block = Block::start(running.front().queues(2), 1, 4096).unwrap();
    block.read(0, &mut [0; 512]).unwrap();
    let places = places(&mut block);
    let memory = block.front().memory().clone();
    let ring = block.front().ring(0);
    nonsense(ring, &places, &Guest { memory });
    ring.kick_anyway().unwrap();
    if let Err(error) = ring.wait_error(LIMIT) {
        panic!(
            "{name}: {error}; used index {:?}; {}",
            ring.used_index(),
            running.log()
        );
    }
    let _other = block.send_read(1, 0, 512).unwrap();
    block.kick(1).unwrap();
    assert_eq!(
        block.wait(1, LIMIT).unwrap().status,
        0,
        "{name}: the other queue goes on"
    );
    block
        .front()
        .stop()
        .unwrap_or_else(|error| panic!("{name}: stop: {error}"));
    drop(block);
    assert_eq!(running.device(), before, "{name}");
    running.block().read(0, &mut [0; 512]).unwrap();
}

/// A script that writes nonsense.
type Nonsense<'a> = &'a dyn Fn(&mut Ring, &Places, &Guest);

/// What a script may write to besides its ring.
struct Guest {
    memory: std::rc::Rc<vudev_frontend::GuestMemory>,
}

impl Guest {
    fn table(&self, places: &Places, descriptors: &[Descriptor]) {
        let bytes: Vec<u8> = descriptors.iter().flat_map(Descriptor::bytes).collect();
        self.memory.write(places.table, &bytes).unwrap();
    }
}

/// Makes a chain available whose first descriptors are these.
fn chain(ring: &mut Ring, descriptors: &[Descriptor]) {
    for (slot, descriptor) in (0..).zip(descriptors) {
        ring.write_descriptor(slot, descriptor).unwrap();
    }
    ring.make_available(0).unwrap();
}

#[test]
fn a_head_outside_the_table_retires_the_queue() {
    let running = Running::disk(",queues=2");
    for head in [128, 129, 0x7fff, 0xffff] {
        retires(&running, "head", |ring, _, _| {
            ring.make_available(head).unwrap();
        });
    }
}

#[test]
fn a_next_outside_the_table_retires_the_queue() {
    let running = Running::disk(",queues=2");
    for next in [128, 0xffff] {
        retires(&running, "next", |ring, places, _| {
            chain(ring, &[descriptor(places.header, 16, NEXT, next)]);
        });
    }
}

#[test]
fn a_chain_without_an_end_retires_the_queue() {
    let running = Running::disk(",queues=2");
    retires(&running, "a loop of one", |ring, places, _| {
        chain(ring, &[descriptor(places.header, 16, NEXT, 0)]);
    });
    retires(&running, "a loop of two", |ring, places, _| {
        chain(
            ring,
            &[
                descriptor(places.header, 16, NEXT, 1),
                descriptor(places.status, 1, NEXT | WRITE, 0),
            ],
        );
    });
}

#[test]
fn buffers_outside_memory_retire_the_queue() {
    let running = Running::disk(",queues=2");
    let lengths = |places: &Places| {
        [
            (places.nowhere, 16),
            (0, 16),
            (u64::MAX - 8, 16),
            (u64::MAX, 1),
            (places.header, u32::MAX),
            (0x4000_0000 + (2 << 20) - 8, 16),
            (0x4000_0000 - 8, 16),
        ]
    };
    for case in 0..7 {
        retires(&running, &format!("case {case}"), |ring, places, _| {
            let (address, length) = lengths(places)[case];
            chain(
                ring,
                &[
                    descriptor(address, length, NEXT, 1),
                    descriptor(places.status, 1, WRITE, 0),
                ],
            );
        });
    }
}

#[test]
fn buffers_in_the_wrong_order_or_of_no_length_retire_the_queue() {
    let running = Running::disk(",queues=2");
    retires(&running, "readable after writable", |ring, places, _| {
        chain(
            ring,
            &[
                descriptor(places.status, 1, NEXT | WRITE, 1),
                descriptor(places.header, 16, 0, 0),
            ],
        );
    });
    retires(&running, "of length 0", |ring, places, _| {
        chain(
            ring,
            &[
                descriptor(places.header, 16, NEXT, 1),
                descriptor(places.data, 0, NEXT, 2),
                descriptor(places.status, 1, WRITE, 0),
            ],
        );
    });
}

#[test]
fn indirect_tables_that_cannot_be_retire_the_queue() {
    let running = Running::disk(",queues=2");
    let header = |places: &Places, next| descriptor(places.header, 16, NEXT, next);
    let status = |places: &Places| descriptor(places.status, 1, WRITE, 0);
    let cases: &[(&str, Nonsense<'_>)] = &[
        ("of length 0", &|ring, places, _| {
            chain(ring, &[descriptor(places.table, 0, INDIRECT, 0)]);
        }),
        (
            "of a length that is no multiple of 16",
            &|ring, places, front| {
                front.table(places, &[header(places, 1), status(places)]);
                chain(ring, &[descriptor(places.table, 33, INDIRECT, 0)]);
            },
        ),
        ("longer than memory", &|ring, places, _| {
            chain(ring, &[descriptor(places.table, 0xffff_fff0, INDIRECT, 0)]);
        }),
        ("nowhere", &|ring, places, _| {
            chain(ring, &[descriptor(places.nowhere, 32, INDIRECT, 0)]);
        }),
        ("with a next of its own", &|ring, places, front| {
            front.table(places, &[header(places, 1), status(places)]);
            chain(
                ring,
                &[
                    descriptor(places.table, 32, INDIRECT | NEXT, 1),
                    status(places),
                ],
            );
        }),
        ("in an indirect table", &|ring, places, front| {
            front.table(places, &[descriptor(places.table, 16, INDIRECT, 0)]);
            chain(ring, &[descriptor(places.table, 16, INDIRECT, 0)]);
        }),
        ("with a next outside", &|ring, places, front| {
            front.table(places, &[header(places, 2), status(places)]);
            chain(ring, &[descriptor(places.table, 32, INDIRECT, 0)]);
        }),
        // Linux's driver makes tables longer than the queue, so only what no `readv` takes is
        // nonsense.
        ("of more than 1024 descriptors", &|ring, places, front| {
            let mut long: Vec<_> = (1..1025).map(|next| header(places, next)).collect();
            long.push(status(places));
            front.table(places, &long);
            chain(ring, &[descriptor(places.table, 1025 * 16, INDIRECT, 0)]);
        }),
        ("without an end", &|ring, places, front| {
            front.table(places, &[header(places, 1), header(places, 0)]);
            chain(ring, &[descriptor(places.table, 32, INDIRECT, 0)]);
        }),
    ];
    for (name, nonsense) in cases {
        retires(&running, name, nonsense);
    }
}

#[test]
fn an_available_index_too_far_ahead_retires_the_queue() {
    let running = Running::disk(",queues=2");
    for jump in [129, 0x8000, 0xffff] {
        retires(&running, "jump", |ring, _, _| {
            let index = ring.available_index().wrapping_add(jump);
            ring.set_available_index(index).unwrap();
        });
    }
}

#[test]
fn a_chain_that_is_no_request_is_given_back_or_retires_the_queue() {
    let running = Running::disk("");
    for case in 0..5 {
        let mut block = running.block();
        let places = places(&mut block);
        let ring = block.front().ring(0);
        let buffers: (&[Buffer], &[Buffer]) = match case {
            0 => (&[Buffer::new(places.header, 16)], &[]),
            1 => (&[], &[Buffer::new(places.status, 1)]),
            2 => (
                &[Buffer::new(places.header, 8)],
                &[Buffer::new(places.status, 1)],
            ),
            3 => (
                &[Buffer::new(places.header, 16)],
                &[Buffer::new(places.data, 513)],
            ),
            _ => (
                &[Buffer::new(places.header, 15)],
                &[Buffer::new(places.data, 4096)],
            ),
        };
        ring.add(buffers.0, buffers.1).unwrap();
        ring.kick().unwrap();
        let outcome = ring.wait_used(LIMIT);
        let known = matches!(outcome, Ok(_) | Err(Error::RingError { .. }));
        assert!(known, "case {case}: {outcome:?}");
        drop(block);
        running.block().read(0, &mut [0; 512]).unwrap();
    }
}

#[test]
fn requests_beyond_the_disk_fail_by_their_status() {
    let running = Running::disk("");
    let mut block = running.block();
    for offset in [DISK_SIZE, DISK_SIZE - 512, !511, 1 << 62] {
        let _request = block.send(0, kind::IN, offset, 1024).unwrap();
        block.kick(0).unwrap();
        assert_eq!(
            block.wait(0, LIMIT).unwrap().status,
            1,
            "offset {offset:#x}"
        );
        let _request = block.send_write(0, offset, &[1; 1024]).unwrap();
        block.kick(0).unwrap();
        assert_eq!(
            block.wait(0, LIMIT).unwrap().status,
            1,
            "offset {offset:#x}"
        );
    }
    let _request = block.send(0, 0xffff, 0, 512).unwrap();
    block.kick(0).unwrap();
    assert_eq!(
        block.wait(0, LIMIT).unwrap().status,
        2,
        "an unknown request"
    );
    let length = running.disk_file().metadata().unwrap().len();
    assert_eq!(length, DISK_SIZE, "nothing grew");
}

#[test]
fn memory_that_shrinks_under_a_ring_ends_the_connection_or_the_queue_and_not_the_process() {
    let running = Running::disk("");
    let before = (running.device(), descriptors_at_work(&running));
    let mut block = running.block();
    block.read(0, &mut [0; 512]).unwrap();
    let kick = block.front().ring(0).kick_event().unwrap();
    let kick = rustix::io::dup(kick).unwrap();
    block.front().memory().shrink(0, 0).unwrap();
    rustix::io::write(&kick, &1_u64.to_ne_bytes()).unwrap();
    let stopped = block.front().stop();
    assert!(
        !matches!(stopped, Err(Error::Deadline { .. })),
        "{stopped:?}"
    );
    drop(block);
    assert_eq!((running.device(), descriptors_at_work(&running)), before);
}

#[test]
fn memory_that_shrinks_under_a_buffer_fails_the_request_or_ends_the_queue() {
    let running = Running::disk("");
    let before = (running.device(), descriptors_at_work(&running));
    let mut block = Block::start(running.front().memory(1 << 20), 1, 4096).unwrap();
    let places = places(&mut block);
    let memory = block.front().memory().clone();
    let lost = memory.allocate_in(1, 4096, 4096).unwrap();
    memory.shrink(1, 0).unwrap();
    let ring = block.front().ring(0);
    let readable = [Buffer::new(places.header, 16)];
    ring.add(
        &readable,
        &[Buffer::new(lost, 4096), Buffer::new(places.status, 1)],
    )
    .unwrap();
    ring.kick().unwrap();
    match ring.wait_used(LIMIT) {
        Ok(_) => {
            let mut status = [0xff];
            memory.read(places.status, &mut status).unwrap();
            assert_eq!(status, [1]);
        }
        Err(error) => assert!(matches!(error, Error::RingError { .. }), "{error}"),
    }
    drop(block);
    assert_eq!((running.device(), descriptors_at_work(&running)), before);
}

#[test]
fn a_call_that_is_full_and_blocks_does_not_hold_up_the_device() {
    let running = Running::disk(",queues=2");
    let before = (running.device(), descriptors_at_work(&running));
    for full in [Event::blocking().unwrap(), Event::new().unwrap()] {
        full.fill().unwrap();
        let mut block = Block::start(running.front().queues(2), 1, 4096).unwrap();
        block.front().ring(0).set_call_event(Some(full));
        block.front().take(Step::Rings(RingStep::Call)).unwrap();
        let _request = block.send_read(0, 0, 512).unwrap();
        block.front().ring(0).kick_anyway().unwrap();
        let started = Instant::now();
        let _other = block.send_read(1, 0, 512).unwrap();
        block.kick(1).unwrap();
        assert_eq!(block.wait(1, LIMIT).unwrap().status, 0);
        assert!(
            started.elapsed() < Duration::from_secs(2),
            "{:?}",
            started.elapsed()
        );
        drop(block);
        assert_eq!((running.device(), descriptors_at_work(&running)), before);
    }
}

#[test]
fn an_error_eventfd_that_is_full_and_blocks_does_not_hold_up_the_device() {
    let running = Running::disk(",queues=2");
    let before = (running.device(), descriptors_at_work(&running));
    let full = Event::blocking().unwrap();
    full.fill().unwrap();
    let mut block = Block::start(running.front().queues(2), 1, 4096).unwrap();
    block.front().ring(0).set_error_event(full);
    block.front().take(Step::Rings(RingStep::Error)).unwrap();
    block.front().ring(0).make_available(0xffff).unwrap();
    block.front().ring(0).kick_anyway().unwrap();
    let _other = block.send_read(1, 0, 512).unwrap();
    block.kick(1).unwrap();
    assert_eq!(block.wait(1, Duration::from_secs(2)).unwrap().status, 0);
    drop(block);
    assert_eq!((running.device(), descriptors_at_work(&running)), before);
}

#[test]
fn a_call_that_is_also_the_kick_does_not_go_round_for_ever() {
    let running = Running::disk(",queues=2");
    let mut block = Block::start(running.front().queues(2), 1, 4096).unwrap();
    let both = block.front().ring(0).kick_event().unwrap();
    let both = rustix::io::dup(both).unwrap();
    block
        .front()
        .connection()
        .set_ring_call(0, Some(both.as_fd()))
        .unwrap();
    let _request = block.send_read(0, 0, 512).unwrap();
    block.front().ring(0).kick_anyway().unwrap();
    let _other = block.send_read(1, 0, 512).unwrap();
    block.kick(1).unwrap();
    assert_eq!(block.wait(1, LIMIT).unwrap().status, 0);
    assert_eq!(block.front().stop().unwrap()[0], 1);
    // One kick of ours and at most one call a completion, and one for the start of the ring.
    let counted = block.front().ring(0).kick_event().unwrap().take().unwrap();
    assert!(counted <= 3, "{counted}");
}

#[test]
fn memory_taken_away_from_under_a_running_ring_ends_the_ring_or_is_refused() {
    let running = Running::disk("");
    let before = (running.device(), descriptors_at_work(&running));
    for case in 0..2 {
        let mut block = running.block();
        block.read(0, &mut [0; 512]).unwrap();
        let memory = block.front().memory().clone();
        let connection = block.front().connection();
        let taken = if case == 0 {
            memory.with_region(0, |layout, _| connection.remove_memory_region(layout, None))
        } else {
            let other = vudev_frontend::GuestMemory::new();
            other.add_region_at(0x9_0000_0000, 1 << 20).unwrap();
            other.with_regions(|regions| connection.set_memory_table(regions))
        };
        let _request = block.send_read(0, 0, 512);
        block.front().ring(0).kick_anyway().unwrap();
        match block.wait(0, LIMIT) {
            Ok(_) => assert!(
                taken.is_err(),
                "case {case}: taken away, and used after that"
            ),
            Err(Error::RingError { .. }) => {}
            Err(error) => panic!("case {case}: {error}, taken away: {taken:?}"),
        }
        drop(block);
        assert_eq!(
            (running.device(), descriptors_at_work(&running)),
            before,
            "case {case}"
        );
    }
}

#[test]
fn a_running_ring_whose_size_or_place_is_told_anew_leaves_the_process_alive() {
    let running = Running::disk("");
    let before = (running.device(), descriptors_at_work(&running));
    for size in [2, 64, 128, 256] {
        let mut block = running.block();
        block.read(0, &mut [0; 512]).unwrap();
        // Lawful or not, refused or taken at the next start: nothing is promised but life.
        let _ = block.front().connection().set_ring_size(0, size);
        let addresses = block.front().ring(0).addresses().unwrap();
        let elsewhere = vudev_frontend::requests::RingAddresses {
            descriptors: addresses.descriptors + 4096,
            available: addresses.available + 4096,
            used: addresses.used + 4096,
        };
        let _ = block.front().connection().set_ring_addresses(0, &elsewhere);
        let _ = block.front().connection().set_ring_base(0, 77);
        let _request = block.send_read(0, 0, 512).unwrap();
        let _ = block.front().ring(0).kick_anyway();
        drop(block);
        assert_eq!(
            (running.device(), descriptors_at_work(&running)),
            before,
            "size {size}"
        );
    }
}

#[test]
fn kicks_without_end_and_without_requests_cost_no_memory() {
    let running = Running::disk(",queues=2");
    let mut block = Block::start(running.front().queues(2), 1, 4096).unwrap();
    let mut after_a_while = 0;
    for round in 0..20 {
        for _ in 0..5000 {
            block.front().ring(0).kick_anyway().unwrap();
        }
        let _other = block.send_read(1, 0, 512).unwrap();
        block.kick(1).unwrap();
        assert_eq!(block.wait(1, LIMIT).unwrap().status, 0);
        if round == 2 {
            after_a_while = running.private_memory();
        }
    }
    let grown = running.private_memory().saturating_sub(after_a_while);
    assert!(grown <= 64, "{grown} KiB");
}

#[test]
fn a_console_survives_a_driver_that_hands_it_nonsense() {
    let running = Running::console(None);
    let before = running.device();
    for queue in [0, 1] {
        for (descriptor, name) in [
            (descriptor(0x6666_0000_0000, 16, 0, 0), "nowhere"),
            (descriptor(0x4000_0000, 16, NEXT, 0), "a loop"),
        ] {
            let mut console = running.console_driver();
            console.send(b"x").unwrap();
            let ring = console.front().ring(queue);
            ring.write_descriptor(
                100,
                &Descriptor {
                    next: 100,
                    ..descriptor
                },
            )
            .unwrap();
            ring.make_available(100).unwrap();
            ring.kick_anyway().unwrap();
            if queue == 1 {
                ring.wait_error(LIMIT)
                    .unwrap_or_else(|error| panic!("{name}: {error}"));
            }
        }
    }
    assert_eq!(running.device(), before);
    running.console_driver().send(b"alive").unwrap();
    assert!(running.output().ends_with(b"alive"));
}
