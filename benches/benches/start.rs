//! How long a command takes until each of its devices is jailed and in its event loop, and what
//! memory an idle device costs. It runs a release of `vudev` with real sockets and all layers of
//! the jail; it measures no device at work.
//!
//! The clock begins before the supervisor's process is made and ends at its line that all devices
//! are ready: their sockets have been listening for some time then.

use std::fs;
use std::io::{BufRead, BufReader, PipeReader, Read, pipe};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use criterion::{BenchmarkId, Criterion, SamplingMode};
use rustix::process::{Pid, Signal, kill_process};

/// Devices of one command, and what is promised for all of them together, on two processors.
const COMMANDS: [(usize, Option<Duration>); 3] = [
    (1, Some(Duration::from_millis(5))),
    (10, None),
    (100, Some(Duration::from_millis(600))),
];

/// Promised for the memory of an idle device, shared pages divided by who shares them.
const PSS_MAX_KIB: u64 = 640;

/// Commands whose times are taken, after those that warm up.
const SAMPLES: usize = 20;

fn main() -> Result<()> {
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
                let started = (0..commands).map(|_| start(*count).expect("vudev starts"));
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
        report(&times)?;
    }
    Ok(())
}

/// One command, from nothing until all is ready.
fn start(count: usize) -> Result<Duration> {
    let folder = tempfile::tempdir()?;
    let before = Instant::now();
    let running = Running::start(count, folder.path())?;
    let time = before.elapsed();
    running.stop()?;
    Ok(time)
}

/// A `vudev` whose devices are all ready.
struct Running {
    process: Child,
    log: BufReader<PipeReader>,
}

impl Running {
    fn start(count: usize, folder: &Path) -> Result<Self> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vudev-benched"));
        for number in 0..count {
            let socket = folder.join(number.to_string());
            let options = format!("type=sink,vhost={}", socket.display());
            command.args(["--serial", &options]);
        }
        let (log, errors) = pipe()?;
        // Cargo's own, which would have the dynamic linker look into more folders.
        command.env_remove("LD_LIBRARY_PATH");
        let process = command.stdin(Stdio::null()).stderr(errors).spawn()?;
        // It holds the writing end of the log.
        drop(command);
        let mut running = Self {
            process,
            log: BufReader::new(log),
        };
        let mut line = String::new();
        while !(line.ends_with(" is ready\n") || line.ends_with(" are ready\n")) {
            line.clear();
            if running.log.read_line(&mut line)? == 0 {
                bail!("vudev has ended");
            }
            if line.contains("error: ") {
                bail!("vudev says: {line}");
            }
        }
        Ok(running)
    }

    /// The memory of each device, in KiB: none as an ordinary user, who may not look at processes
    /// that cannot be dumped.
    fn memory(&self) -> Result<Vec<u64>> {
        let children = format!("/proc/{0}/task/{0}/children", self.process.id());
        let children = fs::read_to_string(&children).context(children)?;
        let devices = children.split_whitespace();
        Ok(devices.filter_map(|device| pss(device).ok()).collect())
    }

    fn stop(mut self) -> Result<()> {
        kill_process(Pid::from_child(&self.process), Signal::TERM)?;
        // To its end: the log of a hundred devices' ends has to go somewhere.
        let mut said = String::new();
        self.log.read_to_string(&mut said)?;
        let status = self.process.wait()?;
        if !status.success() {
            bail!("vudev ended with {status}; it said:\n{said}");
        }
        Ok(())
    }
}

impl Drop for Running {
    /// A benchmark that fails leaves no process behind; its devices end with it.
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn pss(process: &str) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{process}/smaps_rollup"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    Ok(kib.context("no Pss")?.parse()?)
}

/// Prints each figure beside what was promised, and writes the same into a file.
fn report(times: &[Vec<Duration>]) -> Result<()> {
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
    let (count, _) = COMMANDS[COMMANDS.len() - 1];
    let folder = tempfile::tempdir()?;
    let running = Running::start(count, folder.path())?;
    let memory = running.memory()?;
    running.stop()?;
    lines.push(match median(&memory) {
        Some(kib) => format!(
            "memory of an idle device among {count}: {kib} KiB PSS (median of {}); promised: {}",
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

fn median<T: Copy + Ord>(values: &[T]) -> Option<T> {
    let mut values = values.to_vec();
    values.sort_unstable();
    values.get(values.len() / 2).copied()
}
