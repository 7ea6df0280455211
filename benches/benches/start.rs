//! How long a command takes until each of its devices is jailed and in its event loop, and what
//! memory an idle device costs. It runs a release of `vudev` with real sockets and all layers of
//! the jail; it measures no device at work.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use criterion::{BenchmarkId, Criterion, SamplingMode};
use vudev_benches::starting::{MANY, MANY_WITHIN, PSS_MAX_KIB, Running, median, start};

/// Devices of one command, and what is promised for all of them together, on two processors.
const COMMANDS: [(usize, Option<Duration>); 3] = [
    (1, Some(Duration::from_millis(5))),
    (10, None),
    (MANY, Some(MANY_WITHIN)),
];

/// Commands whose times are taken, after those that warm up.
const SAMPLES: usize = 20;

fn main() -> Result<()> {
    let program = Path::new(env!("CARGO_BIN_EXE_vudev-benched"));
    let mut criterion = Criterion::default().configure_from_args();
    let mut times = COMMANDS.map(|_| Vec::new());
    let mut group = criterion.benchmark_group("start");
    group
        .sample_size(SAMPLES)
        .sampling_mode(SamplingMode::Flat)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    for ((count, _), times) in COMMANDS.iter().zip(&mut times) {
        group.bench_function(BenchmarkId::from_parameter(count), |bencher| {
            bencher.iter_custom(|commands| {
                let started = (0..commands).map(|_| start(program, *count).expect("vudev starts"));
                let new: Vec<_> = started.collect();
                times.extend_from_slice(&new);
                new.iter().sum()
            });
        });
    }
    group.finish();
    criterion.final_summary();
    // Otherwise it is only tried whether all of this runs, or asked what there is.
    if std::env::args().any(|argument| argument == "--bench") {
        report(program, &times)?;
    }
    Ok(())
}

/// Prints each figure beside what was promised, and writes the same into a file.
fn report(program: &Path, times: &[Vec<Duration>]) -> Result<()> {
    let mut lines = Vec::new();
    for ((count, promised), times) in COMMANDS.iter().zip(times) {
        // Not asked for on the command line.
        let Some(median) = median(times) else {
            continue;
        };
        let promised = promised.map_or("nothing".to_owned(), |most| verdict(median <= most, most));
        let of = times.len();
        lines.push(format!(
            "start of {count}: {median:.2?} (median of {of}); promised: {promised}"
        ));
    }
    let folder = tempfile::tempdir()?;
    let running = Running::start(program, MANY, folder.path())?;
    let memory = running.memory()?;
    running.stop()?;
    lines.push(match median(&memory) {
        Some(kib) => format!(
            "memory of an idle device among {MANY}: {kib} KiB PSS (median of {}); promised: {}",
            memory.len(),
            verdict(kib <= PSS_MAX_KIB, format_args!("{PSS_MAX_KIB} KiB"))
        ),
        None => "memory of an idle device: only root may look".to_owned(),
    });
    let load = fs::read_to_string("/proc/loadavg")?;
    lines.push(format!("load of this machine: {}", load.trim()));
    let text = lines.join("\n") + "\n";
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("start.txt");
    fs::write(&file, &text)?;
    println!("\n{text}also in {}", file.display());
    Ok(())
}

fn verdict(kept: bool, most: impl std::fmt::Debug) -> String {
    let kept = if kept { "kept" } else { "NOT KEPT" };
    format!("at most {most:?}, {kept}")
}
