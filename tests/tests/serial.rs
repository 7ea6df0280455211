//! Consoles of every type against the real, jailed `vudev`: sockets and terminals that come and go,
//! the system's log, sizes, emergencies, and that nothing is lost, or not in silence.

#![allow(clippy::unwrap_used, reason = "a test that fails here says where")]

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Signal;
use rustix::termios::{Winsize, tcsetwinsize};
use tempfile::TempDir;
use vudev_frontend::{Buffer, Builder, Console, FrontEnd, LIMIT};
use vudev_tests::{Terminal, Vudev, VudevCommand};

const TRANSMIT: u16 = 1;

const F_SIZE: u64 = 1;
const F_MULTIPORT: u64 = 2;

/// A folder, and the command that runs in it.
struct Scene {
    folder: TempDir,
}

impl Scene {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A console with these options, `DIR` standing for the folder; ready.
    fn start(&self, options: &str) -> Vudev {
        self.start_with(VudevCommand::new().unwrap(), &[options])
    }

    /// A console of these ports.
    fn start_with(&self, command: VudevCommand, ports: &[&str]) -> Vudev {
        let folder = self.folder.path().to_str().unwrap();
        let socket = self.path("vhost");
        let mut command = command.serial(&ports[0].replace("DIR", folder), &socket);
        for port in &ports[1..] {
            let options = format!("{port},vhost={}", socket.display());
            let argument = options.replace("DIR", folder);
            command = command.argument("--serial").argument(argument);
        }
        let vudev = command.start().unwrap();
        wait_for(&vudev, "device is ready", 1);
        vudev
    }

    fn front(&self) -> Builder {
        FrontEnd::connect(self.path("vhost"))
    }

    /// A driver with four receive buffers.
    fn console(&self) -> Console {
        Console::start(self.front().memory(1 << 20), 4).unwrap()
    }
}

/// Waits until `vudev` has said this so many times.
fn wait_for(vudev: &Vudev, words: &str, times: usize) {
    let said = || vudev.log().unwrap().matches(words).count() >= times;
    until(said, || format!("{words:?}: {}", vudev.log().unwrap()));
}

fn until(mut done: impl FnMut() -> bool, awaited: impl Fn() -> String) {
    let deadline = Instant::now() + LIMIT;
    while !done() {
        assert!(Instant::now() < deadline, "{}", awaited());
        std::thread::yield_now();
    }
}

fn stop(mut vudev: Vudev) {
    vudev.signal(Signal::TERM).unwrap();
    let status = vudev.wait(LIMIT).unwrap();
    assert!(status.success(), "{status}: {}", vudev.log().unwrap());
}

/// Reads so many bytes, within the limit.
fn read(mut from: impl Read + std::os::fd::AsFd, length: usize) -> Vec<u8> {
    let mut seen = Vec::new();
    let limit = Timespec::try_from(LIMIT).unwrap();
    while seen.len() < length {
        let ready = poll(&mut [PollFd::new(&from, PollFlags::IN)], Some(&limit)).unwrap();
        assert_eq!(ready, 1, "{length} bytes awaited, {} came", seen.len());
        let mut piece = vec![0; length - seen.len()];
        let count = from.read(&mut piece).unwrap();
        assert!(count > 0, "{length} bytes awaited, {} came", seen.len());
        seen.extend(&piece[..count]);
    }
    seen
}

fn datagram(from: &UnixDatagram) -> String {
    from.set_read_timeout(Some(LIMIT)).unwrap();
    let mut bytes = [0; 2048];
    let length = from.recv(&mut bytes).unwrap();
    String::from_utf8(bytes[..length].to_vec()).unwrap()
}

/// Bytes of which no two stretches of a page are alike: the same in each chain, but for the place
/// that stands at the front of each page.
fn pattern(length: u32) -> Vec<u8> {
    let words = (0..u64::from(length) / 8).map(|word| word.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    words.flat_map(u64::to_le_bytes).collect()
}

fn mark(at: u64, bytes: &mut [u8]) {
    for (page, bytes) in (0_u64..).zip(bytes.chunks_mut(4096)) {
        bytes[..8].copy_from_slice(&(at + page * 4096).to_le_bytes());
    }
}

#[test]
fn a_quarter_of_a_gibibyte_arrives_in_a_file_byte_for_byte() {
    const TOTAL: u64 = 256 << 20;
    const CHAIN: u32 = 128 << 10;
    const DEPTH: u64 = 32;
    let scene = Scene::new();
    let vudev = scene.start("type=file,path=DIR/out");
    let memory = DEPTH * u64::from(CHAIN) + (1 << 20);
    let mut front = scene.front().memory(memory).queues(2).start().unwrap();
    let room = front
        .memory()
        .allocate(DEPTH * u64::from(CHAIN), 4096)
        .unwrap();
    let buffer = |slot: u64| room + slot * u64::from(CHAIN);
    let mut piece = pattern(CHAIN);
    let begun = Instant::now();
    let (mut sent, mut done) = (0, 0);
    while done < TOTAL {
        // Chains come back in their order, so a place is free when its turn has come again.
        while sent < TOTAL && sent - done < DEPTH * u64::from(CHAIN) {
            let address = buffer(sent / u64::from(CHAIN) % DEPTH);
            mark(sent, &mut piece);
            front.memory().write(address, &piece).unwrap();
            let ring = front.ring(TRANSMIT);
            let _ = ring.add(&[Buffer::new(address, CHAIN)], &[]).unwrap();
            sent += u64::from(CHAIN);
        }
        front.ring(TRANSMIT).kick().unwrap();
        let _ = front.ring(TRANSMIT).wait_used(LIMIT).unwrap();
        done += u64::from(CHAIN);
    }
    let took = begun.elapsed();
    drop(front);
    stop(vudev);
    let mut out = File::open(scene.path("out")).unwrap();
    assert_eq!(out.metadata().unwrap().len(), TOTAL);
    let mut seen = vec![0; CHAIN as usize];
    for at in (0..TOTAL).step_by(CHAIN as usize) {
        mark(at, &mut piece);
        out.read_exact(&mut seen).unwrap();
        assert!(seen == piece, "in the {CHAIN} bytes from {at} on");
    }
    println!("256 MiB in {took:?}");
    assert!(took < Duration::from_secs(10), "{took:?}");
}

#[test]
fn a_terminal_of_our_own_echoes_for_one_user_after_another_and_its_link_goes_at_the_end() {
    let scene = Scene::new();
    let vudev = scene.start("type=pty,path=DIR/tty");
    let name = fs::read_link(scene.path("tty")).unwrap();
    assert!(name.starts_with("/dev/pts/"));
    assert!(vudev.log().unwrap().contains(name.to_str().unwrap()));
    let mut console = scene.console();
    for round in 1..=3 {
        let open = File::options()
            .read(true)
            .write(true)
            .open(scene.path("tty"));
        let mut user = open.unwrap();
        wait_for(&vudev, "the terminal has been opened", round);
        for text in ["l", "s", "\r\x03", "a longer line\n"] {
            user.write_all(text.as_bytes()).unwrap();
            let typed = console.receive(text.len(), LIMIT).unwrap();
            assert_eq!(typed, text.as_bytes());
            console.send(&typed).unwrap();
            assert_eq!(read(&user, text.len()), text.as_bytes());
        }
        drop(user);
        wait_for(&vudev, "the terminal has been closed", round);
        // Lost, since nobody is there; and the next user does not see it.
        console.send(b"nobody reads this").unwrap();
        wait_for(&vudev, "output is thrown away", round);
    }
    let user = File::options()
        .read(true)
        .write(true)
        .open(scene.path("tty"));
    wait_for(&vudev, "the terminal has been opened", 4);
    console.send(b"x").unwrap();
    assert_eq!(read(user.unwrap(), 1), b"x");
    let log = vudev.log().unwrap();
    assert_eq!(log.matches("the terminal has been opened").count(), 4);
    wait_for(
        &vudev,
        "output is written again: 17 bytes were thrown away, 51 in all",
        1,
    );
    stop(vudev);
    assert!(fs::symlink_metadata(scene.path("tty")).is_err());
}

#[test]
fn a_link_left_over_is_replaced_and_anything_else_is_not() {
    let scene = Scene::new();
    std::os::unix::fs::symlink("/dev/pts/no-such", scene.path("tty")).unwrap();
    let vudev = scene.start("type=pty,path=DIR/tty");
    assert!(scene.path("tty").exists());
    stop(vudev);
    fs::write(scene.path("tty"), "a user's file").unwrap();
    let options = format!("type=pty,path={}", scene.path("tty").display());
    let command = VudevCommand::new().unwrap();
    let error = command.serial(&options, &scene.path("vhost")).start();
    let error = format!("{:#}", error.err().unwrap());
    assert!(
        error.contains("remove what is there, or write another path"),
        "{error}"
    );
    assert_eq!(
        fs::read_to_string(scene.path("tty")).unwrap(),
        "a user's file"
    );
    assert!(!scene.path("vhost").exists());
}

#[test]
fn lines_reach_the_systems_log_through_a_restart_of_it() {
    let scene = Scene::new();
    let server = UnixDatagram::bind(scene.path("log")).unwrap();
    let vudev = scene.start("type=syslog,path=DIR/log");
    let mut console = scene.console();
    console.send(b"Linux version 6\r\nwith").unwrap();
    let line = datagram(&server);
    assert!(
        line.starts_with("<14>") && line.ends_with(" vudev: Linux version 6 "),
        "{line}"
    );
    drop(server);
    fs::remove_file(scene.path("log")).unwrap();
    let server = UnixDatagram::bind(scene.path("log")).unwrap();
    console.send(b" more\n").unwrap();
    assert!(datagram(&server).ends_with(" vudev: with more"));
    wait_for(&vudev, "connected to the other end", 2);
    stop(vudev);
}

#[test]
fn a_port_with_a_name_has_it_in_the_systems_log() {
    let scene = Scene::new();
    let server = UnixDatagram::bind(scene.path("log")).unwrap();
    let vudev = scene.start("type=syslog,path=DIR/log,name=mail,out-timestamp");
    let mut console = Console::over(multiport(&scene, 4), 1).unwrap();
    console.send(b"delivered\n").unwrap();
    let line = datagram(&server);
    let (_, text) = line.split_once(" mail: [ 2").unwrap();
    assert!(text.ends_with(" ]: delivered"), "{line}");
    stop(vudev);
}

#[test]
fn each_line_is_a_datagram_of_a_unix_socket() {
    let scene = Scene::new();
    let vudev = scene.start("type=unix,path=DIR/peer");
    wait_for(&vudev, "cannot be reached, and is tried again", 1);
    let peer = UnixDatagram::bind(scene.path("peer")).unwrap();
    let mut console = scene.console();
    console.send(b"one\ntwo\nthr").unwrap();
    console.send(b"ee\n").unwrap();
    let lines = [datagram(&peer), datagram(&peer), datagram(&peer)];
    assert_eq!(lines, ["one\n", "two\n", "three\n"]);
    stop(vudev);
}

#[test]
fn a_stream_is_connected_to_both_ways_and_again_when_its_server_restarts() {
    let scene = Scene::new();
    let server = UnixListener::bind(scene.path("peer")).unwrap();
    let vudev = scene.start("type=unix-stream,path=DIR/peer,input-unix-stream");
    let mut console = scene.console();
    let (mut peer, _) = server.accept().unwrap();
    console.send(b"hello").unwrap();
    assert_eq!(read(&peer, 5), b"hello");
    peer.write_all(b"world").unwrap();
    assert_eq!(console.receive(5, LIMIT).unwrap(), b"world");
    drop((peer, server));
    fs::remove_file(scene.path("peer")).unwrap();
    wait_for(&vudev, "the other end is gone", 1);
    let server = UnixListener::bind(scene.path("peer")).unwrap();
    let (peer, _) = server.accept().unwrap();
    console.send(b"again").unwrap();
    assert_eq!(read(&peer, 5), b"again");
    stop(vudev);
}

#[test]
fn clients_come_one_after_another_and_the_socket_is_removed_at_the_end() {
    let scene = Scene::new();
    let vudev = scene.start("type=unix-stream,path=DIR/door,listen,input-unix-stream");
    assert!(
        fs::metadata(scene.path("door"))
            .unwrap()
            .file_type()
            .is_socket()
    );
    let mut console = scene.console();
    for round in 1..=3_u8 {
        let mut client = UnixStream::connect(scene.path("door")).unwrap();
        client.write_all(&[round]).unwrap();
        assert_eq!(console.receive(1, LIMIT).unwrap(), [round]);
        console.send(&[round; 100]).unwrap();
        assert_eq!(read(&client, 100), [round; 100]);
        drop(client);
        wait_for(&vudev, "the client has left", round.into());
    }
    stop(vudev);
    assert!(!scene.path("door").exists());
}

#[test]
fn what_blocks_waits_for_its_client_and_what_drops_says_how_much() {
    for (overflow, arrives) in [("block", true), ("drop", false)] {
        let scene = Scene::new();
        let options = format!("type=unix-stream,path=DIR/door,listen,overflow={overflow}");
        let vudev = scene.start(&options);
        let mut front = scene.front().memory(1 << 20).queues(2).start().unwrap();
        let text = front.memory().allocate(8, 1).unwrap();
        front.memory().write(text, b"precious").unwrap();
        let ring = front.ring(TRANSMIT);
        let _ = ring.add(&[Buffer::new(text, 8)], &[]).unwrap();
        ring.kick().unwrap();
        if !arrives {
            let _ = ring.wait_used(LIMIT).unwrap();
            wait_for(&vudev, "output is thrown away (8 bytes so far)", 1);
        }
        let client = UnixStream::connect(scene.path("door")).unwrap();
        wait_for(&vudev, "a client has come", 1);
        if arrives {
            assert_eq!(read(&client, 8), b"precious");
            let _ = front.ring(TRANSMIT).wait_used(LIMIT).unwrap();
        }
        stop(vudev);
    }
}

#[test]
fn a_pipe_that_nobody_reads_blocks_the_guest_unless_it_is_told_to_drop() {
    let scene = Scene::new();
    let (_reader, writer) = std::io::pipe().unwrap();
    let command = VudevCommand::new().unwrap().output(writer);
    let vudev = scene.start_with(command, &["type=stdout,overflow=drop"]);
    let mut console = scene.console();
    // A pipe holds 64 KiB, and the guest is held up for a second at most.
    console.send(&vec![b'x'; 100_000]).unwrap();
    wait_for(&vudev, "its reader does not read", 1);
    stop(vudev);
}

#[test]
fn the_time_stands_before_each_line_of_a_file() {
    let scene = Scene::new();
    let vudev = scene.start("type=file,path=DIR/out,out_timestamp");
    let mut console = scene.console();
    console.send(b"one\ntw").unwrap();
    console.send(b"o\n").unwrap();
    stop(vudev);
    let text = fs::read_to_string(scene.path("out")).unwrap();
    let lines: Vec<_> = text.lines().map(|line| line.split_at(35)).collect();
    assert!(
        lines
            .iter()
            .all(|(stamp, _)| stamp.starts_with("[ 2") && stamp.ends_with(" ]: "))
    );
    assert_eq!(
        lines.iter().map(|line| line.1).collect::<Vec<_>>(),
        ["one", "two"]
    );
}

/// The size that a driver reads: columns and rows.
fn size(front: &mut FrontEnd) -> (u16, u16) {
    let bytes = front.connection().config(0, 4).unwrap();
    let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    (word(0), word(2))
}

fn resize(terminal: &impl std::os::fd::AsFd, columns: u16, rows: u16) {
    let size = Winsize {
        ws_col: columns,
        ws_row: rows,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(terminal, size).unwrap();
}

#[test]
fn a_driver_hears_of_the_terminals_size_and_of_its_changes() {
    let scene = Scene::new();
    let terminal = Terminal::open().unwrap();
    let user = terminal.program_end().unwrap();
    resize(&user, 132, 43);
    let command = VudevCommand::new().unwrap();
    let command = command.input(terminal.program_end().unwrap());
    let vudev = scene.start_with(command, &["type=sink,stdin"]);
    let mut front = scene.front().queues(2).features(F_SIZE).start().unwrap();
    let channel = front.connection().backend_channel().unwrap();
    assert_eq!(size(&mut front), (132, 43));
    // Once because the driver begins, which looks at it only then.
    channel.backend_request().unwrap();
    resize(&user, 80, 25);
    vudev.signal(Signal::WINCH).unwrap();
    channel.backend_request().unwrap();
    assert_eq!(size(&mut front), (80, 25));
    stop(vudev);
}

#[test]
fn the_size_of_our_own_terminal_is_read_again_when_the_operator_says_so() {
    let scene = Scene::new();
    let vudev = scene.start("type=pty,path=DIR/tty");
    let mut front = scene.front().queues(2).features(F_SIZE).start().unwrap();
    let channel = front.connection().backend_channel().unwrap();
    channel.backend_request().unwrap();
    let user = File::options()
        .read(true)
        .write(true)
        .open(scene.path("tty"))
        .unwrap();
    resize(&user, 90, 30);
    vudev.signal(Signal::USR1).unwrap();
    channel.backend_request().unwrap();
    assert_eq!(size(&mut front), (90, 30));
    stop(vudev);
}

#[test]
fn without_a_terminal_there_is_no_size() {
    let scene = Scene::new();
    let vudev = scene.start("type=file,path=DIR/out");
    let front = scene.front().queues(2).start().unwrap();
    assert_eq!(front.offered() & 0xff, 0b100);
    stop(vudev);
}

#[test]
fn an_emergency_write_is_in_the_output_at_once() {
    let scene = Scene::new();
    let vudev = scene.start("type=file,path=DIR/out");
    let mut front = scene.front().queues(2).start().unwrap();
    for byte in b"Oops" {
        let bytes = u32::from(*byte).to_le_bytes();
        front.connection().set_config(8, 0, &bytes).unwrap();
    }
    let out = || fs::read(scene.path("out")).unwrap();
    until(|| out() == b"Oops", || format!("{:?}", out()));
    stop(vudev);
}

/// A driver that took F_MULTIPORT, with so many queues.
fn multiport(scene: &Scene, queues: u16) -> FrontEnd {
    let front = scene.front().memory(1 << 20).queues(queues);
    front.features(F_MULTIPORT).start().unwrap()
}

#[test]
fn flags_of_one_socket_are_ports_of_one_device_and_each_has_its_own_end() {
    let scene = Scene::new();
    let ports = [
        "type=file,path=DIR/console",
        "type=file,path=DIR/a,name=org.example.a",
        "type=unix-stream,path=DIR/door,listen,name=org.example.b",
    ];
    let vudev = scene.start_with(VudevCommand::new().unwrap(), &ports);
    assert_eq!(vudev.devices().unwrap().len(), 1);
    let mut front = multiport(&scene, 8);
    assert_eq!(front.connection().config(4, 4).unwrap(), [3, 0, 0, 0]);
    let client = UnixStream::connect(scene.path("door")).unwrap();
    wait_for(&vudev, "port 2 (org.example.b): a client has come", 1);
    for (queue, text) in [(1, b"zero"), (5, b"one!"), (7, b"two!")] {
        let buffer = front.memory().allocate(4, 1).unwrap();
        front.memory().write(buffer, text).unwrap();
        let ring = front.ring(queue);
        let _ = ring.add(&[Buffer::new(buffer, 4)], &[]).unwrap();
        ring.kick().unwrap();
        let _ = ring.wait_used(LIMIT).unwrap();
    }
    assert_eq!(fs::read(scene.path("console")).unwrap(), b"zero");
    assert_eq!(fs::read(scene.path("a")).unwrap(), b"one!");
    assert_eq!(read(&client, 4), b"two!");
    stop(vudev);
}

#[test]
fn a_control_queue_that_is_flooded_costs_no_memory() {
    let scene = Scene::new();
    let vudev = scene.start("type=sink,name=a");
    let mut front = multiport(&scene, 4);
    let ready = front.memory().allocate(16, 1).unwrap();
    // DEVICE_READY, then PORT_READY; and never a buffer for the answers.
    let messages = [[0, 0, 0, 0, 0, 0, 1, 0], [0, 0, 0, 0, 3, 0, 1, 0]].concat();
    front.memory().write(ready, &messages).unwrap();
    let mut flood = |rounds: usize| {
        for _ in 0..rounds {
            let ring = front.ring(3);
            for at in (0..64).map(|number| ready + number % 2 * 8) {
                let _ = ring.add(&[Buffer::new(at, 8)], &[]).unwrap();
            }
            ring.kick().unwrap();
            for _ in 0..64 {
                let _ = ring.wait_used(LIMIT).unwrap();
            }
        }
    };
    flood(100);
    let before = memory_of(&vudev);
    flood(2000);
    let after = memory_of(&vudev);
    assert!(after <= before + 64, "{before} KiB, and then {after}");
    stop(vudev);
}

/// What the device's process has of its own, in KiB.
fn memory_of(vudev: &Vudev) -> u64 {
    let [device] = vudev.devices().unwrap()[..] else {
        panic!("one device");
    };
    let path = format!("/proc/{device}/status");
    let status = fs::read_to_string(Path::new(&path)).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmData:"));
    let words = line.unwrap().trim().split(' ').next().unwrap();
    words.parse().unwrap()
}
