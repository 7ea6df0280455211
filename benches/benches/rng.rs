//! Entropy: bytes a second that a guest gets, in buffers of 64 bytes and 4 KiB, 16 of them at a
//! time, from a jailed `vudev` over its socket. Beside it `vhost-device-rng` with the same
//! front-end, where it is installed, and `getrandom` into one buffer after the other, which is the
//! kernel's part.

use std::cell::LazyCell;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Result;
use criterion::{Criterion, Throughput};
use rustix::rand::{GetRandomFlags, getrandom};
use vudev_benches::contest::{Contest, Report};
use vudev_benches::peer;
use vudev_benches::pump::{Chain, pump};
use vudev_frontend::{Buffer, FrontEnd};
use vudev_harness::{Child, VudevCommand};

const PEER: &str = "vhost-device-rng";
/// More than any kernel makes: none, in effect.
const LIMITS: &str = "max-bytes=1G,period=1";
/// Entries of the queue, and buffers that the device has at a time.
const QUEUE_SIZE: u16 = 16;
const DEPTH: usize = 16;
/// Promised: a part of the peer's time.
const OF_THE_PEER: f64 = 1.0 / 3.0;

fn main() -> Result<()> {
    let mut criterion = Criterion::default().configure_from_args();
    let mut report = Report::default();
    let folder = tempfile::tempdir()?;
    let ours = folder.path().join("vudev");
    let program = Path::new(env!("CARGO_BIN_EXE_vudev-benched"));
    // Not before it is wanted: the benchmarks may only be listed.
    let vudev = LazyCell::new(|| {
        let command = VudevCommand::of(program).device("rng", LIMITS, &ours);
        command.start().expect("vudev starts")
    });
    let theirs = folder.path().join("peer");
    let peer = peer::find(PEER);
    let peer = peer.map(|program| {
        LazyCell::new({
            let theirs = &theirs;
            move || start_peer(&program, theirs)
        })
    });
    // It numbers its sockets.
    let numbered = folder.path().join("peer0");
    for bytes in [64, 4096] {
        let mut contest = Contest::new(format!("rng {bytes} bytes"))
            .moves(Throughput::Bytes(bytes.into()))
            .of("vudev", |times| {
                LazyCell::force(&vudev);
                read(&ours, bytes, times)
            });
        if let Some(peer) = &peer {
            contest = contest
                .of(PEER, |times| {
                    LazyCell::force(peer);
                    read(&numbered, bytes, times)
                })
                .promise(PEER, OF_THE_PEER);
        }
        let bare = contest.of("getrandom", move |times| bare(bytes, times));
        bare.run(&mut criterion, &mut report);
    }
    criterion.final_summary();
    report.close(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("rng.txt"))?;
    Ok(())
}

fn start_peer(program: &Path, socket: &Path) -> Child {
    let mut command = Command::new(program);
    command.arg("--socket-path").arg(socket);
    peer::start(PEER, &command, &socket.with_file_name("peer0")).expect("the peer starts")
}

fn read(socket: &Path, bytes: u32, times: u64) -> Duration {
    let front = FrontEnd::connect(socket).queue_size(QUEUE_SIZE);
    let mut front = front.start().expect("it listens");
    let chain = |_| {
        let address = front.memory().allocate(bytes.into(), 1).expect("room");
        let writable = vec![Buffer::new(address, bytes)];
        Chain {
            writable,
            ..Chain::default()
        }
    };
    let chains: Vec<_> = (0..DEPTH).map(chain).collect();
    pump(&mut front, 0, &chains, times, bytes).expect("it fills buffers")
}

fn bare(bytes: u32, times: u64) -> Duration {
    let mut buffer = vec![0; bytes as usize];
    let start = Instant::now();
    for _ in 0..times {
        let filled = getrandom(&mut buffer[..], GetRandomFlags::empty());
        assert_eq!(filled, Ok(bytes as usize));
    }
    start.elapsed()
}
