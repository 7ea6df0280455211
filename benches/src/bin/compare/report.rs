//! What was asked, and what was measured beside it.

use std::fs;

use anyhow::Result;

use crate::Effort;
use crate::circumstances;
use crate::line::{Figures, Line};
use crate::table::{shown, table};

const HEAD: [&str; 6] = ["work", "figure", "", "asked", "measured", "limit"];

/// One of a measurement's figures.
type Of = fn(&Figures) -> f64;

/// What one of its columns is.
const LIMIT: &str = "
The limit is what a back-end would have that did nothing but the bare calls, beside the same peer in
the same rounds.
";

/// Everything that was measured, and what could not be.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) sections: Vec<Section>,
    /// What was asked that is not in a section.
    pub(crate) rows: Vec<Row>,
    /// What a peer failed at, and was measured again.
    pub(crate) again: Vec<String>,
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
    /// What a back-end would reach that did nothing of its own.
    pub(crate) limit: Option<f64>,
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
            match self.limit {
                Some(_) => format!("{} {unit}", shown(self.limit)),
                None => String::new(),
            },
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

    /// Names what a peer failed at.
    pub(crate) fn again(&mut self, work: &str, error: &anyhow::Error) {
        eprintln!("measured again: {work}: {error:#}");
        self.again.push(format!("{work}: {}", error.root_cause()));
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
        text += &table(3, &HEAD, &cells);
        text += LIMIT;
        for (title, lines) in [
            ("Not measured", &self.missing),
            ("Measured again, since the peer failed", &self.again),
            ("FAILED", &self.failures),
        ] {
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
            let mut row = |figure: String, asked, measured, limit| {
                rows.push(Row {
                    work: line.name.clone(),
                    figure,
                    asked,
                    unit: "×",
                    measured,
                    limit,
                });
            };
            let asked_of: [(_, Of, _); 2] = [
                ("rate", |it| it.rate, line.rate_min.map(Asked::AtLeast)),
                ("CPU", |it| it.cpu_us, line.cpu_max.map(Asked::AtMost)),
            ];
            for (what, of, asked) in asked_of {
                if let Some(asked) = asked {
                    let figure = format!("{what} to {other}");
                    row(figure, asked, line.ratio(of), line.limit_ratio(of));
                }
            }
            if let Some(most) = line.bare_max {
                let figure = "CPU to a bare call".to_owned();
                let measured = line.bare_ratio(|it| it.cpu_us);
                row(figure, Asked::AtMost(most), measured, None);
            }
        }
        rows
    }

    fn text(&self) -> String {
        let rounds = self.lines.iter().map(|line| line.ours.len()).max();
        let mut rows = Vec::new();
        for line in &self.lines {
            let scale = (self.scale)(line);
            let [ours, other] = self.series;
            let all = [
                (ours, &line.ours),
                (other, &line.other),
                ("nothing", &line.nothing),
                ("limit", &line.limit),
            ];
            for (who, rounds) in all {
                // The first two are there in any case.
                if rounds.is_empty() && !self.series.contains(&who) {
                    continue;
                }
                let middle = |of: fn(&Figures) -> Option<f64>| Line::middle(rounds, of);
                rows.push(vec![
                    line.name.clone(),
                    who.to_owned(),
                    shown(middle(|it| Some(it.rate)).map(|rate| rate / scale)),
                    shown(middle(|it| Some(it.cpu_us))),
                    shown(middle(|it| Some(it.driver_us).filter(|it| *it > 0.0))),
                    shown(middle(|it| it.p50_us)),
                    shown(middle(|it| it.p99_us)),
                ]);
            }
        }
        let head = [
            "work", "", self.unit, "CPU µs", "driver's", "p50 µs", "p99 µs",
        ];
        format!(
            "\n## {}\n\nMedians of {} rounds. CPU is processor time of the back-end a request, its \
             ring's workers included; of the limit, that of the bare calls.\n\n{}",
            self.title,
            rounds.unwrap_or(0),
            table(2, &head, &rows)
        )
    }
}
