//! Whatever a front-end or its guest sends, the process lives, descriptors are closed, and the next
//! front-end is served.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use vudev_frontend::message::{
    feature, frame, frame_with_size, long_words, protocol, request, words,
};
use vudev_frontend::{
    Buffer, Connection, Descriptor, Error, Event, FrontEnd, LIMIT, Outcome, RegionLayout, RingStep,
    Step,
};

use vudev_transports::SessionError;

use crate::WIRE;
use crate::common::{Wire, assert_closed, mirror, serve_mirror, unshare};

/// Version 1, and a wish for an acknowledgement.
const ASKING: u32 = 0x9;

/// A connection on which refusals are told.
fn asking(path: &Path) -> Connection {
    let mut connection = Connection::open(path).unwrap();
    connection.set_protocol_features(u64::MAX).unwrap();
    connection.set_acknowledge(true);
    connection
}

/// Sends a message that must end the connection, and proves that the next one is served. The error
/// of its session.
fn ends_the_connection(message: Vec<u8>) -> String {
    let [first, second] = outcomes_of(message).try_into().unwrap();
    second.unwrap();
    first.unwrap_err().to_string()
}

/// The same with a message behind which the stream cannot be followed. Over the function it is the
/// function that finds it out: for the session the front-end has left, if it ever saw it.
fn loses_the_stream(message: Vec<u8>, parts: &[&str]) {
    if WIRE == Wire::Vvu {
        let outcomes = outcomes_of(message);
        return assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
    }
    let error = ends_the_connection(message);
    assert!(parts.iter().all(|part| error.contains(part)), "{error}");
}

fn outcomes_of(message: Vec<u8>) -> Vec<Result<(), SessionError>> {
    let served = serve_mirror(move |path| {
        let connection = Connection::open(path).unwrap();
        connection.raw(&message, &[]).unwrap();
        connection.shut_down_sending().unwrap();
        connection.wait_closed().unwrap();
        let mut next = FrontEnd::connect(path).start().unwrap();
        mirror(&mut next, 0);
    });
    served.outcomes
}

#[test]
fn a_message_that_ends_too_early_ends_the_connection() {
    let whole = frame(request::SET_FEATURES, 1, &long_words(&[0]));
    for length in [1, 11, 12, 19] {
        let part = format!("after {length} of");
        loses_the_stream(whole[..length].to_vec(), &[&part]);
    }
}

#[test]
fn an_oversized_message_ends_the_connection_before_it_is_read() {
    for size in [4097, u32::MAX] {
        let message = frame_with_size(request::SET_MEM_TABLE, ASKING, size, &[]);
        loses_the_stream(message, &["SET_MEM_TABLE", &size.to_string()]);
    }
}

#[test]
fn another_version_or_a_reply_ends_the_connection() {
    for flags in [0, 2, 3, 5] {
        let error = ends_the_connection(frame(request::GET_FEATURES, flags, &[]));
        assert!(error.contains("GET_FEATURES"), "{error}");
    }
}

#[test]
fn what_is_refused_without_a_word_ends_the_connection() {
    for (message, part) in [
        (frame(99, 1, &[]), "message 99 is not supported"),
        // NEED_REPLY means nothing while REPLY_ACK is not agreed upon.
        (frame(99, ASKING, &[]), "message 99 is not supported"),
        (
            frame(request::SET_LOG_BASE, 1, &[0; 16]),
            "SET_LOG_BASE is not supported",
        ),
        (
            frame(request::GET_MAX_MEM_SLOTS, 1, &[]),
            "CONFIGURE_MEM_SLOTS was not negotiated",
        ),
        (
            frame(request::GET_CONFIG, 1, &words(&[0, 4, 0, 0])),
            "CONFIG was not negotiated",
        ),
        (
            frame(request::SET_FEATURES, 1, &[0; 7]),
            "SET_FEATURES: payload of 7 bytes",
        ),
        (
            frame(request::SET_VRING_NUM, 1, &words(&[0, 100])),
            "ring size is 0x64",
        ),
        (
            frame(request::GET_VRING_BASE, 1, &words(&[2, 0])),
            "ring 2 does not exist",
        ),
    ] {
        let error = ends_the_connection(message);
        assert!(error.contains(part), "{error}");
    }
}

fn a_kick_that_lacks_its_event() -> (u32, Vec<u8>) {
    (request::SET_VRING_KICK, long_words(&[1]))
}

#[test]
fn what_is_refused_with_a_word_leaves_the_connection_alone() {
    let served = serve_mirror(|path| {
        let mut front = FrontEnd::connect(path).start().unwrap();
        let refused = [
            (99, vec![]),
            (request::SET_LOG_BASE, vec![0; 16]),
            (request::GET_INFLIGHT_FD, vec![0; 24]),
            (request::SET_FEATURES, vec![0; 9]),
            (request::SET_FEATURES, long_words(&[1 << 63])),
            (request::SET_VRING_NUM, words(&[1, 0])),
            (request::SET_VRING_NUM, words(&[1, 100])),
            (request::SET_VRING_NUM, words(&[1, 512])),
            (request::SET_VRING_NUM, words(&[1, 1 << 16])),
            (request::SET_VRING_NUM, words(&[77, 16])),
            (request::SET_VRING_NUM, words(&[1 << 16, 16])),
            (request::SET_VRING_BASE, words(&[1, 1 << 16])),
            (request::SET_VRING_ENABLE, words(&[1, 2])),
            (request::GET_VRING_BASE, words(&[77, 0])),
            a_kick_that_lacks_its_event(),
            (request::SET_VRING_KICK, long_words(&[0x1_0101])),
            (request::SET_MEM_TABLE, words(&[9, 0])),
            (request::SET_MEM_TABLE, words(&[1, 0])),
            (request::SET_CONFIG, words(&[0, 200, 0])),
            // Of the running ring 0, none of these may change.
            (request::SET_VRING_NUM, words(&[0, 16])),
            (request::SET_VRING_BASE, words(&[0, 16])),
            (request::SET_FEATURES, long_words(&[feature::VERSION_1])),
        ];
        // A kick without its descriptor does not get past the function.
        let passed = refused
            .into_iter()
            .filter(|refused| WIRE == Wire::Socket || *refused != a_kick_that_lacks_its_event());
        for (request, payload) in passed {
            front
                .connection()
                .raw(&frame(request, ASKING, &payload), &[])
                .unwrap();
            let outcome = front.connection().outcome().unwrap();
            let answered = matches!(&outcome, Outcome::Answered(header, _)
                if header.request == request && header.flags == 5);
            assert!(answered && outcome.is_refusal(), "{request}: {outcome:?}");
            mirror(&mut front, 0);
        }
    });
    served.assert_all_left();
}

#[test]
fn a_config_read_that_fails_is_answered_by_an_empty_payload() {
    let served = serve_mirror(|path| {
        let connection = asking(path);
        for payload in [words(&[0, 0, 0]), words(&[0, 8, 0]), words(&[256, 4, 0, 0])] {
            for flags in [1, ASKING] {
                connection
                    .raw(&frame(request::GET_CONFIG, flags, &payload), &[])
                    .unwrap();
                let Outcome::Answered(header, payload) = connection.outcome().unwrap() else {
                    panic!("the connection was closed");
                };
                assert_eq!((header.request, header.size), (request::GET_CONFIG, 0));
                assert!(payload.is_empty());
            }
        }
    });
    served.assert_all_left();
}

#[test]
fn descriptors_where_none_belong_are_closed() {
    let served = serve_mirror(|path| {
        for (request, payload) in [
            (request::GET_FEATURES, vec![]),
            (request::SET_FEATURES, long_words(&[feature::VERSION_1])),
            (request::SET_VRING_KICK, long_words(&[0x100])),
            (request::SET_MEM_TABLE, words(&[0, 0])),
            (99, vec![]),
        ] {
            // The function ends the connection over them.
            let connection = asking(path);
            let (read_end, write_end) = rustix::pipe::pipe().unwrap();
            let sent = [write_end.as_fd(), write_end.as_fd()];
            connection
                .raw(&frame(request, ASKING, &payload), &sent)
                .unwrap();
            drop(write_end);
            assert!(connection.outcome().unwrap().is_refusal(), "{request}");
            assert_closed(read_end);
        }
    });
    served.assert_all_left();
}

#[test]
fn more_descriptors_than_a_message_may_carry_end_the_connection() {
    let served = serve_mirror(|path| {
        let connection = asking(path);
        let (read_end, write_end) = rustix::pipe::pipe().unwrap();
        let sent = [write_end.as_fd(); 33];
        connection
            .raw(&frame(request::GET_FEATURES, ASKING, &[]), &sent)
            .unwrap();
        drop(write_end);
        connection.wait_closed().unwrap();
        assert_closed(read_end);
    });
    served.assert_stream_lost("descriptors were lost");
}

#[test]
fn descriptors_spread_over_a_message_count_together() {
    let served = serve_mirror(|path| {
        let connection = asking(path);
        let (read_end, write_end) = rustix::pipe::pipe().unwrap();
        let message = frame(request::SET_FEATURES, ASKING, &long_words(&[0]));
        for byte in &message {
            // The back-end may have ended the connection before the last of them.
            match connection.raw(&[*byte], &[write_end.as_fd(); 4]) {
                Ok(()) => {}
                Err(Error::Closed { .. }) => break,
                Err(error) => panic!("{error}"),
            }
        }
        drop(write_end);
        connection.wait_closed().unwrap();
        assert_closed(read_end);
    });
    served.assert_stream_lost("descriptors were lost");
}

#[test]
fn pipes_and_files_are_no_kicks_calls_or_errors() {
    let served = serve_mirror(|path| {
        let (_read_end, pipe) = rustix::pipe::pipe().unwrap();
        let file = tempfile::tempfile().unwrap();
        for fd in [Some(pipe.as_fd()), Some(file.as_fd())] {
            for set in [
                Connection::set_ring_kick,
                Connection::set_ring_call,
                Connection::set_ring_error,
            ] {
                let mut front = FrontEnd::connect(path).start().unwrap();
                front.connection().set_acknowledge(true);
                assert!(set(front.connection(), 0, fd).is_err());
                // The function ends the connection over them.
                if WIRE == Wire::Socket {
                    mirror(&mut front, 0);
                }
            }
        }
    });
    served.assert_all_left();
}

/// What a file of 1 MiB, or the memory shared already, cannot be.
fn lies(good: &RegionLayout, fresh: &RegionLayout) -> [RegionLayout; 7] {
    [
        RegionLayout {
            size: 2 << 20,
            ..*fresh
        },
        RegionLayout {
            offset: 1 << 20,
            ..*fresh
        },
        RegionLayout { size: 0, ..*fresh },
        RegionLayout {
            guest_address: u64::MAX - 10,
            ..*fresh
        },
        RegionLayout {
            offset: u64::MAX - 10,
            ..*fresh
        },
        RegionLayout {
            guest_address: good.guest_address + 0x1000,
            ..*fresh
        },
        RegionLayout {
            user_address: good.user_address + 0x1000,
            ..*fresh
        },
    ]
}

/// Shares a region beside the first: by itself, or by a table of both.
fn share_beside(
    front: &mut FrontEnd,
    layout: &RegionLayout,
    file: BorrowedFd<'_>,
) -> Result<(), Error> {
    let memory = front.memory().clone();
    let connection = front.connection();
    match WIRE {
        Wire::Socket => connection.add_memory_region(layout, file),
        Wire::Vvu => memory.with_region(0, |own, own_file| {
            connection.set_memory_table(&[(*own, own_file), (*layout, file)])
        }),
    }
}

#[test]
fn memory_that_is_not_what_it_says_is_refused() {
    let served = serve_mirror(|path| {
        let asking = || {
            let mut front = FrontEnd::connect(path).start().unwrap();
            front.connection().set_acknowledge(true);
            front
        };
        let mut front = asking();
        let (good, own) = front.memory().with_region(0, |layout, file| {
            (*layout, file.try_clone_to_owned().unwrap())
        });
        let fresh = RegionLayout {
            guest_address: 0x9000_0000,
            user_address: 0x6000_0000_0000,
            size: 0x1000,
            offset: 0,
        };
        let (_read_end, pipe) = rustix::pipe::pipe().unwrap();
        let lies = lies(&good, &fresh);
        let lies = lies.iter().map(|layout| (layout, own.as_fd()));
        for (layout, file) in lies.chain([(&fresh, pipe.as_fd())]) {
            let shared = share_beside(&mut front, layout, file);
            assert!(shared.is_err(), "{layout:x?}");
            // What the file is not, the function finds out, and ends the connection.
            if WIRE == Wire::Vvu && matches!(shared, Err(Error::Closed { .. })) {
                drop(front);
                front = asking();
            }
            mirror(&mut front, 0);
        }
        share_beside(&mut front, &fresh, own.as_fd()).unwrap();
    });
    served.assert_all_left();
}

#[test]
fn a_ring_outside_memory_is_refused_when_it_would_start() {
    let served = serve_mirror(|path| {
        let mut front = FrontEnd::connect(path).start().unwrap();
        front.connection().set_acknowledge(true);
        let connection = front.connection();
        connection.set_ring_size(1, 8).unwrap();
        let nowhere = vudev_frontend::requests::RingAddresses {
            descriptors: 0x1000,
            available: 0x2000,
            used: 0x3000,
        };
        connection.set_ring_addresses(1, &nowhere).unwrap();
        connection.set_ring_enable(1, true).unwrap();
        assert!(connection.set_ring_kick(1, None).is_err());
        mirror(&mut front, 0);
    });
    served.assert_all_left();
}

#[test]
fn a_legacy_driver_is_told_so_when_its_ring_would_start() {
    let served = serve_mirror(|path| {
        let legacy = FrontEnd::connect(path).without_features(feature::VERSION_1);
        let error = legacy.clone().start().unwrap_err();
        assert!(matches!(error, Error::Refused { .. }), "{error}");

        let deaf = legacy
            .without_protocol_features(protocol::REPLY_ACK)
            .start();
        if let Ok(mut front) = deaf {
            front.connection().wait_closed().unwrap();
        }
    });
    assert!(served.outcomes[0].is_ok());
    let error = served.outcomes[1].as_ref().unwrap_err().to_string();
    assert!(error.contains("VIRTIO_F_VERSION_1"), "{error}");
}

#[test]
fn memory_of_a_retired_ring_can_be_removed() {
    let served = serve_mirror(|path| {
        let mut front = FrontEnd::connect(path)
            .queues(2)
            .queue_size(16)
            .start()
            .unwrap();
        front.connection().set_acknowledge(true);
        front.ring(0).set_available_index(17).unwrap();
        front.ring(0).kick_anyway().unwrap();
        front.ring(0).wait_error(LIMIT).unwrap();
        unshare(&mut front, 0);
        assert_eq!(front.stop().unwrap()[0], 0);
    });
    served.assert_all_left();
}

#[test]
fn a_ring_that_is_nonsense_is_retired_and_the_others_go_on() {
    let served = serve_mirror(|path| {
        let mut front = FrontEnd::connect(path)
            .queues(2)
            .queue_size(16)
            .without_features(feature::INDIRECT_DESC)
            .start()
            .unwrap();
        mirror(&mut front, 0);
        let circle = Descriptor {
            address: 0x4000_0000,
            length: 4,
            flags: 1,
            next: 0,
        };
        let ring = front.ring(0);
        ring.write_descriptor(0, &circle).unwrap();
        ring.make_available(0).unwrap();
        ring.kick_anyway().unwrap();
        ring.wait_error(LIMIT).unwrap();
        mirror(&mut front, 1);

        // The retired ring answers for itself, and starts again from scratch.
        front.connection().set_acknowledge(true);
        front.connection().ring_base(0).unwrap();
        front.ring(0).reset().unwrap();
        front.connection().set_ring_base(0, 0).unwrap();
        front.take(Step::Ring(0, RingStep::Kick)).unwrap();
        mirror(&mut front, 0);
        mirror(&mut front, 1);
    });
    served.assert_all_left();
}

#[test]
fn an_available_index_that_jumps_retires_the_ring() {
    let served = serve_mirror(|path| {
        let mut front = FrontEnd::connect(path)
            .queues(2)
            .queue_size(16)
            .start()
            .unwrap();
        front.ring(0).set_available_index(17).unwrap();
        front.ring(0).kick_anyway().unwrap();
        front.ring(0).wait_error(LIMIT).unwrap();
        mirror(&mut front, 1);
    });
    served.assert_all_left();
}

#[test]
fn a_call_eventfd_that_is_full_costs_the_ring_and_nothing_else() {
    let served = serve_mirror(|path| {
        let mut front = FrontEnd::connect(path).queues(2).prepare().unwrap();
        let full = Event::blocking().unwrap();
        full.fill().unwrap();
        front.ring(0).set_call_event(Some(full));
        let mut front = front.resume().unwrap();
        let buffer = front.memory().allocate(4, 1).unwrap();
        front.ring(0).add(&[Buffer::new(buffer, 4)], &[]).unwrap();
        front.ring(0).kick().unwrap();
        // Over the function it is the function that cannot signal it, and we only ring a doorbell.
        if WIRE == Wire::Socket {
            front.ring(0).wait_error(LIMIT).unwrap();
        }
        mirror(&mut front, 1);
    });
    served.assert_all_left();
}

#[test]
fn memory_that_shrinks_ends_the_connection_and_not_the_process() {
    vudev_virtio::install_sigbus_guard().unwrap();
    let served = serve_mirror(|path| {
        let mut front = FrontEnd::connect(path).start().unwrap();
        mirror(&mut front, 0);
        front.memory().shrink(0, 0).unwrap();
        front.ring(0).kick_event().unwrap().signal().unwrap();
        front.connection().wait_closed().unwrap();
        let mut next = FrontEnd::connect(path).start().unwrap();
        mirror(&mut next, 0);
    });
    assert_eq!(served.outcomes.len(), 2);
    let error = served.outcomes[0].as_ref().unwrap_err().to_string();
    assert!(error.contains("memory was lost"), "{error}");
}

#[test]
fn an_owner_who_sends_everything_twice_is_served() {
    let served = serve_mirror(|path| {
        let mut front = FrontEnd::connect(path).start().unwrap();
        front.connection().set_acknowledge(true);
        assert_ne!(front.protocol() & protocol::REPLY_ACK, 0);
        for step in [
            RingStep::Size,
            RingStep::Addresses,
            RingStep::Call,
            RingStep::Enable,
        ] {
            front.take(Step::Ring(0, step)).unwrap();
        }
        for step in [
            Step::Owner,
            Step::Features,
            Step::SetFeatures,
            Step::Protocol,
        ] {
            front.take(step).unwrap();
        }
        mirror(&mut front, 0);
    });
    served.assert_all_left();
}
