//! What devices do that have nothing to do: nothing. The real `vudev` in its jail, with a driver at
//! each device, counted by the kernel while a neighbour works.

#![allow(clippy::unwrap_used, reason = "a test that fails here says where")]

#[path = "support/card.rs"]
mod card;
#[path = "support/network.rs"]
mod network;
mod support;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use card::Card;
use network::Wire;
use support::Running;
use vudev_frontend::vsock::{Packet, Vsock, op};
use vudev_frontend::{Block, Console, FrontEnd, LIMIT, Rng};
use vudev_tests::{Vudev, VudevCommand};

/// For how long the devices are looked at: a wake-up each millisecond would be many.
const SPAN: Duration = Duration::from_millis(400);

/// What the guard over a device's calls may wake it for, once, half a second after a call.
const GUARD: u64 = 1;

/// Of a processor, for that wake-up on a busy machine.
const RUN_MAX: Duration = Duration::from_millis(4);

/// Answered with a reset.
const TO_NOBODY: Packet = Packet {
    from: 3,
    to: 2,
    from_port: 1,
    to_port: 80,
    length: 0,
    kind: 1,
    op: op::RW,
    flags: 0,
    buffer: 4096,
    forwarded: 0,
    data: Vec::new(),
};

/// A process that sleeps.
struct Asleep {
    name: &'static str,
    device: u32,
    sleeps: u64,
    run: Duration,
}

impl Asleep {
    /// Waits until it does. Its last work must have been done.
    fn new(name: &'static str, device: u32) -> Self {
        let deadline = Instant::now() + LIMIT;
        while !status(device, "State:").starts_with('S') {
            assert!(Instant::now() < deadline, "{name} does not go to sleep");
            std::thread::yield_now();
        }
        Self {
            name,
            device,
            sleeps: sleeps(device),
            run: run(device),
        }
    }

    fn still_is(&self) {
        let Self {
            name,
            device,
            sleeps: before,
            run: ran,
        } = *self;
        let (woken, busy) = (sleeps(device) - before, run(device) - ran);
        assert!(woken <= GUARD, "{name} was woken {woken} times");
        assert!(busy <= RUN_MAX, "{name} ran for {busy:?}");
    }
}

fn status(device: u32, key: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{device}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    line.unwrap().trim().to_owned()
}

/// How often it has gone to sleep.
fn sleeps(device: u32) -> u64 {
    status(device, "voluntary_ctxt_switches:").parse().unwrap()
}

/// How long it has had a processor.
fn run(device: u32) -> Duration {
    let text = fs::read_to_string(format!("/proc/{device}/schedstat")).unwrap();
    let run = text.split_whitespace().next().unwrap();
    Duration::from_nanos(run.parse().unwrap())
}

/// Keeps a disk busy, a request after the other, for [`SPAN`]; how many those were.
fn work(block: &mut Block) -> u64 {
    let mut requests = 0;
    let mut bytes = [0; 4096];
    let start = Instant::now();
    while start.elapsed() < SPAN {
        block.read(0, &mut bytes).unwrap();
        requests += 1;
    }
    requests
}

fn front(folder: &Path, socket: &str) -> vudev_frontend::Builder {
    FrontEnd::connect(folder.join(socket)).memory(2 << 20)
}

/// Serial, disk, entropy and sockets, in the order of their processes.
fn four(folder: &Path, poll: &str) -> Vudev {
    let place = folder.display();
    let disk = folder.join("disk");
    fs::File::create(&disk).unwrap().set_len(1 << 20).unwrap();
    let block = format!("path={place}/disk{poll}");
    let vsock = format!("cid=3,uds-path={place}/v{poll}");
    let command = VudevCommand::new().unwrap();
    command
        .serial(&format!("type=sink{poll}"), &folder.join("serial"))
        .block(&block, &folder.join("block"))
        .device("rng", &format!("max-bytes=1G{poll}"), &folder.join("rng"))
        .device("vsock", &vsock, &folder.join("vsock"))
        .start()
        .unwrap()
}

#[test]
fn a_device_with_nothing_to_do_is_not_woken_and_does_not_poll() {
    let neighbour = Running::disk(",poll-us=1000");
    let mut busy = neighbour.block();
    for poll in ["", ",poll-us=0", ",poll-us=1000"] {
        let folder = tempfile::tempdir().unwrap();
        let vudev = four(folder.path(), poll);
        let mut console = Console::start(front(folder.path(), "serial"), 4).unwrap();
        let mut block = Block::start(front(folder.path(), "block"), 4, 4096).unwrap();
        let mut rng = Rng::start(front(folder.path(), "rng").queue_size(16)).unwrap();
        let mut vsock = Vsock::start(front(folder.path(), "vsock"), 16, 4096, 8192).unwrap();
        // All of them have worked, in quick succession.
        for _ in 0..50 {
            console.send(b"hello").unwrap();
            block.read(0, &mut [0; 512]).unwrap();
            rng.read(16, LIMIT).unwrap();
            vsock.send(&TO_NOBODY).unwrap();
            assert_eq!(vsock.receive(LIMIT).unwrap().op, op::RST);
        }
        let names = ["serial", "block", "rng", "vsock"];
        let devices = vudev.devices().unwrap();
        let asleep = names.into_iter().zip(devices);
        let asleep: Vec<_> = asleep.map(|(name, id)| Asleep::new(name, id)).collect();
        assert_eq!(asleep.len(), names.len());
        let requests = work(&mut busy);
        println!("{requests} requests meanwhile, with {poll:?}");
        asleep.iter().for_each(Asleep::still_is);
        drop((console, block, rng, vsock));
        vudev.stop().unwrap();
    }
}

#[test]
fn a_card_with_nothing_to_do_is_not_woken_either() {
    let neighbour = Running::disk("");
    let mut busy = neighbour.block();
    if !network::enter() {
        return;
    }
    network::tap("tap0", false);
    for poll in ["", ",poll-us=0", ",poll-us=1000"] {
        let card = Card::new(&format!("tap-name=tap0{poll}"));
        let wire = Wire::on("tap0");
        let mut net = card.driver(0, 64, 2048);
        for mark in 0..50 {
            card::goes_out(&mut net, &wire, mark);
            card::comes_in(&mut net, &wire, mark);
        }
        let asleep = Asleep::new("net", card.vudev.devices().unwrap()[0]);
        let requests = work(&mut busy);
        println!("{requests} requests meanwhile, with {poll:?}");
        asleep.still_is();
        drop(net);
        card.vudev.stop().unwrap();
    }
}
