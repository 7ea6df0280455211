//! Devices that move bytes, ours and a peer's, each with the same front-end on the same work: what
//! the benchmarks `console`, `rng` and `vsock` are made of, and their part of `compare`.

mod console;
mod rng;
mod vsock;

use anyhow::{Context as _, Result};
use criterion::{Criterion, Throughput};
use std::cell::OnceCell;
use std::path::{Path, PathBuf};

use crate::backend::{Backend, Build};
use crate::bare::{self, Call};
use crate::calls::Wait;
use crate::contest::{Contest, Report};
use crate::peer;
use crate::run::Run;

pub use console::CONSOLE;
pub use rng::RNG;
pub use vsock::VSOCK;

/// How often a session with a peer is tried.
const TRIES_OF_A_PEER: usize = 8;

/// A kind of device, and how it is measured. Its files are in a folder of its own.
#[derive(Debug)]
pub struct Stream {
    /// As it is called in figures.
    pub name: &'static str,
    /// What it is measured with.
    pub jobs: &'static [Job],
    /// The peer's name.
    pub peer: &'static str,
    /// Starts a build of ours with files in the folder.
    ours: fn(&Build, &Path) -> Result<Backend>,
    /// Starts the peer at the first path likewise.
    theirs: fn(&Path, &Path) -> Result<Backend>,
    /// Does a job so many times, with a back-end that has its files in the folder.
    run: fn(&Backend, &Path, Job, u64) -> Result<Run>,
    /// The kernel's part of it.
    pub bare: Bare,
}

/// The system calls that a job cannot do without.
#[derive(Debug)]
pub struct Bare {
    name: &'static str,
    /// How many requests one stands for.
    pub requests: fn(Job) -> u64,
    /// Makes one.
    pub call: fn(Job) -> Result<Call>,
}

/// What is moved.
#[derive(Clone, Copy, Debug)]
pub struct Job {
    /// Bytes of a buffer.
    pub bytes: u32,
    /// Buffers in flight; 0 where credit says how many.
    pub depth: usize,
    /// How the driver waits for them.
    pub wait: Wait,
    /// Promised: bytes a second, against the peer's.
    pub rate_min: Option<f64>,
}

impl Stream {
    /// As a job is called in figures.
    pub fn title(&self, job: Job) -> String {
        let Job { bytes, depth, .. } = job;
        let name = self.name;
        match (depth, job.wait) {
            (0, _) => format!("{name} {bytes} bytes"),
            // The rule is who has one in flight and spins for it, or several and sleeps.
            (1, Wait::Asleep) => format!("{name} {bytes} bytes at depth 1, asleep"),
            _ => format!("{name} {bytes} bytes at depth {depth}"),
        }
    }
}

/// One who serves such a device, started when it is first needed: somebody may only ask what there
/// is.
#[derive(Debug)]
pub struct Side {
    stream: &'static Stream,
    who: Who,
    /// Ours serves one front-end after the other. Peers end with the first, or open their sockets
    /// anew in their own time: they are started for each.
    ours: OnceCell<Started>,
}

#[derive(Debug)]
enum Who {
    Ours(Build),
    /// A device of ours that gives back what it gets.
    Nothing(Build),
    Peer(PathBuf),
}

#[derive(Debug)]
struct Started {
    backend: Backend,
    folder: tempfile::TempDir,
}

impl Side {
    /// A build of ours.
    pub fn ours(stream: &'static Stream, build: Build) -> Self {
        Self::of(stream, Who::Ours(build))
    }

    /// The `vudev-null` at `program`, which does nothing with what it gets: what is left are the
    /// driver, the queue and the wake-ups. `None` where an answer depends on what was asked.
    pub fn nothing(stream: &'static Stream, program: PathBuf) -> Option<Self> {
        let answers = stream.jobs.iter().any(|job| job.depth == 0);
        let nothing = || Self::of(stream, Who::Nothing(Build::plain(program)));
        (!answers).then(nothing)
    }

    /// The peer, if it is installed.
    pub fn peer(stream: &'static Stream) -> Option<Self> {
        Some(Self::of(stream, Who::Peer(peer::find(stream.peer)?)))
    }

    fn of(stream: &'static Stream, who: Who) -> Self {
        Self {
            stream,
            who,
            ours: OnceCell::new(),
        }
    }

    /// Whether it is a program of others.
    pub fn is_peer(&self) -> bool {
        matches!(self.who, Who::Peer(_))
    }

    /// Does a job so many times.
    ///
    /// # Errors
    ///
    /// What is wrong with the back-end.
    pub fn run(&self, job: Job, times: u64) -> Result<Run> {
        let theirs;
        let Started { backend, folder } = match self.ours.get() {
            Some(started) => started,
            None => {
                let started = self.start()?;
                match self.is_peer() {
                    true => {
                        theirs = started;
                        &theirs
                    }
                    false => self.ours.get_or_init(|| started),
                }
            }
        };
        let done = (self.stream.run)(backend, folder.path(), job, times);
        done.with_context(|| format!("{}; it said: {}", backend.name(), backend.log()))
    }

    /// [`Side::run`], and again if that fails: it is not ours to mend.
    fn run_again(&self, job: Job, times: u64) -> Result<Run> {
        for _ in 1..TRIES_OF_A_PEER {
            match self.run(job, times) {
                Ok(run) => return Ok(run),
                Err(error) => eprintln!("{error:#}: tried again"),
            }
        }
        self.run(job, times)
    }

    fn start(&self) -> Result<Started> {
        let folder = tempfile::tempdir()?;
        let path = folder.path();
        let backend = match &self.who {
            Who::Ours(build) => (self.stream.ours)(build, path),
            Who::Nothing(build) => {
                Backend::vudev("nothing", build, "null", "size=512", path.join("null"))
            }
            Who::Peer(program) => (self.stream.theirs)(program, path),
        };
        Ok(Started {
            backend: backend?,
            folder,
        })
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
    let ours = Side::ours(stream, Build::plain(program));
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
        let requests = (stream.bare.requests)(job);
        let mut call = (stream.bare.call)(job)?;
        contest = contest.of(stream.bare.name, move |times| {
            let calls = times.div_ceil(requests);
            let run = bare::alone(calls, &mut call).expect("it works");
            run.elapsed
                .mul_f64(times as f64 / (calls * requests) as f64)
        });
        if let Some(rate_min) = job.rate_min {
            contest = contest.promise(stream.peer, 1.0 / rate_min);
        }
        contest.run(&mut criterion, &mut report);
    }
    criterion.final_summary();
    let file = Path::new(figures).join(format!("{}.txt", stream.name));
    Ok(report.close(&file)?)
}
