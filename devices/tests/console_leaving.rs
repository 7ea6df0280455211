//! Who comes to a console's port, says something and leaves at once: all of it reaches the guest,
//! for as long as the guest takes it.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test panics where it fails, and its numbers are small"
)]

use std::fs::File;
use std::future::ready;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};
use tempfile::TempDir;
use vudev_devices::console::{Connecting, Console, ConsoleConfig, End, Overflow, PortConfig};
use vudev_executor::Handle;

mod common;

use common::{Rig, run, wait_until};

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const TELL: usize = 2;
const HEAR: usize = 3;

const F_MULTIPORT: u64 = 2;
const DEVICE_READY: u16 = 0;
const PORT_ADD: u16 = 1;
const PORT_READY: u16 = 3;
const PORT_OPEN: u16 = 6;
const PORT_NAME: u16 = 7;

/// What a guest reads at once.
const PIECE: usize = 10_000;
/// What is left for the last read.
const LAST: usize = 1500;
/// How long a guest that reads nothing has.
const UNREAD_LIMIT: Duration = Duration::from_secs(5);

/// What the device says, of all tests.
struct Log(Mutex<Vec<String>>);

static LOG: Log = Log(Mutex::new(Vec::new()));

impl log::Log for Log {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let line = format!("{} {}", record.level(), record.args());
        self.0.lock().unwrap().push(line);
    }

    fn flush(&self) {}
}

/// A guest and its only port, which it has opened.
struct Guest(Rig<Console>);

impl Guest {
    async fn start(handle: &Handle, port: PortConfig) -> Self {
        let config = ConsoleConfig {
            ports: vec![port],
            multiport: true,
        };
        let console = Console::with_ports(handle, config);
        let mut this = Self(Rig::start(handle, console, F_MULTIPORT));
        this.say(DEVICE_READY).await;
        assert_eq!(this.hear().await.0, PORT_ADD);
        this.say(PORT_READY).await;
        assert_eq!(this.hear().await.0, PORT_NAME);
        this.say(PORT_OPEN).await;
        this
    }

    /// Says something about the port.
    async fn say(&mut self, event: u16) {
        let [low, high] = event.to_le_bytes();
        let message = self.0.put(&[0, 0, 0, 0, low, high, 1, 0]);
        self.0.send(HEAR, &[message], &[]);
        let _ = self.0.used(HEAR).await;
    }

    /// What it hears next: the event and its value.
    async fn hear(&mut self) -> (u16, u16) {
        let buffer = self.0.allocate(64, 1);
        self.0.send(TELL, &[], &[buffer]);
        let _ = self.0.used(TELL).await;
        let bytes = self.0.bytes(buffer);
        let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        (word(4), word(6))
    }

    /// Hears that the port is open, or closed.
    async fn is_told(&mut self, open: bool) {
        assert_eq!(self.hear().await, (PORT_OPEN, open.into()));
    }

    /// Asks to be told, for [`Guest::has_heard`].
    fn listen(&mut self) {
        let buffer = self.0.allocate(64, 1);
        self.0.send(TELL, &[], &[buffer]);
    }

    async fn has_heard(&mut self) -> bool {
        self.0.settle().await;
        self.0.ring(TELL).poll_used().unwrap().is_some()
    }

    /// What comes in next.
    async fn receive(&mut self) -> Vec<u8> {
        let posted = self.0.allocate(PIECE, 1);
        self.0.send(RECEIVE, &[], &[posted]);
        let used = self.0.used(RECEIVE).await;
        self.0.bytes(posted)[..used.written as usize].to_vec()
    }

    async fn receive_all(&mut self, length: usize) -> Vec<u8> {
        let mut seen = Vec::new();
        while seen.len() < length {
            seen.extend(self.receive().await);
        }
        seen
    }

    /// Has nothing to hear before it has read all of `text`, and then that the port is closed.
    async fn reads_to_the_end(&mut self, text: &[u8]) {
        self.listen();
        let mut seen = self.receive_all(text.len() - LAST).await;
        assert!(seen.len() < text.len() && !self.has_heard().await);
        seen.extend(self.receive_all(text.len() - seen.len()).await);
        assert!(seen == text, "{} of {} bytes", seen.len(), text.len());
        let _ = self.0.used(TELL).await;
    }
}

/// Bytes that differ everywhere.
fn text(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 31 + at / 251) as u8).collect()
}

/// More than a guest takes at once, and less than a socket holds.
fn much() -> Vec<u8> {
    text(14 * PIECE + LAST)
}

fn both_ways(end: End) -> PortConfig {
    PortConfig {
        name: Some("a".to_owned()),
        is_console: false,
        is_both_ways: true,
        ..PortConfig::new(end)
    }
}

/// A place for a socket, and who listens there.
fn place() -> (TempDir, PathBuf, UnixListener) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    (folder, path, listener)
}

/// A client that says something and leaves.
fn visit(path: &PathBuf, text: &[u8]) {
    UnixStream::connect(path).unwrap().write_all(text).unwrap();
}

/// A terminal: what a port has of it, and its name.
fn terminal() -> (End, PathBuf) {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap();
    let path = PathBuf::from(name.to_str().unwrap());
    // A master says that nobody has the terminal open only after somebody had.
    let user = open(&path);
    let mut settings = tcgetattr(&user).unwrap();
    settings.make_raw();
    tcsetattr(&user, OptionalActions::Now, &settings).unwrap();
    drop(user);
    fcntl_setfl(&master, OFlags::NONBLOCK).unwrap();
    let opens = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).unwrap();
    inotify::add_watch(&opens, &path, WatchFlags::OPEN).unwrap();
    (End::Terminal { master, opens }, path)
}

fn open(path: &PathBuf) -> File {
    File::options().read(true).write(true).open(path).unwrap()
}

#[test]
fn a_client_that_speaks_and_leaves_is_read_to_its_end_before_the_next_is_served() {
    let (_folder, path, listener) = place();
    run(async |handle| {
        let port = both_ways(End::Listen(listener.into()));
        let mut guest = Guest::start(&handle, port).await;
        for round in 0..3 {
            visit(&path, &much());
            visit(&path, format!("the next of {round}").as_bytes());
            guest.is_told(true).await;
            guest.reads_to_the_end(&much()).await;
            guest.is_told(true).await;
            let next = format!("the next of {round}").into_bytes();
            assert_eq!(guest.receive().await, next);
            guest.is_told(false).await;
        }
    });
}

#[test]
fn a_server_that_speaks_and_leaves_is_read_to_its_end_before_the_next_is_sought() {
    let (_folder, path, listener) = place();
    run(async |handle| {
        let connect = move || -> Connecting {
            Box::pin(ready(UnixStream::connect(&path).map(OwnedFd::from)))
        };
        let port = both_ways(End::Connect(Box::new(connect)));
        let mut guest = Guest::start(&handle, port).await;
        for _ in 0..3 {
            guest.is_told(true).await;
            listener.accept().unwrap().0.write_all(&much()).unwrap();
            guest.reads_to_the_end(&much()).await;
        }
    });
}

#[test]
fn who_writes_to_a_terminal_and_closes_it_at_once_is_read_to_the_end() {
    let (end, path) = terminal();
    run(async |handle| {
        let mut guest = Guest::start(&handle, both_ways(end)).await;
        // What a terminal holds.
        let text = text(3000);
        for _ in 0..3 {
            // Before the device can see that it is open, and while the device sees it.
            open(&path).write_all(&text).unwrap();
            guest.is_told(true).await;
            assert_eq!(guest.receive_all(text.len()).await, text);
            guest.is_told(false).await;
            let mut user = open(&path);
            guest.is_told(true).await;
            guest.listen();
            user.write_all(&text).unwrap();
            drop(user);
            assert!(!guest.has_heard().await);
            assert_eq!(guest.receive_all(text.len()).await, text);
            let _ = guest.0.used(TELL).await;
        }
    });
}

/// The device's writes fail before it is told that the client has gone, or after.
#[test]
fn a_client_that_the_guest_writes_to_as_it_leaves_is_read_to_its_end() {
    for overflow in [Overflow::Block, Overflow::Drop] {
        let (_folder, path, listener) = place();
        run(async |handle| {
            let port = PortConfig {
                overflow,
                ..both_ways(End::Listen(listener.into()))
            };
            let mut guest = Guest::start(&handle, port).await;
            let mut client = UnixStream::connect(&path).unwrap();
            guest.is_told(true).await;
            client.write_all(&much()).unwrap();
            let output = guest.0.put(&vec![b'x'; 1 << 20]);
            guest.0.send(TRANSMIT, &[output], &[]);
            guest.0.settle().await;
            drop(client);
            let mut next = UnixStream::connect(&path).unwrap();
            guest.reads_to_the_end(&much()).await;
            guest.is_told(true).await;
            // What waits for a reader goes to the next one, and what is dropped was lost meanwhile.
            next.set_nonblocking(true).unwrap();
            let mut rest = Vec::new();
            let mut used = false;
            wait_until(&handle, || {
                let _ = next.read_to_end(&mut rest);
                used |= guest.0.ring(TRANSMIT).poll_used().unwrap().is_some();
                used
            })
            .await;
            let _ = next.read_to_end(&mut rest);
            assert_eq!(!rest.is_empty(), overflow == Overflow::Block);
        });
    }
}

#[test]
fn a_client_that_takes_no_more_is_heard_until_it_leaves() {
    let (_folder, path, listener) = place();
    run(async |handle| {
        let port = both_ways(End::Listen(listener.into()));
        let mut guest = Guest::start(&handle, port).await;
        let mut client = UnixStream::connect(&path).unwrap();
        guest.is_told(true).await;
        client.shutdown(Shutdown::Read).unwrap();
        let output = guest.0.put(b"for the next");
        guest.0.send(TRANSMIT, &[output], &[]);
        for word in [b"one", b"two"] {
            guest.0.settle().await;
            client.write_all(word).unwrap();
            assert_eq!(guest.receive().await, word);
        }
        client.write_all(b"end").unwrap();
        drop(client);
        let mut next = UnixStream::connect(&path).unwrap();
        assert_eq!(guest.receive().await, b"end");
        guest.is_told(false).await;
        guest.is_told(true).await;
        let _ = guest.0.used(TRANSMIT).await;
        let mut seen = [0; 12];
        next.read_exact(&mut seen).unwrap();
        assert_eq!(&seen, b"for the next");
    });
}

#[test]
fn a_client_that_has_said_nothing_is_followed_at_once_whatever_the_guest_reads() {
    let (_folder, path, listener) = place();
    run(async |handle| {
        let port = both_ways(End::Listen(listener.into()));
        let mut guest = Guest::start(&handle, port).await;
        let begun = handle.now();
        for _ in 0..10 {
            let client = UnixStream::connect(&path).unwrap();
            guest.is_told(true).await;
            drop(client);
            guest.is_told(false).await;
        }
        assert!(handle.now() - begun < UNREAD_LIMIT);
    });
}

#[test]
fn a_guest_that_reads_slowly_gets_all_that_was_said() {
    let (_folder, path, listener) = place();
    run(async |handle| {
        let port = both_ways(End::Listen(listener.into()));
        let mut guest = Guest::start(&handle, port).await;
        let text = text(3 * PIECE);
        visit(&path, &text);
        guest.is_told(true).await;
        let mut seen = Vec::new();
        while seen.len() < text.len() {
            // Three of these are longer than the limit.
            handle.sleep(UNREAD_LIMIT * 2 / 5).await;
            seen.extend(guest.receive().await);
        }
        assert!(seen == text);
        guest.is_told(false).await;
    });
}

#[test]
fn a_guest_that_does_not_read_has_five_seconds_and_is_named_in_the_log() {
    let (_folder, path, listener) = place();
    log::set_logger(&LOG).unwrap();
    log::set_max_level(log::LevelFilter::Info);
    run(async |handle| {
        let port = PortConfig {
            name: Some("org.example.deaf".to_owned()),
            ..both_ways(End::Listen(listener.into()))
        };
        let mut guest = Guest::start(&handle, port).await;
        visit(&path, &much());
        guest.is_told(true).await;
        assert_eq!(guest.receive().await, much()[..PIECE]);
        visit(&path, b"the next");
        guest.listen();
        handle.sleep(UNREAD_LIMIT * 3 / 5).await;
        assert!(!guest.has_heard().await);
        let _ = guest.0.used(TELL).await;
        guest.is_told(true).await;
        assert_eq!(guest.receive().await, b"the next");
        guest.is_told(false).await;
    });
    let lines = LOG.0.lock().unwrap();
    let of_port = lines
        .iter()
        .filter(|line| line.contains("org.example.deaf"));
    let warnings: Vec<_> = of_port.filter(|line| line.starts_with("WARN")).collect();
    let said = "the guest has not read the input to its end";
    assert!(
        warnings.len() == 1 && warnings[0].contains(said),
        "{lines:?}"
    );
}
