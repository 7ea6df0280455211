//! Messages whose form is lawful and whose values are not, against the real, jailed `vudev`: rings
//! and regions that cannot be, features that were not offered, descriptors of the wrong kind.

#![allow(clippy::unwrap_used, reason = "a test that fails here says where")]

#[path = "support/bad.rs"]
mod bad;
#[path = "support/fuse.rs"]
mod fuse;
mod support;

use std::{
    fs::File,
    os::fd::{AsFd, OwnedFd},
};

use bad::{Bad, all_are_refused, bad, eventfd, layout, memfd, pipe};
use support::{Running, descriptors_at_work};
use vudev_frontend::{
    Outcome, RegionLayout,
    message::{self, NEED_REPLY, VERSION, long_words, protocol, request, words},
    requests::{region, single_region},
};

#[test]
fn kicks_and_calls_that_are_no_eventfds_are_refused() {
    let running = Running::disk("");
    let mut all = Vec::new();
    for code in [
        request::SET_VRING_KICK,
        request::SET_VRING_CALL,
        request::SET_VRING_ERR,
    ] {
        let named = |what: &str| {
            bad(
                &format!("{}: {what}", message::name(code)),
                code,
                &long_words(&[0]),
            )
        };
        let (read, write) = pipe();
        let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        all.push(named("a pipe's reading end").with(read));
        all.push(named("a pipe's writing end").with(write));
        all.push(named("a file").with(tempfile::tempfile().unwrap()));
        all.push(named("a memfd").with(memfd(8)));
        all.push(named("a socket").with(socket));
        all.push(named("a directory").with(File::open("/").unwrap()));
        all.push(named("/dev/null").with(File::open("/dev/null").unwrap()));
    }
    all_are_refused(&running, all);
}

#[test]
fn rings_that_do_not_exist_or_cannot_be_are_refused() {
    let running = Running::disk("");
    let state = |name: &str, code, index, value| bad(name, code, &words(&[index, value]));
    let event = |code: u32| {
        let name = format!("{} of ring 255", message::name(code));
        bad(&name, code, &long_words(&[255])).with(eventfd())
    };
    let all = [
        state("size 0", request::SET_VRING_NUM, 0, 0),
        state("size 100", request::SET_VRING_NUM, 0, 100),
        state("size 65536", request::SET_VRING_NUM, 0, 65536),
        state("size of ring 200", request::SET_VRING_NUM, 200, 128),
        state("size u32::MAX", request::SET_VRING_NUM, 0, u32::MAX),
        state("ring u32::MAX", request::SET_VRING_NUM, u32::MAX, 128),
        state("base 65536", request::SET_VRING_BASE, 0, 65536),
        state("base of ring 200", request::SET_VRING_BASE, 200, 0),
        state("stop of ring 200", request::GET_VRING_BASE, 200, 0),
        state("enable of ring 200", request::SET_VRING_ENABLE, 200, 1),
        state("enable 2", request::SET_VRING_ENABLE, 0, 2),
        event(request::SET_VRING_KICK),
        event(request::SET_VRING_CALL),
        event(request::SET_VRING_ERR),
    ];
    all_are_refused(&running, all);
}

#[test]
fn ring_addresses_that_cannot_be_are_refused() {
    let running = Running::disk("");
    let address = |name: &str, index: u32, [descriptors, used, available]: [u64; 3]| {
        let mut payload = words(&[index, 0]);
        payload.extend(long_words(&[descriptors, used, available, 0]));
        bad(name, request::SET_VRING_ADDR, &payload)
    };
    let (d, u, a) = (0x7000_4000_0000, 0x7000_4000_1000, 0x7000_4000_2000);
    let last = d + (2 << 20) - 16;
    let nowhere = 0xdead_0000;
    let all = [
        address("ring 200", 200, [d, u, a]),
        address("outside", 0, [nowhere, nowhere + 0x1000, nowhere + 0x2000]),
        address("the used ring outside", 0, [d, nowhere, a]),
        address("the available ring outside", 0, [d, u, nowhere]),
        address("at the end of all addresses", 0, [!0xf; 3]),
        address("an odd descriptor table", 0, [d + 1, u, a]),
        address("an odd used ring", 0, [d, u + 1, a]),
        address("an odd available ring", 0, [d, u, a + 1]),
        address("a table over a region's end", 0, [last, u, a]),
        address("a used ring over a region's end", 0, [d, last, a]),
        address("an available ring over a region's end", 0, [d, u, last]),
    ];
    all_are_refused(&running, all);
}

#[test]
fn features_that_were_not_offered_are_refused() {
    let running = Running::disk("");
    let driver = [1 << 63, 1 << 34, 1 << 26, 1 << 33].map(|bit: u64| {
        let payload = long_words(&[bit | 1 << 32 | 1 << 30]);
        bad(
            &format!("feature {bit:#x}"),
            request::SET_FEATURES,
            &payload,
        )
    });
    all_are_refused(&running, driver);
}

#[test]
fn protocol_features_that_were_not_offered_do_not_come_on() {
    let running = Running::disk("");
    let log_shmfd = 1 << 1;
    let mut block = running.block();
    let connection = block.front().connection();
    let offered = connection.protocol_features().unwrap();
    assert_eq!(offered & log_shmfd, 0, "then this test needs another bit");
    // Front-ends send what they know; to refuse it is as lawful as to ignore it.
    if connection
        .set_protocol_features(protocol::REPLY_ACK | log_shmfd)
        .is_ok()
    {
        let log = memfd(4096);
        let payload = long_words(&[4096, 0]);
        let message = message::frame(request::SET_LOG_BASE, VERSION | NEED_REPLY, &payload);
        connection.raw(&message, &[log.as_fd()]).unwrap();
        assert!(connection.outcome().unwrap().is_refusal());
    }
    running.block_after(block).read(0, &mut [0; 512]).unwrap();
}

#[test]
fn requests_of_features_that_were_not_negotiated_are_refused() {
    let running = Running::disk("");
    all_are_refused(
        &running,
        [
            bad(
                "SET_LOG_BASE",
                request::SET_LOG_BASE,
                &long_words(&[4096, 0]),
            )
            .with(memfd(4096)),
            bad("SET_LOG_FD", request::SET_LOG_FD, &[]).with(eventfd()),
            bad("SEND_RARP", request::SEND_RARP, &long_words(&[0])),
            bad("NET_SET_MTU", request::NET_SET_MTU, &long_words(&[1500])),
            bad("SET_BACKEND_REQ_FD", request::SET_BACKEND_REQ_FD, &[]).with(pipe().0),
            bad("IOTLB_MSG", request::IOTLB_MSG, &[0; 32]),
            bad("POSTCOPY_ADVISE", request::POSTCOPY_ADVISE, &[]),
            bad("GET_INFLIGHT_FD", request::GET_INFLIGHT_FD, &[0; 24]),
            bad("SET_INFLIGHT_FD", request::SET_INFLIGHT_FD, &[0; 24]).with(memfd(4096)),
            bad("SET_DEVICE_STATE_FD", request::SET_DEVICE_STATE_FD, &[0; 8]).with(pipe().0),
            bad("CHECK_DEVICE_STATE", request::CHECK_DEVICE_STATE, &[]),
            bad("SET_STATUS", request::SET_STATUS, &long_words(&[15])),
            bad("VRING_KICK", request::VRING_KICK, &words(&[0, 0])),
        ],
    );
}

#[test]
fn regions_that_cannot_be_are_refused() {
    let running = Running::disk("");
    let add = |name: &str, change: fn(&mut RegionLayout)| {
        let mut layout = layout();
        change(&mut layout);
        let name = format!("ADD_MEM_REG: {name}");
        bad(&name, request::ADD_MEM_REG, &single_region(&layout)).with(memfd(0x10000))
    };
    let unknown = single_region(&layout());
    let all = [
        add("larger than its file", |it| it.size = 0x100_0000),
        add("a byte larger than its file", |it| it.size = 0x10001),
        add("beyond its file", |it| it.offset = 0x1000),
        add("size 0", |it| it.size = 0),
        add("size u64::MAX", |it| it.size = u64::MAX),
        add("offset u64::MAX", |it| it.offset = u64::MAX),
        add("past the last guest address", |it| {
            it.guest_address = !0xfff;
        }),
        add("past the last user address", |it| it.user_address = !0xfff),
        add("over another (guest)", |it| it.guest_address = 0x4000_0000),
        add("over another (user)", |it| {
            it.user_address = 0x7000_4000_0000;
        }),
        bad("REM_MEM_REG: unknown", request::REM_MEM_REG, &unknown),
    ];
    all_are_refused(&running, all);
}

#[test]
fn regions_in_what_is_no_memory_are_refused() {
    let running = Running::disk("");
    let add = |name: &str, file: OwnedFd| {
        let name = format!("ADD_MEM_REG: {name}");
        bad(&name, request::ADD_MEM_REG, &single_region(&layout())).with(file)
    };
    let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    let all = [
        add("an empty file", memfd(0)),
        add("a pipe", pipe().0),
        add("an eventfd", eventfd()),
        add("a socket", socket.into()),
        add("a directory", File::open("/").unwrap().into()),
        add("/dev/zero", File::open("/dev/zero").unwrap().into()),
    ];
    all_are_refused(&running, all);
}

#[test]
fn memory_tables_that_cannot_be_are_refused() {
    let running = Running::disk("");
    let table = |name: &str, count: u32, layouts: &[RegionLayout], fds: usize| {
        let mut payload = words(&[count, 0]);
        payload.extend(layouts.iter().flat_map(region));
        let name = format!("SET_MEM_TABLE: {name}");
        let files = (0..fds).map(|_| memfd(0x10000));
        bad(&name, request::SET_MEM_TABLE, &payload).with_all(files)
    };
    let next = |number: u64| RegionLayout {
        guest_address: layout().guest_address + number * 0x100_0000,
        user_address: layout().user_address + number * 0x100_0000,
        ..layout()
    };
    let nine: Vec<_> = (0..9).map(next).collect();
    let all = [
        table("count larger than the message", 2, &[layout()], 1),
        table("count u32::MAX", u32::MAX, &[layout()], 1),
        table("fewer descriptors than regions", 2, &[next(0), next(1)], 1),
        table("more descriptors than regions", 1, &[next(0)], 2),
        table("overlapping", 2, &[layout(), layout()], 2),
        table("nine regions", 9, &nine, 9),
    ];
    all_are_refused(&running, all);
}

#[test]
fn memory_on_a_read_only_file_is_refused() {
    let running = Running::disk("");
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(0x10000).unwrap();
    let read_only = File::open(file.path()).unwrap();
    let name = "ADD_MEM_REG on a read-only file";
    let message = bad(name, request::ADD_MEM_REG, &single_region(&layout())).with(read_only);
    all_are_refused(&running, [message]);
}

#[test]
fn memory_on_fuse_is_refused() {
    let fuse = match fuse::Fuse::mount() {
        Ok(fuse) => fuse,
        Err(error) => {
            println!("SKIPPED: needs root and /dev/fuse to mount a file system ({error})");
            return;
        }
    };
    let running = Running::disk("");
    let layout = RegionLayout {
        size: fuse::SIZE,
        ..layout()
    };
    let name = "ADD_MEM_REG on FUSE";
    let message = bad(name, request::ADD_MEM_REG, &single_region(&layout)).with(fuse.file());
    all_are_refused(&running, [message]);
    // The reason is told, by the supervisor, which may come to it later.
    running.wait_for("FUSE", 1);
}

#[test]
fn configuration_beyond_its_end_is_refused() {
    let running = Running::disk("");
    let ask = |name: &str, offset: u32, size: u32, length: usize| {
        let mut payload = words(&[offset, size, 0]);
        payload.resize(12 + length, 0);
        bad(name, request::GET_CONFIG, &payload)
    };
    let before = (running.device(), descriptors_at_work(&running));
    let all = [
        ask("offset u32::MAX", u32::MAX, 8, 8),
        ask("offset 4096", 4096, 8, 8),
        ask("size u32::MAX", 0, u32::MAX, 8),
        ask("size larger than the message", 0, 64, 8),
        ask("size smaller than the message", 0, 8, 64),
        ask("a sum that overflows", u32::MAX - 3, 8, 8),
    ];
    for Bad { name, bytes, .. } in all {
        let mut block = running.block();
        let connection = block.front().connection();
        connection.raw(&bytes, &[]).unwrap();
        match connection.outcome().unwrap() {
            Outcome::Closed => {}
            // The specification's way to refuse: an answer without a payload, or of length 0.
            Outcome::Answered(header, payload) => {
                let length = message::u32_at(&payload, 4).unwrap_or(0);
                assert!(header.size == 0 || length == 0, "{name}: {payload:?}");
            }
        }
        drop(block);
        assert_eq!(
            (running.device(), descriptors_at_work(&running)),
            before,
            "{name}"
        );
    }
}
