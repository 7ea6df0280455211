//! A console's output, from the guest to the host, to a standard output that goes nowhere: writes
//! one at a time, for which Linux's driver of a terminal spins, and another sleeps, and sixteen.
//! Input is not measured: a human types it.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use anyhow::Result;
use vudev_frontend::{Buffer, FrontEnd, console::TRANSMIT};
use vudev_harness::Terminal;

use super::{Bare, Job, Stream};
use crate::backend::{Backend, Build};
use crate::bare::Call;
use crate::calls::Wait;
use crate::pump::{Chain, pump};
use crate::run::Run;

/// The console.
pub static CONSOLE: Stream = Stream {
    name: "console",
    jobs: &[
        job(64, 1, Wait::Spinning, None),
        job(64, 16, Wait::Asleep, None),
        job(4096, 1, Wait::Spinning, Some(20.0)),
        job(4096, 1, Wait::Asleep, None),
        job(4096, 16, Wait::Asleep, Some(20.0)),
    ],
    peer: "vhost-device-console",
    ours,
    theirs,
    run,
    bare: Bare {
        name: "write",
        requests: |_| 1,
        call: bare,
    },
};

const fn job(bytes: u32, depth: usize, wait: Wait, rate_min: Option<f64>) -> Job {
    Job {
        bytes,
        depth,
        wait,
        rate_min,
    }
}

fn ours(build: &Build, folder: &Path) -> Result<Backend> {
    let socket = folder.join("vudev");
    Backend::vudev("vudev", build, "serial", "type=stdout", socket)
}

fn theirs(program: &Path, folder: &Path) -> Result<Backend> {
    let mut command = Command::new(program);
    command.arg("--socket-path").arg(folder.join("peer"));
    // It starts on a terminal only.
    let terminal = Some(Terminal::open()?);
    // It numbers its sockets.
    Backend::peer(CONSOLE.peer, &command, folder.join("peer0"), terminal)
}

fn run(backend: &Backend, _: &Path, job: Job, times: u64) -> Result<Run> {
    let mut front = FrontEnd::connect(backend.socket()).queues(2).start()?;
    let text = vec![b'.'; job.bytes as usize];
    let chain = |_| -> Result<Chain> {
        let address = front.memory().allocate(job.bytes.into(), 1)?;
        front.memory().write(address, &text)?;
        Ok(Chain {
            readable: vec![Buffer::new(address, job.bytes)],
            ..Chain::default()
        })
    };
    let chains = (0..job.depth).map(chain).collect::<Result<Vec<_>>>()?;
    // The peer says that it has written what it has read.
    let written = (backend.name() != CONSOLE.peer).then_some(0);
    let worker = backend.worker();
    let wait = job.wait;
    pump(&mut front, TRANSMIT, &chains, wait, times, written, worker)
}

/// To where the device's output goes.
fn bare(job: Job) -> Result<Call> {
    let mut nowhere = File::options().write(true).open("/dev/null")?;
    let text = vec![b'.'; job.bytes as usize];
    Ok(Box::new(move || nowhere.write_all(&text)))
}
