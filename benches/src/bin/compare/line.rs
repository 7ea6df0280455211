//! One kind of work, measured in rounds in which each has its turn.

use anyhow::Result;
use vudev_benches::figures::median;
use vudev_benches::run::Run;

use crate::Effort;
use crate::report::Report;

/// One measurement.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figures {
    /// Requests a second.
    pub(crate) rate: f64,
    /// Processor time of the back-end for a request, its workers included.
    pub(crate) cpu_us: f64,
    /// Half of all requests took no longer; `None` where nobody looked.
    pub(crate) p50_us: Option<f64>,
    /// 99 of 100 took no longer.
    pub(crate) p99_us: Option<f64>,
}

impl From<&Run> for Figures {
    fn from(run: &Run) -> Self {
        let micros = |thousandths| {
            let time = run.latencies.percentile(thousandths).as_secs_f64() * 1e6;
            Some(time).filter(|time| *time > 0.0)
        };
        let requests = run.requests as f64;
        Self {
            rate: requests / run.elapsed.as_secs_f64(),
            cpu_us: run.used.as_secs_f64() * 1e6 / requests,
            p50_us: micros(500),
            p99_us: micros(990),
        }
    }
}

/// One kind of work: what is asked of it, and all rounds of ours and of whom it is compared with.
#[derive(Clone, Debug, Default)]
pub(crate) struct Line {
    pub(crate) name: String,
    /// Bytes of a request, where bytes are counted.
    pub(crate) bytes: u32,
    /// Ours against the other's: requests a second, at least.
    pub(crate) rate_min: Option<f64>,
    /// And processor time of a request, at most.
    pub(crate) cpu_max: Option<f64>,
    /// And against a bare call's time, at most.
    pub(crate) bare_max: Option<f64>,
    pub(crate) ours: Vec<Figures>,
    pub(crate) other: Vec<Figures>,
    pub(crate) bare_us: Vec<f64>,
    pub(crate) failed: bool,
}

impl Line {
    /// One of which nothing is asked yet.
    pub(crate) fn named(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            ..Self::default()
        }
    }

    /// The median of one figure of some rounds.
    pub(crate) fn middle(rounds: &[Figures], of: fn(&Figures) -> Option<f64>) -> Option<f64> {
        median(&rounds.iter().filter_map(of).collect::<Vec<_>>())
    }

    /// The median of ours to the other's, round by round: what moved both does not count.
    pub(crate) fn ratio(&self, of: fn(&Figures) -> f64) -> Option<f64> {
        let rounds = self.ours.iter().zip(&self.other);
        let ratios: Vec<_> = rounds.map(|(ours, other)| of(ours) / of(other)).collect();
        median(&ratios)
    }

    /// The median of ours to a bare call's.
    pub(crate) fn bare_ratio(&self) -> Option<f64> {
        let rounds = self.ours.iter().zip(&self.bare_us);
        let ratios: Vec<_> = rounds.map(|(ours, bare)| ours.cpu_us / bare).collect();
        median(&ratios)
    }
}

/// Gives each line its turn in each round. One that fails is named, and has no more turns.
pub(crate) fn rounds(
    what: &str,
    effort: &Effort,
    report: &mut Report,
    lines: &mut [Line],
    mut measure: impl FnMut(usize, &mut Line) -> Result<()>,
) {
    for round in 1..=effort.rounds {
        eprintln!("{what}: round {round} of {}", effort.rounds);
        for (number, line) in lines.iter_mut().enumerate() {
            if line.failed {
                continue;
            }
            if let Err(error) = measure(number, line) {
                report.failed(&line.name, &error);
                line.failed = true;
            }
        }
    }
}
