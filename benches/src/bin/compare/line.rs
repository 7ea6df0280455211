//! One kind of work, measured in rounds in which each has its turn.

use anyhow::Result;
use vudev_benches::figures::median;
use vudev_benches::run::Run;

use crate::Effort;
use crate::report::Report;

/// One measurement.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Figures {
    /// Requests a second.
    pub(crate) rate: f64,
    /// Processor time of the back-end for a request, its workers included.
    pub(crate) cpu_us: f64,
    /// And of the driver.
    pub(crate) driver_us: f64,
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
            driver_us: run.driver.as_secs_f64() * 1e6 / requests,
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
    /// What the driver comes to with a device of ours that does nothing, where that is another.
    pub(crate) nothing: Vec<Figures>,
    /// What nobody comes beyond; its processor time is that of the bare calls.
    pub(crate) limit: Vec<Figures>,
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
        Self::among(&self.ours, &self.other, of)
    }

    /// And of the limit to the other's: what ours would be, did it nothing of its own.
    pub(crate) fn limit_ratio(&self, of: fn(&Figures) -> f64) -> Option<f64> {
        Self::among(&self.limit, &self.other, of)
    }

    /// And of ours to the limit.
    pub(crate) fn bare_ratio(&self, of: fn(&Figures) -> f64) -> Option<f64> {
        Self::among(&self.ours, &self.limit, of)
    }

    fn among(ones: &[Figures], others: &[Figures], of: fn(&Figures) -> f64) -> Option<f64> {
        let rounds = ones.iter().zip(others);
        let ratios: Vec<_> = rounds.map(|(one, other)| of(one) / of(other)).collect();
        median(&ratios)
    }
}

/// Gives each line its turn in each round. One that fails is named, and has no more turns.
pub(crate) fn rounds(
    what: &str,
    effort: &Effort,
    report: &mut Report,
    lines: &mut [Line],
    mut measure: impl FnMut(usize, &mut Line, &mut Report) -> Result<()>,
) {
    for round in 1..=effort.rounds {
        eprintln!("{what}: round {round} of {}", effort.rounds);
        for (number, line) in lines.iter_mut().enumerate() {
            if line.failed {
                continue;
            }
            if let Err(error) = measure(number, line, report) {
                report.failed(&line.name, &error);
                line.failed = true;
            }
        }
    }
}

/// How often a peer is tried for one figure.
const TRIES: usize = 3;

/// Measures a peer, whose failures are not ours: each but the last is told, and it is measured
/// again.
pub(crate) fn again(
    work: &str,
    report: &mut Report,
    mut measure: impl FnMut() -> Result<Figures>,
) -> Result<Figures> {
    for _ in 1..TRIES {
        match measure() {
            Ok(figures) => return Ok(figures),
            Err(error) => report.again(work, &error),
        }
    }
    measure()
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    fn rounds_of(rates: &[f64]) -> Vec<Figures> {
        let of = |&rate| Figures {
            rate,
            ..Figures::default()
        };
        rates.iter().map(of).collect()
    }

    #[test]
    fn a_ratio_is_of_figures_of_the_same_round() {
        let line = Line {
            ours: rounds_of(&[10.0, 100.0, 30.0]),
            other: rounds_of(&[5.0, 25.0, 10.0]),
            limit: rounds_of(&[20.0, 200.0, 90.0]),
            ..Line::named("work")
        };
        assert_eq!(line.ratio(|it| it.rate), Some(3.0));
        assert_eq!(line.limit_ratio(|it| it.rate), Some(8.0));
        assert_eq!(line.bare_ratio(|it| it.rate), Some(0.5));
        assert_eq!(Line::named("nobody").ratio(|it| it.rate), None);
    }

    #[test]
    fn a_peer_that_fails_is_measured_again_and_no_failure_unless_it_goes_on() {
        let mut report = Report::default();
        let mut fails = TRIES - 1;
        let measured = again("work", &mut report, || match fails {
            0 => Ok(Figures::default()),
            _ => {
                fails -= 1;
                bail!("it is silent")
            }
        });
        assert!(measured.is_ok() && report.failures.is_empty());
        assert_eq!(report.again, ["work: it is silent"; TRIES - 1]);

        let mut tries = 0;
        let measured = again("work", &mut report, || {
            tries += 1;
            bail!("it is silent")
        });
        assert!(measured.is_err());
        assert_eq!(tries, TRIES);
    }
}
