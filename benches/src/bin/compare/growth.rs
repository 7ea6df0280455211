//! How a request's cost grows: with requests in flight, beside the peer's; and with queues, idle
//! devices beside and regions of guest memory, beside its own without them. All of it are reads of
//! a cached disk, driver and back-end on one processor.

use anyhow::Result;
use vudev_benches::disk::Storage;
use vudev_benches::load::Job;
use vudev_benches::starting::Running;

use crate::Effort;
use crate::lab::Lab;
use crate::line::{Line, rounds};
use crate::report::{Report, Section};

const DEPTHS: [u16; 8] = [1, 2, 4, 8, 16, 32, 64, 128];

/// What is beside the disk, or how else its driver works, at 32 requests in flight.
#[derive(Clone, Copy)]
enum With {
    Queues(u16),
    Devices(usize),
    Regions(usize),
}

const WITH: [With; 8] = [
    With::Queues(2),
    With::Queues(4),
    With::Devices(1),
    With::Devices(100),
    With::Regions(2),
    With::Regions(8),
    With::Regions(64),
    // What a session takes at most.
    With::Regions(509),
];

/// What 100 idle devices beside may cost a request.
const DEVICES_MAX: f64 = 1.05;

/// What there is to ask for.
pub(crate) fn names() -> Vec<String> {
    let depths = DEPTHS.map(at_depth).into_iter();
    depths.chain(WITH.map(|with| with.line().name)).collect()
}

fn at_depth(depth: u16) -> String {
    format!("reads at depth {depth}")
}

/// Measures all of it.
pub(crate) fn measure(effort: &Effort, lab: &Lab<'_>, report: &mut Report) {
    depths(effort, lab, report);
    beside(effort, lab, report);
}

fn depths(effort: &Effort, lab: &Lab<'_>, report: &mut Report) {
    let named = DEPTHS.map(|depth| (depth, at_depth(depth)));
    let wanted: Vec<_> = named
        .iter()
        .filter(|(_, name)| effort.wants(name))
        .collect();
    let mut lines: Vec<Line> = wanted.iter().map(|(_, name)| Line::named(name)).collect();
    rounds("depths", effort, report, &mut lines, |number, line, _| {
        let job = Job {
            depth: wanted[number].0,
            ..Job::default()
        };
        line.ours
            .push(lab.measure(lab.ours(Storage::Cached)?, job, true)?);
        if let Some(other) = lab.other(Storage::Cached)? {
            line.other.push(lab.measure(other, job, true)?);
        }
        Ok(())
    });
    if !lines.is_empty() {
        report.sections.push(Section {
            name: "depths",
            title: "Requests in flight: cached reads of 4 KiB on one processor".to_owned(),
            series: ["vudev", effort.other("qemu-storage-daemon")],
            unit: "kIOPS",
            scale: |_| 1000.0,
            lines,
        });
    }
}

impl With {
    fn line(self) -> Line {
        let name = match self {
            Self::Queues(count) => format!("on {count} queues"),
            Self::Devices(1) => "beside 1 idle device".to_owned(),
            Self::Devices(count) => format!("beside {count} idle devices"),
            Self::Regions(count) => format!("in {count} regions of memory"),
        };
        let mut line = Line::named(&name);
        line.cpu_max = matches!(self, Self::Devices(100)).then_some(DEVICES_MAX);
        line
    }

    fn job(self) -> Job {
        let mut job = Job {
            depth: 32,
            ..Job::default()
        };
        match self {
            Self::Queues(count) => (job.queues, job.depth) = (count, job.depth / count),
            Self::Devices(_) => {}
            Self::Regions(count) => job.regions = count,
        }
        job
    }

    /// The idle devices.
    fn start(self, effort: &Effort) -> Result<Option<(Running, tempfile::TempDir)>> {
        let Self::Devices(count) = self else {
            return Ok(None);
        };
        let folder = tempfile::tempdir()?;
        let program = effort.programs.join("vudev-benched");
        let running = Running::start(&program, count, folder.path())?;
        Ok(Some((running, folder)))
    }
}

fn beside(effort: &Effort, lab: &Lab<'_>, report: &mut Report) {
    let all = WITH.map(|with| (with, with.line()));
    let wanted = all.into_iter().filter(|(_, line)| effort.wants(&line.name));
    let (with, mut lines): (Vec<With>, Vec<Line>) = wanted.unzip();
    let alone = With::Queues(1).job();
    rounds("beside", effort, report, &mut lines, |number, line, _| {
        let disk = lab.ours(Storage::Cached)?;
        line.other.push(lab.measure(disk, alone, true)?);
        let others = with[number].start(effort)?;
        line.ours.push(lab.measure(disk, with[number].job(), true)?);
        if let Some((running, _folder)) = others {
            running.stop()?;
        }
        Ok(())
    });
    if !lines.is_empty() {
        report.sections.push(Section {
            name: "beside",
            title: "Queues, idle devices, regions: cached reads of 4 KiB on one processor, 32 in \
                    flight"
                .to_owned(),
            series: ["as named", "itself alone"],
            unit: "kIOPS",
            scale: |_| 1000.0,
            lines,
        });
    }
}
