//! Requests a second of a disk, through a real vhost-user socket: ours, jailed as always, and
//! `qemu-storage-daemon` with an iothread and `aio=io_uring` where that is installed, on the same
//! file: page-cached, past the page cache, and on nothing. It measures no guest, and promises
//! nothing: `cargo xtask compare` does, in interleaved rounds.

use std::cell::OnceCell;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput};
use vudev_benches::backend::{Backend, Build};
use vudev_benches::disk::{self, Image, STORAGE_DAEMON, Storage};
use vudev_benches::load::{Job, Load};

/// Bytes of the disk: more than a processor's caches.
const SIZE: u64 = 256 << 20;

/// Where it is only tried whether all of this runs.
const SIZE_TRIED: u64 = 32 << 20;

const SIZES: [(u32, &str); 2] = [(4096, "4k"), (128 << 10, "128k")];
const DEPTHS: [u16; 3] = [1, 32, 128];
const QUEUES: [u16; 2] = [1, 4];

fn main() -> Result<()> {
    let mut criterion = Criterion::default().configure_from_args();
    let measured = std::env::args().any(|argument| argument == "--bench");
    let installed = disk::is_storage_daemon_installed();
    if measured && !installed {
        eprintln!("without a peer: {STORAGE_DAEMON} is not installed");
    }
    for storage in [Storage::Cached, Storage::Direct, Storage::Null] {
        let lab = Lab::new(if measured { SIZE } else { SIZE_TRIED }, storage);
        for job in jobs(measured) {
            compare(&mut criterion, &lab, storage, job, installed);
        }
    }
    criterion.final_summary();
    Ok(())
}

/// A disk and who serves it, made when they are needed: somebody may only ask what there is.
struct Lab {
    size: u64,
    storage: Storage,
    image: OnceCell<Image>,
    ours: OnceCell<Backend>,
    peer: OnceCell<Backend>,
}

impl Lab {
    fn new(size: u64, storage: Storage) -> Self {
        Self {
            size,
            storage,
            image: OnceCell::new(),
            ours: OnceCell::new(),
            peer: OnceCell::new(),
        }
    }

    fn image(&self) -> &Image {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
        self.image
            .get_or_init(|| Image::new(folder, self.size).expect("there is room for a disk"))
    }

    fn ours(&self) -> &Backend {
        let program = Path::new(env!("CARGO_BIN_EXE_vudev-benched"));
        let folder = program.parent().expect("a program is in a folder");
        let build = Build::plain(folder.join(self.storage.program()));
        let start = || disk::vudev(&build, "vudev", self.image(), self.storage);
        self.ours.get_or_init(|| start().expect("vudev starts"))
    }

    fn peer(&self) -> &Backend {
        self.peer.get_or_init(|| {
            let daemon = disk::storage_daemon(self.image(), self.storage);
            daemon.expect("the peer starts")
        })
    }
}

/// One of those who serve it.
type Who = fn(&Lab) -> &Backend;

fn jobs(measured: bool) -> Vec<Job> {
    let mut jobs = Vec::new();
    for (size, _) in SIZES {
        for (sequential, write) in [(false, false), (false, true), (true, false), (true, true)] {
            for depth in DEPTHS {
                jobs.extend(QUEUES.map(|queues| Job {
                    write,
                    sequential,
                    size,
                    depth,
                    queues,
                    regions: 1,
                    pause: Duration::ZERO,
                }));
            }
        }
    }
    if !measured {
        // One of each direction says whether it runs.
        let tried = |job: &Job| (job.size, job.depth, job.queues, job.sequential);
        jobs.retain(|job| tried(job) == (4096, 32, 4, false));
    }
    jobs
}

fn compare(criterion: &mut Criterion, lab: &Lab, storage: Storage, job: Job, with_peer: bool) {
    let size = SIZES.iter().find(|(size, _)| *size == job.size);
    let name = format!(
        "block/{}/{}-{}-{}",
        storage.name(),
        size.map_or("", |(_, name)| name),
        if job.sequential {
            "sequential"
        } else {
            "random"
        },
        if job.write { "write" } else { "read" },
    );
    let mut group = criterion.benchmark_group(name);
    group
        .sample_size(10)
        .sampling_mode(SamplingMode::Flat)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(500))
        .throughput(Throughput::Bytes(job.size.into()));
    let mut all: Vec<(&str, Who)> = vec![("vudev", Lab::ours)];
    if with_peer {
        all.push((STORAGE_DAEMON, Lab::peer));
    }
    for (name, backend) in all {
        let parameter = format!("{}x{}", job.depth, job.queues);
        group.bench_function(BenchmarkId::new(name, parameter), |bencher| {
            // One connection for all samples.
            let mut load =
                Load::new(backend(lab), lab.image().size(), job).expect("the back-end is there");
            bencher.iter_custom(|requests| load.run(requests).expect("the disk works").elapsed);
        });
    }
    group.finish();
}
