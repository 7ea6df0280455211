//! The whole proxy between a device VM (a vfio-user client that is not ours, and a driver by hand)
//! and the front-ends of driver VMs.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::os::fd::AsFd;

use rustix::io::{pread, pwrite};
use vudev_frontend::message::{NEED_REPLY, REPLY, VERSION, frame, request};
use vudev_frontend::{Connection, Outcome};
use vudev_proxy::SharedMemory;
use vudev_proxy::testing::{
    BACKEND_UP, CONFIG_VECTOR, CONFIGURATION, DOORBELLS, DeviceVm, FIRST_KICK_VECTOR, Running,
    SHARED_MEMORY, TX_VECTOR, VIRTIO, await_event, borrowed, event, longs, ram_file,
};

const MIB: u64 = 1 << 20;

fn trapped() -> SharedMemory {
    SharedMemory::Trapped { bytes: 16 * MIB }
}

/// A proxy, its device VM, and a front-end that is connected.
fn connected(shared_memory: SharedMemory) -> (Running, DeviceVm, Connection) {
    let running = Running::start(shared_memory);
    let mut vm = DeviceVm::start(&running.vfio());
    let front = Connection::open(running.vhost()).unwrap();
    vm.bring_up();
    (running, vm, front)
}

/// A request of the front-end's as it comes to the driver.
fn carried(vm: &mut DeviceVm, front: &Connection, number: u32, payload: &[u8]) -> Vec<u8> {
    front.raw(&frame(number, VERSION, payload), &[]).unwrap();
    vm.receive()
}

/// The driver's reply as it comes to the front-end.
fn replied(vm: &mut DeviceVm, front: &Connection, number: u32, payload: &[u8]) -> Vec<u8> {
    vm.transmit(&frame(number, VERSION | REPLY, payload));
    match front.outcome().unwrap() {
        Outcome::Answered(header, payload) => {
            assert_eq!(header.request, number);
            payload
        }
        Outcome::Closed => panic!("the connection is closed"),
    }
}

/// SET_MEM_TABLE's payload: (guest address, size, user address, offset) of each.
fn table(regions: &[[u64; 4]]) -> Vec<u8> {
    let count = u32::try_from(regions.len()).unwrap();
    let mut payload = [count.to_ne_bytes(), [0; 4]].concat();
    payload.extend(longs(regions.as_flattened()));
    payload
}

#[test]
fn messages_are_carried_both_ways_but_for_what_cannot_cross() {
    let (_running, mut vm, front) = connected(trapped());
    let whole = frame(request::GET_FEATURES, VERSION, &[]);
    assert_eq!(carried(&mut vm, &front, request::GET_FEATURES, &[]), whole);
    let all = u64::MAX.to_ne_bytes();
    let answer = replied(&mut vm, &front, request::GET_FEATURES, &all);
    assert_eq!(answer, (!(1_u64 << 26)).to_ne_bytes());
    let answer = replied(&mut vm, &front, request::GET_PROTOCOL_FEATURES, &all);
    assert_eq!(answer, 0x1_2229_u64.to_ne_bytes());
    // Nor if the front-end wants it all the same.
    let number = request::SET_PROTOCOL_FEATURES;
    let message = carried(&mut vm, &front, number, &all);
    assert_eq!(message, frame(number, VERSION, &0x1_2229_u64.to_ne_bytes()));
    let message = carried(&mut vm, &front, request::SET_FEATURES, &all);
    assert_eq!(message[12..], (!(1_u64 << 26)).to_ne_bytes());
    // A number that only these two know, with a payload of a page, and flags as they are.
    let odd = frame(999, VERSION | NEED_REPLY | 0x100, &[0x5a; 4096]);
    front.raw(&odd, &[]).unwrap();
    assert_eq!(vm.receive(), odd);
    // Many more than there are buffers, at once and in order.
    for index in 0..100_u32 {
        let payload = index.to_ne_bytes();
        front.raw(&frame(1000, VERSION, &payload), &[]).unwrap();
    }
    for index in 0..100_u32 {
        assert_eq!(vm.receive()[12..], index.to_ne_bytes());
    }
}

#[test]
fn memory_in_the_ram_file_is_the_bar_and_its_table_lies_back_to_back() {
    let ram = ram_file(5 * MIB);
    let (_running, mut vm, front) = connected(SharedMemory::RamFile(borrowed(&ram)));
    let region = vm.client.region(SHARED_MEMORY).unwrap();
    assert_eq!(region.size, 8 * MIB);
    let area = &region.sparse_areas[0];
    assert_eq!((area.offset, area.size), (0, 5 * MIB));
    let bar = region.file_offset.as_ref().unwrap();
    assert_eq!(bar.start(), 0);
    pwrite(&ram, b"driver", 3 * MIB + 5).unwrap();
    let mut bytes = [0; 6];
    pread(bar.file(), &mut bytes, 3 * MIB + 5).unwrap();
    assert_eq!(&bytes, b"driver");
    assert_eq!(vm.read(SHARED_MEMORY, 3 * MIB + 5, 6), b"driver");
    vm.write(SHARED_MEMORY, 3 * MIB, b"device");
    pread(&ram, &mut bytes, 3 * MIB).unwrap();
    assert_eq!(&bytes, b"device");

    let user = 0x7f00_0000_0000;
    let low = [0, 2 * MIB, user, 0];
    let high = [4 << 30, 3 * MIB, user + 2 * MIB, 2 * MIB];
    let files = [ram.as_fd(), ram.as_fd()];
    let number = request::SET_MEM_TABLE;
    let message = frame(number, VERSION, &table(&[high, low]));
    front.raw(&message, &files).unwrap();
    let flat = [low, [high[0], high[1], high[2], 0]];
    assert_eq!(vm.receive(), frame(number, VERSION, &table(&flat)));
    // Two that touch in all ways are one.
    let halves = [[0, MIB, user, 0], [MIB, MIB, user + MIB, MIB]];
    let message = frame(number, VERSION, &table(&halves));
    front.raw(&message, &files).unwrap();
    assert_eq!(vm.receive(), frame(number, VERSION, &table(&[low])));
}

#[test]
fn memory_in_another_file_or_beyond_it_ends_the_session() {
    let ram = ram_file(2 * MIB);
    let other = ram_file(2 * MIB);
    let (running, mut vm, mut front) = connected(SharedMemory::RamFile(borrowed(&ram)));
    let wrong = [
        (&other, [0, MIB, 0, 0]),
        (&ram, [0, 4 * MIB, 0, 0]),
        (&ram, [0, MIB, 0, 2 * MIB]),
        (&ram, [0, u64::MAX, 0, 0]),
        (&ram, [0, 0, 0, 0]),
    ];
    for (file, region) in wrong {
        let message = frame(request::SET_MEM_TABLE, VERSION, &table(&[region]));
        front.raw(&message, &[file.as_fd()]).unwrap();
        front.wait_closed().unwrap();
        vm.await_status(0);
        front = Connection::open(running.vhost()).unwrap();
        vm.bring_up();
    }
}

#[test]
fn memory_of_any_files_is_reached_by_traps_until_the_session_ends() {
    let (running, mut vm, front) = connected(trapped());
    let region = vm.client.region(SHARED_MEMORY).unwrap();
    assert_eq!(region.size, 16 * MIB);
    assert!(region.file_offset.is_none() && region.sparse_areas.is_empty());
    assert_eq!(vm.read(SHARED_MEMORY, 0, 4), [0xff; 4]);
    let (one, two) = (ram_file(MIB), ram_file(4 * MIB));
    pwrite(&one, &[1], MIB - 1).unwrap();
    pwrite(&two, &[2], 3 * MIB).unwrap();
    // Their own offsets are gone in the table, and in the window.
    let regions = [
        [0, MIB, 0x1000_0000, 0],
        [4 << 30, MIB, 0x2000_0000, 3 * MIB],
    ];
    let message = frame(request::SET_MEM_TABLE, VERSION, &table(&regions));
    front.raw(&message, &[one.as_fd(), two.as_fd()]).unwrap();
    let mut forwarded = regions;
    forwarded[1][3] = 0;
    assert_eq!(vm.receive()[12..], table(&forwarded));
    assert_eq!(vm.read(SHARED_MEMORY, MIB - 1, 2), [1, 2]);
    vm.write(SHARED_MEMORY, MIB + 2, &[3, 4]);
    let mut bytes = [0; 2];
    pread(&two, &mut bytes, 3 * MIB + 2).unwrap();
    assert_eq!(bytes, [3, 4]);
    vm.write(SHARED_MEMORY, 2 * MIB, &[5]);
    assert_eq!(vm.read(SHARED_MEMORY, 2 * MIB, 1), [0xff]);
    drop(front);
    vm.await_status(0);
    assert_eq!(vm.read(SHARED_MEMORY, MIB - 1, 2), [0xff, 0xff]);
    // More than there is room for.
    let front = Connection::open(running.vhost()).unwrap();
    vm.bring_up();
    let large = ram_file(17 * MIB);
    let message = frame(
        request::SET_MEM_TABLE,
        VERSION,
        &table(&[[0, 17 * MIB, 0, 0]]),
    );
    front.raw(&message, &[large.as_fd()]).unwrap();
    front.wait_closed().unwrap();
}

#[test]
fn kicks_raise_vectors_and_doorbells_signal_calls_and_errors() {
    let (_running, mut vm, front) = connected(trapped());
    let (kick, call, error) = (event(), event(), event());
    let events = [
        (request::SET_VRING_KICK, &kick),
        (request::SET_VRING_CALL, &call),
        (request::SET_VRING_ERR, &error),
    ];
    for (number, event) in events {
        let payload = 2_u64.to_ne_bytes();
        let message = frame(number, VERSION, &payload);
        front.raw(&message, &[event.as_fd()]).unwrap();
        assert_eq!(vm.receive(), message);
    }
    for _ in 0..3 {
        rustix::io::write(&kick, &1_u64.to_ne_bytes()).unwrap();
        vm.interrupted(FIRST_KICK_VECTOR + 2);
    }
    // 64 doorbells of calls, then 64 of errors, four bytes apart.
    vm.write(DOORBELLS, 2 * 4, &2_u16.to_le_bytes());
    assert_eq!(await_event(&call, "call"), 1);
    vm.write(DOORBELLS, (64 + 2) * 4, &2_u16.to_le_bytes());
    assert_eq!(await_event(&error, "error"), 1);
    // A call that its owner has filled holds up nobody, nor do doorbells without one.
    let full = u64::MAX - 1;
    rustix::io::write(&call, &full.to_ne_bytes()).unwrap();
    for doorbell in [2, 3, 63, 66, 127, 128, 129, 2047] {
        vm.write(DOORBELLS, doorbell * 4, &[0, 0]);
    }
    assert_eq!(await_event(&call, "what it was filled with"), full);
    vm.write(DOORBELLS, 2 * 4, &[2, 0]);
    assert_eq!(await_event(&call, "call again"), 1);
    // Taken back.
    let message = frame(request::SET_VRING_CALL, VERSION, &0x102_u64.to_ne_bytes());
    front.raw(&message, &[]).unwrap();
    assert_eq!(vm.receive(), message);
    vm.write(DOORBELLS, 2 * 4, &[2, 0]);
    assert!(
        rustix::io::read(&call, &mut [0; 8]).is_err(),
        "a call was signalled"
    );
}

#[test]
fn requests_of_the_back_end_go_over_their_channel_and_answers_come_back() {
    let (_running, mut vm, front) = connected(trapped());
    // Without a channel nobody hears it, and the buffer comes back.
    vm.transmit(&frame(2, VERSION, &[]));
    let channel = front.backend_channel().unwrap();
    assert_eq!(
        vm.receive(),
        frame(request::SET_BACKEND_REQ_FD, VERSION, &[])
    );
    vm.transmit(&frame(2, VERSION, &[]));
    assert_eq!(channel.backend_request().unwrap(), 2);
    let answer = frame(2, VERSION | REPLY, &[0; 8]);
    channel.raw(&answer, &[]).unwrap();
    assert_eq!(vm.receive(), answer);
    drop(channel);
    assert_eq!(carried(&mut vm, &front, 1, &[]), frame(1, VERSION, &[]));
    vm.transmit(&frame(2, VERSION, &[]));
}

#[test]
fn a_front_end_that_breaks_the_rules_loses_its_session_and_no_other() {
    let (running, mut vm, mut front) = connected(trapped());
    let (file, event) = (ram_file(4096), event());
    let wrong: &[(Vec<u8>, usize)] = &[
        (frame(1, 2, &[]), 0),
        (frame(1, VERSION | REPLY, &[]), 0),
        (frame(1, VERSION, &[0; 4097]), 0),
        (frame(1, VERSION, &[]), 1),
        (frame(request::SET_LOG_BASE, VERSION, &[0; 16]), 1),
        (frame(request::SET_MEM_TABLE, VERSION, &table(&[])), 0),
        (
            frame(request::SET_MEM_TABLE, VERSION, &table(&[[0, 1, 0, 0]])),
            2,
        ),
        (frame(request::SET_MEM_TABLE, VERSION, &[0; 7]), 0),
        (
            frame(request::SET_VRING_KICK, VERSION, &64_u64.to_ne_bytes()),
            1,
        ),
        (
            frame(request::SET_VRING_KICK, VERSION, &0_u64.to_ne_bytes()),
            0,
        ),
        (
            frame(request::SET_VRING_KICK, VERSION, &0x100_u64.to_ne_bytes()),
            1,
        ),
        (
            frame(request::SET_VRING_CALL, VERSION, &0x200_u64.to_ne_bytes()),
            1,
        ),
        (frame(request::SET_VRING_ERR, VERSION, &[0; 4]), 1),
        (frame(request::SET_BACKEND_REQ_FD, VERSION, &[]), 0),
        (frame(1, VERSION, &[0; 9]), 9),
    ];
    for (message, descriptors) in wrong {
        let files = vec![event.as_fd(); *descriptors];
        front.raw(message, &files).unwrap();
        front.wait_closed().unwrap();
        vm.await_status(0);
        front = Connection::open(running.vhost()).unwrap();
        vm.bring_up();
    }
    // A file is no kick and no call; half a message is none.
    for number in [request::SET_VRING_KICK, request::SET_VRING_CALL] {
        let message = frame(number, VERSION, &0_u64.to_ne_bytes());
        front.raw(&message, &[file.as_fd()]).unwrap();
        front.wait_closed().unwrap();
        vm.await_status(0);
        front = Connection::open(running.vhost()).unwrap();
        vm.bring_up();
    }
    front.raw(&frame(1, VERSION, &[])[..7], &[]).unwrap();
    front.shut_down_sending().unwrap();
    front.wait_closed().unwrap();
    vm.await_status(0);
    // None of it came to the driver.
    let front = Connection::open(running.vhost()).unwrap();
    vm.bring_up();
    assert_eq!(carried(&mut vm, &front, 3, &[]), frame(3, VERSION, &[]));
}

#[test]
fn front_ends_come_one_after_the_other_when_the_driver_is_ready() {
    let running = Running::start(trapped());
    let mut vm = DeviceVm::start(&running.vfio());
    let waiting = Connection::open(running.vhost()).unwrap();
    waiting.raw(&frame(1, VERSION, &[]), &[]).unwrap();
    assert_eq!(vm.status(), 0);
    for session in 0..20_u32 {
        let front = match session {
            0 => None,
            _ => Some(Connection::open(running.vhost()).unwrap()),
        };
        let generation = vm.read(VIRTIO, 0x15, 1);
        vm.bring_up();
        assert_ne!(vm.read(VIRTIO, 0x15, 1), generation);
        let front = front.as_ref().unwrap_or(&waiting);
        if session > 0 {
            front.raw(&frame(1, VERSION, &[]), &[]).unwrap();
        }
        assert_eq!(vm.receive(), frame(1, VERSION, &[]));
        replied(&mut vm, front, 1, &session.to_ne_bytes());
        if session % 2 == 0 {
            // The driver ends it: no interrupt tells it what it has done itself.
            vm.set_status(0);
            front.wait_closed().unwrap();
            assert_eq!(vm.status(), 0);
        } else {
            front.shut_down_sending().unwrap();
            vm.await_status(0);
        }
        // What was for this front-end is not for the next.
        vm.transmit(&frame(1, VERSION | REPLY, &[9; 4]));
    }
}

#[test]
fn resets_of_all_kinds_end_the_session_and_the_function_works_again() {
    let (running, mut vm, mut front) = connected(trapped());
    let resets: [fn(&mut DeviceVm); 4] = [
        |vm| vm.write(VIRTIO, 0x14, &[0]),
        |vm| vm.client.reset().unwrap(),
        // PCI AF: its control byte is four behind the capability, which follows MSI-X's.
        |vm| vm.write(CONFIGURATION, 0x4c + 4, &[1]),
        |vm| vm.set_up(),
    ];
    for reset in resets.into_iter().cycle().take(12) {
        reset(&mut vm);
        front.wait_closed().unwrap();
        assert_eq!(vm.status(), 0);
        vm.set_up();
        front = Connection::open(running.vhost()).unwrap();
        vm.bring_up();
        assert_eq!(
            carried(&mut vm, &front, 5000, &[]),
            frame(5000, VERSION, &[])
        );
    }
}

#[test]
fn a_device_vm_that_goes_takes_the_session_along_and_another_takes_its_place() {
    let running = Running::start(trapped());
    for _ in 0..5 {
        let mut vm = DeviceVm::start(&running.vfio());
        let front = Connection::open(running.vhost()).unwrap();
        vm.bring_up();
        drop(vm);
        front.wait_closed().unwrap();
    }
}

#[test]
fn a_driver_that_breaks_its_rings_needs_a_reset_and_works_after_it() {
    let running = Running::start(trapped());
    let mut vm = DeviceVm::start(&running.vfio());
    let break_ring: [fn(&mut DeviceVm); 7] = [
        // A head outside the table, a message that is not what it says, and one of no protocol.
        |vm| {
            vm.tx.offer(99);
            vm.write(VIRTIO, 0x3004, &[1, 0]);
        },
        |vm| vm.offer_transmission(&frame(1, VERSION | REPLY, &[1; 8])[..19]),
        |vm| vm.offer_transmission(&[0; 12]),
        |vm| vm.offer_transmission(&[]),
        |vm| vm.offer_transmission(&frame(1, VERSION | REPLY, &[0; 4097])),
        // An index that jumped.
        |vm| {
            vm.area.write(0x3000 + 0x1002, &[99, 99]);
            vm.write(VIRTIO, 0x3004, &[1, 0]);
        },
        // Memory that is not mapped any more.
        |vm| {
            vm.client.dma_unmap(0x7_0000_4000, 4096).unwrap();
            vm.write(VIRTIO, 0x3004, &[1, 0]);
        },
    ];
    for broken in break_ring {
        vm.set_up();
        let front = Connection::open(running.vhost()).unwrap();
        vm.bring_up();
        broken(&mut vm);
        vm.await_status(0);
        front.wait_closed().unwrap();
        assert_eq!(vm.device_status(), 0x4f);
        // Until then nothing helps.
        vm.set_status(BACKEND_UP);
        assert_eq!(vm.status(), 0);
    }
}

#[test]
fn a_buffer_that_is_too_small_for_a_message_needs_a_reset() {
    let running = Running::start(trapped());
    let mut vm = DeviceVm::start(&running.vfio());
    for head in 0..8 {
        vm.rx.describe(head, 0x7_0000_6000, 100, 2, 0);
    }
    let front = Connection::open(running.vhost()).unwrap();
    vm.bring_up();
    front.raw(&frame(1, VERSION, &[0; 89]), &[]).unwrap();
    vm.await_status(0);
    assert_eq!(vm.device_status(), 0x4f);
    front.wait_closed().unwrap();
}

#[test]
fn interrupts_without_vectors_are_in_the_interrupt_status() {
    let (_running, mut vm, front) = connected(trapped());
    vm.write(VIRTIO, 0x10, &[0xff, 0xff]);
    vm.write(VIRTIO, 0x16, &[0, 0]);
    vm.write(VIRTIO, 0x1a, &[0xff, 0xff]);
    front.raw(&frame(1, VERSION, &[]), &[]).unwrap();
    vm.poll_until(|vm| vm.rx.take_used().is_some());
    drop(front);
    vm.poll_until(|vm| vm.status() == 0);
    let isr = vm.read(VIRTIO, 0x1000, 1);
    assert_eq!(isr, [3]);
    assert_eq!(vm.read(VIRTIO, 0x1000, 1), [0]);
    assert_eq!(vm.interrupted(CONFIG_VECTOR), 1, "of FRONTEND_UP, before");
    assert_eq!(vm.read(VIRTIO, 0x2004, 4), 64_u32.to_le_bytes());
    assert_eq!(vm.read(VIRTIO, 0x2008, 16), [7; 16]);
}

#[test]
fn a_driver_that_cannot_map_bars_reaches_them_by_the_configuration_space() {
    let running = Running::start(trapped());
    let mut vm = DeviceVm::start(&running.vfio());
    // `struct virtio_pci_cfg_cap`: bar at 4, offset at 8, length at 12, data at 16.
    let window = 0xd4;
    let aim = |vm: &mut DeviceVm, bar: u8, offset: u32, length: u32| {
        vm.write(CONFIGURATION, window + 4, &[bar]);
        vm.write(CONFIGURATION, window + 8, &offset.to_le_bytes());
        vm.write(CONFIGURATION, window + 12, &length.to_le_bytes());
    };
    aim(&mut vm, 0, 0x12, 2);
    assert_eq!(vm.read(CONFIGURATION, window + 16, 4), [2, 0, 0, 0]);
    assert_eq!(vm.read(CONFIGURATION, window + 16, 2), [2, 0]);
    aim(&mut vm, 0, 0x14, 1);
    vm.write(CONFIGURATION, window + 16, &[0]);
    assert_eq!(vm.device_status(), 0);
    // Nothing is behind a BAR's end, in one that is not there, or at odd places.
    for (bar, offset, length) in [(0, 0x4000, 4), (3, 0, 4), (7, 0, 4), (0, 1, 2), (0, 0, 3)] {
        aim(&mut vm, bar, offset, length);
        assert_eq!(
            vm.read(CONFIGURATION, window + 16, 4),
            [0; 4],
            "{bar} {offset:#x}"
        );
        vm.write(CONFIGURATION, window + 16, &[0xff; 4]);
    }
    // A read of all of it is none of the window.
    aim(&mut vm, 0, 0x1000, 1);
    vm.read(CONFIGURATION, 0, 256);
}

#[test]
fn what_was_on_its_way_when_a_session_ends_comes_back_to_the_driver() {
    let running = Running::start(trapped());
    let mut vm = DeviceVm::start(&running.vfio());
    let reply = frame(1, VERSION | REPLY, &[0; 4096]);
    for driver_ends in [true, false] {
        let front = Connection::open(running.vhost()).unwrap();
        vm.bring_up();
        // The front-end reads nothing, so that sooner or later one waits for room on its socket.
        let (mut offered, mut used) = (0, 0);
        loop {
            while offered - used < 8 {
                vm.offer_transmission(&reply);
                offered += 1;
            }
            let interrupted = vm.try_interrupted(TX_VECTOR);
            used += std::iter::from_fn(|| vm.tx.take_used()).count();
            if !interrupted && offered - used == 8 {
                break;
            }
        }
        match driver_ends {
            true => vm.set_status(0),
            false => drop(front),
        }
        vm.await_status(0);
        vm.poll_until(|vm| {
            used += std::iter::from_fn(|| vm.tx.take_used()).count();
            used == offered
        });
    }
}

#[test]
fn every_ring_that_there_may_be_has_its_kick_its_call_and_its_error() {
    let (_running, mut vm, front) = connected(trapped());
    let mut rings = Vec::new();
    for ring in 0..64_u16 {
        vm.write(DOORBELLS, 0x2000, &ring.to_le_bytes());
        vm.write(DOORBELLS, 0x2002, &FIRST_KICK_VECTOR.to_le_bytes());
        let events = [event(), event(), event()];
        let numbers = [
            request::SET_VRING_KICK,
            request::SET_VRING_CALL,
            request::SET_VRING_ERR,
        ];
        for (number, event) in numbers.into_iter().zip(&events) {
            let message = frame(number, VERSION, &u64::from(ring).to_ne_bytes());
            front.raw(&message, &[event.as_fd()]).unwrap();
            assert_eq!(vm.receive(), message);
        }
        rings.push(events);
    }
    // Of a ring that is not there nothing is said.
    vm.write(DOORBELLS, 0x2000, &[64, 0, 3, 0]);
    assert_eq!(vm.read(DOORBELLS, 0x2000, 4), [64, 0, 0xff, 0xff]);
    for (ring, [kick, call, error]) in (0_u64..).zip(&rings) {
        rustix::io::write(kick, &1_u64.to_ne_bytes()).unwrap();
        assert_eq!(vm.interrupted(FIRST_KICK_VECTOR), 1);
        vm.write(DOORBELLS, 4 * ring, &[0, 0]);
        assert_eq!(await_event(call, "call"), 1);
        vm.write(DOORBELLS, 4 * (64 + ring), &[0, 0]);
        assert_eq!(await_event(error, "error"), 1);
    }
}
