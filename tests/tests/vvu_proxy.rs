//! `vudev --vvu-proxy` in its jail, between a device VM (a vfio-user client that is not ours, and a
//! driver by hand) and front-ends. What the messages come to is `vudev-proxy`'s suite; here is what
//! the process does under its policy, and outlives.

#![expect(
    clippy::unwrap_used,
    reason = "a suite whose own set-up fails has nothing to test"
)]

mod support;

use std::fs::File;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use support::Running;
use vudev_frontend::Connection;
use vudev_frontend::message::{REPLY, VERSION, frame, request};
use vudev_proxy::testing::{
    BACKEND_UP, DOORBELLS, DeviceVm, FIRST_KICK_VECTOR, Raw, SHARED_MEMORY, access, await_event,
    command, dma_map, event, header, longs, words,
};
use vudev_tests::VudevCommand;

const MIB: u64 = 1 << 20;

/// Bytes of the driver VM's memory.
const RAM: u64 = 4 * MIB;

/// The rings that a proxy has at most.
const RINGS: u64 = 64;

/// A proxy with its device VM and a front-end.
struct Connected {
    running: Running,
    vm: DeviceVm,
    front: Connection,
}

fn connected(ram: Option<u64>) -> Connected {
    let running = Running::proxy(ram);
    let mut vm = DeviceVm::start(&running.path("vfio"));
    let front = Connection::open(running.socket()).unwrap();
    vm.bring_up();
    Connected { running, vm, front }
}

fn ram(running: &Running) -> File {
    let path = running.path("ram");
    File::options().read(true).write(true).open(path).unwrap()
}

/// SET_MEM_TABLE with one region.
fn table(size: u64) -> Vec<u8> {
    let payload = [words(&[1, 0]), longs(&[0, size, 0x7000_0000, 0])].concat();
    frame(request::SET_MEM_TABLE, VERSION, &payload)
}

/// Gives an eventfd to a ring.
fn give(vm: &mut DeviceVm, front: &Connection, number: u32, ring: u64) -> OwnedFd {
    let event = event();
    let message = frame(number, VERSION, &ring.to_ne_bytes());
    front.raw(&message, &[event.as_fd()]).unwrap();
    assert_eq!(vm.receive(), message);
    event
}

/// A message there and one back.
fn exchange(vm: &mut DeviceVm, front: &Connection) {
    let asked = frame(request::GET_FEATURES, VERSION, &[]);
    front.raw(&asked, &[]).unwrap();
    assert_eq!(vm.receive(), asked);
    let answer = frame(request::GET_FEATURES, VERSION | REPLY, &[0; 8]);
    vm.transmit(&answer);
    front.outcome().unwrap();
}

/// Kicks a ring and has its call signalled, as a request does.
fn request(vm: &mut DeviceVm, ring: u64, kick: &OwnedFd, call: &OwnedFd) {
    rustix::io::write(kick, &1_u64.to_ne_bytes()).unwrap();
    vm.interrupted(FIRST_KICK_VECTOR + u16::try_from(ring % 4).unwrap());
    vm.write(DOORBELLS, 4 * ring, &[0, 0]);
    await_event(call, "call");
}

/// The numbers of the last line about traps: registers, MSI-X, doorbells, shared memory,
/// configuration.
fn traps(running: &Running) -> Vec<u64> {
    let log = running.log();
    let (_, line) = log.rsplit_once("traps of this session: ").unwrap();
    let line = line.lines().next().unwrap();
    line.split(|c: char| !c.is_ascii_digit())
        .filter(|digits| !digits.is_empty())
        .map(|digits| digits.parse().unwrap())
        .collect()
}

#[test]
fn a_front_end_whose_memory_is_the_ram_file_is_served_through_the_jail() {
    let Connected {
        running,
        mut vm,
        front,
    } = connected(Some(RAM));
    exchange(&mut vm, &front);
    let file = ram(&running);
    let message = table(RAM);
    front.raw(&message, &[file.as_fd()]).unwrap();
    assert_eq!(vm.receive(), message);
    // What QEMU would map is the file itself.
    let bar = vm.client.region(SHARED_MEMORY).unwrap();
    let bar = bar.file_offset.as_ref().unwrap().file();
    rustix::io::pwrite(bar, b"shared", RAM - 6).unwrap();
    let mut bytes = [0; 6];
    rustix::io::pread(&file, &mut bytes, RAM - 6).unwrap();
    assert_eq!(&bytes, b"shared");
    running.tell_refresh();
    exchange(&mut vm, &front);
    drop((vm, front));
    running.stop();
}

/// A driver VM with two devices has a proxy for each: one RAM file, and sockets of their own. The
/// front-ends come before the device VM does.
#[test]
fn several_proxies_and_a_device_run_side_by_side_on_one_memory() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    File::create(path("ram")).unwrap().set_len(RAM).unwrap();
    let mut command = VudevCommand::new().unwrap();
    for number in 0..2 {
        let (vfio, ram) = (path(&format!("vfio{number}")), path("ram"));
        let options = format!("socket={},ram-file={}", vfio.display(), ram.display());
        let vhost = path(&format!("vhost{number}"));
        command = command.device("vvu-proxy", &options, &vhost);
    }
    let vudev = command
        .serial("type=sink", &path("serial"))
        .start()
        .unwrap();
    for number in 0..2 {
        let front = Connection::open(path(&format!("vhost{number}"))).unwrap();
        front
            .raw(&table(RAM), &[File::open(path("ram")).unwrap().as_fd()])
            .unwrap();
        let mut vm = DeviceVm::start(&path(&format!("vfio{number}")));
        vm.bring_up();
        assert_eq!(vm.receive(), table(RAM));
        exchange(&mut vm, &front);
    }
    vudev.stop().unwrap();
}

#[test]
fn every_ring_has_its_kick_its_call_and_its_error_under_the_policy() {
    let Connected {
        running,
        mut vm,
        front,
    } = connected(None);
    let mut events = Vec::new();
    for ring in 0..RINGS {
        let numbers = [
            request::SET_VRING_KICK,
            request::SET_VRING_CALL,
            request::SET_VRING_ERR,
        ];
        events.push(numbers.map(|number| give(&mut vm, &front, number, ring)));
    }
    for (ring, [kick, call, error]) in (0..).zip(&events) {
        if ring < 4 {
            request(&mut vm, ring, kick, call);
        }
        vm.write(DOORBELLS, 4 * ring, &[0, 0]);
        await_event(call, "call");
        vm.write(DOORBELLS, 4 * (RINGS + ring), &[0, 0]);
        await_event(error, "error");
    }
    // A front-end that fills its own eventfd holds up nobody.
    let [_, call, _] = &events[0];
    rustix::io::write(call, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    vm.write(DOORBELLS, 0, &[0, 0]);
    exchange(&mut vm, &front);
    drop((vm, front));
    running.stop();
}

/// What a request costs the device VM: a store to a doorbell if it is told to the driver VM, and
/// nothing else. Memory is mapped, a kick is an interrupt.
#[test]
fn a_request_traps_once_for_its_call_and_never_for_memory() {
    let mut registers = Vec::new();
    for requests in [10, 100] {
        let Connected {
            running,
            mut vm,
            front,
        } = connected(Some(RAM));
        front.raw(&table(RAM), &[ram(&running).as_fd()]).unwrap();
        vm.receive();
        let kick = give(&mut vm, &front, request::SET_VRING_KICK, 0);
        let call = give(&mut vm, &front, request::SET_VRING_CALL, 0);
        for _ in 0..requests {
            request(&mut vm, 0, &kick, &call);
        }
        drop(front);
        running.wait_for("traps of this session", 1);
        let traps = traps(&running);
        println!("{requests} requests: {traps:?}");
        assert_eq!(traps[1..], [0, requests, 0, 0], "{}", running.log());
        registers.push(traps[0]);
        drop(vm);
        running.stop();
    }
    // Those of the messages, and of waiting for the front-end.
    assert!(registers.iter().all(|count| *count < 16), "{registers:?}");
}

#[test]
fn without_a_ram_file_every_access_to_memory_traps() {
    let Connected {
        running,
        mut vm,
        front,
    } = connected(None);
    let memory = tempfile::tempfile().unwrap();
    memory.set_len(MIB).unwrap();
    front.raw(&table(MIB), &[memory.as_fd()]).unwrap();
    vm.receive();
    for at in (0..800).step_by(8) {
        vm.write(SHARED_MEMORY, at, b"8 bytes.");
        assert_eq!(vm.read(SHARED_MEMORY, at, 8), b"8 bytes.");
    }
    drop(front);
    running.wait_for("traps of this session", 1);
    assert_eq!(traps(&running)[1..], [0, 0, 200, 0]);
    drop(vm);
    running.stop();
}

#[test]
fn memory_that_is_not_the_ram_file_is_named_with_the_remedy_and_the_next_front_end_served() {
    let Connected {
        running,
        mut vm,
        front,
    } = connected(Some(RAM));
    let other = tempfile::tempfile().unwrap();
    other.set_len(RAM).unwrap();
    front.raw(&table(RAM), &[other.as_fd()]).unwrap();
    front.wait_closed().unwrap();
    running.wait_for(
        "memory that does not lie in the RAM file: give the driver VM memory-",
        1,
    );
    vm.await_status(0);
    let front = Connection::open(running.socket()).unwrap();
    vm.bring_up();
    let message = table(RAM);
    front.raw(&message, &[ram(&running).as_fd()]).unwrap();
    assert_eq!(vm.receive(), message);
    drop((vm, front));
    running.stop();
}

#[test]
fn memory_that_is_lost_under_the_proxy_is_not_its_end() {
    let Connected {
        running,
        mut vm,
        front,
    } = connected(Some(RAM));
    assert_eq!(vm.read(SHARED_MEMORY, RAM - 8, 8), [0; 8]);
    ram(&running).set_len(4096).unwrap();
    vm.read(SHARED_MEMORY, RAM - 8, 8);
    vm.write(SHARED_MEMORY, RAM / 2, &[1; 8]);
    exchange(&mut vm, &front);
    // Then that of the device VM, where the rings are.
    rustix::fs::ftruncate(vm.area.file(), 0).unwrap();
    vm.write(0, 0x3004, &[1, 0]);
    front.wait_closed().unwrap();
    running.wait_for("the device needs a reset", 1);
    drop((vm, front));

    let mut vm = DeviceVm::start(&running.path("vfio"));
    let front = Connection::open(running.socket()).unwrap();
    vm.bring_up();
    exchange(&mut vm, &front);
    drop((vm, front));
    running.stop();
}

/// A client that does not know when to stop.
fn flood(client: &mut Raw) {
    // As many as the socket takes without an answer being read.
    let read = command(1, 9, &access(0, 0, 4096));
    let short = Some(Duration::from_millis(20));
    client.0.set_write_timeout(short).unwrap();
    let mut sent = 0;
    while client.send(&read, &[]).is_ok() {
        sent += read.len();
        assert!(sent < 64 << 20, "all of it is taken");
    }
}

#[test]
fn clients_that_send_nonsense_leave_nothing_behind_and_the_next_is_served() {
    let running = Running::proxy(Some(RAM));
    let idle = running.descriptors();
    let hostile: [&dyn Fn(&mut Raw); 9] = [
        // A piece of a header, of a payload.
        &|client| client.send(&[1, 2, 3], &[]).unwrap(),
        &|client| client.send(&header(0, 9, 32, 0), &[]).unwrap(),
        // Shorter than its header, longer than anything.
        &|client| client.send(&header(0, 9, 15, 0), &[]).unwrap(),
        &|client| client.send(&header(0, 9, u32::MAX, 0), &[]).unwrap(),
        &|client| client.send(&[0xff; 4000], &[]).unwrap(),
        // Unknown, and refused without the end of the stream.
        &|client| {
            for number in [0, 6, 11, 12, 14, 15, 99] {
                assert!(client.outcome(number, &[0; 64], &[]).is_err(), "{number}");
            }
        },
        // A write of more than is taken.
        &|client| assert!(client.outcome(10, &[0; 9000], &[]).is_err()),
        // Descriptors where none belong.
        &|client| {
            let files: Vec<_> = (0..16).map(|_| event()).collect();
            let files: Vec<_> = files.iter().map(AsFd::as_fd).collect();
            let _ = client.send(&command(1, 4, &words(&[16, 0, 0, 0])), &files);
        },
        &flood,
    ];
    for round in 0..3 {
        for deed in hostile {
            let mut client = Raw::agreed(UnixStream::connect(running.path("vfio")).unwrap());
            deed(&mut client);
            // A refusal of ours may have come first.
            let _ = client.0.shutdown(Shutdown::Both);
        }
        let vm = DeviceVm::start(&running.path("vfio"));
        drop(vm);
        let ended = (round + 1) * (hostile.len() + 1);
        // One line a second at most tells of what was wrong, so ends are counted by connections.
        running.wait_for("VMM has connected", ended);
        running.wait_for("VMM has left", round + 1);
    }
    await_descriptors(&running, &idle);
    assert!(
        running.private_memory() < 4096,
        "{} KiB",
        running.private_memory()
    );
    running.stop();
}

#[test]
fn the_log_tells_who_is_there_and_who_waits_and_nothing_of_who_only_looked() {
    let running = Running::proxy(Some(RAM));
    let (socket, vfio) = (running.socket(), running.path("vfio"));
    let ready = format!("ready at {socket:?}, socket {vfio:?} (process ");
    running.wait_for(&ready, 1);
    // As another vudev does that is started with the same socket.
    drop(UnixStream::connect(&vfio).unwrap());
    running.wait_for("somebody looked", 1);
    let front = Connection::open(socket).unwrap();
    running.wait_for("and waits for vudev in the device VM", 1);
    assert!(!running.log().contains("VMM has"), "{}", running.log());
    let mut vm = DeviceVm::start(&vfio);
    vm.bring_up();
    running.wait_for("the front-end is served", 1);
    drop(front);
    vm.await_status(0);
    running.wait_until_left(1);
    drop(vm);
    running.wait_for("VMM has left", 1);
    running.stop();
}

/// The client's end comes to the proxy some time after ours.
fn await_descriptors(running: &Running, expected: &[String]) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while running.descriptors() != expected {
        assert!(Instant::now() < deadline, "{:?}", running.descriptors());
        std::thread::yield_now();
    }
}

/// With an IOMMU in the device VM a DMA_MAP is a page: as many as its driver has pages.
#[test]
fn pages_of_one_file_cost_one_mapping_and_no_descriptors() {
    let running = Running::proxy(Some(RAM));
    let mut client = Raw::agreed(UnixStream::connect(running.path("vfio")).unwrap());
    let pages = 4096_u64;
    let memory = tempfile::tempfile().unwrap();
    memory.set_len(pages << 12).unwrap();
    let map = |client: &mut Raw, page: u64| {
        let payload = dma_map(3, page << 12, page << 13, 4096);
        client.outcome(2, &payload, &[memory.as_fd()]).unwrap();
    };
    map(&mut client, 0);
    let (descriptors, mappings) = (running.descriptors(), running.mappings());
    let private = running.private_memory();
    (1..pages).for_each(|page| map(&mut client, page));
    assert_eq!(running.descriptors(), descriptors);
    assert!(running.mappings() <= mappings + 2, "{}", running.mappings());
    let grown = running.private_memory().saturating_sub(private);
    assert!(grown < 2048, "{grown} KiB for {pages} pages");
    drop(client);
    running.stop();
}

#[test]
fn both_sides_come_and_go_a_hundred_times_and_nothing_stays() {
    let running = Running::proxy(Some(RAM));
    let idle = running.descriptors();
    let mut settled = 0;
    for round in 0..100 {
        let mut vm = DeviceVm::start(&running.path("vfio"));
        let front = Connection::open(running.socket()).unwrap();
        vm.bring_up();
        exchange(&mut vm, &front);
        // The device VM ends first, the front-end does, or the driver dies: its kernel resets the
        // function.
        match round % 3 {
            0 => {}
            1 => {
                drop(front);
                vm.await_status(0);
            }
            _ => {
                vm.client.reset().unwrap();
                front.wait_closed().unwrap();
                assert_eq!(vm.status() & BACKEND_UP, 0);
            }
        }
        drop(vm);
        running.wait_for("VMM has left", round + 1);
        if round == 20 {
            settled = running.private_memory();
        }
    }
    await_descriptors(&running, &idle);
    let grown = running.private_memory().saturating_sub(settled);
    assert!(grown <= 64, "{grown} KiB more after 80 rounds");
    running.stop();
}

#[test]
fn a_stop_ends_the_proxy_at_once_though_both_sides_are_there() {
    let Connected {
        running,
        mut vm,
        front,
    } = connected(Some(RAM));
    let _kick = give(&mut vm, &front, request::SET_VRING_KICK, 0);
    let begun = Instant::now();
    running.stop();
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(1), "{took:?}");
    front.wait_closed().unwrap();
    assert!(vm.client.region_read(0, 0, &mut [0; 4]).is_err());
}
