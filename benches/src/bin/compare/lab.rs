//! A disk, all who serve it, and one measurement of any of them; and bare calls for the same
//! blocks. Not which measurements.

use std::cell::OnceCell;
use std::fs::File;
use std::io::{IoSlice, IoSliceMut};

use anyhow::{Context as _, Result};
use rustix::thread::CpuSet;
use rustix::time::{ClockId, clock_gettime};
use vudev_benches::backend::Backend;
use vudev_benches::disk::{self, Image, STORAGE_DAEMON, Storage};
use vudev_benches::figures::median;
use vudev_benches::load::{Job, Load};
use vudev_benches::processor::{move_to, one_of, own_set};

use crate::Effort;
use crate::line::Figures;
use crate::report::Report;

/// Bytes of the disk: what the figures of the targets were measured with.
const SIZE: u64 = 1 << 30;

/// Requests that warm up, and tell how many fill a window.
const WARM_UP: u64 = 3000;

/// The disk, and who serves it, started when they are needed.
pub(crate) struct Lab<'a> {
    pub(crate) image: Image,
    effort: &'a Effort,
    everywhere: CpuSet,
    has_peer: bool,
    all: [(Storage, OnceCell<Backend>, OnceCell<Backend>); 3],
}

impl<'a> Lab<'a> {
    /// Makes the disk.
    pub(crate) fn new(effort: &'a Effort, report: &mut Report) -> Result<Self> {
        let has_peer = disk::is_storage_daemon_installed();
        if !has_peer && effort.beside.is_none() {
            report.missing(format!(
                "{STORAGE_DAEMON} is not installed: Debian's package qemu-utils has it"
            ));
        }
        let storages = [Storage::Cached, Storage::Direct, Storage::Null];
        Ok(Self {
            image: Image::new(&effort.folder, SIZE)?,
            effort,
            everywhere: own_set()?,
            has_peer,
            all: storages.map(|storage| (storage, OnceCell::new(), OnceCell::new())),
        })
    }

    /// Ours.
    pub(crate) fn ours(&self, storage: Storage) -> Result<&Backend> {
        let (_, ours, _) = self.of(storage)?;
        start(ours, || {
            disk::vudev(&self.effort.programs, &self.image, storage)
        })
    }

    /// The peer's, or that of another build; `None` where there is none.
    pub(crate) fn other(&self, storage: Storage) -> Result<Option<&Backend>> {
        let (_, _, other) = self.of(storage)?;
        let image = &self.image;
        match (&self.effort.beside, storage) {
            (Some(_), Storage::Null) => Ok(None),
            (Some(program), _) => {
                start(other, || disk::build(program, "beside", image, storage)).map(Some)
            }
            (None, _) if self.has_peer => {
                start(other, || disk::storage_daemon(image, storage)).map(Some)
            }
            (None, _) => Ok(None),
        }
    }

    fn of(&self, storage: Storage) -> Result<&(Storage, OnceCell<Backend>, OnceCell<Backend>)> {
        let mut all = self.all.iter();
        all.find(|(one, ..)| *one == storage)
            .context("all are listed")
    }

    /// Measures a back-end once; `pinned` has it and its driver on one processor.
    pub(crate) fn measure(&self, backend: &Backend, job: Job, pinned: bool) -> Result<Figures> {
        let set = if pinned {
            one_of(&self.everywhere)
        } else {
            self.everywhere
        };
        move_to(&set, &[backend.worker()])?;
        let done = self.run(backend, job);
        move_to(&self.everywhere, &[])?;
        done.with_context(|| format!("{}; it said: {}", backend.name(), backend.log()))
    }

    fn run(&self, backend: &Backend, job: Job) -> Result<Figures> {
        let mut load = Load::new(backend, self.image.size(), job)?;
        let warm = load.run(WARM_UP)?;
        let run = load.run(self.effort.fill(WARM_UP, warm.elapsed))?;
        Ok(Figures::from(&run))
    }

    /// Microseconds of processor time of a bare call for one of the same blocks, in this thread.
    pub(crate) fn bare(&self, write: bool) -> Result<f64> {
        const CALLS: u32 = 20_000;
        let Job { size, .. } = Job::default();
        let file = File::options()
            .read(true)
            .write(true)
            .open(self.image.path())?;
        let mut bytes = vec![0x5a; size as usize];
        let places = SIZE / u64::from(size);
        let mut state = 7_u64;
        let mut times = Vec::new();
        for _ in 0..5 {
            let start = own_time();
            for _ in 0..CALLS {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                let at = state % places * u64::from(size);
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
}

fn start(cell: &OnceCell<Backend>, start: impl FnOnce() -> Result<Backend>) -> Result<&Backend> {
    if let Some(backend) = cell.get() {
        return Ok(backend);
    }
    let started = start()?;
    Ok(cell.get_or_init(|| started))
}

/// Seconds of processor time that this thread has used.
fn own_time() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}
