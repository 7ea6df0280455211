//! Whatever a front-end may lawfully say, in whatever order, it works.

use std::os::fd::AsFd;

use vudev_frontend::message::backend::CONFIG_CHANGE;
use vudev_frontend::message::{feature, long_words, protocol, request, words};
use vudev_frontend::{Connection, Event, FrontEnd, LIMIT, Outcome, RingStep, Step};

use crate::WIRE;
use crate::common::{
    CHANGE, MIRROR_FEATURE, RING_SIZE_MAX, Slow, Wire, mirror, serve, serve_mirror, share,
};

#[test]
fn chains_go_through_both_rings_and_come_back() {
    let served = serve_mirror(|path| {
        let mut front = FrontEnd::connect(path)
            .queues(2)
            .features(MIRROR_FEATURE)
            .start()
            .unwrap();
        for _ in 0..3 {
            mirror(&mut front, 0);
            mirror(&mut front, 1);
        }
    });
    served.assert_all_left();
    let own = feature::VERSION_1 | feature::EVENT_IDX | feature::INDIRECT_DESC | MIRROR_FEATURE;
    assert_eq!(*served.device.negotiated.borrow(), [own]);
    assert_eq!(served.device.resets.get(), 1);
}

#[test]
fn the_messages_of_a_start_may_come_in_any_order() {
    let usual = [
        Step::Features,
        Step::Protocol,
        Step::Owner,
        Step::SetFeatures,
        Step::MemoryTable,
        Step::WholeRing(0),
    ];
    let ring = |order: &[RingStep]| {
        let mut steps = usual[..5].to_vec();
        steps.extend(order.iter().map(|step| Step::Ring(0, *step)));
        steps
    };
    use RingStep::{Addresses, Base, Call, Enable, Error, Kick, Size};
    let mut orders: Vec<Vec<Step>> = vec![
        // Kick before call.
        ring(&[Size, Base, Addresses, Kick, Call, Error, Enable]),
        // Enable before everything.
        ring(&[Enable, Kick, Call, Addresses, Base, Size]),
        // No base at all, and size last.
        ring(&[Addresses, Kick, Enable, Call, Size]),
        // The feature words last of all.
        vec![
            Step::Features,
            Step::Protocol,
            Step::MemoryTable,
            Step::WholeRing(0),
            Step::Owner,
            Step::SetFeatures,
        ],
        // As `virtio-driver`: features first, then protocol features, then region by region.
        vec![
            Step::Owner,
            Step::Features,
            Step::SetFeatures,
            Step::Protocol,
            Step::MemoryRegions,
            Step::WholeRing(0),
        ],
        // Memory last.
        vec![
            Step::Features,
            Step::SetFeatures,
            Step::Protocol,
            Step::Owner,
            Step::WholeRing(0),
            Step::MemoryRegions,
        ],
    ];
    if WIRE == Wire::Vvu {
        // There are no slots to add regions to.
        for step in orders.iter_mut().flatten() {
            if *step == Step::MemoryRegions {
                *step = Step::MemoryTable;
            }
        }
    }
    let count = orders.len();
    let served = serve_mirror(move |path| {
        for order in orders {
            let mut front = FrontEnd::connect(path).script(&order).start().unwrap();
            mirror(&mut front, 0);
        }
    });
    served.assert_all_left();
    assert_eq!(served.outcomes.len(), count);
}

#[test]
fn without_protocol_features_rings_are_born_enabled() {
    let served = serve_mirror(|path| {
        use RingStep::{Addresses, Base, Call, Kick, Size};
        let mut steps = vec![
            Step::Owner,
            Step::Features,
            Step::SetFeatures,
            Step::MemoryTable,
        ];
        steps.extend([Size, Base, Addresses, Kick, Call].map(|step| Step::Ring(0, step)));
        let mut front = FrontEnd::connect(path)
            .without_features(feature::PROTOCOL_FEATURES)
            .script(&steps)
            .start()
            .unwrap();
        mirror(&mut front, 0);
    });
    served.assert_all_left();
}

#[test]
fn with_protocol_features_a_ring_waits_to_be_enabled() {
    let served = serve_mirror(|path| {
        let mut front = FrontEnd::connect(path).start().unwrap();
        mirror(&mut front, 0);
        front.connection().set_ring_enable(0, false).unwrap();
        let base = |front: &mut FrontEnd| front.connection().ring_base(0).unwrap();
        let added = front.memory().allocate(4, 1).unwrap();
        front
            .ring(0)
            .add(&[vudev_frontend::Buffer::new(added, 4)], &[])
            .unwrap();
        front.ring(0).kick().unwrap();
        assert_eq!(
            base(&mut front),
            1,
            "what came while it was disabled was not taken"
        );
    });
    served.assert_all_left();
}

#[test]
fn a_ring_that_was_never_enabled_does_not_run() {
    let served = serve_mirror(|path| {
        use RingStep::{Addresses, Base, Call, Kick, Size};
        let mut steps = vec![
            Step::Features,
            Step::Protocol,
            Step::SetFeatures,
            Step::MemoryTable,
            Step::WholeRing(1),
        ];
        steps.extend([Size, Base, Addresses, Call, Kick].map(|step| Step::Ring(0, step)));
        let mut front = FrontEnd::connect(path)
            .queues(2)
            .script(&steps)
            .start()
            .unwrap();
        offer(&mut front);
        mirror(&mut front, 1);
        assert_eq!(front.stop().unwrap(), [0, 1]);
    });
    served.assert_all_left();
}

#[test]
fn a_ring_that_was_stopped_stays_so_until_a_new_kick_is_set() {
    let served = serve_mirror(|path| {
        let mut front = FrontEnd::connect(path).queues(2).start().unwrap();
        mirror(&mut front, 0);
        assert_eq!(front.connection().ring_base(0).unwrap(), 1);
        offer(&mut front);
        for step in [RingStep::Call, RingStep::Enable] {
            front.take(Step::Ring(0, step)).unwrap();
        }
        mirror(&mut front, 1);
        assert_eq!(front.connection().ring_base(0).unwrap(), 1);
    });
    served.assert_all_left();
}

#[test]
fn a_ring_waits_for_the_region_that_it_lies_in() {
    let served = serve_mirror(|path| {
        let steps = [
            Step::Features,
            Step::Protocol,
            Step::SetFeatures,
            Step::WholeRing(0),
        ];
        let connect = FrontEnd::connect(path).memory(0x10000).memory(0x1000);
        let mut front = connect.script(&steps).start().unwrap();
        front.connection().set_acknowledge(true);
        let memory = front.memory().clone();
        memory
            .with_regions(|regions| match WIRE {
                Wire::Socket => front
                    .connection()
                    .add_memory_region(&regions[1].0, regions[1].1),
                Wire::Vvu => front.connection().set_memory_table(&regions[1..]),
            })
            .unwrap();
        share(&mut front, 0);
        mirror(&mut front, 0);
    });
    served.assert_all_left();
}

/// Makes a chain available in ring 0, kicks, and expects nothing.
fn offer(front: &mut FrontEnd) {
    let buffer = front.memory().allocate(4, 1).unwrap();
    front
        .ring(0)
        .add(&[vudev_frontend::Buffer::new(buffer, 4)], &[])
        .unwrap();
    front.ring(0).kick_anyway().unwrap();
}

#[test]
fn a_ring_that_is_disabled_and_enabled_goes_on_where_it_was() {
    let served = serve_mirror(|path| {
        let mut front = FrontEnd::connect(path).start().unwrap();
        for _ in 0..3 {
            mirror(&mut front, 0);
            front.connection().set_ring_enable(0, false).unwrap();
            front.connection().set_ring_enable(0, true).unwrap();
        }
        mirror(&mut front, 0);
        assert_eq!(front.stop().unwrap(), [4]);
    });
    served.assert_all_left();
}

#[test]
fn every_request_is_acknowledged_once_when_asked() {
    let served = serve_mirror(|path| {
        let mut front = FrontEnd::connect(path).queues(2).start().unwrap();
        front.connection().set_acknowledge(true);
        let connection = front.connection();
        connection.set_owner().unwrap();
        connection.set_ring_enable(0, true).unwrap();
        assert_eq!(connection.queue_count().unwrap(), 2);
        if WIRE == Wire::Socket {
            assert_eq!(connection.memory_slots_max().unwrap(), 509);
        }
        mirror(&mut front, 1);
        front.stop().unwrap();
        front.connection().reset_owner().unwrap();
        // A second acknowledgement would be taken for this answer.
        assert_ne!(front.connection().features().unwrap(), 0);
    });
    served.assert_all_left();
}

#[test]
fn the_base_of_a_stopped_ring_is_true_and_stays_the_same() {
    let served = serve_mirror(|path| {
        let mut front = FrontEnd::connect(path).queue_size(4).start().unwrap();
        for _ in 0..13 {
            mirror(&mut front, 0);
        }
        let used = front.ring(0).used_index().unwrap();
        assert_eq!(front.stop().unwrap(), [13]);
        assert_eq!(front.stop().unwrap(), [13]);
        assert_eq!(used, 13);
    });
    served.assert_all_left();
}

#[test]
fn a_base_above_the_ring_size_is_lawful() {
    let served = serve_mirror(|path| {
        let connection = Connection::open(path).unwrap();
        connection.set_ring_size(0, 8).unwrap();
        for base in [8, 0x7fff, 0xffff] {
            connection.set_ring_base(0, base).unwrap();
            assert_eq!(connection.ring_base(0).unwrap(), base);
        }
    });
    served.assert_all_left();
}

#[test]
fn a_front_end_comes_back_and_its_rings_go_on() {
    let served = serve_mirror(|path| {
        let mut front = FrontEnd::connect(path).queue_size(8).start().unwrap();
        for round in 1..=5 {
            for _ in 0..7 {
                mirror(&mut front, 0);
            }
            let parked = front.leave().unwrap();
            assert_eq!(parked.bases(), [round * 7]);
            front = parked.resume().unwrap();
        }
    });
    served.assert_all_left();
    assert_eq!(served.outcomes.len(), 6);
    assert_eq!(served.device.resets.get(), 6);
}

#[test]
fn a_ring_stops_and_starts_again_on_one_connection() {
    let served = serve_mirror(|path| {
        let mut front = FrontEnd::connect(path).start().unwrap();
        for _ in 0..4 {
            mirror(&mut front, 0);
            front.stop().unwrap();
            // A kick is all that is missing.
            front.take(Step::Ring(0, RingStep::Kick)).unwrap();
        }
        mirror(&mut front, 0);
    });
    served.assert_all_left();
}

#[test]
fn a_ring_without_kick_and_call_is_polled() {
    let served = serve_mirror(|path| {
        let mut front = FrontEnd::connect(path).polled().start().unwrap();
        mirror(&mut front, 0);
        mirror(&mut front, 0);
    });
    served.assert_all_left();
}

#[test]
fn kick_and_call_may_change_under_a_running_ring() {
    let served = serve_mirror(|path| {
        let mut front = FrontEnd::connect(path).start().unwrap();
        mirror(&mut front, 0);
        front.ring(0).set_kick_event(Some(Event::new().unwrap()));
        front.ring(0).set_call_event(Some(Event::new().unwrap()));
        for step in [
            RingStep::Kick,
            RingStep::Call,
            RingStep::Error,
            RingStep::Addresses,
        ] {
            front.take(Step::Ring(0, step)).unwrap();
        }
        let buffer = front.memory().allocate(4, 1).unwrap();
        let ring = front.ring(0);
        ring.suppress_calls(false).unwrap();
        ring.add(&[vudev_frontend::Buffer::new(buffer, 4)], &[])
            .unwrap();
        assert!(ring.kick().unwrap());
        ring.call_event()
            .unwrap()
            .wait("a call by the new eventfd", LIMIT)
            .unwrap();
        assert_eq!(ring.wait_used(LIMIT).unwrap().written, 0);
    });
    served.assert_all_left();
}

#[test]
fn protocol_features_that_nobody_offered_are_ignored() {
    let served = serve_mirror(|path| {
        let connection = Connection::open(path).unwrap();
        let offered = connection.protocol_features().unwrap();
        assert_eq!(offered, WIRE.protocol_features());
        connection.set_protocol_features(u64::MAX).unwrap();
        assert_eq!(connection.queue_count().unwrap(), 2);
        let asking = vudev_frontend::message::frame(request::GET_MAX_MEM_SLOTS, 0x9, &[]);
        connection.raw(&asking, &[]).unwrap();
        let Outcome::Answered(_, slots) = connection.outcome().unwrap() else {
            panic!("the connection was closed");
        };
        assert_eq!(slots == long_words(&[509]), WIRE == Wire::Socket);
    });
    served.assert_all_left();
}

#[test]
fn features_may_be_said_again_word_by_word() {
    let served = serve_mirror(|path| {
        let connection = Connection::open(path).unwrap();
        let offered = connection.features().unwrap();
        // As front-ends do that pass on the driver's two halves as they come.
        connection.set_features(offered & 0xffff_ffff).unwrap();
        connection.set_features(offered).unwrap();
        connection.set_features(offered & !MIRROR_FEATURE).unwrap();
        assert_eq!(connection.features().unwrap(), offered);
    });
    served.assert_all_left();
    let negotiated = served.device.negotiated.borrow();
    assert_eq!(
        negotiated.len(),
        2,
        "the half without VERSION_1 is no agreement"
    );
    assert_eq!(
        negotiated[1] & MIRROR_FEATURE,
        0,
        "the last word counts, not the sum of all"
    );
}

#[test]
fn a_config_read_is_answered_in_the_size_it_asked_for() {
    let served = serve_mirror(|path| {
        let mut front = FrontEnd::connect(path).start().unwrap();
        let connection = front.connection();
        assert_eq!(connection.config(4, 4).unwrap(), [5, 6, 7, 8]);
        // A front-end knows a longer structure than the device has.
        let whole = connection.config(0, 256).unwrap();
        assert_eq!(whole[..16], (1..=16).collect::<Vec<u8>>());
        assert!(whole[16..].iter().all(|byte| *byte == 0));
        assert_eq!(connection.config(200, 8).unwrap(), [0; 8]);
    });
    served.assert_all_left();
}

#[test]
fn a_config_write_reaches_the_device_where_it_lets_it() {
    let served = serve_mirror(|path| {
        let mut front = FrontEnd::connect(path).start().unwrap();
        let connection = front.connection();
        connection.set_acknowledge(true);
        connection.set_config(1, 0, &[0xaa, 0xbb]).unwrap();
        assert_eq!(connection.config(0, 4).unwrap(), [1, 0xaa, 0xbb, 4]);
        assert!(
            connection.set_config(4, 0, &[1]).is_err(),
            "a read-only field"
        );
        assert!(
            connection.set_config(15, 0, &[1, 2]).is_err(),
            "half behind the end"
        );
        assert!(
            connection.set_config(0, 2, &[1]).is_err(),
            "flags that nobody knows"
        );
        assert_eq!(connection.config(0, 4).unwrap(), [1, 0xaa, 0xbb, 4]);
    });
    served.assert_all_left();
}

#[test]
fn a_front_end_with_a_backend_channel_hears_of_changes_without_asking() {
    let served = serve_mirror(|path| {
        // A change before anybody listens is not lost.
        let mut front = FrontEnd::connect(path).start().unwrap();
        front.connection().set_config(0, 0, &[CHANGE]).unwrap();
        let channel = front.connection().backend_channel().unwrap();
        assert_eq!(channel.backend_request().unwrap(), CONFIG_CHANGE);
        assert_eq!(front.connection().config(15, 1).unwrap(), [17]);
        front.connection().set_config(0, 0, &[CHANGE]).unwrap();
        assert_eq!(channel.backend_request().unwrap(), CONFIG_CHANGE);
        // A new channel takes the old one's place.
        let other = front.connection().backend_channel().unwrap();
        assert!(channel.backend_request().is_err(), "closed");
        front.connection().set_config(0, 0, &[CHANGE]).unwrap();
        assert_eq!(other.backend_request().unwrap(), CONFIG_CHANGE);
    });
    served.assert_all_left();
}

#[test]
fn a_backend_channel_that_is_no_socket_or_was_not_agreed_upon_is_refused() {
    let served = serve_mirror(|path| {
        let mut front = FrontEnd::connect(path).start().unwrap();
        let null = std::fs::File::open("/dev/null").unwrap();
        let connection = front.connection();
        let refused = connection.set_backend_channel(null.as_fd());
        assert!(refused.is_err(), "{refused:?}");
        // The function looks at it, and all that it can do is to end the connection.
        if WIRE == Wire::Socket {
            assert_eq!(connection.config(0, 1).unwrap(), [1]);
        }
    });
    served.assert_all_left();
    let served = serve_mirror(|path| {
        let mut front = FrontEnd::connect(path)
            .without_protocol_features(protocol::BACKEND_REQ)
            .start()
            .unwrap();
        assert!(front.connection().backend_channel().is_err());
    });
    served.assert_all_left();
}

#[test]
fn a_reset_device_is_as_new_and_starts_again() {
    let served = serve_mirror(|path| {
        let mut front = FrontEnd::connect(path).start().unwrap();
        mirror(&mut front, 0);
        front.connection().set_acknowledge(true);
        front.connection().reset_device().unwrap();
        assert_eq!(front.connection().ring_base(0).unwrap(), 0);
        front.ring(0).reset().unwrap();
        for step in [Step::SetFeatures, Step::WholeRing(0)] {
            front.take(step).unwrap();
        }
        mirror(&mut front, 0);
    });
    served.assert_all_left();
    assert_eq!(served.device.resets.get(), 2);
}

#[test]
fn other_rings_go_on_while_one_drains() {
    let (input, output) = rustix::pipe::pipe().unwrap();
    let served = serve(
        |handle| Slow::new(handle, input),
        move |path| {
            let mut front = FrontEnd::connect(path).queues(2).start().unwrap();
            let buffer = front.memory().allocate(8, 1).unwrap();
            front
                .ring(0)
                .add(&[], &[vudev_frontend::Buffer::new(buffer, 8)])
                .unwrap();
            front.ring(0).kick().unwrap();
            mirror(&mut front, 1);
            let stop = vudev_frontend::message::frame(request::GET_VRING_BASE, 1, &words(&[0, 0]));
            front.connection().raw(&stop, &[]).unwrap();
            mirror(&mut front, 1);
            mirror(&mut front, 1);
            rustix::io::write(&output, b"finally!").unwrap();
            let answer = front.connection().outcome().unwrap();
            let Outcome::Answered(_, payload) = answer else {
                panic!("the connection was closed");
            };
            assert_eq!(payload, words(&[0, 1]));
            assert_eq!(front.ring(0).wait_used(LIMIT).unwrap().written, 8);
        },
    );
    served.assert_all_left();
}

#[test]
fn the_largest_ring_is_taken_and_half_a_message_holds_up_no_ring() {
    let served = serve_mirror(|path| {
        let mut front = FrontEnd::connect(path)
            .queue_size(RING_SIZE_MAX)
            .start()
            .unwrap();
        let message =
            vudev_frontend::message::frame(request::SET_PROTOCOL_FEATURES, 1, &long_words(&[0]));
        for piece in message.chunks(5) {
            front.connection().raw(piece, &[]).unwrap();
            mirror(&mut front, 0);
        }
        assert!(front.connection().features().is_ok());
    });
    served.assert_all_left();
}
