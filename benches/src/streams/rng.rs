//! Entropy for the guest: sixteen buffers at a time, beside `getrandom` of a page at a time, which
//! is the kernel's part: nothing has more bytes a second of it by this call.

use std::path::Path;
use std::process::Command;

use anyhow::Result;
use rustix::rand::{GetRandomFlags, getrandom};
use vudev_frontend::{Buffer, FrontEnd};

use super::{Bare, Job, Stream};
use crate::backend::{Backend, Build};
use crate::bare::Call;
use crate::calls::Wait;
use crate::pump::{Chain, pump};
use crate::run::Run;

/// Entries of the queue, and buffers that the device has at a time.
const DEPTH: u16 = 16;

/// What the bare call asks for.
const PAGE: u32 = 4096;

/// Entropy.
pub static RNG: Stream = Stream {
    name: "rng",
    jobs: &[job(64), job(4096)],
    peer: "vhost-device-rng",
    ours,
    theirs,
    run,
    bare: Bare {
        name: "getrandom",
        requests: |job| u64::from(PAGE / job.bytes),
        call: bare,
    },
};

const fn job(bytes: u32) -> Job {
    Job {
        bytes,
        depth: DEPTH as usize,
        wait: Wait::Asleep,
        rate_min: Some(3.0),
    }
}

fn ours(build: &Build, folder: &Path) -> Result<Backend> {
    Backend::vudev("vudev", build, "rng", "", folder.join("vudev"))
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
    pump(
        &mut front,
        0,
        &chains,
        job.wait,
        times,
        written,
        backend.worker(),
    )
}

fn bare(_: Job) -> Result<Call> {
    let mut buffer = vec![0; PAGE as usize];
    Ok(Box::new(move || {
        getrandom(&mut buffer[..], GetRandomFlags::empty())?;
        Ok(())
    }))
}
