//! The disk, beside `qemu-storage-daemon` and beside bare calls for the same blocks.

use std::fs::File;
use std::io::{IoSlice, IoSliceMut};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::thread::CpuSet;
use rustix::time::{ClockId, clock_gettime};
use vudev_benches::backend::{Backend, Image, STORAGE_DAEMON, Storage};
use vudev_benches::figures::{Histogram, median};
use vudev_benches::load::{Job, Load};
use vudev_benches::processor::{Usage, move_to, one_of, own_set};

use crate::Effort;
use crate::report::{Figures, Line};

/// Bytes of the disk: what the figures of the targets were measured with.
const SIZE: u64 = 1 << 30;

/// Bytes of a request.
const REQUEST: u32 = 4096;

/// Requests that warm up, and tell how many fill a window.
const WARM_UP: u64 = 3000;

/// What is compared, and what is asked of it.
struct Case {
    name: &'static str,
    storage: Storage,
    /// Driver and back-end on one processor: the stable comparison of software paths.
    pinned: bool,
    write: bool,
    depth: u16,
    /// Ours against the peer's: requests a second, at least.
    rate_min: f64,
    /// And processor time of a request, at most.
    cpu_max: Option<f64>,
    /// And against a bare call's time, at most.
    bare_max: Option<f64>,
}

const fn case(name: &'static str, storage: Storage, depth: u16, rate_min: f64) -> Case {
    Case {
        name,
        storage,
        pinned: false,
        write: false,
        depth,
        rate_min,
        cpu_max: None,
        bare_max: None,
    }
}

const CASES: [Case; 10] = [
    Case {
        pinned: true,
        cpu_max: Some(0.27),
        bare_max: Some(2.0),
        ..case("read, depth 32, one processor", Storage::Cached, 32, 5.5)
    },
    Case {
        pinned: true,
        write: true,
        cpu_max: Some(0.30),
        bare_max: Some(2.0),
        ..case("write, depth 32, one processor", Storage::Cached, 32, 4.2)
    },
    Case {
        pinned: true,
        ..case("read, depth 1, one processor", Storage::Cached, 1, 1.2)
    },
    Case {
        pinned: true,
        write: true,
        ..case("write, depth 1, one processor", Storage::Cached, 1, 2.6)
    },
    case("read, depth 32", Storage::Cached, 32, 2.2),
    Case {
        write: true,
        ..case("write, depth 32", Storage::Cached, 32, 2.8)
    },
    case("read, depth 1", Storage::Cached, 1, 3.0),
    case("direct read, depth 32", Storage::Direct, 32, 2.0),
    Case {
        write: true,
        ..case("direct write, depth 32", Storage::Direct, 32, 2.0)
    },
    Case {
        pinned: true,
        ..case("nothing, depth 32, one processor", Storage::Null, 32, 1.5)
    },
];

/// Measures all cases, and lines them up.
pub(crate) fn compare(effort: &Effort) -> Result<Vec<Line>> {
    let everywhere = own_set()?;
    let image = Image::new(&effort.folder, SIZE)?;
    let program = std::env::current_exe()?;
    let folder = program.parent().context("a program is in a folder")?;
    let backends = Backends::start(folder, &image, effort)?;
    let cases: Vec<&Case> = CASES
        .iter()
        .filter(|case| case.name.contains(&effort.only))
        .collect();
    let mut lines: Vec<Line> = cases.iter().map(|case| case.line()).collect();
    for round in 0..effort.rounds {
        eprintln!("block: round {} of {}", round + 1, effort.rounds);
        for (case, line) in cases.iter().zip(&mut lines) {
            let set = if case.pinned {
                one_of(&everywhere)
            } else {
                everywhere
            };
            let Some(ours) = backends.of(case.storage, true) else {
                continue;
            };
            let figures = measure(ours, &image, case, &set, effort);
            line.ours.push(figures.with_context(|| ours.log())?);
            if let Some(peer) = backends.of(case.storage, false) {
                line.peer.push(measure(peer, &image, case, &set, effort)?);
            }
            if case.bare_max.is_some() {
                line.bare_us.push(bare(&image, case.write)?);
            }
            // What was written is not written back during the next measurement.
            image.settle()?;
        }
    }
    move_to(&everywhere, &[])?;
    Ok(lines)
}

impl Case {
    fn line(&self) -> Line {
        Line {
            name: self.name.to_owned(),
            rate_min: self.rate_min,
            cpu_max: self.cpu_max,
            bare_max: self.bare_max,
            ..Line::default()
        }
    }
}

/// All that serve the same file.
struct Backends {
    all: Vec<(Storage, bool, Backend)>,
}

impl Backends {
    fn start(folder: &Path, image: &Image, effort: &Effort) -> Result<Self> {
        let mut all = Vec::new();
        for storage in [Storage::Cached, Storage::Direct, Storage::Null] {
            all.push((storage, true, Backend::vudev(folder, image, storage)?));
            let peer = match (&effort.beside, storage) {
                (None, _) => Backend::storage_daemon(image, storage)?,
                (Some(program), Storage::Cached | Storage::Direct) => {
                    Some(Backend::of(program, "beside", image, storage)?)
                }
                (Some(_), Storage::Null) => continue,
            };
            match peer {
                Some(peer) => all.push((storage, false, peer)),
                None => eprintln!("without a peer: {STORAGE_DAEMON} is not installed"),
            }
        }
        Ok(Self { all })
    }

    fn of(&self, storage: Storage, ours: bool) -> Option<&Backend> {
        let wanted = |it: &&(Storage, bool, Backend)| (it.0, it.1) == (storage, ours);
        self.all.iter().find(wanted).map(|(_, _, backend)| backend)
    }
}

fn measure(
    backend: &Backend,
    image: &Image,
    case: &Case,
    set: &CpuSet,
    effort: &Effort,
) -> Result<Figures> {
    let worker = backend.worker();
    move_to(set, &[worker])?;
    let job = Job {
        write: case.write,
        sequential: false,
        size: REQUEST,
        depth: case.depth,
        queues: 1,
    };
    let mut load = Load::new(backend, image.size(), job)
        .with_context(|| format!("{} at {}", backend.name(), case.name))?;
    let warm = load.run(WARM_UP)?;
    let window = Duration::from_millis(effort.window_ms).as_secs_f64();
    let rate = WARM_UP as f64 / warm.elapsed.as_secs_f64();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "what fits a second fits 64 bits"
    )]
    let requests = (rate * window) as u64 + 1;
    let before = Usage::of(worker)?;
    let run = load.run(requests)?;
    let used = before.since()?;
    Ok(figures(requests, run.elapsed, used, &run.latencies))
}

fn figures(requests: u64, elapsed: Duration, used: Duration, latencies: &Histogram) -> Figures {
    let micros = |time: Duration| time.as_secs_f64() * 1e6;
    Figures {
        rate: requests as f64 / elapsed.as_secs_f64(),
        cpu_us: micros(used) / requests as f64,
        p50_us: micros(latencies.percentile(500)),
        p99_us: micros(latencies.percentile(990)),
    }
}

/// Microseconds of processor time of a bare call for one of the same blocks, in this thread.
fn bare(image: &Image, write: bool) -> Result<f64> {
    const CALLS: u32 = 20_000;
    let file = File::options().read(true).write(true).open(image.path())?;
    let mut bytes = vec![0x5a; REQUEST as usize];
    let places = SIZE / u64::from(REQUEST);
    let mut state = 7_u64;
    let mut times = Vec::new();
    for _ in 0..5 {
        let start = own_time();
        for _ in 0..CALLS {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let at = state % places * u64::from(REQUEST);
            if write {
                rustix::io::pwritev(&file, &[IoSlice::new(&bytes)], at)?;
            } else {
                rustix::io::preadv(&file, &mut [IoSliceMut::new(&mut bytes)], at)?;
            }
        }
        times.push((own_time() - start) * 1e6 / f64::from(CALLS));
    }
    median(&times).context("there are times")
}

/// Seconds of processor time that this thread has used.
fn own_time() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}
