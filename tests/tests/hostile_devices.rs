//! Guests, front-ends and programs of the host that make it hard for one device, against the real,
//! jailed `vudev`: what they must not get is a queue that is lost, a front-end that waits, memory
//! without end, or more than a line of log.

#![allow(clippy::unwrap_used, reason = "a test that fails here says where")]

#[path = "support/card.rs"]
mod card;
#[path = "support/network.rs"]
mod network;

use std::io::Read;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use card::{CONTROL, Card, GUEST};
use network::{ip, tap};
use rustix::process::Signal;
use tempfile::TempDir;
use vudev_frontend::net::feature;
use vudev_frontend::vsock::{HOST, Packet, STREAM, Vsock, op};
use vudev_frontend::{Buffer, Builder, FrontEnd, LIMIT, Step};
use vudev_tests::{Vudev, VudevCommand};

const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;

/// Of a card without pairs.
const CONTROL_QUEUE: u16 = 2;
/// Of a console with ports: where the driver talks of them.
const HEAR: u16 = 3;
const F_MULTIPORT: u64 = 2;
const DEVICE_READY: u16 = 0;
const PORT_READY: u16 = 3;

/// More than any socket between has room for.
const TOO_MUCH: u32 = 2 << 20;

/// A folder for a device and its ends.
struct Scene {
    folder: TempDir,
}

impl Scene {
    fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("vudev-").tempdir().unwrap();
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A device of this kind, `DIR` standing for the folder; ready.
    fn start(&self, kind: &str, options: &str) -> Vudev {
        let folder = self.folder.path().to_str().unwrap();
        let options = options.replace("DIR", folder);
        let command = VudevCommand::new().unwrap();
        let command = command.device(kind, &options, &self.path("vhost"));
        let vudev = command.start().unwrap();
        until(
            || vudev.log().unwrap().contains("device is ready"),
            || vudev.log().unwrap(),
        );
        vudev
    }

    fn front(&self) -> Builder {
        FrontEnd::connect(self.path("vhost"))
    }
}

fn until(mut done: impl FnMut() -> bool, awaited: impl Fn() -> String) {
    let deadline = Instant::now() + LIMIT;
    while !done() {
        assert!(Instant::now() < deadline, "{}", awaited());
        std::thread::yield_now();
    }
}

/// Waits until something can be read.
fn wait_for_bytes(from: &UnixStream) {
    let arrived = || rustix::io::ioctl_fionread(from).unwrap() > 0;
    until(arrived, || "nothing comes".to_owned());
}

fn read_exactly(from: &mut UnixStream, length: usize) -> Vec<u8> {
    from.set_read_timeout(Some(LIMIT)).unwrap();
    let mut bytes = vec![0; length];
    from.read_exact(&mut bytes).unwrap();
    bytes
}

/// All that it has said, once it has ended.
fn last_log(mut vudev: Vudev) -> String {
    vudev.signal(Signal::TERM).unwrap();
    assert!(vudev.wait(LIMIT).unwrap().success());
    vudev.log().unwrap()
}

#[test]
fn memory_is_replaced_at_once_under_output_that_nobody_reads_and_no_byte_is_lost() {
    for options in ["", ",out-timestamp"] {
        let scene = Scene::new();
        let listener = UnixListener::bind(scene.path("out")).unwrap();
        let vudev = scene.start(
            "serial",
            &format!("type=unix-stream,path=DIR/out,overflow=block{options}"),
        );
        let (mut reader, _) = listener.accept().unwrap();
        let mut front = scene.front().memory(8 << 20).queues(2).start().unwrap();
        let address = front.memory().allocate(TOO_MUCH.into(), 4096).unwrap();
        let words = (0..TOO_MUCH / 4).flat_map(|word| (word | 0x8080_8080).to_le_bytes());
        let sent: Vec<u8> = words.collect();
        front.memory().write(address, &sent).unwrap();
        let ring = front.ring(TRANSMIT);
        ring.add(&[Buffer::new(address, TOO_MUCH)], &[]).unwrap();
        ring.kick().unwrap();
        wait_for_bytes(&reader);
        for _ in 0..3 {
            let begun = Instant::now();
            front.take(Step::MemoryTable).unwrap();
            assert!(
                begun.elapsed() < Duration::from_secs(2),
                "{:?}",
                begun.elapsed()
            );
        }
        // Without an end of line there is one time, before all of it.
        let stamp = if options.is_empty() {
            0
        } else {
            "[ 2022-08-19 11:22:33.000000000 ]: ".len()
        };
        let seen = read_exactly(&mut reader, stamp + sent.len());
        assert!(seen[stamp..] == sent, "other bytes");
        let _used = front.ring(TRANSMIT).wait_used(LIMIT).unwrap();
        assert!(
            !vudev.log().unwrap().contains("retired"),
            "{}",
            vudev.log().unwrap()
        );
    }
}

#[test]
fn a_console_driver_that_fails_without_end_is_one_line_of_the_log() {
    let scene = Scene::new();
    let vudev = scene.start("serial", "type=sink,name=port");
    let front = scene.front().memory(1 << 20).queues(4);
    let mut front = front.features(F_MULTIPORT).start().unwrap();
    let address = front.memory().allocate(8, 8).unwrap();
    for round in 0..500 {
        let event = [DEVICE_READY, PORT_READY][round % 2];
        let message = [
            [0; 4],
            [event.to_le_bytes(), [0; 2]].concat().try_into().unwrap(),
        ];
        front.memory().write(address, &message.concat()).unwrap();
        let written = front.ring(HEAR).exchange(&[Buffer::new(address, 8)], &[]);
        assert_eq!(written.unwrap(), 0);
    }
    drop(front);
    let log = last_log(vudev);
    assert_eq!(log.matches("cannot set up").count(), 1, "{log}");
    assert!(!log.contains("suppressed"), "{log}");
}

/// A card whose driver posts nothing by itself.
fn card(features: u64) -> Option<(Card, FrontEnd)> {
    if !network::enter() {
        return None;
    }
    tap("tap0", false);
    let card = Card::new("tap-name=tap0");
    let front = card.front(features).queues(3).start().unwrap();
    Some((card, front))
}

fn post(front: &mut FrontEnd, lengths: &[u32]) {
    for &length in lengths {
        let address = front.memory().allocate(length.into(), 1).unwrap();
        let ring = front.ring(RECEIVE);
        ring.add(&[], &[Buffer::new(address, length)]).unwrap();
    }
    front.ring(RECEIVE).kick().unwrap();
}

#[test]
fn receive_buffers_before_a_useless_one_come_back_empty_and_no_bug_is_reported() {
    let Some((card, mut front)) = card(feature::MRG_RXBUF) else {
        return;
    };
    post(&mut front, &[100, 4, 100, 100]);
    // The useless one comes back at once, the one before it when memory is replaced. Those behind
    // it are what they were, and are taken again.
    assert_eq!(front.ring(RECEIVE).wait_used(LIMIT).unwrap().written, 0);
    assert_eq!(front.ring(RECEIVE).in_flight(), 3);
    front.take(Step::MemoryTable).unwrap();
    assert_eq!(front.ring(RECEIVE).wait_used(LIMIT).unwrap().written, 0);
    front.stop().unwrap();
    assert_eq!(front.ring(RECEIVE).in_flight(), 2);
    drop(front);
    let log = last_log(card.vudev);
    assert!(!log.contains("error: "), "{log}");
}

#[test]
fn offloads_that_the_kernel_does_not_take_do_not_fill_the_log() {
    let Some((card, mut front)) = card(CONTROL | GUEST) else {
        return;
    };
    post(&mut front, &[2048]);
    ip("link del tap0");
    card.wait_for("the tap is gone");
    let command = front.memory().allocate(16, 8).unwrap();
    let answer = front.memory().allocate(1, 1).unwrap();
    for round in 0..300_u64 {
        let offloads = (round % 2) * feature::GUEST_CSUM;
        let bytes = [&[5, 0][..], &offloads.to_le_bytes()].concat();
        front.memory().write(command, &bytes).unwrap();
        let written = front
            .ring(CONTROL_QUEUE)
            .exchange(&[Buffer::new(command, 10)], &[Buffer::new(answer, 1)]);
        assert_eq!(written.unwrap(), 1);
    }
    drop(front);
    let log = last_log(card.vudev);
    let lines = log.matches("offloads").count();
    assert!((1..=10).contains(&lines), "{lines}: {log}");
    assert!(!log.contains("suppressed"), "{log}");
}

/// KiB of memory that are the device's alone.
fn own_memory(vudev: &Vudev) -> u64 {
    let device = vudev.devices().unwrap()[0];
    let status = std::fs::read_to_string(format!("/proc/{device}/status")).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let number = line.unwrap().trim().strip_suffix(" kB");
    number.unwrap().parse().unwrap()
}

fn descriptors(vudev: &Vudev) -> usize {
    let device = vudev.devices().unwrap()[0];
    let all = std::fs::read_dir(format!("/proc/{device}/fd"));
    all.unwrap().count()
}

#[test]
fn connections_that_a_guest_ends_without_taking_a_packet_keep_no_data() {
    const GROWTH_MAX: u64 = 2048;
    let scene = Scene::new();
    let vudev = scene.start("vsock", "cid=42,uds-path=DIR/v");
    let listener = UnixListener::bind(scene.path("v_1")).unwrap();
    let front = scene.front().memory(8 << 20);
    let mut guest = Vsock::start(front, 0, 4096, 20 << 10).unwrap();
    let mut before = 0;
    for port in 0..110 {
        let packet = |op| Packet {
            from: 42,
            to: HOST,
            from_port: port,
            to_port: 1,
            kind: STREAM,
            op,
            ..Packet::default()
        };
        let without = descriptors(&vudev);
        guest.send(&packet(op::REQUEST)).unwrap();
        let _unread = listener.accept().unwrap();
        // No packet tells this guest that it is connected.
        until(|| descriptors(&vudev) > without, || vudev.log().unwrap());
        // More than its socket takes, so that some is kept.
        for _ in 0..16 {
            guest
                .send(&packet(op::RW).with_data(&[7; 16 << 10]))
                .unwrap();
            guest.flush().unwrap();
        }
        guest.send(&packet(op::RST)).unwrap();
        guest.flush().unwrap();
        until(|| descriptors(&vudev) == without, || vudev.log().unwrap());
        if port == 9 {
            before = own_memory(&vudev);
        }
    }
    let grown = own_memory(&vudev).saturating_sub(before);
    assert!(grown < GROWTH_MAX, "{grown} KiB");
}
