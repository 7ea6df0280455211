//! A disk, all who serve it, and one measurement of any of them, or of the limit. Not which
//! measurements.

use std::cell::OnceCell;

use anyhow::{Context as _, Result};
use rustix::thread::CpuSet;
use vudev_benches::backend::Backend;
use vudev_benches::disk::{self, Image, STORAGE_DAEMON, Storage};
use vudev_benches::load::{Job, Load};
use vudev_benches::processor::{move_to, one_of, own_set};

use crate::Effort;
use crate::limit;
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
        if !has_peer && !effort.is_beside_ours() {
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
        let build = self.effort.ours(storage.program());
        start(ours, || disk::vudev(&build, "vudev", &self.image, storage))
    }

    /// The peer's, or that of ours which is in its place; `None` where there is none.
    pub(crate) fn other(&self, storage: Storage) -> Result<Option<&Backend>> {
        let (_, _, other) = self.of(storage)?;
        let image = &self.image;
        match self.effort.in_place_of_peers(storage.program()) {
            // Another build's disk of nothing is not where its `vudev` is.
            Some(_) if storage == Storage::Null && self.effort.beside.is_some() => Ok(None),
            Some(build) => start(other, || disk::vudev(&build, "beside", image, storage)).map(Some),
            None if self.has_peer => {
                start(other, || disk::storage_daemon(image, storage)).map(Some)
            }
            None => Ok(None),
        }
    }

    fn of(&self, storage: Storage) -> Result<&(Storage, OnceCell<Backend>, OnceCell<Backend>)> {
        let mut all = self.all.iter();
        all.find(|(one, ..)| *one == storage)
            .context("all are listed")
    }

    /// Measures a back-end once; `pinned` has it and its driver on one processor.
    pub(crate) fn measure(&self, backend: &Backend, job: Job, pinned: bool) -> Result<Figures> {
        let done = self.on(pinned, &[backend.worker()], || self.run(backend, job));
        done.with_context(|| format!("{}; it said: {}", backend.name(), backend.log()))
    }

    /// Measures the limit once, as `limit` says.
    pub(crate) fn limit(
        &self,
        storage: Storage,
        job: Job,
        pinned: bool,
        driver_us: f64,
    ) -> Result<Option<Figures>> {
        let limit = || limit::of_disk(self.effort, &self.image, storage, job, pinned, driver_us);
        self.on(pinned, &[], limit).context("the limit")
    }

    /// Does something with this thread and these processes where they belong.
    fn on<T>(&self, pinned: bool, workers: &[u32], work: impl FnOnce() -> Result<T>) -> Result<T> {
        let set = match pinned {
            true => one_of(&self.everywhere),
            false => self.everywhere,
        };
        move_to(&set, workers)?;
        let done = work();
        move_to(&self.everywhere, &[])?;
        done
    }

    fn run(&self, backend: &Backend, job: Job) -> Result<Figures> {
        let mut load = Load::new(backend, self.image.size(), job)?;
        let warm = load.run(WARM_UP)?;
        let run = load.run(self.effort.fill(WARM_UP, warm.elapsed))?;
        Ok(Figures::from(&run))
    }
}

fn start(cell: &OnceCell<Backend>, start: impl FnOnce() -> Result<Backend>) -> Result<&Backend> {
    if let Some(backend) = cell.get() {
        return Ok(backend);
    }
    let started = start()?;
    Ok(cell.get_or_init(|| started))
}
