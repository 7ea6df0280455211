//! Entropy for the guest: sixteen buffers at a time, beside `getrandom` into one buffer after the
//! other, which is the kernel's part.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Result;
use rustix::rand::{GetRandomFlags, getrandom};
use vudev_frontend::{Buffer, FrontEnd};

use super::{Job, Stream};
use crate::backend::Backend;
use crate::pump::{Chain, pump};
use crate::run::Run;

/// More than any kernel makes: none, in effect.
const LIMITS: &str = "max-bytes=1G,period=1";

/// Entries of the queue, and buffers that the device has at a time.
const DEPTH: u16 = 16;

/// Entropy.
pub static RNG: Stream = Stream {
    name: "rng",
    jobs: &[job(64), job(4096)],
    peer: "vhost-device-rng",
    ours,
    theirs,
    run,
    bare: Some(("getrandom", bare)),
};

const fn job(bytes: u32) -> Job {
    Job {
        bytes,
        depth: DEPTH as usize,
        rate_min: Some(3.0),
    }
}

fn ours(program: &Path, folder: &Path) -> Result<Backend> {
    Backend::vudev("vudev", program, "rng", LIMITS, folder.join("vudev"))
}

fn theirs(program: &Path, folder: &Path) -> Result<Backend> {
    let mut command = Command::new(program);
    command.arg("--socket-path").arg(folder.join("peer"));
    // It numbers its sockets.
    Backend::peer(RNG.peer, &command, folder.join("peer0"), None)
}

fn run(backend: &Backend, _: &Path, job: Job, times: u64) -> Result<Run> {
    let front = FrontEnd::connect(backend.socket()).queue_size(DEPTH);
    let mut front = front.start()?;
    let chain = |_| -> Result<Chain> {
        let address = front.memory().allocate(job.bytes.into(), 1)?;
        Ok(Chain {
            writable: vec![Buffer::new(address, job.bytes)],
            ..Chain::default()
        })
    };
    let chains = (0..job.depth).map(chain).collect::<Result<Vec<_>>>()?;
    let written = Some(job.bytes);
    pump(&mut front, 0, &chains, times, written, backend.worker())
}

fn bare(job: Job, times: u64) -> Duration {
    let length = job.bytes as usize;
    let mut buffer = vec![0; length];
    let start = Instant::now();
    for _ in 0..times {
        let filled = getrandom(&mut buffer[..], GetRandomFlags::empty());
        assert_eq!(filled, Ok(length));
    }
    start.elapsed()
}
