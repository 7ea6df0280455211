//! A console of several ports: what the device and a driver tell each other about them.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test panics where it fails, and its numbers are small"
)]

use std::io::{Read, Write, pipe};
use std::os::unix::net::{UnixListener, UnixStream};

use vudev_devices::console::{Console, ConsoleConfig, End, Overflow, PortConfig, Window};
use vudev_executor::Handle;
use vudev_virtio::Device;

mod common;

use common::{Rig, run};

const TELL: usize = 2;
const HEAR: usize = 3;

const F_SIZE: u64 = 1;
const F_MULTIPORT: u64 = 2;

const DEVICE_READY: u16 = 0;
const PORT_ADD: u16 = 1;
const PORT_READY: u16 = 3;
const CONSOLE_PORT: u16 = 4;
const RESIZE: u16 = 5;
const PORT_OPEN: u16 = 6;
const PORT_NAME: u16 = 7;

fn port(name: &str, end: End) -> PortConfig {
    PortConfig {
        name: Some(name.to_owned()),
        is_console: false,
        overflow: Overflow::Drop,
        ..PortConfig::new(end)
    }
}

/// A driver that took everything, on these ports.
fn start(handle: &Handle, ports: Vec<PortConfig>) -> Rig<Console> {
    let config = ConsoleConfig {
        ports,
        multiport: true,
    };
    Rig::start(
        handle,
        Console::with_ports(handle, config),
        F_SIZE | F_MULTIPORT,
    )
}

/// Says something about a port.
async fn say(console: &mut Rig<Console>, port: u32, event: u16, value: u16) {
    let mut bytes = port.to_le_bytes().to_vec();
    bytes.extend(event.to_le_bytes());
    bytes.extend(value.to_le_bytes());
    let message = console.put(&bytes);
    console.send(HEAR, &[message], &[]);
    assert_eq!(console.used(HEAR).await.written, 0);
}

/// Posts a buffer, and waits for what the device says in it: port, event, value, and the rest.
async fn hear(console: &mut Rig<Console>) -> (u32, u16, u16, Vec<u8>) {
    let buffer = console.allocate(64, 1);
    console.send(TELL, &[], &[buffer]);
    let written = console.used(TELL).await.written as usize;
    let bytes = console.bytes(buffer);
    let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    let port = u32::from(word(0)) | u32::from(word(2)) << 16;
    (port, word(4), word(6), bytes[8..written].to_vec())
}

/// Whether the device has nothing to say.
async fn is_silent(console: &mut Rig<Console>) -> bool {
    let buffer = console.allocate(64, 1);
    console.send(TELL, &[], &[buffer]);
    console.settle().await;
    let told = console.ring(TELL).poll_used().unwrap();
    // The buffer is not taken while there is nothing to say: it is found again.
    told.is_none() && console.in_flight(TELL) == 0
}

#[test]
fn ports_are_added_named_opened_and_sized_when_the_driver_asks() {
    let (_screen, output) = pipe().unwrap();
    run(async |handle| {
        let first = PortConfig {
            window: Some(Window {
                columns: 132,
                rows: 43,
            }),
            ..PortConfig::new(End::Nothing)
        };
        let ports = vec![first, port("org.example.0", End::File(output.into()))];
        let mut console = start(&handle, ports);
        assert_eq!(console.device.identity().queue_sizes.len(), 6);
        let mut space = [0; 12];
        console.device.read_config(0, &mut space);
        assert_eq!(space[4..8], [2, 0, 0, 0]);

        say(&mut console, 0, DEVICE_READY, 1).await;
        assert_eq!(hear(&mut console).await, (0, PORT_ADD, 0, vec![]));
        assert_eq!(hear(&mut console).await, (1, PORT_ADD, 0, vec![]));
        say(&mut console, 0, PORT_READY, 1).await;
        say(&mut console, 1, PORT_READY, 1).await;
        assert_eq!(hear(&mut console).await, (0, CONSOLE_PORT, 1, vec![]));
        // Columns, then rows.
        assert_eq!(
            hear(&mut console).await,
            (0, RESIZE, 0, vec![132, 0, 43, 0])
        );
        assert_eq!(hear(&mut console).await, (0, PORT_OPEN, 1, vec![]));
        let name = b"org.example.0".to_vec();
        assert_eq!(hear(&mut console).await, (1, PORT_NAME, 0, name));
        assert_eq!(hear(&mut console).await, (1, PORT_OPEN, 1, vec![]));
        let larger = Window {
            columns: 200,
            rows: 50,
        };
        console.device.resize(0, larger);
        assert_eq!(
            hear(&mut console).await,
            (0, RESIZE, 0, vec![200, 0, 50, 0])
        );
        assert!(is_silent(&mut console).await);
    });
}

#[test]
fn each_port_has_its_own_data_and_a_closed_one_is_given_none() {
    let ((mut a, out_a), (mut b, out_b)) = (pipe().unwrap(), pipe().unwrap());
    let (keys, mut keyboard) = pipe().unwrap();
    run(async |handle| {
        let mut second = port("b", End::File(out_b.into()));
        second.input = Some(keys.into());
        let ports = vec![port("a", End::File(out_a.into())), second];
        let mut console = start(&handle, ports);
        say(&mut console, 0, DEVICE_READY, 1).await;
        for (queue, text) in [(1, b"one"), (5, b"two")] {
            let buffer = console.put(text);
            console.send(queue, &[buffer], &[]);
            let _ = console.used(queue).await;
        }
        keyboard.write_all(b"keys").unwrap();
        let posted = console.allocate(10, 1);
        console.send(4, &[], &[posted]);
        console.settle().await;
        assert_eq!(console.ring(4).poll_used().unwrap(), None);
        say(&mut console, 1, PORT_READY, 1).await;
        say(&mut console, 1, PORT_OPEN, 1).await;
        assert_eq!(console.used(4).await.written, 4);
        say(&mut console, 1, PORT_OPEN, 0).await;
        keyboard.write_all(b"more").unwrap();
        let posted = console.allocate(10, 1);
        console.send(4, &[], &[posted]);
        console.settle().await;
        assert_eq!(console.ring(4).poll_used().unwrap(), None);
    });
    let mut text = String::new();
    a.read_to_string(&mut text).unwrap();
    b.read_to_string(&mut text).unwrap();
    assert_eq!(text, "onetwo");
}

/// Linux posts a port's buffers before it opens the port, and drops what comes until then.
#[test]
fn input_that_came_before_the_driver_waits_until_its_port_is_open() {
    let (keys, mut keyboard) = pipe().unwrap();
    keyboard.write_all(b"keys").unwrap();
    run(async |handle| {
        let mut second = port("b", End::Nothing);
        second.input = Some(keys.into());
        let mut console = start(&handle, vec![port("a", End::Nothing), second]);
        console.settle().await;
        say(&mut console, 0, DEVICE_READY, 1).await;
        let posted = console.allocate(10, 1);
        console.send(4, &[], &[posted]);
        console.settle().await;
        assert_eq!(console.ring(4).poll_used().unwrap(), None);
        say(&mut console, 1, PORT_READY, 1).await;
        say(&mut console, 1, PORT_OPEN, 1).await;
        assert_eq!(console.used(4).await.written, 4);
    });
}

#[test]
fn a_client_opens_its_port_and_closes_it_when_it_leaves() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    run(async |handle| {
        let mut console = start(&handle, vec![port("a", End::Listen(listener.into()))]);
        say(&mut console, 0, DEVICE_READY, 1).await;
        assert_eq!(hear(&mut console).await.1, PORT_ADD);
        say(&mut console, 0, PORT_READY, 1).await;
        assert_eq!(hear(&mut console).await.1, PORT_NAME);
        for _ in 0..3 {
            let client = UnixStream::connect(&path).unwrap();
            assert_eq!(hear(&mut console).await, (0, PORT_OPEN, 1, vec![]));
            drop(client);
            assert_eq!(hear(&mut console).await, (0, PORT_OPEN, 0, vec![]));
        }
    });
}

#[test]
fn nonsense_on_the_control_queue_changes_nothing_and_costs_nothing() {
    run(async |handle| {
        let mut console = start(&handle, vec![port("a", End::Nothing)]);
        for (port, event, value) in [
            (1, PORT_READY, 1),
            (u32::MAX, PORT_OPEN, 1),
            (0, PORT_ADD, 1),
            (0, PORT_NAME, 0),
            (0, 0xffff, 1),
            (7, RESIZE, 9),
        ] {
            say(&mut console, port, event, value).await;
        }
        for short in [&b""[..], b"1234567"] {
            let buffer = console.put(&[short, &[0]].concat()[..short.len().max(1)]);
            match short.is_empty() {
                true => console.send(HEAR, &[], &[buffer]),
                false => console.send(HEAR, &[buffer], &[]),
            };
            assert_eq!(console.used(HEAR).await.written, 0);
        }
        assert!(is_silent(&mut console).await);
    });
}

#[test]
fn a_driver_that_asks_without_end_and_takes_no_answer_is_told_once() {
    run(async |handle| {
        let mut console = start(&handle, vec![port("a", End::Nothing)]);
        for _ in 0..2000 {
            say(&mut console, 0, DEVICE_READY, 1).await;
            say(&mut console, 0, PORT_READY, 1).await;
        }
        assert_eq!(hear(&mut console).await, (0, PORT_ADD, 0, vec![]));
        assert_eq!(hear(&mut console).await, (0, PORT_NAME, 0, b"a".to_vec()));
        assert_eq!(hear(&mut console).await, (0, PORT_OPEN, 1, vec![]));
        assert!(is_silent(&mut console).await);
    });
}

#[test]
fn a_buffer_too_small_for_a_message_costs_that_message_only() {
    run(async |handle| {
        let mut console = start(&handle, vec![port("a-long-name", End::Nothing)]);
        say(&mut console, 0, DEVICE_READY, 1).await;
        assert_eq!(hear(&mut console).await.1, PORT_ADD);
        say(&mut console, 0, PORT_READY, 1).await;
        let small = console.allocate(10, 1);
        console.send(TELL, &[], &[small]);
        assert_eq!(console.used(TELL).await.written, 0);
        assert_eq!(hear(&mut console).await, (0, PORT_OPEN, 1, vec![]));
    });
}

#[test]
fn the_next_driver_is_told_everything_anew() {
    run(async |handle| {
        let mut console = start(&handle, vec![port("a", End::Nothing)]);
        for _ in 0..2 {
            say(&mut console, 0, DEVICE_READY, 1).await;
            assert_eq!(hear(&mut console).await.1, PORT_ADD);
            say(&mut console, 0, PORT_READY, 1).await;
            assert_eq!(hear(&mut console).await.1, PORT_NAME);
            assert_eq!(hear(&mut console).await.1, PORT_OPEN);
            for queue in 0..4 {
                console.stop_queue(queue).await;
            }
            console.device.reset();
            console.device.negotiated(console.features);
            for queue in 0..4 {
                console.start_queue(queue);
            }
        }
    });
}

#[test]
fn a_driver_that_knows_of_one_port_has_a_plain_console() {
    let (keys, mut keyboard) = pipe().unwrap();
    let (mut screen, output) = pipe().unwrap();
    run(async |handle| {
        let mut first = port("a", End::File(output.into()));
        first.input = Some(keys.into());
        let config = ConsoleConfig {
            ports: vec![first, port("b", End::Nothing)],
            multiport: true,
        };
        let mut console = Rig::prepare(&handle, Console::with_ports(&handle, config), 0);
        console.start_queue(0);
        console.start_queue(1);
        keyboard.write_all(b"ls").unwrap();
        let posted = console.allocate(10, 1);
        console.send(0, &[], &[posted]);
        assert_eq!(console.used(0).await.written, 2);
        let text = console.put(b"a b");
        console.send(1, &[text], &[]);
        let _ = console.used(1).await;
        let mut seen = [0; 3];
        screen.read_exact(&mut seen).unwrap();
        assert_eq!(&seen, b"a b");
    });
}
