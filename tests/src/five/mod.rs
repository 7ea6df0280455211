//! Both sides of all five devices of one `vudev`, used at the same time: what goes in on one side
//! comes out on the other, for each. The side of the host is played where `vudev` runs, be that a
//! device VM.

#![expect(
    clippy::unwrap_used,
    reason = "a suite whose own set-up fails has nothing to test"
)]

mod guest;
mod seen;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use vudev_harness::{Terminal, Vudev, VudevCommand};

use crate::streams::{ANSWER_LIMIT, aside, call, exchange_all, md5};
use crate::sums::{SECTOR, Sum, fill};

pub use guest::{assert_same, with_devices};
pub use seen::Seen;

/// Bytes of a disk, and of what goes through a port or over TCP: little, for a guest under software
/// emulation is slow.
const DISK: u64 = 8 << 20;
const DATA: usize = 256 << 10;

/// Connections at once of each side's, and sectors that each sends in both directions.
const CONNECTIONS: u32 = 4;
const SECTORS: u32 = 100;

/// How long vudev may take from SIGTERM to its end, and what is given it where it is emulated: the
/// promise is one of real machines.
const STOP_LIMIT: Duration = Duration::from_secs(2);
const EMULATED_STOP_LIMIT: Duration = Duration::from_secs(30);

/// The host's address on the tap.
pub const HOST: &str = "10.9.8.1";
const GUEST: &str = "10.9.8.2";
const TO_GUEST: u16 = 5001;
const TO_HOST: u16 = 5002;

/// What each device says as `vhost=`.
#[derive(Clone)]
pub struct Wires {
    /// The console with its ports.
    pub serial: PathBuf,
    /// The disk.
    pub block: PathBuf,
    /// Entropy.
    pub rng: PathBuf,
    /// Sockets.
    pub vsock: PathBuf,
    /// The options of the network card, and its wire; without, there is none.
    pub net: Option<(String, PathBuf)>,
}

/// What all five devices need of the host, and the `vudev` that has them.
pub struct Scene {
    vudev: Vudev,
    folder: PathBuf,
    terminal: Terminal,
    /// How each device is reached.
    wires: Wires,
}

impl Scene {
    /// Starts the `vudev` of a command; its files are in this folder.
    pub fn start(command: VudevCommand, folder: &Path, wires: &Wires) -> Self {
        fs::write(folder.join("numbers"), numbers()).unwrap();
        File::create(folder.join("disk"))
            .unwrap()
            .set_len(DISK)
            .unwrap();
        let terminal = Terminal::open().unwrap();
        let vudev = with_arguments(command, folder, &terminal, wires);
        Self {
            vudev: vudev.start().unwrap(),
            folder: folder.to_owned(),
            terminal,
            wires: wires.clone(),
        }
    }

    /// Waits for the guest, from its start on.
    pub fn await_guest(&self) -> Awaiting {
        let theirs = UnixListener::bind(self.path("v_1024")).unwrap();
        let theirs = aside(move || {
            let accept = |_| theirs.accept().unwrap().0;
            exchange_all((0..CONNECTIONS).map(accept).collect(), 1000, SECTORS)
        });
        let net = self.wires.net.is_some().then(|| {
            let listener = TcpListener::bind((HOST, TO_HOST)).unwrap();
            aside(move || exchange_over_tcp(&listener))
        });
        Awaiting { theirs, net }
    }

    /// Talks to whoever has opened the guest's console.
    pub fn talk_to_the_console(&mut self) {
        let terminal = &mut self.terminal;
        let opened = "the guest has opened its console";
        terminal.until(opened, ANSWER_LIMIT).unwrap();
        terminal.type_text("hello\r").unwrap();
        // The guest's own terminal echoes what is typed.
        terminal.until("hello", ANSWER_LIMIT).unwrap();
        let heard = "the guest has heard: hello";
        terminal.until(heard, ANSWER_LIMIT).unwrap();
    }

    /// Calls the guest, which listens, and comes to the end of all.
    pub fn call_the_guest(&self, awaiting: Awaiting) -> Called {
        let door = UnixStream::connect(self.path("door")).unwrap();
        let door = aside(move || through_a_port(door));
        let path = self.path("v");
        let programs = (0..CONNECTIONS).map(|_| call(&path, 5000)).collect();
        let ours = exchange_all(programs, 2000, SECTORS);
        let mut sockets = awaiting.theirs.join().unwrap();
        sockets.extend(ours);
        let net = awaiting.net;
        Called {
            sockets,
            door: door.join().unwrap(),
            net: net.map(|both| both.join().unwrap()),
        }
    }

    /// What was seen here, when the guest has ended.
    pub fn seen(&self, called: Called) -> Seen {
        let image = fs::read(self.path("disk")).unwrap();
        let mut sum = Sum::default();
        sum.add(&image);
        let Called { sockets, door, net } = called;
        Seen {
            sockets,
            door,
            file: md5(&fs::read(self.path("file")).unwrap()),
            disk_sum: format!("{:016x}", sum.value()),
            disk_md5: md5(&image),
            net,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// By SIGTERM, in the promised time; nothing of it is left. What it has logged.
    pub fn stop(self) -> String {
        self.stop_within(STOP_LIMIT, true)
    }

    /// The same where vudev is emulated, so that it may take a device for one that does not end.
    pub fn stop_emulated(self) -> String {
        self.stop_within(EMULATED_STOP_LIMIT, false)
    }

    fn stop_within(mut self, limit: Duration, as_promised: bool) -> String {
        let devices = self.vudev.devices().unwrap();
        let expected = if self.wires.net.is_some() { 5 } else { 4 };
        assert_eq!(devices.len(), expected);
        self.vudev.signal(Signal::TERM).unwrap();
        let status = self.vudev.wait(limit).unwrap();
        let log = self.vudev.log().unwrap();
        let late = !as_promised && status.code() == Some(1) && log.contains("did not end in time");
        assert!(status.success() || late, "{status}: {log}");
        for device in devices {
            assert!(!Path::new(&format!("/proc/{device}")).exists(), "{device}");
        }
        let net = self.wires.net.as_ref().map(|(_, wire)| wire.clone());
        let Wires {
            serial,
            block,
            rng,
            vsock,
            ..
        } = self.wires.clone();
        let own = [serial, block, rng, vsock, self.path("door"), self.path("v")];
        for socket in own.into_iter().chain(net) {
            assert!(!socket.exists(), "{}", socket.display());
        }
        log
    }
}

/// The host's side of what the guest begins.
pub struct Awaiting {
    theirs: JoinHandle<Vec<String>>,
    net: Option<JoinHandle<(String, String)>>,
}

/// What was exchanged with the guest.
pub struct Called {
    sockets: Vec<String>,
    door: String,
    net: Option<(String, String)>,
}

/// One command for all devices.
fn with_arguments(
    command: VudevCommand,
    folder: &Path,
    terminal: &Terminal,
    wires: &Wires,
) -> VudevCommand {
    let path = |name: &str| folder.join(name);
    let serial = &wires.serial;
    let ports = [
        format!(
            "type=file,path={},name=org.example.file,vhost={}",
            path("file").display(),
            serial.display()
        ),
        format!(
            "type=unix-stream,path={},listen,input-unix-stream,name=org.example.door,vhost={}",
            path("door").display(),
            serial.display()
        ),
    ];
    let disk = format!("path={},queues=2", path("disk").display());
    let numbers = format!("source={}", path("numbers").display());
    let sockets = format!("cid=77,uds-path={}", path("v").display());
    let mut command = command
        .input(terminal.program_end().unwrap())
        .output(terminal.program_end().unwrap())
        .serial("type=stdout,stdin,console", serial);
    for port in ports {
        command = command.argument("--serial").argument(port);
    }
    let command = command
        .block(&disk, &wires.block)
        .device("rng", &numbers, &wires.rng)
        .device("vsock", &sockets, &wires.vsock);
    match &wires.net {
        Some((options, wire)) => command.device("net", options, wire),
        None => command,
    }
}

/// What the guest's entropy is.
fn numbers() -> String {
    (0..100_000).map(|number| format!("{number:07}.")).collect()
}

/// What the host sends through the port and over TCP.
fn pattern(stamp: u32) -> Vec<u8> {
    let mut bytes = vec![0; DATA];
    for (place, sector) in (0..).zip(bytes.chunks_exact_mut(SECTOR)) {
        fill(place, stamp, sector);
    }
    bytes
}
/// Both ways at once; the checksum of what came.
fn through_a_port(mut door: UnixStream) -> String {
    door.set_read_timeout(Some(ANSWER_LIMIT)).unwrap();
    let mut writer = door.try_clone().unwrap();
    let sending = aside(move || {
        writeln!(writer, "now").unwrap();
        writer.write_all(&pattern(3)).unwrap();
    });
    let mut bytes = vec![0; DATA];
    door.read_exact(&mut bytes).unwrap();
    sending.join().unwrap();
    md5(&bytes)
}

/// Both ways at once; the checksums of what came and of what was sent.
///
/// The guest calls first. A host that called one whose interface is not up yet would ask for its
/// address in vain (ARP), once a second and three times. The guest finds such questions when it
/// comes up, and Linux drops its answers: the interface has no queueing discipline yet. Until the
/// host asks again, all that it has for the guest waits, answers to pings among it; and if that
/// was the third question, the host gives up and drops them.
fn exchange_over_tcp(listener: &TcpListener) -> (String, String) {
    let (stream, _) = listener.accept().unwrap();
    let sending = aside(send);
    (receive(stream), sending.join().unwrap())
}

fn receive(mut stream: TcpStream) -> String {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes.len(), DATA);
    md5(&bytes)
}

/// Sends as soon as the guest listens.
fn send() -> String {
    let deadline = Instant::now() + ANSWER_LIMIT;
    let mut stream = loop {
        match TcpStream::connect((GUEST, TO_GUEST)) {
            Ok(stream) => break stream,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
    };
    let bytes = pattern(4);
    stream.write_all(&bytes).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    // The other side reads to the end before it closes.
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    md5(&bytes)
}
