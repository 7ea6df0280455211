//! A guest that works between its requests: reads of a cached disk, one at a time, with a pause
//! after each in which the driver keeps its processor. What polling is worth, and what it costs.

use std::time::Duration;

use vudev_benches::disk::Storage;
use vudev_benches::load::Job;

use crate::Effort;
use crate::lab::Lab;
use crate::line::{Line, rounds};
use crate::report::{Report, Section};

/// Shorter than a device polls by itself, about as long, and so long that it does not begin to.
const PAUSES_US: [u64; 3] = [10, 45, 900];

/// What there is to ask for.
pub(crate) fn names() -> Vec<String> {
    PAUSES_US.map(name).into()
}

fn name(pause_us: u64) -> String {
    format!("reads with pauses of {pause_us} µs")
}

/// Measures all of it.
pub(crate) fn measure(effort: &Effort, lab: &Lab<'_>, report: &mut Report) {
    let wanted = PAUSES_US.into_iter().filter(|it| effort.wants(&name(*it)));
    let wanted: Vec<u64> = wanted.collect();
    if wanted.is_empty() {
        return;
    }
    let mut lines: Vec<Line> = wanted.iter().map(|it| Line::named(&name(*it))).collect();
    rounds("pauses", effort, report, &mut lines, |number, line, _| {
        let job = Job {
            pause: Duration::from_micros(wanted[number]),
            ..Job::default()
        };
        let ours = lab.measure(lab.ours(Storage::Cached)?, job, false)?;
        line.ours.push(ours);
        if let Some(other) = lab.other(Storage::Cached)? {
            line.other.push(lab.measure(other, job, false)?);
        }
        Ok(())
    });
    report.sections.push(Section {
        name: "pauses",
        title: "Pauses between requests: cached reads of 4 KiB, one at a time".to_owned(),
        series: ["vudev", effort.other("qemu-storage-daemon")],
        unit: "kIOPS",
        scale: |_| 1000.0,
        lines,
    });
}
