//! 4 KiB random reads at depth 32 through crate `virtio-driver`, of `vudev` and of
//! `qemu-storage-daemon` (aio=io_uring) in turn, over the same page-cached file on a real disk.
//! It is a figure, not a test: it asserts nothing about speed.
//!
//!     cargo build --release -p vudev && cargo run --release -p vudev-tests --example depth32

#![allow(
    clippy::unwrap_used,
    reason = "a figure that cannot be taken says where"
)]

#[path = "../tests/support/driver.rs"]
mod driver;
#[path = "../tests/support/random.rs"]
mod random;

use std::{
    env,
    fs::{self, File},
    io::{Read, Write},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use driver::Driver;
use random::Random;
use vudev_tests::{Child, Vudev, VudevCommand, wait_until_listening};

/// Bytes of the file: more than any processor's cache, less than any machine's memory.
const FILE_SIZE: u64 = 512 << 20;
/// Bytes in a request.
const BLOCK: usize = 4096;
/// How long each back-end runs in a round, warm-up excluded.
const ROUND: Duration = Duration::from_millis(1500);
/// How long it runs before the clock starts.
const WARM_UP: Duration = Duration::from_millis(200);
/// Rounds of each back-end.
const ROUNDS: usize = 7;
/// `TMPFS_MAGIC` of linux/magic.h; a figure on tmpfs says nothing about files.
const TMPFS_MAGIC: i64 = 0x0102_1994;

/// What one round of one back-end gave.
#[derive(Clone, Copy)]
struct Figure {
    requests_per_second: f64,
    processor_us_per_request: f64,
}

/// A back-end under measurement.
struct Peer {
    name: &'static str,
    socket: PathBuf,
    process: u32,
    figures: [Vec<Figure>; 2],
}

fn main() -> Result<()> {
    let folder = folder()?;
    let file = folder.path().join("disk");
    fill(&file)?;
    let mut peers = Vec::new();
    let vudev = start_vudev(&file, folder.path())?;
    peers.push(peer(
        "vudev",
        folder.path().join("vudev"),
        vudev.devices()?[0],
    ));
    let daemon = start_daemon(&file, folder.path())?;
    match &daemon {
        Some(daemon) => {
            let name = "qemu-storage-daemon aio=io_uring";
            peers.push(peer(name, folder.path().join("daemon"), daemon.id()));
        }
        None => println!("SKIPPED: needs qemu-storage-daemon (package qemu-utils)"),
    }
    for _ in 0..ROUNDS {
        for peer in &mut peers {
            for (at, depth) in [1, 32].into_iter().enumerate() {
                let figure = measure(&peer.socket, peer.process, depth)?;
                peer.figures[at].push(figure);
            }
        }
    }
    print(&peers);
    vudev.stop()
}

fn peer(name: &'static str, socket: PathBuf, process: u32) -> Peer {
    Peer {
        name,
        socket,
        process,
        figures: [Vec::new(), Vec::new()],
    }
}

/// A folder beside the running program, which is on the disk that builds are on.
fn folder() -> Result<tempfile::TempDir> {
    let program = env::current_exe()?;
    let target = program.parent().context("no folder")?;
    let kind = rustix::fs::statfs(target)?.f_type;
    if kind == TMPFS_MAGIC {
        bail!(
            "{} is on tmpfs; set CARGO_TARGET_DIR to a real disk",
            target.display()
        );
    }
    Ok(tempfile::tempdir_in(target)?)
}

/// Writes the file, no holes, and reads it once, so that the page cache has all of it.
fn fill(path: &Path) -> Result<()> {
    let mut file = File::create(path)?;
    let mut random = Random(1);
    let mut piece = vec![0; 1 << 20];
    for _ in 0..FILE_SIZE >> 20 {
        piece
            .chunks_mut(8)
            .for_each(|chunk| chunk.copy_from_slice(&random.next().to_le_bytes()));
        file.write_all(&piece)?;
    }
    file.sync_all()?;
    let mut file = File::open(path)?;
    while file.read(&mut piece)? > 0 {}
    Ok(())
}

fn start_vudev(file: &Path, folder: &Path) -> Result<Vudev> {
    let options = format!("path={}", file.display());
    VudevCommand::new()?
        .block(&options, &folder.join("vudev"))
        .start()
}

fn start_daemon(file: &Path, folder: &Path) -> Result<Option<Child>> {
    let name = "qemu-storage-daemon";
    if Command::new(name).arg("--version").output().is_err() {
        return Ok(None);
    }
    let socket = folder.join("daemon");
    let mut command = Command::new(name);
    command
        .arg("--blockdev")
        .arg(format!(
            "driver=file,filename={},node-name=f,aio=io_uring",
            file.display()
        ))
        .arg("--export")
        .arg(format!(
            "type=vhost-user-blk,id=e,node-name=f,addr.type=unix,addr.path={},writable=on,\
             num-queues=1",
            socket.display()
        ));
    let mut daemon = Child::start(name, &command)?;
    wait_until_listening(&socket, &mut daemon, Duration::from_secs(10))?;
    Ok(Some(daemon))
}

fn measure(socket: &Path, process: u32, depth: usize) -> Result<Figure> {
    let mut driver = Driver::connect(socket, depth, BLOCK);
    let mut random = Random(u64::from(u8::MAX));
    for slot in 0..depth {
        driver.send_read(slot, offset(&mut random));
    }
    driver.kick();
    run(&mut driver, &mut random, WARM_UP);
    let (started, processor) = (Instant::now(), processor_time(process)?);
    let requests = run(&mut driver, &mut random, ROUND) as f64;
    let elapsed = started.elapsed().as_secs_f64();
    let used = (processor_time(process)? - processor).as_secs_f64();
    Ok(Figure {
        requests_per_second: requests / elapsed,
        processor_us_per_request: used * 1e6 / requests,
    })
}

/// Sends each slot again as soon as it is back; how many came back.
fn run(driver: &mut Driver, random: &mut Random, time: Duration) -> u64 {
    let deadline = Instant::now() + time;
    let mut requests = 0;
    while Instant::now() < deadline {
        driver.complete(|driver, slot| {
            driver.send_read(slot, offset(random));
            requests += 1;
        });
        driver.kick();
    }
    requests
}

/// Time that all threads of a process have had, in user space and in the kernel (proc(5), stat).
fn processor_time(process: u32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    let after_name = stat.rsplit(')').next().context("stat")?;
    let ticks = |at: usize| -> Result<u64> {
        Ok(after_name
            .split_whitespace()
            .nth(at)
            .context("stat")?
            .parse()?)
    };
    let hertz = rustix::param::clock_ticks_per_second();
    Ok(Duration::from_micros(
        (ticks(11)? + ticks(12)?) * 1_000_000 / hertz,
    ))
}

fn print(peers: &[Peer]) {
    println!(
        "4 KiB random reads of a page-cached file, {ROUNDS} rounds in turn, medians (min-max)"
    );
    println!(
        "{:34} {:>5} {:>28} {:>16}",
        "back-end", "depth", "requests/s", "its CPU us/req"
    );
    for (at, depth) in [1, 32].into_iter().enumerate() {
        for peer in peers {
            let rates = sorted(peer.figures[at].iter().map(|one| one.requests_per_second));
            let costs = sorted(
                peer.figures[at]
                    .iter()
                    .map(|one| one.processor_us_per_request),
            );
            let (least, most) = (rates[0], rates[rates.len() - 1]);
            let rate = format!("{:.0} ({least:.0}-{most:.0})", rates[rates.len() / 2]);
            println!(
                "{:34} {depth:>5} {rate:>28} {:>16.2}",
                peer.name,
                costs[costs.len() / 2]
            );
        }
    }
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

/// A random place of a request.
fn offset(random: &mut Random) -> u64 {
    random.below(FILE_SIZE / BLOCK as u64) * BLOCK as u64
}
