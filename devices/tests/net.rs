//! What a driver can rely on from the network card, on a socket in place of a tap: it keeps frames
//! apart, and answers no ioctl. What a real tap does is tested in a jail, in `tests/tests/net.rs`.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test panics where it fails, and its numbers are small"
)]

use std::os::unix::net::UnixDatagram;

use vudev_devices::Net;
use vudev_devices::net::{NetConfig, NetError, feature};
use vudev_executor::{Executor, Faults};
use vudev_virtio::Device;

mod common;

use common::card::{
    CONTROL, HEADER, RECEIVE, TRANSMIT, come, config, frame, post, start, start_with,
};
use common::{run, wait_until};

#[test]
fn a_frame_fills_as_many_buffers_as_it_needs_and_leaves_the_rest_for_the_next() {
    run(async |handle| {
        let (mut net, wire) = start(&handle, feature::MRG_RXBUF);
        let buffers = post(&mut net, 40, 100);
        let mut next = buffers.iter();
        for (length, expected) in [
            (60, vec![72]),
            (88, vec![100]),
            (89, vec![100, 1]),
            (188, vec![100, 100]),
            (250, vec![100, 100, 62]),
            (1518, [&[100; 15][..], &[30]].concat()),
        ] {
            let sent = frame(length, length as u8);
            come(&wire, &sent);
            let mut came = Vec::new();
            for written in &expected {
                assert_eq!(net.used(RECEIVE).await.written, *written, "{length}");
                let bytes = net.bytes(*next.next().unwrap());
                came.extend_from_slice(&bytes[..*written as usize]);
            }
            let number = (expected.len() as u16).to_le_bytes();
            assert_eq!(came[10..12], number, "{length}: num_buffers");
            assert_eq!(came[HEADER..], sent, "{length}");
        }
        assert_eq!(net.stop_queue(RECEIVE).await, 25, "the others are back");
    });
}

#[test]
fn frames_that_come_while_a_queue_stops_are_not_lost() {
    run(async |handle| {
        let (mut net, wire) = start(&handle, feature::MRG_RXBUF);
        let buffers = post(&mut net, 100, 2048);
        let mut next = buffers.iter();
        for round in 0..50_u8 {
            come(&wire, &frame(60, round));
            if round % 3 == 0 {
                net.settle().await;
            }
            net.stop_queue(RECEIVE).await;
            net.start_queue(RECEIVE);
            let _ = net.used(RECEIVE).await;
            let bytes = net.bytes(*next.next().unwrap());
            assert_eq!(bytes[HEADER..HEADER + 60], frame(60, round));
        }
    });
}

#[test]
fn buffers_are_let_go_of_when_memory_is_replaced_whatever_is_waited_for() {
    run(async |handle| {
        for nonblocking in [false, true] {
            let (mut net, wire) = start_with(&handle, feature::MRG_RXBUF, nonblocking);
            let buffers = post(&mut net, 4, 2048);
            for mark in 0..3 {
                net.settle().await;
                net.replace_memory().await;
                come(&wire, &frame(60, mark));
                assert_eq!(net.used(RECEIVE).await.written, 72);
                assert_eq!(net.bytes(buffers[usize::from(mark)])[HEADER], mark);
            }
        }
    });
}

#[test]
fn a_frame_that_its_tap_has_no_room_for_keeps_no_memory_that_is_replaced() {
    run(async |handle| {
        for nonblocking in [false, true] {
            let (mut net, _wire) = start_with(&handle, 0, nonblocking);
            let buffer = net.put(&[0; HEADER + 60]);
            while net.in_flight(TRANSMIT) == 0 {
                net.send(TRANSMIT, &[buffer], &[]);
                net.settle().await;
                while net.ring(TRANSMIT).poll_used().unwrap().is_some() {}
            }
            net.replace_memory().await;
        }
    });
}

#[test]
fn a_header_is_checked_before_the_kernel_sees_it_and_the_chain_comes_back() {
    run(async |handle| {
        let (mut net, wire) = start(&handle, 0);
        let mut header = [0; HEADER];
        for (flags, gso_type, length) in [(1, 0, 60), (0, 1, 60), (0, 0, 13), (0, 0, 70_000)] {
            (header[0], header[1]) = (flags, gso_type);
            let sent = net.put(&[&header[..], &frame(length, 1)].concat());
            net.send(TRANSMIT, &[sent], &[]);
            assert_eq!(net.used(TRANSMIT).await.written, 0);
            assert!(
                wire.recv(&mut [0; 8]).is_err(),
                "{flags} {gso_type} {length}"
            );
        }
        // In the wrong direction there is no header.
        let wrong = net.allocate(2048, 1);
        net.send(TRANSMIT, &[], &[wrong]);
        assert_eq!(net.used(TRANSMIT).await.written, 0);
        // What the kernel gets is ours: no flag that means nothing, no num_buffers.
        header = [0xfe, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10];
        let sent = net.put(&[&header[..], &frame(60, 7)].concat());
        net.send(TRANSMIT, &[sent], &[]);
        let _ = net.used(TRANSMIT).await;
        let mut buffer = [1; 100];
        assert_eq!(wire.recv(&mut buffer).unwrap(), HEADER + 60);
        assert_eq!(buffer[..HEADER], [0; HEADER]);
    });
}

#[test]
fn a_receive_chain_in_the_wrong_direction_or_too_small_is_completed_empty() {
    run(async |handle| {
        let (mut net, wire) = start(&handle, feature::MRG_RXBUF);
        let readable = net.put(&[1; 100]);
        net.send(RECEIVE, &[readable], &[]);
        assert_eq!(net.used(RECEIVE).await.written, 0);
        let small = net.allocate(HEADER - 1, 1);
        net.send(RECEIVE, &[], &[small]);
        assert_eq!(net.used(RECEIVE).await.written, 0);
        // A header's room and no more is room for a header.
        let sizes = [HEADER, HEADER, 200];
        let buffers: Vec<_> = sizes.iter().map(|size| net.allocate(*size, 1)).collect();
        for buffer in &buffers {
            net.send(RECEIVE, &[], &[*buffer]);
        }
        net.settle().await;
        come(&wire, &frame(60, 5));
        let mut came = Vec::new();
        for buffer in buffers {
            let written = net.used(RECEIVE).await.written as usize;
            came.extend_from_slice(&net.bytes(buffer)[..written]);
        }
        assert_eq!(came[HEADER..], frame(60, 5));
        assert_eq!(came[10], 3);
    });
}

#[test]
fn a_command_without_the_feature_is_refused() {
    run(async |handle| {
        let (mut net, _wire) = start(&handle, 0);
        for command in [
            &[0, 0, 0][..],
            &[4, 0, 1, 0],
            &[1, 1, 2, 0, 0, 0, 0, 1],
            &[],
        ] {
            let answer = net.put(&[7]);
            let readable: Vec<_> = (!command.is_empty())
                .then(|| net.put(command))
                .into_iter()
                .collect();
            net.send(CONTROL, &readable, &[answer]);
            assert_eq!(net.used(CONTROL).await.written, 1);
            assert_eq!(net.bytes(answer), [1], "{command:?}");
        }
    });
}

#[test]
fn every_frame_arrives_whatever_the_order_of_completions() {
    for seed in 0..20 {
        let faults = Faults {
            delayed: 300,
            ..Faults::default()
        };
        let executor = Executor::simulated(seed, faults);
        let handle = executor.handle().clone();
        let moved = executor.run(async {
            // A played ring reads at once, or never comes back.
            let (mut net, wire) = start_with(&handle, feature::MRG_RXBUF, true);
            let buffers = post(&mut net, 100, 300);
            let mut next = buffers.iter();
            let mut sent = 0;
            let mut buffer = [0; 2048];
            for mark in 0..30_u8 {
                come(&wire, &frame(500, mark));
                for _ in 0..3 {
                    let out = net.put(&[&[0; HEADER][..], &frame(60, mark)].concat());
                    net.send(TRANSMIT, &[out], &[]);
                    sent += 1;
                }
                let first = net.used(RECEIVE).await;
                let second = net.used(RECEIVE).await;
                assert_eq!((first.written, second.written), (300, 212), "seed {seed}");
                let [first, second] = [next.next().unwrap(), next.next().unwrap()];
                let came = [net.bytes(*first), net.bytes(*second)].concat();
                assert_eq!(came[HEADER..HEADER + 500], frame(500, mark), "seed {seed}");
            }
            wait_until(&handle, || net.is_idle(TRANSMIT, sent)).await;
            let frames = (0..sent).filter(|_| wire.recv(&mut buffer).is_ok()).count();
            assert_eq!(frames, usize::from(sent), "seed {seed}");
            assert_eq!(net.stop_queue(RECEIVE).await, 60, "seed {seed}");
        });
        moved.unwrap();
    }
}

#[test]
fn any_range_of_the_configuration_space_can_be_read() {
    run(async |handle| {
        let (net, _wire) = start(&handle, feature::MTU);
        let size = net.device.identity().config_size;
        let mut whole = vec![0; size];
        net.device.read_config(0, &mut whole);
        assert_eq!(whole[6..12], [1, 0, 1, 0, 0xdc, 5]);
        for from in 0..=size {
            for to in from..=size {
                let mut part = vec![0xee; to - from];
                net.device.read_config(from, &mut part);
                assert_eq!(part, whole[from..to]);
            }
        }
    });
}

#[test]
fn what_a_device_cannot_be_is_refused() {
    run(async |handle| {
        let (_wire, tap) = UnixDatagram::pair().unwrap();
        let two = NetConfig {
            pairs: 2,
            multi_queue: true,
            ..config()
        };
        let refused = Net::new(&handle, two, vec![tap.into()])
            .map(drop)
            .unwrap_err();
        assert_eq!(refused, NetError::Taps { taps: 1, pairs: 2 });
    });
}
