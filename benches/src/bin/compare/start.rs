//! The start of many jailed devices, and what memory each of them costs.

use anyhow::Result;
use vudev_benches::starting::{MANY, MANY_WITHIN, PSS_MAX_KIB, Running, median, start};

use crate::Effort;
use crate::report::{Asked, Report, Row};

/// What there is to ask for.
pub(crate) fn name() -> String {
    format!("start of {MANY} jailed devices")
}

/// Measures both.
pub(crate) fn measure(effort: &Effort, report: &mut Report) {
    let work = name();
    if !effort.wants(&work) {
        return;
    }
    let mut row = |figure: &str, most, unit, measured| {
        report.rows.push(Row {
            work: work.clone(),
            figure: figure.to_owned(),
            asked: Asked::AtMost(most),
            unit,
            measured,
            limit: None,
        });
    };
    let mut failures = Vec::new();
    match times(effort) {
        Ok(time) => row("until all are ready", MANY_WITHIN.as_secs_f64(), "s", time),
        Err(error) => failures.push(error),
    }
    match memory(effort) {
        Ok(kib) => row("PSS of one that is idle", PSS_MAX_KIB as f64, "KiB", kib),
        Err(error) => failures.push(error),
    }
    for error in failures {
        report.failed(&work, &error);
    }
}

/// Seconds.
fn times(effort: &Effort) -> Result<Option<f64>> {
    let program = effort.programs.join("vudev-benched");
    // The first one warms up.
    start(&program, MANY)?;
    let times: Result<Vec<_>> = (0..effort.rounds).map(|_| start(&program, MANY)).collect();
    Ok(median(&times?).map(|time| time.as_secs_f64()))
}

/// KiB; `None` as an ordinary user, who may not look.
fn memory(effort: &Effort) -> Result<Option<f64>> {
    let folder = tempfile::tempdir()?;
    let program = effort.programs.join("vudev-benched");
    let running = Running::start(&program, MANY, folder.path())?;
    let memory = running.memory()?;
    running.stop()?;
    Ok(median(&memory).map(|kib| kib as f64))
}
