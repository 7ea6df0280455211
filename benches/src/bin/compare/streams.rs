//! Console, entropy and sockets beside the devices of rust-vmm.

use anyhow::{Context as _, Result};
use vudev_benches::peer;
use vudev_benches::streams::{CONSOLE, Job, RNG, Side, Stream, VSOCK};

use crate::Effort;
use crate::limit;
use crate::line::{Figures, Line, again, rounds};
use crate::report::{Report, Section};

/// Buffers that warm up, and tell how many fill a window.
const WARM_UP: u64 = 300;

const PROGRAM: &str = "vudev-benched";

const STREAMS: [&Stream; 3] = [&CONSOLE, &RNG, &VSOCK];

/// What there is to ask for.
pub(crate) fn names() -> Vec<String> {
    let of = |stream: &'static Stream| stream.jobs.iter().map(|job| stream.title(*job));
    STREAMS.into_iter().flat_map(of).collect()
}

/// Measures all jobs of all of them, and lines them up.
pub(crate) fn compare(effort: &Effort, report: &mut Report) {
    for stream in STREAMS {
        let jobs = stream.jobs.iter().copied();
        let jobs: Vec<Job> = jobs
            .filter(|job| effort.wants(&stream.title(*job)))
            .collect();
        if jobs.is_empty() {
            continue;
        }
        let section = of(effort, report, stream, &jobs);
        report.sections.push(section);
    }
}

fn of(effort: &Effort, report: &mut Report, stream: &'static Stream, jobs: &[Job]) -> Section {
    let ours = Side::ours(stream, effort.ours(PROGRAM));
    let nothing = Side::nothing(stream, effort.programs.join("vudev-null"));
    let other = match effort.in_place_of_peers(PROGRAM) {
        Some(build) => Some(Side::ours(stream, build)),
        None => Side::peer(stream),
    };
    if other.is_none() {
        report.missing(peer::remedy(stream.peer));
    }
    let mut lines: Vec<Line> = jobs
        .iter()
        .map(|job| Line {
            rate_min: job.rate_min,
            bytes: job.bytes,
            ..Line::named(&stream.title(*job))
        })
        .collect();
    let measure = |number, line: &mut Line, report: &mut Report| {
        let job = jobs[number];
        line.ours.push(measure(effort, &ours, job)?);
        if let Some(other) = &other {
            let once = || measure(effort, other, job);
            line.other.push(match other.is_peer() {
                true => again(&line.name, report, once)?,
                false => once()?,
            });
        }
        if let Some(nothing) = &nothing {
            line.nothing.push(measure(effort, nothing, job)?);
        }
        let limit = limit::of_stream(effort, stream, job, line.nothing.last());
        line.limit.push(limit.context("the limit")?);
        Ok(())
    };
    rounds(stream.name, effort, report, &mut lines, measure);
    Section {
        name: stream.name,
        title: format!("{}: a request is a buffer", stream.name),
        series: ["vudev", effort.other(stream.peer)],
        unit: "MiB/s",
        scale: |line| f64::from(1 << 20) / f64::from(line.bytes),
        lines,
    }
}

fn measure(effort: &Effort, side: &Side, job: Job) -> Result<Figures> {
    let warm = side.run(job, WARM_UP)?;
    let run = side.run(job, effort.fill(WARM_UP, warm.elapsed))?;
    Ok(Figures::from(&run))
}
