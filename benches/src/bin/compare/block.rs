//! The disk, beside `qemu-storage-daemon` and beside bare calls for the same blocks; and how often
//! an idle one wakes.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result};
use vudev_benches::disk::Storage;
use vudev_benches::load::{Job, Load};

use crate::Effort;
use crate::lab::Lab;
use crate::line::{Line, rounds};
use crate::report::{Asked, Report, Row, Section};

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

/// What is asked of a disk that nobody asks anything.
const IDLE: &str = "idle disk, after reads at depth 1";

/// What there is to ask for.
pub(crate) fn names() -> Vec<String> {
    let cases = CASES.iter().map(|case| case.name.to_owned());
    cases.chain([IDLE.to_owned()]).collect()
}

/// Measures all cases, and lines them up.
pub(crate) fn compare(effort: &Effort, lab: &Lab<'_>, report: &mut Report) {
    let wanted = |case: &&Case| effort.wants(case.name);
    let cases: Vec<&Case> = CASES.iter().filter(wanted).collect();
    let mut lines: Vec<Line> = cases.iter().map(|case| case.line()).collect();
    rounds("block", effort, report, &mut lines, |number, line| {
        let case = cases[number];
        let job = Job {
            write: case.write,
            depth: case.depth,
            ..Job::default()
        };
        let ours = lab.ours(case.storage)?;
        line.ours.push(lab.measure(ours, job, case.pinned)?);
        if let Some(other) = lab.other(case.storage)? {
            line.other.push(lab.measure(other, job, case.pinned)?);
        }
        if case.bare_max.is_some() {
            line.bare_us.push(lab.bare(case.write)?);
        }
        // What was written is not written back during the next measurement.
        lab.image.settle()
    });
    if !lines.is_empty() {
        report.sections.push(Section {
            name: "block",
            title: "The disk: requests of 4 KiB in random places, one queue".to_owned(),
            series: ["vudev", effort.other("qemu-storage-daemon")],
            unit: "kIOPS",
            scale: |_| 1000.0,
            lines,
        });
    }
    if effort.wants(IDLE) {
        match wake_ups(lab) {
            Ok(count) => report.rows.push(Row {
                work: IDLE.to_owned(),
                figure: "wake-ups in a second".to_owned(),
                asked: Asked::AtMost(0.0),
                unit: "",
                measured: Some(count),
            }),
            Err(error) => report.failed(IDLE, &error),
        }
    }
}

impl Case {
    fn line(&self) -> Line {
        Line {
            rate_min: Some(self.rate_min),
            cpu_max: self.cpu_max,
            bare_max: self.bare_max,
            ..Line::named(self.name)
        }
    }
}

/// How often the disk's thread runs in a second in which its driver, connected, does nothing.
fn wake_ups(lab: &Lab<'_>) -> Result<f64> {
    let ours = lab.ours(Storage::Cached)?;
    let mut load = Load::new(ours, lab.image.size(), Job::default())?;
    load.run(1000)?;
    // Polling comes to its end, on a busy machine the last turn to its own in its time, and the
    // guard over calls wakes it once, half a second after the last one.
    let mut before = switches(ours.worker())?;
    let mut quiet = 0;
    while quiet < 3 {
        pause(Duration::from_millis(300));
        let now = switches(ours.worker())?;
        quiet = if now == before { quiet + 1 } else { 0 };
        before = now;
    }
    pause(Duration::from_secs(1));
    let after = switches(ours.worker())?;
    drop(load);
    Ok((after - before) as f64)
}

/// How often a process' thread has been put away, which it is once for each time that it woke.
fn switches(process: u32) -> Result<u64> {
    let path = format!("/proc/{process}/status");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    let counts = text.lines().filter(|line| line.contains("ctxt_switches:"));
    let counts = counts.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    Ok(counts.sum())
}

#[expect(clippy::disallowed_methods, reason = "what is measured is a pause")]
fn pause(time: Duration) {
    std::thread::sleep(time);
}
