//! What benchmarks that are programs of their own have found: those need crates that this program
//! does without.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use crate::Effort;
use crate::report::{Asked, Report, Row};

/// Adds the promises of those benchmarks that `cargo xtask compare` has run to the report.
pub(crate) fn gather(effort: &Effort, report: &mut Report) {
    let Some(folder) = &effort.figures else {
        return;
    };
    for name in effort.benchmarks.iter().filter(|name| effort.wants(name)) {
        match promises(folder, name) {
            // It has named what this host lacks.
            Ok(rows) if rows.is_empty() => {
                report.missing(format!("{name}: {}", lacks(folder, name)));
            }
            Ok(rows) => report.rows.extend(rows),
            Err(error) => {
                let why = "`cargo bench -p vudev-benches --bench";
                report.failed(
                    &format!("{name}: {why} {name} -- --quick` says why"),
                    &error,
                );
            }
        }
    }
}

/// What the benchmark says that this host lacks.
fn lacks(folder: &Path, name: &str) -> String {
    let text = fs::read_to_string(folder.join(format!("{name}.txt"))).unwrap_or_default();
    text.lines().next().unwrap_or("it says nothing").to_owned()
}

/// Lines of work, figure, bound and measured ratio (`vudev_benches::contest::Report`).
fn promises(folder: &Path, name: &str) -> Result<Vec<Row>> {
    let path = folder.join(format!("{name}.tsv"));
    let text = fs::read_to_string(&path)
        .with_context(|| format!("the benchmark has left no {}", path.display()))?;
    text.lines()
        .map(|line| {
            let fields: Vec<&str> = line.split('\t').collect();
            let [work, figure, most, measured] = fields[..] else {
                anyhow::bail!("{} has a line of {} fields", path.display(), fields.len());
            };
            Ok(Row {
                work: format!("{name}: {work}"),
                figure: figure.to_owned(),
                asked: Asked::AtMost(most.parse()?),
                unit: "×",
                measured: Some(measured.parse()?),
                limit: None,
            })
        })
        .collect()
}
