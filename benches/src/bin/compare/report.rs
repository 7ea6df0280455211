//! The table: what was asked, and what was measured beside it.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::Result;
use vudev_benches::figures::median;

/// One measurement.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figures {
    /// Requests a second.
    pub(crate) rate: f64,
    /// Processor time of the back-end for a request, its workers included.
    pub(crate) cpu_us: f64,
    /// Half of all requests took no longer.
    pub(crate) p50_us: f64,
    /// 99 of 100 took no longer.
    pub(crate) p99_us: f64,
}

/// One kind of work: all rounds of ours and of the peer's.
#[derive(Clone, Debug, Default)]
pub(crate) struct Line {
    pub(crate) name: String,
    pub(crate) rate_min: f64,
    pub(crate) cpu_max: Option<f64>,
    pub(crate) bare_max: Option<f64>,
    pub(crate) ours: Vec<Figures>,
    pub(crate) peer: Vec<Figures>,
    pub(crate) bare_us: Vec<f64>,
}

impl Line {
    /// The median of one figure of some rounds.
    pub(crate) fn middle(rounds: &[Figures], of: fn(&Figures) -> f64) -> Option<f64> {
        median(&rounds.iter().map(of).collect::<Vec<_>>())
    }

    /// The median of ours to the peer's, round by round: what moved both does not count.
    fn ratio(&self, of: fn(&Figures) -> f64) -> Option<f64> {
        let rounds = self.ours.iter().zip(&self.peer);
        median(
            &rounds
                .map(|(ours, peer)| of(ours) / of(peer))
                .collect::<Vec<_>>(),
        )
    }

    fn bare_ratio(&self) -> Option<f64> {
        let rounds = self.ours.iter().zip(&self.bare_us);
        median(
            &rounds
                .map(|(ours, bare)| ours.cpu_us / bare)
                .collect::<Vec<_>>(),
        )
    }
}

/// Writes `NAME.md` into `folder`, and prints it.
pub(crate) fn write(folder: &Path, name: &str, lines: &[Line]) -> Result<()> {
    let mut text = format!(
        "# {name}\n\nMedians of {} rounds. CPU is processor time of the back-end a request, its \
         ring's workers included; × is ours to the peer's, round by round.\n\n",
        lines.iter().map(|line| line.ours.len()).max().unwrap_or(0)
    );
    text += "| work | | kIOPS | CPU µs | p50 µs | p99 µs |\n|---|---|--:|--:|--:|--:|\n";
    for line in lines {
        for (who, rounds) in [("vudev", &line.ours), ("peer", &line.peer)] {
            let shown = |of| shown(Line::middle(rounds, of));
            writeln!(
                text,
                "| {} | {who} | {} | {} | {} | {} |",
                line.name,
                shown(|it| it.rate / 1000.0),
                shown(|it| it.cpu_us),
                shown(|it| it.p50_us),
                shown(|it| it.p99_us),
            )?;
        }
    }
    text += "\n| work | figure | asked | measured | |\n|---|---|--:|--:|---|\n";
    for line in lines {
        let mut row = |figure: &str, sign: &str, asked: f64, measured: Option<f64>| {
            let kept = match measured {
                None => "not measured",
                Some(it) if (sign == "≥" && it >= asked) || (sign == "≤" && it <= asked) => {
                    "kept"
                }
                Some(_) => "NOT KEPT",
            };
            let measured = shown(measured);
            writeln!(
                text,
                "| {} | {figure} | {sign} {asked} × | {measured} × | {kept} |",
                line.name
            )
        };
        row(
            "IOPS to the peer's",
            "≥",
            line.rate_min,
            line.ratio(|it| it.rate),
        )?;
        if let Some(asked) = line.cpu_max {
            row("CPU to the peer's", "≤", asked, line.ratio(|it| it.cpu_us))?;
        }
        if let Some(asked) = line.bare_max {
            row("CPU to a bare call's", "≤", asked, line.bare_ratio())?;
        }
    }
    let load = fs::read_to_string("/proc/loadavg")?;
    write!(text, "\nLoad of the machine at the end: {}.\n", load.trim())?;
    fs::write(folder.join(format!("{name}.md")), &text)?;
    println!("{text}");
    Ok(())
}

fn shown(value: Option<f64>) -> String {
    match value {
        None => "–".to_owned(),
        Some(value) if value >= 100.0 => format!("{value:.0}"),
        Some(value) if value >= 10.0 => format!("{value:.1}"),
        Some(value) => format!("{value:.2}"),
    }
}
