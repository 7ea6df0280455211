//! One real guest with all five devices of one `vudev`, used at the same time: what goes in on one
//! side comes out on the other, for each. What one device alone does is in the other suites.

#![expect(
    clippy::unwrap_used,
    reason = "a suite whose own set-up fails has nothing to test"
)]

#[path = "support/network.rs"]
mod network;
#[path = "support/streams.rs"]
mod streams;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tempfile::TempDir;
use vudev_tests::sums::{SECTOR, Sum, fill};
use vudev_tests::{Assets, Guest, Terminal, Vudev, VudevCommand};

use network::{ip, tap};
use streams::{ANSWER_LIMIT, aside, call, exchange_all, md5};

/// Bytes of a disk, and of what goes through a port or over TCP: little, for a guest under software
/// emulation is slow.
const DISK: u64 = 8 << 20;
const DATA: usize = 256 << 10;

/// Connections at once of each side's, and sectors that each sends in both directions.
const CONNECTIONS: u32 = 4;
const SECTORS: u32 = 100;

/// How long vudev may take from SIGTERM to its end.
const STOP_LIMIT: Duration = Duration::from_secs(2);

const HOST: &str = "10.9.8.1";
const GUEST: &str = "10.9.8.2";
const TO_GUEST: u16 = 5001;
const TO_HOST: u16 = 5002;

/// Each part is a function, all run at once, each with its output in a file; `net` is left out
/// where there is no card. Within them 9 is standard output, and 8 the port that was opened before
/// the host is told to use it.
const SCRIPT: &str = r#"
    console() {
        exec 3<>/dev/hvc0
        echo the guest has opened its console >&3
        read -r line <&3
        echo "the guest has heard: $line" >&3
        echo "heard: $line"
    }
    ports() {
        ls -1 /dev/virtio-ports
        cat /tmp/data >/dev/virtio-ports/org.example.file
        # Until the guest has heard of the client, a read ends at once.
        until read -r line <&8; do sleep 0.1; done
        cat /tmp/data >&8 &
        head -c $(wc -c </tmp/data) <&8 | md5sum
        wait
    }
    disk() {
        echo queues: $(ls /sys/block/vda/mq | wc -l)
        vudev-verify /dev/vda 40 1
        sync
        echo 3 >/proc/sys/vm/drop_caches
        md5sum </dev/vda
    }
    net() {
        ip addr add GUEST/24 dev eth0
        ip link set eth0 up
        nc HOST TO_HOST </tmp/data &
        # One by one: for the last of several, busybox waits only twice as long as they took so far.
        echo echoes: $(for each in 1 2 3; do ping -c 1 HOST; done | grep -c ' 1 packets received')
        nc -l -p TO_GUEST </dev/null | md5sum
        wait
    }
    rng() {
        cat /sys/class/misc/hw_random/rng_current
        head -c 64 /dev/hwrng; echo
        head -c 4096 /dev/hwrng | wc -c
    }
    vsock() {
        vudev-sockets listen 5000 CONNECTIONS SECTORS >/tmp/ours &
        until grep -q listening /tmp/ours; do sleep 0.1; done
        echo listening >&9
        vudev-sockets connect 1024 CONNECTIONS SECTORS >/tmp/theirs
        wait
        sort /tmp/theirs
        grep -v listening /tmp/ours | sort
    }
    run() {
        from=$(cut -d ' ' -f 1 /proc/uptime)
        ( set -e; $1 ) >/tmp/$1 2>&1
        echo "status $?, from $from s to $(cut -d ' ' -f 1 /proc/uptime) s" >>/tmp/$1
    }

    # As udev's rule does (50-udev-default.rules): a port is found by its name.
    links() {
        mkdir -p /dev/virtio-ports
        for port in /sys/class/virtio-ports/*; do
            name=$(cat $port/name 2>/dev/null)
            [ -n "$name" ] && ln -sf ../$(basename $port) /dev/virtio-ports/$name
        done
        [ $(ls /dev/virtio-ports | wc -l) = 2 ]
    }
    until links; do sleep 0.1; done
    head -c DATA /dev/urandom >/tmp/data
    exec 8<>/dev/virtio-ports/org.example.door 9>&1
    for part in PARTS; do run $part & done
    wait
    echo "data: $(md5sum </tmp/data)"
    for part in PARTS; do sed "s/^/$part: /" /tmp/$part; done
"#;

/// What all five devices need of the host, and the `vudev` that has them.
struct Scene {
    vudev: Vudev,
    folder: TempDir,
    terminal: Terminal,
    /// The numbers that the guest's entropy is.
    numbers: String,
    /// Whether there is a tap.
    net: bool,
}

impl Scene {
    fn new() -> Self {
        let net = network::enter();
        if net {
            tap("tap0", false);
            ip(&format!("addr add {HOST}/24 dev tap0"));
        }
        let folder = tempfile::Builder::new().prefix("vudev-").tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let numbers: String = (0..100_000).map(|number| format!("{number:07}.")).collect();
        fs::write(path("numbers"), &numbers).unwrap();
        File::create(path("disk")).unwrap().set_len(DISK).unwrap();
        let terminal = Terminal::open().unwrap();
        let vudev = command(folder.path(), &terminal, net).start().unwrap();
        Self {
            vudev,
            folder,
            terminal,
            numbers,
            net,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn guest(&self) -> Guest {
        let guest = Guest::new(&Assets::find().unwrap())
            .console_ports(&self.path("vu-serial"), 3)
            .block(&self.path("vu-block"), 2)
            .rng(&self.path("vu-rng"))
            .vsock(&self.path("vu-vsock"));
        let guest = match self.net {
            true => guest.net(&self.path("vu-net"), 1, ""),
            false => guest,
        };
        guest
            .processors(2)
            .program(Path::new(env!("CARGO_BIN_EXE_vudev-verify")))
            .program(Path::new(env!("CARGO_BIN_EXE_vudev-sockets")))
            .script(&self.script())
    }

    fn script(&self) -> String {
        let net = if self.net { "net" } else { "" };
        [
            ("PARTS", format!("console ports disk {net} rng vsock")),
            ("TO_GUEST", TO_GUEST.to_string()),
            ("TO_HOST", TO_HOST.to_string()),
            ("GUEST", GUEST.to_owned()),
            ("HOST", HOST.to_owned()),
            ("CONNECTIONS", CONNECTIONS.to_string()),
            ("SECTORS", SECTORS.to_string()),
            ("DATA", DATA.to_string()),
        ]
        .iter()
        .fold(SCRIPT.to_owned(), |script, (name, value)| {
            script.replace(name, value)
        })
    }

    /// The other side of each part, all at once. The guest's lines, and what was seen here.
    fn play(&mut self) -> (String, Seen) {
        let theirs = UnixListener::bind(self.path("v_1024")).unwrap();
        let theirs = aside(move || {
            let accept = |_| theirs.accept().unwrap().0;
            exchange_all((0..CONNECTIONS).map(accept).collect(), 1000, SECTORS)
        });
        let net = self.net.then(|| {
            let listener = TcpListener::bind((HOST, TO_HOST)).unwrap();
            aside(move || exchange_over_tcp(&listener))
        });
        let mut guest = self.guest().start().unwrap();
        self.talk_to_the_console();
        guest.wait_for("listening").unwrap();
        let door = UnixStream::connect(self.path("door")).unwrap();
        let door = aside(move || through_a_port(door));
        let mut sockets = self.call_the_guest();
        let report = guest.finish().unwrap();
        assert_eq!(report.status, Some(0), "{}", report.output);
        sockets.splice(0..0, theirs.join().unwrap());
        let seen = Seen {
            sockets,
            door: door.join().unwrap(),
            net: net.map(|both| both.join().unwrap()),
        };
        (report.output, seen)
    }

    fn talk_to_the_console(&mut self) {
        let terminal = &mut self.terminal;
        let opened = "the guest has opened its console";
        terminal.until(opened, ANSWER_LIMIT).unwrap();
        terminal.type_text("hello\r").unwrap();
        // The guest's own terminal echoes what is typed.
        terminal.until("hello", ANSWER_LIMIT).unwrap();
        let heard = "the guest has heard: hello";
        terminal.until(heard, ANSWER_LIMIT).unwrap();
    }

    fn call_the_guest(&self) -> Vec<String> {
        let path = self.path("v");
        let programs = (0..CONNECTIONS).map(|_| call(&path, 5000)).collect();
        exchange_all(programs, 2000, SECTORS)
    }

    /// By SIGTERM; nothing of it is left.
    fn stop(mut self) {
        let devices = self.vudev.devices().unwrap();
        assert_eq!(devices.len(), if self.net { 5 } else { 4 });
        self.vudev.signal(Signal::TERM).unwrap();
        let status = self.vudev.wait(STOP_LIMIT).unwrap();
        assert!(status.success(), "{status}: {}", self.vudev.log().unwrap());
        for device in devices {
            assert!(!Path::new(&format!("/proc/{device}")).exists(), "{device}");
        }
        let sockets = [
            "vu-serial",
            "vu-block",
            "vu-net",
            "vu-rng",
            "vu-vsock",
            "door",
            "v",
        ];
        for socket in sockets {
            assert!(!self.path(socket).exists(), "{socket}");
        }
        println!("{}", self.vudev.log().unwrap());
    }
}

/// One command for all devices.
fn command(folder: &Path, terminal: &Terminal, net: bool) -> VudevCommand {
    let path = |name: &str| folder.join(name);
    let serial = path("vu-serial");
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
    let mut command = VudevCommand::new()
        .unwrap()
        .input(terminal.program_end().unwrap())
        .output(terminal.program_end().unwrap())
        .serial("type=stdout,stdin,console", &serial);
    for port in ports {
        command = command.argument("--serial").argument(port);
    }
    let command = command
        .block(&disk, &path("vu-block"))
        .device("rng", &numbers, &path("vu-rng"))
        .device("vsock", &sockets, &path("vu-vsock"));
    match net {
        true => command.device("net", "tap-name=tap0", &path("vu-net")),
        false => command,
    }
}

/// The checksums of the host's side.
struct Seen {
    /// Each line what was got and what was sent.
    sockets: Vec<String>,
    /// What the port gave.
    door: String,
    /// What came over the net, if there is one, and what was sent.
    net: Option<(String, String)>,
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

/// What a part of the script has printed; it must have succeeded.
fn said<'o>(output: &'o str, part: &str) -> Vec<&'o str> {
    let prefix = format!("{part}: ");
    let lines = output.lines().filter_map(|line| line.strip_prefix(&prefix));
    let mut lines: Vec<_> = lines.collect();
    let status = lines.pop().unwrap_or_default();
    assert!(status.starts_with("status 0, "), "{part}: {output}");
    lines
}

#[test]
fn all_five_devices_of_one_command_serve_one_guest_at_the_same_time() {
    let mut scene = Scene::new();
    let (output, seen) = scene.play();
    println!("{output}");
    let data = output.lines().find_map(|line| line.strip_prefix("data: "));
    let data = data.unwrap();

    assert_eq!(said(&output, "console"), ["heard: hello"]);
    let names = ["org.example.door", "org.example.file"];
    let ports = said(&output, "ports");
    assert_eq!(ports, [names[0], names[1], &md5(&pattern(3))]);
    assert_eq!(seen.door, data);
    assert_eq!(md5(&fs::read(scene.path("file")).unwrap()), data);

    let disk = said(&output, "disk");
    let image = fs::read(scene.path("disk")).unwrap();
    let mut sum = Sum::default();
    sum.add(&image);
    let sum = format!("checksum: {:016x} of {} sectors", sum.value(), DISK / 512);
    assert_eq!(disk[0], "queues: 2");
    assert_eq!(disk[7..], ["wrong sectors: 0", &sum, &md5(&image)]);

    if let Some((received, sent)) = &seen.net {
        assert_eq!(said(&output, "net"), ["echoes: 3", sent]);
        assert_eq!(received, data);
    }
    let rng = said(&output, "rng");
    assert_eq!((rng[0], rng[2]), ("virtio_rng.0", "4096"));
    assert!(rng[1].len() == 64 && scene.numbers.contains(rng[1]));
    assert_eq!(said(&output, "vsock"), seen.sockets);
    scene.stop();
}
