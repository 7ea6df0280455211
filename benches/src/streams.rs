//! Devices that move bytes, ours and a peer's, each with the same front-end on the same work: what
//! the benchmarks `console`, `rng` and `vsock` are made of, and their part of `compare`.

mod console;
mod rng;
mod vsock;

use std::cell::OnceCell;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use criterion::{Criterion, Throughput};

use crate::backend::Backend;
use crate::contest::{Contest, Report};
use crate::peer;
use crate::run::Run;

pub use console::CONSOLE;
pub use rng::RNG;
pub use vsock::VSOCK;

/// A kind of device, and how it is measured. Its files are in a folder of its own.
#[derive(Debug)]
pub struct Stream {
    /// As it is called in figures.
    pub name: &'static str,
    /// What it is measured with.
    pub jobs: &'static [Job],
    /// The peer's name.
    pub peer: &'static str,
    /// Starts the `vudev` of the first path with files in the folder of the second.
    ours: fn(&Path, &Path) -> Result<Backend>,
    /// Starts the peer likewise.
    theirs: fn(&Path, &Path) -> Result<Backend>,
    /// Does a job so many times, with a back-end that has its files in the folder.
    run: fn(&Backend, &Path, Job, u64) -> Result<Run>,
    /// The kernel's part of it.
    bare: Option<Bare>,
}

/// A name, and what does the work so many times without a device.
type Bare = (&'static str, fn(Job, u64) -> Duration);

/// What is moved.
#[derive(Clone, Copy, Debug)]
pub struct Job {
    /// Bytes of a buffer.
    pub bytes: u32,
    /// Buffers in flight; 0 where credit says how many.
    pub depth: usize,
    /// Promised: bytes a second, against the peer's.
    pub rate_min: Option<f64>,
}

impl Stream {
    /// As a job is called in figures.
    pub fn title(&self, job: Job) -> String {
        let Job { bytes, depth, .. } = job;
        match depth {
            0 => format!("{} {bytes} bytes", self.name),
            _ => format!("{} {bytes} bytes at depth {depth}", self.name),
        }
    }
}

/// One who serves such a device, started when it is first needed: somebody may only ask what there
/// is.
#[derive(Debug)]
pub struct Side {
    stream: &'static Stream,
    program: PathBuf,
    /// Ours serves one front-end after the other. Peers end with the first, or open their sockets
    /// anew in their own time: they are started for each.
    ours: Option<OnceCell<Started>>,
}

#[derive(Debug)]
struct Started {
    backend: Backend,
    folder: tempfile::TempDir,
}

impl Side {
    /// A build of ours.
    pub fn ours(stream: &'static Stream, program: &Path) -> Self {
        Self {
            stream,
            program: program.to_owned(),
            ours: Some(OnceCell::new()),
        }
    }

    /// The peer, if it is installed.
    pub fn peer(stream: &'static Stream) -> Option<Self> {
        Some(Self {
            stream,
            program: peer::find(stream.peer)?,
            ours: None,
        })
    }

    /// Does a job so many times.
    ///
    /// # Errors
    ///
    /// What is wrong with the back-end.
    pub fn run(&self, job: Job, times: u64) -> Result<Run> {
        let theirs;
        let Started { backend, folder } = match &self.ours {
            Some(cell) => match cell.get() {
                Some(started) => started,
                None => {
                    let started = self.start(self.stream.ours)?;
                    cell.get_or_init(|| started)
                }
            },
            None => {
                theirs = self.start(self.stream.theirs)?;
                &theirs
            }
        };
        let done = (self.stream.run)(backend, folder.path(), job, times);
        done.with_context(|| format!("{}; it said: {}", backend.name(), backend.log()))
    }

    /// [`Side::run`], and once more if that fails: `vhost-device-rng` loses a kick now and then,
    /// and waits for ever.
    fn run_again(&self, job: Job, times: u64) -> Result<Run> {
        self.run(job, times).or_else(|error| {
            eprintln!("{error:#}: tried once more");
            self.run(job, times)
        })
    }

    fn start(&self, start: fn(&Path, &Path) -> Result<Backend>) -> Result<Started> {
        let folder = tempfile::tempdir()?;
        let backend = start(&self.program, folder.path())?;
        Ok(Started { backend, folder })
    }
}

/// The benchmark of such a device: ours, the `vudev` at `program`, beside the peer.
///
/// # Errors
///
/// What the system says.
pub fn bench(stream: &'static Stream, program: &str, figures: &str) -> Result<()> {
    let mut criterion = Criterion::default().configure_from_args();
    let mut report = Report::default();
    let ours = Side::ours(stream, Path::new(program));
    let peer = Side::peer(stream);
    if peer.is_none() {
        eprintln!("without a peer: {}", peer::remedy(stream.peer));
    }
    for &job in stream.jobs {
        let mut contest = Contest::new(stream.title(job))
            .moves(Throughput::Bytes(job.bytes.into()))
            .of("vudev", |times| {
                ours.run(job, times).expect("it works").elapsed
            });
        if let Some(peer) = &peer {
            contest = contest.of(stream.peer, |times| {
                peer.run_again(job, times).expect("it works").elapsed
            });
        }
        if let Some((name, bare)) = stream.bare {
            contest = contest.of(name, move |times| bare(job, times));
        }
        if let Some(rate_min) = job.rate_min {
            contest = contest.promise(stream.peer, 1.0 / rate_min);
        }
        contest.run(&mut criterion, &mut report);
    }
    criterion.final_summary();
    let file = Path::new(figures).join(format!("{}.txt", stream.name));
    Ok(report.close(&file)?)
}
