//! The socket device as users start it: jailed, driven over its socket, with programs of the host
//! at its Unix sockets. A thousand connections at once, some of which nobody reads.

#![expect(
    clippy::unwrap_used,
    reason = "a suite whose own set-up fails has nothing to test"
)]

#[path = "support/sockets.rs"]
mod sockets;

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sockets::{CID, GUEST_BUFFER, Guest, Program, run, stream};
use tempfile::TempDir;
use vudev_frontend::vsock::{EVENT, Packet, Vsock, op};
use vudev_frontend::{Buffer, FrontEnd, LIMIT};
use vudev_tests::{Vudev, VudevCommand};

/// How long a thousand connections may take.
const MANY_LIMIT: Duration = Duration::from_secs(10);
/// Connections at once, beside those that nobody reads.
const MANY: u32 = 1000;
/// Bytes that each of them sends, in both directions.
const LENGTH: usize = 8000;

/// What the device does with bytes that nobody reads is shown by more than all buffers have.
const TOO_MUCH: usize = 4 << 20;

struct Running {
    vudev: Vudev,
    folder: TempDir,
}

impl Running {
    fn new() -> Self {
        raise_limit();
        let folder = tempfile::Builder::new().prefix("vudev-").tempdir().unwrap();
        let path = folder.path().join("v");
        let options = format!("cid={CID},uds-path={}", path.display());
        let socket = folder.path().join("vsock.sock");
        let command = VudevCommand::new().unwrap();
        let command = command.device("vsock", &options, &socket);
        let vudev = command.start().unwrap();
        Self { vudev, folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn front(&self) -> vudev_frontend::Builder {
        FrontEnd::connect(self.path("vsock.sock"))
            .memory(16 << 20)
            .queue_size(256)
    }

    fn guest(&self) -> Guest {
        Guest::new(Vsock::start(self.front(), 256, 4096, 8192).unwrap())
    }

    /// Where programs of the host listen for guests that connect to `port`.
    fn listen(&self, port: u32) -> UnixListener {
        UnixListener::bind(self.path(&format!("v_{port}"))).unwrap()
    }

    /// A program of the host connects to the guest's port.
    fn call(&self, port: u32) -> UnixStream {
        let mut program = UnixStream::connect(self.path("v")).unwrap();
        program.set_read_timeout(Some(LIMIT)).unwrap();
        writeln!(program, "CONNECT {port}").unwrap();
        program
    }

    /// Pages of its own that the device's process has, in KiB.
    fn memory(&self) -> u64 {
        let device = self.vudev.devices().unwrap()[0];
        let status = std::fs::read_to_string(format!("/proc/{device}/status")).unwrap();
        let line = status.lines().find(|line| line.starts_with("RssAnon:"));
        let number = line.unwrap().split_whitespace().nth(1);
        number.unwrap().parse().unwrap()
    }

    fn stop(self) {
        self.vudev.stop().unwrap();
        assert!(!self.folder.path().join("v").exists(), "the socket is left");
    }
}

/// A test holds a thousand sockets and more.
fn raise_limit() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let limit = Rlimit {
        current: maximum,
        maximum,
    };
    setrlimit(Resource::Nofile, limit).unwrap();
}

#[expect(clippy::disallowed_methods, reason = "the programs are the other side")]
fn aside<T: Send + 'static>(programs: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    std::thread::spawn(programs)
}

/// The line that a program's wish is answered with.
fn answer(program: &mut UnixStream) -> String {
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        let mut byte = [0];
        if program.read(&mut byte).unwrap() == 0 {
            break;
        }
        line.push(byte[0]);
    }
    String::from_utf8(line).unwrap()
}

/// Each has what the other end sent, whatever the order; the number stands in front.
fn assert_streams(inputs: &[Vec<u8>]) {
    let mut numbers: Vec<u32> = Vec::new();
    for input in inputs {
        let number = u32::from_le_bytes(input[..4].try_into().unwrap());
        assert!(*input == stream(number, LENGTH), "of stream {number}");
        numbers.push(number);
    }
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), inputs.len(), "each is another one");
}

/// Lets everyone but the two that nobody reads send, receive and end.
fn finish_all(guest: &mut Guest, unread: &[(u32, u32)]) {
    guest.until(MANY_LIMIT, |guest| {
        let ends = guest.ends.iter();
        let done = |end: &sockets::End| end.input.len() == LENGTH + 4 && end.is_sent();
        let done: Vec<_> = ends
            .filter(|(name, end)| !unread.contains(name) && done(end))
            .map(|(name, _)| *name)
            .collect();
        done.into_iter().for_each(|name| guest.close(name));
        let mut ends = guest.ends.iter();
        ends.all(|(name, end)| unread.contains(name) || end.reset)
    });
    let ends = guest.ends.iter().filter(|(name, _)| !unread.contains(name));
    let inputs: Vec<_> = ends.map(|(_, end)| end.input.clone()).collect();
    assert_streams(&inputs);
    for name in unread {
        let end = &guest.ends[name];
        assert!(!end.reset && !end.is_sent(), "nobody reads {name:?}");
    }
}

#[test]
fn a_thousand_connections_of_the_guests_finish_while_two_are_never_read() {
    let running = Running::new();
    let (listener, unread) = (running.listen(80), running.listen(81));
    let host = aside(move || {
        let accept = |_| listener.accept().unwrap().0;
        let sockets: Vec<_> = (0..MANY).map(accept).collect();
        let programs = (0..).zip(sockets);
        let programs = programs.map(|(number, it)| Program::new(it, stream(number, LENGTH)));
        run(programs.collect(), MANY_LIMIT)
    });
    let mut guest = running.guest();
    // One that the host never reads, and one that the guest never reads.
    let (deaf_host, deaf_guest) = ((1, 81), (2, 81));
    for name in [deaf_host, deaf_guest] {
        guest.connect(name);
        guest.until(LIMIT, |guest| guest.ends[&name].open);
    }
    let first = unread.accept().unwrap().0;
    let second = unread.accept().unwrap().0;
    guest.ends.get_mut(&deaf_host).unwrap().output = vec![1; TOO_MUCH];
    let end = guest.ends.get_mut(&deaf_guest).unwrap();
    (end.deaf, end.output) = (true, vec![1; TOO_MUCH]);
    second.set_nonblocking(true).unwrap();
    while (&second).write(&[2; 65536]).is_ok() {}
    let idle = running.memory();
    let start = Instant::now();
    for number in 0..MANY {
        let name = (1000 + number, 80);
        guest.connect(name);
        guest.ends.get_mut(&name).unwrap().output = stream(number, LENGTH);
    }
    // All at once: none has ended before the last one has asked.
    finish_all(&mut guest, &[deaf_host, deaf_guest]);
    assert_streams(&host.join().unwrap());
    assert!(start.elapsed() < MANY_LIMIT);
    let grown = running.memory().saturating_sub(idle);
    println!("{MANY} of the guest's: {:?}, {grown} KiB", start.elapsed());
    assert!(grown < 32 * u64::from(MANY), "{grown} KiB for {MANY}");
    // It was sent as much as it had room for, and no byte more.
    let input = guest.ends[&deaf_guest].input.len();
    assert_eq!(input, usize::try_from(GUEST_BUFFER).unwrap());
    drop((first, second, guest));
    running.stop();
}

#[test]
fn a_thousand_connections_of_the_hosts_finish_while_one_is_never_read() {
    let running = Running::new();
    let mut guest = running.guest();
    let start = Instant::now();
    let deaf = running.call(5001);
    guest.until(LIMIT, |guest| guest.ends.len() == 1);
    let deaf_host = *guest.ends.keys().next().unwrap();
    guest.ends.get_mut(&deaf_host).unwrap().output = vec![1; TOO_MUCH];
    let path = running.path("v");
    let host = aside(move || {
        let connect = |_| {
            let mut program = UnixStream::connect(&path).unwrap();
            program.write_all(b"CONNECT 5000\n").unwrap();
            program
        };
        let programs: Vec<_> = (0..MANY).map(connect).collect();
        let answered = |(number, mut program)| {
            let line = answer(&mut program);
            assert!(line.starts_with("OK "), "{line:?}");
            Program::new(program, stream(number, LENGTH))
        };
        run((0..).zip(programs).map(answered).collect(), MANY_LIMIT)
    });
    let wanted = usize::try_from(MANY).unwrap() + 1;
    guest.until(MANY_LIMIT, |guest| guest.ends.len() == wanted);
    for (number, end) in (0..).zip(guest.ends.iter_mut().filter(|it| *it.0 != deaf_host)) {
        end.1.output = stream(number, LENGTH);
    }
    finish_all(&mut guest, &[deaf_host]);
    assert_streams(&host.join().unwrap());
    assert!(start.elapsed() < MANY_LIMIT);
    println!("{MANY} of the host's: {:?}", start.elapsed());
    drop((deaf, guest));
    running.stop();
}

#[test]
fn a_program_says_whom_it_wants_and_hears_the_port_that_stands_for_it() {
    let running = Running::new();
    let mut guest = running.guest();
    // What is said at once behind the greeting is the guest's too.
    let mut program = running.call(5000);
    program.write_all(b"early").unwrap();
    guest.until(LIMIT, |guest| {
        guest.ends.values().any(|it| it.input == b"early")
    });
    let name = *guest.ends.keys().next().unwrap();
    assert_eq!(
        (name.0, answer(&mut program)),
        (5000, format!("OK {}\n", name.1))
    );
    guest.ends.get_mut(&name).unwrap().output = b"late".to_vec();
    guest.until(LIMIT, |guest| guest.ends[&name].is_sent());
    let mut bytes = [0; 4];
    program.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"late");
    for wrong in ["HELLO 5000\n", "CONNECT x\n", &"x".repeat(40)] {
        let mut program = UnixStream::connect(running.path("v")).unwrap();
        program.set_read_timeout(Some(LIMIT)).unwrap();
        program.write_all(wrong.as_bytes()).unwrap();
        let ended = program.read(&mut bytes);
        let reset = |error: &std::io::Error| error.kind() == ErrorKind::ConnectionReset;
        assert!(
            matches!(&ended, Ok(0)) || ended.as_ref().is_err_and(reset),
            "{ended:?}"
        );
    }
    drop(guest);
    running.stop();
}

#[test]
fn a_guest_that_says_no_is_the_end_of_a_programs_wish() {
    let running = Running::new();
    let mut guest = running.guest();
    let mut program = running.call(5000);
    let request = guest.vsock.receive(LIMIT).unwrap();
    assert_eq!((request.op, request.to_port), (op::REQUEST, 5000));
    guest.send((5000, request.from_port), op::RST, 0);
    assert_eq!(answer(&mut program), "");
    drop(guest);
    running.stop();
}

#[test]
fn a_program_without_a_guest_is_hung_up_on() {
    let running = Running::new();
    let mut program = UnixStream::connect(running.path("v")).unwrap();
    program.set_read_timeout(Some(LIMIT)).unwrap();
    assert_eq!(program.read(&mut [0]).unwrap(), 0);
    running.stop();
}

#[test]
fn a_port_without_a_listener_is_a_reset_and_so_are_packets_out_of_place() {
    let running = Running::new();
    let _listener = running.listen(80);
    let mut guest = running.guest();
    guest.connect((1, 81));
    guest.until(LIMIT, |guest| guest.ends[&(1, 81)].reset);
    let good = |guest: &Guest| guest.packet((2, 80), op::RW);
    let sent: [fn(Packet) -> Packet; 4] = [
        |packet| packet,
        |packet| Packet { kind: 2, ..packet },
        |packet| Packet { op: 99, ..packet },
        |packet| Packet {
            op: op::RESPONSE,
            ..packet
        },
    ];
    for change in sent {
        let packet = change(good(&guest));
        guest.vsock.send(&packet).unwrap();
        let reset = guest.vsock.receive(LIMIT).unwrap();
        assert_eq!((reset.op, reset.kind), (op::RST, packet.kind), "{packet:?}");
        assert_eq!((reset.from_port, reset.to_port), (80, 2));
    }
    // Not answered: a reset, strange addresses, half of a header.
    let silent: [fn(Packet) -> Packet; 3] = [
        |packet| Packet {
            op: op::RST,
            ..packet
        },
        |packet| Packet {
            from: CID + 1,
            ..packet
        },
        |packet| Packet { to: 1, ..packet },
    ];
    for change in silent {
        let packet = change(good(&guest));
        guest.vsock.send(&packet).unwrap();
    }
    guest.vsock.send_bytes(&[1; 43]).unwrap();
    guest.vsock.flush().unwrap();
    guest.connect((3, 80));
    assert_eq!(guest.vsock.receive(LIMIT).unwrap().op, op::RESPONSE);
    drop(guest);
    running.stop();
}

#[test]
fn a_guest_that_lies_about_credit_or_length_loses_that_connection_only() {
    let running = Running::new();
    let listener = running.listen(80);
    let mut guest = running.guest();
    guest.connect((1, 80));
    guest.until(LIMIT, |guest| guest.ends[&(1, 80)].open);
    let lies: [fn(Packet) -> Packet; 3] = [
        // More forwarded than it was ever sent.
        |packet| Packet {
            forwarded: 1,
            op: op::CREDIT_UPDATE,
            ..packet
        },
        // More bytes in the header than in the chain.
        |packet| Packet {
            length: 100,
            op: op::RW,
            ..packet
        },
        // A second request of the same ports.
        |packet| Packet {
            op: op::REQUEST,
            ..packet
        },
    ];
    for (number, lie) in (2..).zip(lies) {
        let name = (number, 80);
        guest.connect(name);
        guest.until(LIMIT, |guest| guest.ends[&name].open);
        let packet = lie(guest.packet(name, 0));
        guest.vsock.send(&packet).unwrap();
        guest.until(LIMIT, |guest| guest.ends[&name].reset);
    }
    // Beyond the room that it was told of, while nobody reads.
    let name = (9, 80);
    guest.connect(name);
    guest.until(LIMIT, |guest| guest.ends[&name].open);
    while !guest.ends[&name].reset {
        let packet = guest.packet(name, op::RW).with_data(&[7; 8000]);
        guest.vsock.send(&packet).unwrap();
        guest.pump();
    }
    // The first one has heard of none of this.
    guest.ends.get_mut(&(1, 80)).unwrap().output = b"still here".to_vec();
    guest.until(LIMIT, |guest| guest.ends[&(1, 80)].is_sent());
    let mut bytes = [0; 10];
    let mut first = listener.accept().unwrap().0;
    first.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"still here");
    drop(guest);
    running.stop();
}

#[test]
fn halves_end_apart_and_what_was_sent_before_arrives() {
    let running = Running::new();
    let listener = running.listen(80);
    let mut guest = running.guest();
    let name = (1, 80);
    guest.connect(name);
    guest.until(LIMIT, |guest| guest.ends[&name].open);
    let mut program = listener.accept().unwrap().0;
    program.set_read_timeout(Some(LIMIT)).unwrap();
    // The guest says its last word, and still listens.
    guest.ends.get_mut(&name).unwrap().output = b"last".to_vec();
    guest.until(LIMIT, |guest| guest.ends[&name].is_sent());
    guest.send(name, op::SHUTDOWN, 2);
    let mut said = String::new();
    program.read_to_string(&mut said).unwrap();
    assert_eq!(said, "last");
    program.write_all(b"answer").unwrap();
    guest.until(LIMIT, |guest| guest.ends[&name].input == b"answer");
    // Then the host, and so it is over: the guest has the last word.
    program.shutdown(Shutdown::Write).unwrap();
    guest.until(LIMIT, |guest| guest.ends[&name].reset);
    assert_eq!(guest.ends[&name].ended, 3);
    // A guest that will not receive makes the host's writes fail.
    let name = (2, 80);
    guest.connect(name);
    guest.until(LIMIT, |guest| guest.ends[&name].open);
    let mut program = listener.accept().unwrap().0;
    program.set_write_timeout(Some(LIMIT)).unwrap();
    guest.send(name, op::SHUTDOWN, 1);
    let failed = loop {
        if let Err(error) = program.write(b"x") {
            break error.kind();
        }
    };
    assert_eq!(failed, ErrorKind::BrokenPipe);
    drop(guest);
    running.stop();
}

#[test]
fn what_a_guest_sent_before_it_closed_waits_for_a_host_that_reads_late() {
    let running = Running::new();
    let listener = running.listen(80);
    let mut guest = running.guest();
    let name = (1, 80);
    guest.connect(name);
    guest.until(LIMIT, |guest| guest.ends[&name].open);
    guest.ends.get_mut(&name).unwrap().output = vec![1; TOO_MUCH];
    // Until neither the socket nor the device takes any more.
    let mut before = usize::MAX;
    while before != guest.ends[&name].sent() {
        before = guest.ends[&name].sent();
        (0..20).for_each(|_| guest.pump());
    }
    guest.close(name);
    guest.until(LIMIT, |guest| guest.ends[&name].reset);
    let mut program = listener.accept().unwrap().0;
    program.set_read_timeout(Some(LIMIT)).unwrap();
    let mut all = Vec::new();
    program.read_to_end(&mut all).unwrap();
    assert_eq!(all.len(), before);
    drop(guest);
    running.stop();
}

#[test]
fn a_front_end_that_comes_back_finds_no_connection_and_hears_so() {
    let running = Running::new();
    let listener = running.listen(80);
    let mut guest = running.guest();
    guest.connect((1, 80));
    guest.until(LIMIT, |guest| guest.ends[&(1, 80)].open);
    let mut program = listener.accept().unwrap().0;
    program.set_read_timeout(Some(LIMIT)).unwrap();
    let parked = guest.vsock.into_front().leave().unwrap();
    assert_eq!(program.read(&mut [0]).unwrap(), 0);
    let mut front = parked.resume().unwrap();
    let event = front.memory().allocate(4, 4).unwrap();
    front.memory().write(event, &[9; 4]).unwrap();
    front
        .ring(EVENT)
        .add(&[], &[Buffer::new(event, 4)])
        .unwrap();
    front.ring(EVENT).kick().unwrap();
    assert_eq!(front.ring(EVENT).wait_used(LIMIT).unwrap().written, 4);
    let mut id = [9; 4];
    front.memory().read(event, &mut id).unwrap();
    assert_eq!(id, [0; 4], "VIRTIO_VSOCK_EVENT_TRANSPORT_RESET");
    drop(front);
    running.stop();
}

#[test]
fn the_configuration_space_is_the_guests_cid() {
    let running = Running::new();
    let mut front = running.front().queues(3).start().unwrap();
    let space = front.connection().config(0, 8).unwrap();
    assert_eq!(space, CID.to_le_bytes());
    drop(front);
    running.stop();
}
