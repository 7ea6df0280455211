//! What was asked, and what was measured beside it.

use std::fs;

use anyhow::Result;

use crate::Effort;
use crate::circumstances;
use crate::line::{Figures, Line};
use crate::table::{shown, table};

/// Everything that was measured, and what could not be.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) sections: Vec<Section>,
    /// What was asked that is not in a section.
    pub(crate) rows: Vec<Row>,
    /// What failed, and why.
    pub(crate) failures: Vec<String>,
    /// What was not tried, and how it would be.
    pub(crate) missing: Vec<String>,
}

/// Works that belong into one table and one plot.
#[derive(Debug)]
pub(crate) struct Section {
    /// As its files are called.
    pub(crate) name: &'static str,
    pub(crate) title: String,
    /// Who is shown: ours, and whom it is compared with.
    pub(crate) series: [&'static str; 2],
    /// What is counted in a second, and how many requests that is.
    pub(crate) unit: &'static str,
    pub(crate) scale: fn(&Line) -> f64,
    pub(crate) lines: Vec<Line>,
}

/// Something that was asked.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) work: String,
    pub(crate) figure: String,
    pub(crate) asked: Asked,
    pub(crate) unit: &'static str,
    pub(crate) measured: Option<f64>,
}

/// A bound.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Asked {
    AtLeast(f64),
    AtMost(f64),
}

impl Row {
    fn cells(&self) -> Vec<String> {
        let (sign, bound) = match self.asked {
            Asked::AtLeast(bound) => ("≥", bound),
            Asked::AtMost(bound) => ("≤", bound),
        };
        let is_kept = |it: f64| match self.asked {
            Asked::AtLeast(bound) => it >= bound,
            Asked::AtMost(bound) => it <= bound,
        };
        let kept = match self.measured {
            None => "not measured",
            Some(it) if is_kept(it) => "kept",
            Some(_) => "NOT KEPT",
        };
        let unit = self.unit;
        vec![
            self.work.clone(),
            self.figure.clone(),
            kept.to_owned(),
            format!("{sign} {} {unit}", shown(Some(bound))),
            format!("{} {unit}", shown(self.measured)),
        ]
    }
}

impl Report {
    /// Names what failed.
    pub(crate) fn failed(&mut self, what: &str, error: &anyhow::Error) {
        let line = format!("{what}: {error:#}");
        eprintln!("failed: {line}");
        self.failures.push(line);
    }

    /// Names what is not measured, with the remedy.
    pub(crate) fn missing(&mut self, line: String) {
        eprintln!("not measured: {line}");
        self.missing.push(line);
    }

    /// Writes `compare.md`, and prints it.
    pub(crate) fn write(&self, effort: &Effort) -> Result<()> {
        let mut text = format!("# What was asked\n\n{}\n", circumstances::told(effort)?);
        let lines = self.sections.iter().flat_map(Section::rows);
        let cells: Vec<_> = lines
            .chain(self.rows.clone())
            .map(|it| it.cells())
            .collect();
        text += &table(3, &["work", "figure", "", "asked", "measured"], &cells);
        for (title, lines) in [("Not measured", &self.missing), ("FAILED", &self.failures)] {
            if !lines.is_empty() {
                text += &format!("\n{title}:\n\n- {}\n", lines.join("\n- "));
            }
        }
        for section in &self.sections {
            text += &section.text();
        }
        let path = effort.folder.join("compare.md");
        fs::write(&path, &text)?;
        println!("\n{text}\nalso in {}", path.display());
        Ok(())
    }
}

impl Section {
    fn rows(&self) -> Vec<Row> {
        let other = self.series[1];
        let mut rows = Vec::new();
        for line in &self.lines {
            let mut row = |figure: String, asked, measured| {
                rows.push(Row {
                    work: line.name.clone(),
                    figure,
                    asked,
                    unit: "×",
                    measured,
                });
            };
            if let Some(least) = line.rate_min {
                let measured = line.ratio(|it| it.rate);
                row(format!("rate to {other}"), Asked::AtLeast(least), measured);
            }
            if let Some(most) = line.cpu_max {
                let measured = line.ratio(|it| it.cpu_us);
                row(format!("CPU to {other}"), Asked::AtMost(most), measured);
            }
            if let Some(most) = line.bare_max {
                let figure = "CPU to a bare call".to_owned();
                row(figure, Asked::AtMost(most), line.bare_ratio());
            }
        }
        rows
    }

    fn text(&self) -> String {
        let rounds = self.lines.iter().map(|line| line.ours.len()).max();
        let mut rows = Vec::new();
        for line in &self.lines {
            let scale = (self.scale)(line);
            for (who, rounds) in self.series.iter().zip([&line.ours, &line.other]) {
                let middle = |of: fn(&Figures) -> Option<f64>| Line::middle(rounds, of);
                rows.push(vec![
                    line.name.clone(),
                    (*who).to_owned(),
                    shown(middle(|it| Some(it.rate)).map(|rate| rate / scale)),
                    shown(middle(|it| Some(it.cpu_us))),
                    shown(middle(|it| it.p50_us)),
                    shown(middle(|it| it.p99_us)),
                ]);
            }
            if !line.bare_us.is_empty() {
                let bare = vudev_benches::figures::median(&line.bare_us);
                let mut row = vec![line.name.clone(), "a bare call".to_owned()];
                row.extend(["–".to_owned(), shown(bare), "–".to_owned(), "–".to_owned()]);
                rows.push(row);
            }
        }
        let head = ["work", "", self.unit, "CPU µs", "p50 µs", "p99 µs"];
        format!(
            "\n## {}\n\nMedians of {} rounds. CPU is processor time of the back-end a request, its \
             ring's workers included.\n\n{}",
            self.title,
            rounds.unwrap_or(0),
            table(2, &head, &rows)
        )
    }
}
