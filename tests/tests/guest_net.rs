//! Real guests on the network card: an unmodified QEMU with a stock Debian kernel, TCP in both
//! directions with checksums. Needs root, for a network of its own.

#![expect(
    clippy::unwrap_used,
    reason = "a suite whose own set-up fails has nothing to test"
)]

#[path = "support/network.rs"]
mod network;

use std::env;
use std::io::Read;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use vudev_tests::streams::{Streamed, drain, pour};
use vudev_tests::{Assets, Guest, RunningGuest, Vudev, VudevCommand};

use network::{Wire, ip, tap};

/// MiB that go each way, if the environment does not say how many: a guest under software emulation
/// is slow.
const MIB: u16 = 128;
/// Says another number; 1024 is what was promised.
const MIB_VARIABLE: &str = "VUDEV_NET_MIB";

/// How long a guest may be silent in the middle of a stream.
const SILENCE_LIMIT: Duration = Duration::from_secs(60);

const HOST: &str = "10.9.8.1";
const GUEST: &str = "10.9.8.2";
const TO_GUEST: u16 = 5001;
const TO_HOST: u16 = 5002;

fn mib() -> u16 {
    env::var(MIB_VARIABLE).map_or(MIB, |text| text.parse().unwrap())
}

/// A network with a tap for a guest, and a `vudev` on it.
struct Scene {
    vudev: Vudev,
    directory: tempfile::TempDir,
}

impl Scene {
    /// `None` where there can be none.
    fn new(pairs: u16, mtu: u16, options: &str) -> Option<Self> {
        if !network::enter() {
            return None;
        }
        tap("tap0", pairs > 1);
        ip(&format!("addr add {HOST}/24 dev tap0"));
        let directory = tempfile::Builder::new().prefix("vudev-").tempdir().unwrap();
        let options =
            format!("tap-name=tap0,mac=02:00:00:00:00:07,vq-pairs={pairs},mtu={mtu}{options}");
        let vudev = VudevCommand::new()
            .unwrap()
            .device("net", &options, &directory.path().join("socket"))
            .start()
            .unwrap();
        Some(Self { vudev, directory })
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("socket")
    }
}

fn guest() -> Guest {
    Guest::new(&Assets::find().unwrap())
        .deadline(Duration::from_secs(1200))
        .program(Path::new(env!("CARGO_BIN_EXE_vudev-stream")))
}

/// What every guest does: it moves data both ways, says what its card is, and pings.
fn script(set_up: &str, more: &str) -> String {
    let mib = mib();
    format!(
        "
        set -e
        {set_up}
        ip addr add {GUEST}/24 dev eth0
        ip link set eth0 up
        vudev-stream receive {TO_GUEST}
        vudev-stream send {HOST} {TO_HOST} {mib}
        {more}
        cd /sys/class/net/eth0
        # One by one: for the last of several, busybox waits only twice as long as they took so far.
        size=$(($(cat mtu) - 28))
        echo echoes $(for each in 1 2 3; do ping -c 1 -s $size {HOST}; done |
            grep -c ' 1 packets received')
        echo mtu $(cat mtu)
        echo address $(cat address)
        echo features $(cat device/features)
        echo pairs $(ls -d queues/rx-* | wc -l) $(ls -d queues/tx-* | wc -l)
        grep virtio /proc/interrupts
        "
    )
}

/// The host's side of [`script`]; what the guest printed.
fn exchange(mut running: RunningGuest) -> String {
    let lines = transfer(&mut running);
    finish(running, &lines)
}

/// Moves the data; what the guest must say of it.
fn transfer(running: &mut RunningGuest) -> [String; 2] {
    running.wait_for("listening").unwrap();
    let listener = TcpListener::bind((HOST, TO_HOST)).unwrap();
    let started = Instant::now();
    let mut stream = TcpStream::connect((GUEST, TO_GUEST)).unwrap();
    let sent = pour(&stream, mib()).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    // The other side reads to the end before it closes.
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    told("to the guest", &sent, started);
    let (stream, _) = listener.accept().unwrap();
    // A guest that is gone says nothing more.
    stream.set_read_timeout(Some(SILENCE_LIMIT)).unwrap();
    let started = Instant::now();
    let received = drain(&stream).unwrap();
    told("to the host", &received, started);
    [format!("receive {sent}"), format!("send {received}")]
}

fn told(way: &str, streamed: &Streamed, started: Instant) {
    let seconds = started.elapsed().as_secs_f64();
    println!("{way}: {streamed}, in {seconds:.1} s");
}

fn finish(running: RunningGuest, lines: &[String]) -> String {
    let report = running.finish().unwrap();
    assert_eq!(report.status, Some(0), "{}", report.output);
    let mib = format!("{} bytes", u64::from(mib()) << 20);
    for line in lines {
        assert!(line.contains(&mib), "{line}");
    }
    for told in lines.iter().map(String::as_str).chain(["echoes 3"]) {
        assert!(report.output.contains(told), "{told}: {}", report.output);
    }
    report.output
}

/// The line of a guest's output that begins with this word, without it.
fn line<'o>(output: &'o str, word: &str) -> &'o str {
    let line = output.lines().find_map(|line| line.strip_prefix(word));
    line.unwrap_or_else(|| panic!("no {word}: {output}")).trim()
}

/// Whether the guest's driver took a feature.
fn has(output: &str, bit: usize) -> bool {
    line(output, "features").as_bytes()[bit] == b'1'
}

/// How many queues of a kind, `input` or `output`, have interrupted the guest.
fn queues_used(output: &str, kind: &str) -> usize {
    let interrupts = |line: &str| {
        let counts = line.split_whitespace().skip(1);
        let sum: u64 = counts.map_while(|word| word.parse::<u64>().ok()).sum();
        sum
    };
    let queues = output
        .lines()
        .filter(|line| line.contains(&format!("-{kind}.")));
    queues.filter(|line| interrupts(line) > 0).count()
}

/// CSUM, GUEST_CSUM, GUEST_TSO4, GUEST_TSO6, HOST_TSO4, HOST_TSO6.
const OFFLOADS: [usize; 6] = [0, 1, 7, 8, 11, 12];
const MRG_RXBUF: usize = 15;
const MQ: usize = 22;

#[test]
fn tcp_goes_both_ways_with_offloads() {
    let Some(scene) = Scene::new(1, 1500, "") else {
        return;
    };
    let guest = guest().net(&scene.socket(), 1, "").script(&script("", ""));
    let output = exchange(guest.start().unwrap());
    assert!(OFFLOADS.iter().all(|bit| has(&output, *bit)), "{output}");
    assert!(has(&output, MRG_RXBUF), "{output}");
    scene.vudev.stop().unwrap();
}

#[test]
fn tcp_goes_both_ways_without_offloads() {
    let Some(scene) = Scene::new(1, 1500, ",mrg-rxbuf=false") else {
        return;
    };
    let off = ",csum=off,gso=off,guest_csum=off,guest_tso4=off,guest_tso6=off,guest_ecn=off,\
               guest_ufo=off,guest_uso4=off,guest_uso6=off,host_tso4=off,host_tso6=off,\
               host_ecn=off,host_ufo=off,host_uso=off";
    let guest = guest().net(&scene.socket(), 1, off).script(&script("", ""));
    let output = exchange(guest.start().unwrap());
    assert!(OFFLOADS.iter().all(|bit| !has(&output, *bit)), "{output}");
    assert!(!has(&output, MRG_RXBUF), "{output}");
    scene.vudev.stop().unwrap();
}

#[test]
fn tcp_goes_both_ways_over_four_pairs_in_packets_of_9000() {
    let Some(scene) = Scene::new(4, 9000, "") else {
        return;
    };
    let script = script("ip link set eth0 mtu 9000", "");
    let guest = guest()
        .net(&scene.socket(), 4, "")
        .processors(4)
        .script(&script);
    let output = exchange(guest.start().unwrap());
    assert!(
        has(&output, MQ) && line(&output, "mtu") == "9000",
        "{output}"
    );
    assert!(queues_used(&output, "output") > 1, "{output}");
    scene.vudev.stop().unwrap();
}

#[test]
fn a_card_of_ours_alone_tells_its_address_and_mtu_and_has_its_driver_announce_itself() {
    let Some(scene) = Scene::new(1, 9000, "") else {
        return;
    };
    let wire = Wire::without_headers("tap0");
    let more = "echo @@waits; read line";
    let guest = guest()
        .bare_net(&scene.socket(), 1)
        .script(&script("", more));
    let mut running = guest.start().unwrap();
    let lines = transfer(&mut running);
    running.wait_for("@@waits").unwrap();
    while wire.receive(Duration::ZERO).is_some() {}
    scene.vudev.signal(Signal::USR1).unwrap();
    let announces = |frame: &[u8]| {
        // ARP, from the card's address, of an address to its own holder.
        frame[6..14] == [2, 0, 0, 0, 0, 7, 8, 6] && frame[28..32] == frame[38..42]
    };
    let deadline = Instant::now() + Duration::from_secs(30);
    while !wire
        .receive(Duration::from_secs(1))
        .is_some_and(|(_, frame)| announces(&frame))
    {
        assert!(Instant::now() < deadline, "no announcement");
    }
    running.send("go on").unwrap();
    let output = finish(running, &lines);
    assert_eq!(line(&output, "address"), "02:00:00:00:00:07");
    assert_eq!(line(&output, "mtu"), "9000");
    scene.vudev.stop().unwrap();
}

#[test]
fn four_pairs_of_a_card_of_ours_alone_are_used_by_four_processors() {
    let Some(scene) = Scene::new(4, 1500, "") else {
        return;
    };
    let guest = guest()
        .bare_net(&scene.socket(), 4)
        .processors(4)
        .script(&script("", ""));
    let output = exchange(guest.start().unwrap());
    assert!(has(&output, MQ), "{output}");
    assert_eq!(line(&output, "pairs"), "4 4", "{output}");
    scene.vudev.stop().unwrap();
}
