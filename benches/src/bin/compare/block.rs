//! The disk, beside `qemu-storage-daemon` and beside the limit that bare calls for the same blocks
//! set; what is left of a request without its data; and how often an idle disk wakes.

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
    rate_min: Option<f64>,
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
        rate_min: Some(rate_min),
        cpu_max: None,
        bare_max: None,
    }
}

const CASES: [Case; 13] = [
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
    // What is left of each request without its data: nothing is asked of it.
    Case {
        pinned: true,
        rate_min: None,
        ..case("nothing, depth 1, one processor", Storage::Null, 1, 0.0)
    },
    Case {
        rate_min: None,
        ..case("nothing, depth 32", Storage::Null, 32, 0.0)
    },
    Case {
        rate_min: None,
        ..case("nothing, depth 1", Storage::Null, 1, 0.0)
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
    rounds("block", effort, report, &mut lines, |number, line, _| {
        cases[number].measure(lab, line)?;
        // What was written is not written back during the next measurement.
        lab.image.settle()
    });
    let of_nothing = |it: &(&&Case, Line)| it.0.storage == Storage::Null;
    let (nothing, data): (Vec<_>, Vec<_>) = cases.iter().zip(lines).partition(of_nothing);
    let what = "requests of 4 KiB in random places, one queue";
    for (name, title, lines) in [
        ("block", format!("The disk: {what}"), data),
        ("nothing", format!("A disk of nothing: {what}"), nothing),
    ] {
        if !lines.is_empty() {
            report.sections.push(Section {
                name,
                title,
                series: ["vudev", effort.other("qemu-storage-daemon")],
                unit: "kIOPS",
                scale: |_| 1000.0,
                lines: lines.into_iter().map(|(_, line)| line).collect(),
            });
        }
    }
    idle(effort, lab, report);
}

fn idle(effort: &Effort, lab: &Lab<'_>, report: &mut Report) {
    if effort.wants(IDLE) {
        match wake_ups(lab) {
            Ok(count) => report.rows.push(Row {
                work: IDLE.to_owned(),
                figure: "wake-ups in a second".to_owned(),
                asked: Asked::AtMost(0.0),
                unit: "",
                measured: Some(count),
                limit: None,
            }),
            Err(error) => report.failed(IDLE, &error),
        }
    }
}

impl Case {
    /// One round.
    fn measure(&self, lab: &Lab<'_>, line: &mut Line) -> Result<()> {
        let job = Job {
            write: self.write,
            depth: self.depth,
            ..Job::default()
        };
        let ours = lab.measure(lab.ours(self.storage)?, job, self.pinned)?;
        line.ours.push(ours);
        if let Some(other) = lab.other(self.storage)? {
            line.other.push(lab.measure(other, job, self.pinned)?);
        }
        let limit = lab.limit(self.storage, job, self.pinned, ours.driver_us)?;
        line.limit.extend(limit);
        Ok(())
    }

    fn line(&self) -> Line {
        Line {
            rate_min: self.rate_min,
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
