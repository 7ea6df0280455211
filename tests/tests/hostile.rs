//! Hostile front-ends on the wire against the real, jailed `vudev`: messages that are none,
//! descriptors where none belong, floods. After each the process lives, serves the next
//! front-end, and holds no descriptor more than before. Lawful forms with unlawful values are in
//! `values.rs`.

#![allow(clippy::unwrap_used, reason = "a test that fails here says where")]

#[path = "support/bad.rs"]
mod bad;
mod support;

use std::{os::fd::AsFd, time::Duration};

use bad::{Bad, all_are_refused, bad, eventfd, layout, memfd};
use support::{Running, descriptors_at_work};
use vudev_frontend::{
    Connection, FrontEnd,
    message::{
        self, NEED_REPLY, NO_DESCRIPTOR, REPLY, VERSION, frame, frame_with_size, long_words,
        request, words,
    },
    requests::{region, single_region},
};

#[test]
fn headers_that_are_none_end_the_connection() {
    let running = Running::disk("");
    let raw = |name: &str, bytes| Bad {
        name: name.to_owned(),
        bytes,
        fds: vec![],
    };
    let size = |name: &str, code, size| {
        raw(
            name,
            frame_with_size(code, VERSION | NEED_REPLY, size, &[0; 64]),
        )
    };
    all_are_refused(
        &running,
        [
            raw("version 0", frame(request::SET_OWNER, NEED_REPLY, &[])),
            raw("version 2", frame(request::SET_OWNER, 2 | NEED_REPLY, &[])),
            raw("version 3", frame(request::SET_OWNER, 3 | NEED_REPLY, &[])),
            raw(
                "a reply",
                frame(request::SET_OWNER, VERSION | REPLY | NEED_REPLY, &[]),
            ),
            raw("request 0", frame(0, VERSION | NEED_REPLY, &[])),
            raw("request 4711", frame(4711, VERSION, &[])),
            raw(
                "request u32::MAX",
                frame(u32::MAX, VERSION | NEED_REPLY, &[]),
            ),
            raw("noise", vec![0xa5; 4096]),
            size("a size of 4 GiB", request::SET_FEATURES, u32::MAX),
            size("a size of 1 MiB", request::SET_MEM_TABLE, 1 << 20),
            size("a size of 4097", request::SET_CONFIG, 4097),
            size("an unknown request of 1 GiB", 4711, 1 << 30),
        ],
    );
}

#[test]
fn payloads_of_the_wrong_length_are_refused() {
    let running = Running::disk("");
    let mut all = Vec::new();
    let fixed: [(u32, usize); 17] = [
        (request::GET_FEATURES, 0),
        (request::SET_FEATURES, 8),
        (request::SET_OWNER, 0),
        (request::SET_MEM_TABLE, 40),
        (request::SET_VRING_NUM, 8),
        (request::SET_VRING_ADDR, 40),
        (request::SET_VRING_BASE, 8),
        (request::GET_VRING_BASE, 8),
        (request::SET_VRING_KICK, 8),
        (request::SET_VRING_CALL, 8),
        (request::SET_VRING_ERR, 8),
        (request::SET_PROTOCOL_FEATURES, 8),
        (request::SET_VRING_ENABLE, 8),
        (request::GET_CONFIG, 12),
        (request::SET_CONFIG, 12),
        (request::ADD_MEM_REG, 40),
        (request::REM_MEM_REG, 40),
    ];
    for (code, length) in fixed {
        for wrong in [length + 1, length + 8, length.saturating_sub(1), length / 2] {
            if wrong != length {
                let name = format!("{} with {wrong} bytes", message::name(code));
                all.push(bad(&name, code, &vec![0; wrong]));
            }
        }
    }
    all_are_refused(&running, all);
}

#[test]
fn messages_that_are_cut_off_end_with_the_connection() {
    let running = Running::disk("");
    let before = descriptors_at_work(&running);
    let whole = frame(request::SET_MEM_TABLE, VERSION, &{
        let mut payload = words(&[1, 0]);
        payload.extend(region(&layout()));
        payload
    });
    for length in [1, 4, 11, 12, 13, 20, whole.len() - 1] {
        let mut block = running.block();
        let file = memfd(0x10000);
        block
            .front()
            .connection()
            .raw(&whole[..length], &[file.as_fd()])
            .unwrap();
        drop(block);
        assert_eq!(
            descriptors_at_work(&running),
            before,
            "cut after {length} bytes"
        );
    }
    // The same, but the front-end waits for what the back-end says.
    let mut block = running.block();
    block.front().connection().raw(&whole[..20], &[]).unwrap();
    block.front().connection().shut_down_sending().unwrap();
    block.front().connection().wait_closed().unwrap();
}

#[test]
fn descriptors_where_none_belong_are_closed() {
    let running = Running::disk("");
    let fd_where_none = |code: u32, payload: &[u8]| {
        bad(
            &format!("{} with a descriptor", message::name(code)),
            code,
            payload,
        )
        .with(eventfd())
    };
    let kick_without = |code: u32| {
        let payload = long_words(&[NO_DESCRIPTOR]);
        let name = format!(
            "{} with a descriptor and the flag for none",
            message::name(code)
        );
        bad(&name, code, &payload).with(eventfd())
    };
    let two = |code: u32| {
        let name = format!("{} with two descriptors", message::name(code));
        bad(&name, code, &long_words(&[0]))
            .with(eventfd())
            .with(eventfd())
    };
    let many = |count: usize| {
        let name = format!("SET_OWNER with {count} descriptors");
        bad(&name, request::SET_OWNER, &[]).with_all((0..count).map(|_| eventfd()))
    };
    all_are_refused(
        &running,
        [
            fd_where_none(request::SET_OWNER, &[]),
            fd_where_none(request::GET_FEATURES, &[]),
            fd_where_none(request::SET_FEATURES, &long_words(&[1 << 32])),
            fd_where_none(request::SET_VRING_NUM, &words(&[0, 128])),
            fd_where_none(request::GET_VRING_BASE, &words(&[0, 0])),
            fd_where_none(request::GET_CONFIG, &[0; 20]),
            fd_where_none(4711, &[]),
            kick_without(request::SET_VRING_KICK),
            kick_without(request::SET_VRING_CALL),
            kick_without(request::SET_VRING_ERR),
            two(request::SET_VRING_KICK),
            two(request::SET_VRING_CALL),
            many(32),
            many(33),
            many(200),
        ],
    );
}

#[test]
fn descriptors_that_are_missing_are_missed() {
    let running = Running::disk("");
    let mut table = words(&[1, 0]);
    table.extend(region(&layout()));
    all_are_refused(
        &running,
        [
            bad("SET_VRING_KICK", request::SET_VRING_KICK, &long_words(&[0])),
            bad("SET_VRING_CALL", request::SET_VRING_CALL, &long_words(&[0])),
            bad("SET_VRING_ERR", request::SET_VRING_ERR, &long_words(&[0])),
            bad(
                "ADD_MEM_REG",
                request::ADD_MEM_REG,
                &single_region(&layout()),
            ),
            bad("SET_MEM_TABLE", request::SET_MEM_TABLE, &table),
        ],
    );
}

#[test]
fn a_front_end_that_does_not_read_its_answers_ends_only_itself() {
    let running = Running::disk("");
    let before = (running.device(), descriptors_at_work(&running));
    let mut deaf = Connection::open(running.socket()).unwrap();
    deaf.set_limit(Duration::from_millis(300));
    let bytes = frame(request::GET_FEATURES, VERSION, &[]).repeat(100_000);
    let outcome = deaf.raw(&bytes, &[]);
    assert!(outcome.is_err(), "100000 answers have no room");
    drop(deaf);
    assert_eq!((running.device(), descriptors_at_work(&running)), before);
}

#[test]
fn connections_that_come_and_go_at_once_leave_nothing() {
    let running = Running::disk("");
    let before = descriptors_at_work(&running);
    for _ in 0..200 {
        drop(Connection::open(running.socket()).unwrap());
    }
    assert_eq!(descriptors_at_work(&running), before);
}

#[test]
fn a_message_told_a_thousand_times_keeps_nothing_but_the_last() {
    let running = Running::disk("");
    let mut block = running.block();
    block.read(0, &mut [0; 512]).unwrap();
    let before = (running.descriptors(), running.mappings());
    for _ in 0..1000 {
        let connection = block.front().connection();
        connection
            .set_ring_call(0, Some(eventfd().as_fd()))
            .unwrap();
        connection
            .set_ring_error(0, Some(eventfd().as_fd()))
            .unwrap();
        block
            .front()
            .take(vudev_frontend::Step::MemoryTable)
            .unwrap();
    }
    assert_eq!((running.descriptors(), running.mappings()), before);
}

#[test]
fn a_front_end_that_dies_with_requests_in_flight_leaves_nothing() {
    let running = Running::disk("");
    let before = (running.device(), descriptors_at_work(&running));
    for _ in 0..50 {
        let front = FrontEnd::connect(running.socket()).memory(8 << 20);
        let mut block = vudev_frontend::Block::start(front, 32, 64 << 10).unwrap();
        for at in 0..32 {
            let _request = block
                .send_write(0, at * (64 << 10), &[7; 64 << 10])
                .unwrap();
        }
        block.kick(0).unwrap();
    }
    assert_eq!((running.device(), descriptors_at_work(&running)), before);
}
