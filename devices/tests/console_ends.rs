//! Ends of a console that come and go, output that nobody takes, sizes, and emergencies.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test panics where it fails, and its numbers are small"
)]

use std::cell::Cell;
use std::io::{ErrorKind, Read, Write, pipe};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use tempfile::TempDir;
use vudev_devices::console::{
    Connect, Console, ConsoleConfig, End, Framing, Overflow, PortConfig, Window,
};
use vudev_executor::Handle;
use vudev_virtio::Device;

mod common;

use common::{LIMIT, Rig, run, wait_until};

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;

fn start(handle: &Handle, port: PortConfig) -> Rig<Console> {
    let config = ConsoleConfig {
        ports: vec![port],
        multiport: false,
    };
    Rig::start(handle, Console::with_ports(handle, config), 0)
}

/// Sends a chain and waits until it is done with.
async fn print(console: &mut Rig<Console>, bytes: &[u8]) {
    let text = console.put(bytes);
    console.send(TRANSMIT, &[text], &[]);
    let _ = console.used(TRANSMIT).await;
}

/// What comes in next.
async fn receive(console: &mut Rig<Console>) -> Vec<u8> {
    let posted = console.allocate(10, 1);
    console.send(RECEIVE, &[], &[posted]);
    let used = console.used(RECEIVE).await;
    console.bytes(posted)[..used.written as usize].to_vec()
}

/// A place for a socket, for as long as the folder lives.
fn place() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    (folder, path)
}

/// A port that others connect to.
fn listening(path: &Path) -> PortConfig {
    let listener = UnixListener::bind(path).unwrap();
    PortConfig::new(End::Listen(listener.into()))
}

/// Reads until so much has come; from then on a read does not wait.
async fn collect(handle: &Handle, from: &mut (impl Read + AsFd), length: usize) -> Vec<u8> {
    let flags = fcntl_getfl(&*from).unwrap();
    fcntl_setfl(&*from, flags | OFlags::NONBLOCK).unwrap();
    let (mut seen, mut piece) = (Vec::new(), vec![0; 1 << 16]);
    wait_until(handle, || {
        while let Ok(read @ 1..) = from.read(&mut piece) {
            seen.extend(&piece[..read]);
        }
        seen.len() >= length
    })
    .await;
    seen
}

/// The next datagram.
async fn datagram(handle: &Handle, from: &UnixDatagram) -> String {
    from.set_nonblocking(true).unwrap();
    let mut bytes = [0; 4096];
    let mut length = 0;
    wait_until(handle, || match from.recv(&mut bytes) {
        Ok(received) => {
            length = received;
            true
        }
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::WouldBlock);
            false
        }
    })
    .await;
    String::from_utf8(bytes[..length].to_vec()).unwrap()
}

/// Whoever connects for the device, as the supervisor does; how often it was asked.
fn connector(path: PathBuf, datagrams: bool) -> (Connect, Rc<Cell<u32>>) {
    let asked = Rc::new(Cell::new(0));
    let counted = Rc::clone(&asked);
    let connect = move || -> vudev_devices::console::Connecting {
        counted.set(counted.get() + 1);
        let socket = if datagrams {
            UnixDatagram::unbound().and_then(|socket| {
                socket.connect(&path)?;
                Ok(OwnedFd::from(socket))
            })
        } else {
            UnixStream::connect(&path).map(OwnedFd::from)
        };
        Box::pin(std::future::ready(socket))
    };
    (Box::new(connect), asked)
}

#[test]
fn clients_are_served_one_after_another_and_each_gets_what_is_printed_then() {
    let (_folder, path) = place();
    run(async |handle| {
        let mut console = start(
            &handle,
            PortConfig {
                is_both_ways: true,
                overflow: Overflow::Drop,
                ..listening(&path)
            },
        );
        print(&mut console, b"to nobody").await;
        let mut first = UnixStream::connect(&path).unwrap();
        let mut second = UnixStream::connect(&path).unwrap();
        first.write_all(b"one").unwrap();
        assert_eq!(receive(&mut console).await, b"one");
        print(&mut console, b"to the first").await;
        assert_eq!(collect(&handle, &mut first, 12).await, b"to the first");
        drop(first);
        second.write_all(b"three").unwrap();
        assert_eq!(receive(&mut console).await, b"three");
        print(&mut console, b"to the second").await;
        assert_eq!(collect(&handle, &mut second, 13).await, b"to the second");
    });
}

#[test]
fn a_client_that_has_no_more_to_say_is_still_told() {
    let (_folder, path) = place();
    run(async |handle| {
        let mut console = start(
            &handle,
            PortConfig {
                is_both_ways: true,
                ..listening(&path)
            },
        );
        let mut client = UnixStream::connect(&path).unwrap();
        client.write_all(b"ls\n").unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(receive(&mut console).await, b"ls\n");
        console.settle().await;
        print(&mut console, b"a b c\n").await;
        assert_eq!(collect(&handle, &mut client, 6).await, b"a b c\n");
    });
}

#[test]
fn output_that_blocks_waits_for_a_client_and_loses_nothing() {
    let (_folder, path) = place();
    run(async |handle| {
        let mut console = start(&handle, listening(&path));
        let text: Vec<u8> = (0..1 << 20)
            .map(|at: u32| (at * 7 + at / 256) as u8)
            .collect();
        let buffer = console.put(&text);
        console.send(TRANSMIT, &[buffer], &[]);
        console.settle().await;
        assert_eq!(console.ring(TRANSMIT).poll_used().unwrap(), None);
        // A stop does not wait for anybody.
        assert_eq!(console.stop_queue(TRANSMIT).await, 0);
        console.start_queue(TRANSMIT);
        let mut client = UnixStream::connect(&path).unwrap();
        assert!(collect(&handle, &mut client, text.len()).await == text);
        let _ = console.used(TRANSMIT).await;
    });
}

#[test]
fn a_client_that_reads_nothing_holds_up_the_guest_for_a_second_and_then_no_more() {
    let (_folder, path) = place();
    run(async |handle| {
        let mut console = start(
            &handle,
            PortConfig {
                overflow: Overflow::Drop,
                ..listening(&path)
            },
        );
        let mut client = UnixStream::connect(&path).unwrap();
        console.settle().await;
        let begun = Instant::now();
        // More than a socket holds.
        print(&mut console, &vec![b'x'; 4 << 20]).await;
        let waited = begun.elapsed();
        assert!(
            waited > Duration::from_millis(900) && waited < LIMIT,
            "{waited:?}"
        );
        let begun = Instant::now();
        for _ in 0..20 {
            print(&mut console, &[b'y'; 1000]).await;
        }
        assert!(begun.elapsed() < Duration::from_millis(900));
        // Once it reads again it gets what is printed then.
        let seen = collect(&handle, &mut client, 1).await;
        assert!(seen.len() < 4 << 20 && !seen.contains(&b'y'));
        print(&mut console, b"zz").await;
        let seen = collect(&handle, &mut client, 2).await;
        assert_eq!(&seen[seen.len() - 2..], b"zz");
    });
}

#[test]
fn a_server_that_restarts_is_connected_to_again_and_no_line_is_lost() {
    let (_folder, path) = place();
    run(async |handle| {
        let (connect, asked) = connector(path.clone(), true);
        let mut console = start(
            &handle,
            PortConfig {
                framing: Framing::Lines,
                overflow: Overflow::Drop,
                ..PortConfig::new(End::Connect(connect))
            },
        );
        // There is none yet, and it comes within the second that is waited.
        let line = console.put(b"first\nsec");
        console.send(TRANSMIT, &[line], &[]);
        wait_until(&handle, || asked.get() > 1).await;
        let server = UnixDatagram::bind(&path).unwrap();
        assert_eq!(datagram(&handle, &server).await, "first\n");
        let _ = console.used(TRANSMIT).await;
        print(&mut console, b"ond\n").await;
        assert_eq!(datagram(&handle, &server).await, "second\n");
        drop(server);
        std::fs::remove_file(&path).unwrap();
        let server = UnixDatagram::bind(&path).unwrap();
        print(&mut console, b"third\nlast, without an end").await;
        assert_eq!(datagram(&handle, &server).await, "third\n");
        console.stop_queue(TRANSMIT).await;
        assert_eq!(datagram(&handle, &server).await, "last, without an end");
    });
}

#[test]
fn lines_for_the_log_are_made_of_what_is_printed() {
    let (_folder, path) = place();
    let server = UnixDatagram::bind(&path).unwrap();
    run(async |handle| {
        let (connect, _) = connector(path, true);
        let tag = "vm".to_owned();
        let mut console = start(
            &handle,
            PortConfig {
                framing: Framing::Syslog { tag },
                ..PortConfig::new(End::Connect(connect))
            },
        );
        print(&mut console, b"Linux version\r\n\x1b[1mbold\n").await;
        let first = datagram(&handle, &server).await;
        assert!(
            first.starts_with("<14>") && first.ends_with(" vm: Linux version "),
            "{first}"
        );
        let second = datagram(&handle, &server).await;
        assert!(second.ends_with(" vm: ?[1mbold"), "{second}");
    });
}

#[test]
fn a_stream_that_breaks_is_made_again_and_the_rest_goes_there() {
    let (_folder, path) = place();
    let listener = UnixListener::bind(&path).unwrap();
    run(async |handle| {
        let (connect, asked) = connector(path, false);
        let mut console = start(
            &handle,
            PortConfig {
                is_both_ways: true,
                ..PortConfig::new(End::Connect(connect))
            },
        );
        print(&mut console, b"one").await;
        let mut peer = listener.accept().unwrap().0;
        assert_eq!(collect(&handle, &mut peer, 3).await, b"one");
        drop(peer);
        wait_until(&handle, || asked.get() > 1).await;
        let mut peer = listener.accept().unwrap().0;
        print(&mut console, b"two").await;
        assert_eq!(collect(&handle, &mut peer, 3).await, b"two");
        peer.write_all(b"back").unwrap();
        assert_eq!(receive(&mut console).await, b"back");
    });
}

#[test]
fn the_time_stands_before_each_line_however_the_guest_cuts_it() {
    let (mut screen, output) = pipe().unwrap();
    run(async |handle| {
        let mut console = start(
            &handle,
            PortConfig {
                timestamps: true,
                ..PortConfig::new(End::File(output.into()))
            },
        );
        for part in [&b"a"[..], b"b\nc", b"\n\nd"] {
            print(&mut console, part).await;
        }
    });
    let mut text = String::new();
    screen.read_to_string(&mut text).unwrap();
    let lines: Vec<_> = text.lines().map(|line| line.split_at(35)).collect();
    assert!(
        lines
            .iter()
            .all(|(stamp, _)| stamp.starts_with("[ 2") && stamp.ends_with(" ]: "))
    );
    let lines: Vec<_> = lines.iter().map(|(_, line)| *line).collect();
    assert_eq!(lines, ["ab", "c", "", "d"]);
}

#[test]
fn a_stop_in_the_middle_of_stamped_lines_neither_loses_nor_doubles_one() {
    let (mut screen, output) = pipe().unwrap();
    let lines: String = (0..20_000).map(|line| format!("{line}\n")).collect();
    run(async |handle| {
        let mut console = start(
            &handle,
            PortConfig {
                timestamps: true,
                ..PortConfig::new(End::File(output.into()))
            },
        );
        let buffer = console.put(lines.as_bytes());
        console.send(TRANSMIT, &[buffer], &[]);
        console.settle().await;
        assert_eq!(console.stop_queue(TRANSMIT).await, 0);
        console.start_queue(TRANSMIT);
        let seen = collect(&handle, &mut screen, lines.len() + 35 * 20_000).await;
        let _ = console.used(TRANSMIT).await;
        let stripped: String = String::from_utf8(seen)
            .unwrap()
            .lines()
            .map(|line| format!("{}\n", &line[35..]))
            .collect();
        assert!(stripped == lines);
    });
}

#[test]
fn a_size_is_in_the_configuration_and_a_change_is_told() {
    run(async |handle| {
        let window = Window {
            columns: 80,
            rows: 25,
        };
        let console = start(
            &handle,
            PortConfig {
                window: Some(window),
                ..PortConfig::new(End::Nothing)
            },
        );
        let device = &console.device;
        assert_eq!(device.identity().features, 0b101);
        let size = || {
            let mut bytes = [0; 12];
            device.read_config(0, &mut bytes);
            bytes
        };
        assert_eq!(size(), [80, 0, 25, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        // A driver reads it when it hears of a change, and so of the first one too.
        console.settle().await;
        let told = async || handle.timeout(LIMIT, device.config_changed()).await;
        assert!(told().await.is_some());
        let larger = Window {
            columns: 300,
            rows: 1,
        };
        device.resize(0, larger);
        device.resize(1, window);
        assert!(told().await.is_some());
        assert_eq!(size()[..4], [44, 1, 1, 0]);
    });
}

#[test]
fn an_emergency_is_written_at_once_beside_a_queue_that_is_stuck() {
    let (_folder, path) = place();
    let server = UnixDatagram::bind(&path).unwrap();
    run(async |handle| {
        let (connect, _) = connector(path, true);
        let console = start(
            &handle,
            PortConfig {
                framing: Framing::Lines,
                ..PortConfig::new(End::Connect(connect))
            },
        );
        console.settle().await;
        for byte in b"panic!\n" {
            console.device.write_config(8, &[*byte, 0, 0, 0]).unwrap();
        }
        assert_eq!(datagram(&handle, &server).await, "panic!\n");
        for (offset, bytes) in [(0, &[1][..]), (4, &[1]), (9, &[1]), (8, &[]), (8, &[1; 5])] {
            assert!(
                console.device.write_config(offset, bytes).is_err(),
                "{offset}"
            );
        }
    });
}

#[test]
fn emergencies_without_end_cost_bounded_memory_and_come_out_whole_up_to_it() {
    let (mut screen, output) = pipe().unwrap();
    run(async |handle| {
        let console = start(&handle, PortConfig::new(End::File(output.into())));
        // No turn of the loop comes in between, so all but the first 4096 are beyond the bound.
        for number in 0..100_000_u32 {
            console.device.write_config(8, &[number as u8]).unwrap();
        }
        console.settle().await;
    });
    let mut bytes = Vec::new();
    screen.read_to_end(&mut bytes).unwrap();
    let expected: Vec<u8> = (0..4096_u32).map(|number| number as u8).collect();
    assert!(bytes == expected, "{} bytes", bytes.len());
}

#[test]
fn many_lines_in_one_chain_leave_others_their_turns() {
    let nowhere = std::fs::File::options().write(true).open("/dev/null");
    let port = PortConfig {
        framing: Framing::Lines,
        ..PortConfig::new(End::File(nowhere.unwrap().into()))
    };
    run(async |handle| {
        let mut console = start(&handle, port);
        let turns = Rc::new(Cell::new(0));
        let (counted, yielding) = (turns.clone(), handle.clone());
        let _other = handle.spawn(async move {
            loop {
                counted.set(counted.get() + 1);
                yielding.yield_now().await;
            }
        });
        let before = handle.stats().at_once;
        print(&mut console, &b"\n".repeat(10_000)).await;
        assert_eq!(handle.stats().at_once - before, 10_000);
        // One for each 128 lines.
        assert!(turns.get() >= 10_000 / 128, "{}", turns.get());
    });
}
