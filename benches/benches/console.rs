//! A console's output: bytes a second from the guest to the host, in writes of 64 bytes and 4 KiB,
//! one at a time, as a terminal's driver writes, and 16, from a jailed `vudev` over its socket to a
//! standard output that goes nowhere. Beside it `vhost-device-console` with the same front-end and
//! the same output, where it is installed. Input is not measured: a human types it.

use std::cell::LazyCell;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use criterion::{Criterion, Throughput};
use vudev_benches::contest::{Contest, Report};
use vudev_benches::peer;
use vudev_benches::pump::{Chain, pump};
use vudev_frontend::{Buffer, FrontEnd, console::TRANSMIT};
use vudev_harness::{Child, VudevCommand};

const PEER: &str = "vhost-device-console";
/// Promised at 4 KiB: a part of the peer's time.
const OF_THE_PEER: f64 = 1.0 / 20.0;

fn main() -> Result<()> {
    let mut criterion = Criterion::default().configure_from_args();
    let mut report = Report::default();
    let folder = tempfile::tempdir()?;
    let ours = folder.path().join("vudev");
    let program = Path::new(env!("CARGO_BIN_EXE_vudev-benched"));
    // Not before it is wanted: the benchmarks may only be listed. Its output goes nowhere.
    let vudev = LazyCell::new(|| {
        let command = VudevCommand::of(program).serial("type=stdout", &ours);
        command.start().expect("vudev starts")
    });
    let peer = peer::find(PEER);
    let peer = peer.map(|program| {
        LazyCell::new({
            let folder = folder.path();
            move || start_peer(&program, folder)
        })
    });
    let theirs = folder.path().join("peer0");
    for (bytes, depth) in [(64, 1), (64, 16), (4096, 1), (4096, 16)] {
        let mut contest = Contest::new(format!("console {bytes} bytes at depth {depth}"))
            .moves(Throughput::Bytes(bytes.into()))
            .of("vudev", |times| {
                LazyCell::force(&vudev);
                write(&ours, bytes, depth, times)
            });
        if let Some(peer) = &peer {
            contest = contest.of(PEER, |times| {
                LazyCell::force(peer);
                write(&theirs, bytes, depth, times)
            });
            if bytes == 4096 {
                contest = contest.promise(PEER, OF_THE_PEER);
            }
        }
        contest.run(&mut criterion, &mut report);
    }
    criterion.final_summary();
    report.close(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("console.txt"))?;
    Ok(())
}

fn start_peer(program: &Path, folder: &Path) -> Child {
    let mut command = Command::new(program);
    command.arg("--socket-path").arg(folder.join("peer"));
    // It numbers its sockets.
    peer::start(PEER, &command, &folder.join("peer0")).expect("the peer starts")
}

fn write(socket: &Path, bytes: u32, depth: usize, times: u64) -> Duration {
    let front = FrontEnd::connect(socket).queues(2);
    let mut front = front.start().expect("it listens");
    let chain = |_| {
        let address = front.memory().allocate(bytes.into(), 1).expect("room");
        let text = vec![b'.'; bytes as usize];
        front.memory().write(address, &text).expect("in memory");
        let readable = vec![Buffer::new(address, bytes)];
        Chain {
            readable,
            ..Chain::default()
        }
    };
    let chains: Vec<_> = (0..depth).map(chain).collect();
    pump(&mut front, TRANSMIT, &chains, times, 0).expect("it takes bytes")
}
