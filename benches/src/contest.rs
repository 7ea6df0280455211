//! The same work done by several, measured twice: each by itself for criterion, which keeps its
//! history, and all in turn for the ratios, because on a shared machine only figures of the same
//! moment can be compared.

use std::cell::Cell;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, SamplingMode, Throughput};
use rustix::time::{ClockId, Timespec, clock_gettime};

/// Whether the clock is looked at. `cargo test` runs each benchmark once, to see that it runs, and
/// `--list` asks only what there is.
pub fn measuring() -> bool {
    std::env::args().any(|argument| argument == "--bench")
}

/// Whether figures are wanted soon rather than well.
fn quick() -> bool {
    std::env::args().any(|argument| argument == "--quick")
}

/// How long each contestant works in a round.
const ROUND: Duration = Duration::from_millis(10);
/// Rounds whose median counts, and how many do where figures are wanted soon.
const ROUNDS: usize = 31;
const ROUNDS_QUICK: usize = 11;

/// Does the work so many times, and says how long that took without its preparations.
type Work<'a> = Box<dyn FnMut(u64) -> Duration + 'a>;

struct Contestant<'a> {
    name: &'a str,
    work: Work<'a>,
    /// How long the work once takes, and whether criterion was to measure this one at all.
    estimate: Cell<Option<Duration>>,
}

/// What is promised: ours takes at most so much of what this one takes.
struct Promise<'a> {
    against: &'a str,
    at_most: f64,
}

/// Several who do the same work. The first is ours.
pub struct Contest<'a> {
    name: String,
    contestants: Vec<Contestant<'a>>,
    promises: Vec<Promise<'a>>,
    throughput: Option<Throughput>,
}

impl<'a> Contest<'a> {
    /// A contest in this work.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            contestants: Vec::new(),
            promises: Vec::new(),
            throughput: None,
        }
    }

    /// Another contestant. `work` is given how often to do it, and says how long that took.
    #[must_use]
    pub fn of(mut self, name: &'a str, work: impl FnMut(u64) -> Duration + 'a) -> Self {
        self.contestants.push(Contestant {
            name,
            work: Box::new(work),
            estimate: Cell::new(None),
        });
        self
    }

    /// What the first one's time is promised to be at most, as a part of another's.
    #[must_use]
    pub fn promise(mut self, against: &'a str, at_most: f64) -> Self {
        self.promises.push(Promise { against, at_most });
        self
    }

    /// What the work once moves.
    #[must_use]
    pub fn moves(mut self, throughput: Throughput) -> Self {
        self.throughput = Some(throughput);
        self
    }

    /// Measures, and adds its lines to the report.
    pub fn run(mut self, criterion: &mut Criterion, report: &mut Report) {
        let mut group = criterion.benchmark_group(&self.name);
        configure(&mut group, self.throughput.as_ref());
        for Contestant {
            name,
            work,
            estimate,
        } in &mut self.contestants
        {
            group.bench_function(*name, |bencher| {
                bencher.iter_custom(|times| {
                    let took = work(times);
                    estimate.set(Some(took / u32::try_from(times).unwrap_or(u32::MAX)));
                    took
                });
            });
        }
        group.finish();
        if measuring() {
            self.compare(report);
        }
    }

    /// Rounds in which each has its turn.
    fn compare(mut self, report: &mut Report) {
        self.contestants.retain(|one| one.estimate.get().is_some());
        let rounds = if quick() { ROUNDS_QUICK } else { ROUNDS };
        let mut all: Vec<Vec<f64>> = self.contestants.iter().map(|_| Vec::new()).collect();
        for round in 0..rounds {
            let count = self.contestants.len();
            for place in 0..count {
                // Nobody always comes after the same one.
                let at = (place + round) % count;
                let Contestant { work, estimate, .. } = &mut self.contestants[at];
                let once = estimate.get().unwrap_or(ROUND).max(Duration::from_nanos(1));
                let times = (ROUND.as_nanos() / once.as_nanos()).clamp(1, 1 << 24);
                let times = u64::try_from(times).unwrap_or(1);
                all[at].push(work(times).as_secs_f64() / times as f64);
            }
        }
        let Some((ours, _)) = all.split_first() else {
            return;
        };
        report.line(&format!(
            "{} (medians of {rounds} rounds in turn)",
            self.name
        ));
        for (one, times) in self.contestants.iter().zip(&all) {
            let ratios: Vec<f64> = ours.iter().zip(times).map(|(a, b)| a / b).collect();
            let ratio = median(&ratios);
            let promise = self.promises.iter().find(|it| it.against == one.name);
            let promise = promise.map_or(String::new(), |Promise { at_most, .. }| {
                let kept = if ratio <= *at_most {
                    "kept"
                } else {
                    "NOT KEPT"
                };
                report.promise(
                    &self.name,
                    &format!("time to {}", one.name),
                    *at_most,
                    ratio,
                );
                format!("; promised: at most {at_most:.3} ×, {kept}")
            });
            let time = median(times) * 1e9;
            let rate = self.rate(median(times));
            let name = one.name;
            report.line(&format!(
                "  {name:<16} {time:>12.1} ns{rate}   ours takes {ratio:>6.3} ×{promise}"
            ));
        }
    }

    fn rate(&self, seconds: f64) -> String {
        match self.throughput {
            Some(Throughput::Bytes(bytes)) => {
                format!(
                    " {:>10.1} MiB/s",
                    bytes as f64 / seconds / f64::from(1 << 20)
                )
            }
            Some(Throughput::Elements(count)) => {
                format!(" {:>10.1} thousand/s", count as f64 / seconds / 1e3)
            }
            _ => String::new(),
        }
    }
}

fn configure(group: &mut BenchmarkGroup<'_, WallTime>, throughput: Option<&Throughput>) {
    group
        .sample_size(10)
        .sampling_mode(SamplingMode::Flat)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(600));
    if let Some(throughput) = throughput {
        group.throughput(throughput.clone());
    }
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// What this process has used of processors, its ring's workers included. For work on one thread
/// that never waits it is the time that it takes on an idle machine, whoever else is there.
pub struct ProcessorTime(Timespec);

impl ProcessorTime {
    /// From now on.
    pub fn start() -> Self {
        Self(clock_gettime(ClockId::ProcessCPUTime))
    }

    /// Since then.
    pub fn elapsed(&self) -> Duration {
        let since = clock_gettime(ClockId::ProcessCPUTime) - self.0;
        Duration::try_from(since).unwrap_or_default()
    }
}

/// Lines for whoever ran the benchmark, which are kept in a file too.
#[derive(Default)]
pub struct Report {
    text: String,
    promises: String,
}

impl Report {
    /// Adds a line.
    pub fn line(&mut self, line: &str) {
        let _ = writeln!(self.text, "{line}");
    }

    /// Keeps what was promised of a ratio, and what it is, for `cargo xtask compare`.
    pub fn promise(&mut self, work: &str, figure: &str, at_most: f64, measured: f64) {
        let _ = writeln!(self.promises, "{work}\t{figure}\t{at_most}\t{measured}");
    }

    /// Prints all lines and writes them to `file`, with how busy the machine was; promises go into
    /// a file `.tsv` beside it.
    ///
    /// # Errors
    ///
    /// The system's.
    pub fn close(mut self, file: &Path) -> io::Result<()> {
        if !measuring() {
            return Ok(());
        }
        let load = fs::read_to_string("/proc/loadavg")?;
        self.line(&format!("load of this machine: {}", load.trim()));
        fs::write(file, &self.text)?;
        fs::write(file.with_extension("tsv"), &self.promises)?;
        println!("\n{}also in {}", self.text, file.display());
        Ok(())
    }
}
