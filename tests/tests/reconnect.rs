//! Front-ends that leave and come back, among them those of other crates, against the real, jailed
//! `vudev`: data stays, and nothing grows.

#![allow(clippy::unwrap_used, reason = "a test that fails here says where")]

#[path = "support/driver.rs"]
mod driver;
mod support;

use std::{fs::File, io::Write, os::unix::fs::FileExt};

use driver::Driver;
use support::{DISK_SIZE, Running, descriptors_at_work, pattern};
use vhost::{
    VhostBackend, VringConfigData,
    vhost_user::{
        Frontend, VhostUserFrontend,
        message::{VhostUserConfigFlags, VhostUserProtocolFeatures},
    },
};
use vudev_frontend::{Block, Console, LIMIT};

/// How often a front-end comes back.
const ROUNDS: u8 = 100;
/// Bytes that each round writes.
const PIECE: usize = 16 << 10;

#[test]
fn a_front_end_of_virtio_driver_leaves_and_comes_back_a_hundred_times() {
    let running = Running::disk("");
    let mut settled = None;
    for round in 0..ROUNDS {
        let mut driver = Driver::connect(&running.socket(), 4, PIECE);
        assert_eq!(driver.capacity(), DISK_SIZE);
        if let Some(last) = round.checked_sub(1) {
            assert_eq!(
                driver.read(place(last)),
                pattern(PIECE, last),
                "round {last}"
            );
        }
        driver.write(place(round), &pattern(PIECE, round));
        driver.flush();
        let now = (running.device(), running.descriptors(), running.mappings());
        assert_eq!(
            settled.get_or_insert_with(|| now.clone()),
            &now,
            "round {round}"
        );
    }
    let disk = running.disk_file();
    for round in 0..ROUNDS {
        let mut bytes = vec![0; PIECE];
        disk.read_exact_at(&mut bytes, place(round)).unwrap();
        assert_eq!(bytes, pattern(PIECE, round), "round {round}");
    }
    running.stop();
}

/// Where a round writes.
fn place(round: u8) -> u64 {
    u64::from(round) * PIECE as u64
}

#[test]
fn memory_stays_flat_over_hundreds_of_connections() {
    let running = Running::disk("");
    let connect = |times: u32| {
        for _ in 0..times {
            let mut block = Block::start(running.front(), 8, 4096).unwrap();
            for at in 0..8 {
                let _request = block.send_read(0, at * 4096, 4096).unwrap();
            }
            block.kick(0).unwrap();
            block.wait(0, LIMIT).map(drop).unwrap();
        }
        running.private_memory()
    };
    let before = connect(50);
    let after = connect(300);
    assert!(after <= before + 64, "{before} KiB became {after} KiB");
}

#[test]
fn a_console_comes_back_a_hundred_times() {
    let running = Running::console(None);
    let mut expected = Vec::new();
    let mut settled = None;
    for round in 0..ROUNDS {
        let mut console = running.console_driver();
        let line = format!("line {round}\n");
        console.send(line.as_bytes()).unwrap();
        expected.extend(line.into_bytes());
        let now = (running.device(), running.descriptors(), running.mappings());
        assert_eq!(
            settled.get_or_insert_with(|| now.clone()),
            &now,
            "round {round}"
        );
    }
    assert_eq!(running.output(), expected);
    running.stop();
}

#[test]
fn input_that_comes_while_nobody_is_there_reaches_the_next_front_end() {
    let (input, typed) = rustix::pipe::pipe().unwrap();
    let running = Running::console(Some(input.into()));
    let mut typed = File::from(typed);
    for round in 0..10 {
        let line = format!("typed in round {round}");
        typed.write_all(line.as_bytes()).unwrap();
        // The first half of the rounds leaves with a word, the second half without.
        let mut console = running.console_driver();
        assert_eq!(console.receive(line.len(), LIMIT).unwrap(), line.as_bytes());
        if round < 5 {
            console.leave().map(drop).unwrap();
        } else {
            drop(console);
        }
        // Until the device knows, it may hand input to a driver that is gone.
        running.wait_until_left(round + 1);
    }
}

#[test]
fn input_waits_for_a_driver_that_has_no_room() {
    let (input, typed) = rustix::pipe::pipe().unwrap();
    let running = Running::console(Some(input.into()));
    let mut typed = File::from(typed);
    let mut console = Console::start(running.front(), 0).unwrap();
    typed.write_all(&pattern(40_000, 3)).unwrap();
    console.send(b"the other direction goes on").unwrap();
    drop(console);
    let mut console = Console::start(running.front(), 1).unwrap();
    assert_eq!(console.receive(40_000, LIMIT).unwrap(), pattern(40_000, 3));
}

#[test]
fn a_ring_goes_on_where_it_stopped_a_hundred_times() {
    let running = Running::disk("");
    let mut parked = running.front().prepare().unwrap();
    for round in 0..ROUNDS {
        let mut block = Block::over(parked.resume().unwrap(), 1, 4096).unwrap();
        block.write(0, &pattern(4096, round)).unwrap();
        let mut back = vec![0; 4096];
        block.read(0, &mut back).unwrap();
        assert_eq!(back, pattern(4096, round));
        parked = block.into_front().leave().unwrap();
        assert_eq!(parked.bases(), [2 * (u16::from(round) + 1)]);
    }
}

#[test]
fn the_front_end_of_crate_vhost_finds_its_whole_control_plane() {
    let running = Running::disk(",queues=2");
    let before = descriptors_at_work(&running);
    for _ in 0..20 {
        control_plane(&running);
    }
    assert_eq!(descriptors_at_work(&running), before);
}

/// Everything that the `Frontend` of crate `vhost` can ask of us.
fn control_plane(running: &Running) {
    let mut front = Frontend::connect(running.socket(), 2).unwrap();
    front.set_owner().unwrap();
    let features = front.get_features().unwrap();
    assert_ne!(features & 1 << 30, 0, "protocol features");
    front.set_features(features).unwrap();
    let offered = front.get_protocol_features().unwrap();
    let wanted = VhostUserProtocolFeatures::MQ
        | VhostUserProtocolFeatures::REPLY_ACK
        | VhostUserProtocolFeatures::CONFIG
        | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
        | VhostUserProtocolFeatures::RESET_DEVICE;
    assert!(offered.contains(wanted), "{offered:?}");
    front.set_protocol_features(wanted).unwrap();
    front.set_hdr_flags(vhost::vhost_user::message::VhostUserHeaderFlag::NEED_REPLY);
    assert_eq!(front.get_queue_num().unwrap(), 2);
    assert!(front.get_max_mem_slots().unwrap() >= 8);
    let (_, space) = front
        .get_config(0, 8, VhostUserConfigFlags::WRITABLE, &[0; 8])
        .unwrap();
    assert_eq!(
        u64::from_le_bytes(space.try_into().unwrap()),
        DISK_SIZE / 512
    );

    let memory = vudev_frontend::GuestMemory::new();
    memory.add_region(1 << 20).unwrap();
    let region = |layout: &vudev_frontend::RegionLayout, file: std::os::fd::BorrowedFd<'_>| {
        vhost::VhostUserMemoryRegionInfo {
            guest_phys_addr: layout.guest_address,
            memory_size: layout.size,
            userspace_addr: layout.user_address,
            mmap_offset: layout.offset,
            mmap_handle: std::os::fd::AsRawFd::as_raw_fd(&file),
        }
    };
    memory
        .with_region(0, |layout, file| {
            front.set_mem_table(&[region(layout, file)])
        })
        .unwrap();
    let second = memory.add_region(1 << 20).unwrap();
    memory
        .with_region(second, |layout, file| {
            front.add_mem_region(&region(layout, file))
        })
        .unwrap();
    for ring in 0..2 {
        start_ring(&mut front, &memory, ring);
    }
    for ring in 0..2 {
        assert_eq!(front.get_vring_base(ring).unwrap(), 0);
        front.set_vring_enable(ring, false).unwrap();
    }
    memory
        .with_region(second, |layout, file| {
            front.remove_mem_region(&region(layout, file))
        })
        .unwrap();
    front.reset_device().unwrap();
}

fn start_ring(front: &mut Frontend, memory: &vudev_frontend::GuestMemory, ring: usize) {
    let area = || {
        let address = memory.allocate(4096, 4096).unwrap();
        memory.user_address(address).unwrap()
    };
    let event = || vmm_sys_util::eventfd::EventFd::new(libc::EFD_NONBLOCK).unwrap();
    front.set_vring_num(ring, 128).unwrap();
    front.set_vring_base(ring, 0).unwrap();
    let config = VringConfigData {
        queue_max_size: 128,
        queue_size: 128,
        flags: 0,
        desc_table_addr: area(),
        used_ring_addr: area(),
        avail_ring_addr: area(),
        log_addr: None,
    };
    front.set_vring_addr(ring, &config).unwrap();
    front.set_vring_call(ring, &event()).unwrap();
    front.set_vring_kick(ring, &event()).unwrap();
    front.set_vring_err(ring, &event()).unwrap();
    front.set_vring_enable(ring, true).unwrap();
}
