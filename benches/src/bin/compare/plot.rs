//! Plots, as SVG: bars for rates and processor time, and for latencies a line from the median to
//! the 99th of a hundred. Ours and the other's side by side. Not a plotting library: rows, an axis
//! and a legend are all that is needed.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::Result;

use crate::line::{Figures, Line};
use crate::report::Section;
use crate::table::shown;

const WIDTH: f64 = 900.0;
/// Room for the names of the work.
const LEFT: f64 = 250.0;
/// Room for the value behind the longest bar.
const RIGHT: f64 = 90.0;
/// Of which that takes so much.
const VALUE: f64 = 45.0;
const TOP: f64 = 76.0;
const BOTTOM: f64 = 50.0;
/// Of one series, and from one kind of work to the next.
const BAR: f64 = 14.0;
const STEP: f64 = 42.0;

/// Two colours that are told apart in grey too.
const COLOURS: [&str; 2] = ["#1b6ca8", "#e8a33d"];

/// Of the limit.
const LIMIT: &str = "#c0392b";

/// A value of each series and of the limit, in each kind of work: where it begins, and ends.
type Values = [Option<(f64, f64)>; 3];

/// Writes the plots of a section, `NAME-….svg`, into `folder`.
pub(crate) fn write(folder: &Path, section: &Section) -> Result<()> {
    let Section { name, unit, .. } = section;
    let rates = values(section, |line, rounds| {
        let rate = Line::middle(rounds, |it| Some(it.rate))?;
        Some((0.0, rate / (section.scale)(line)))
    });
    let times = values(section, |_, rounds| {
        Some((0.0, Line::middle(rounds, |it| Some(it.cpu_us))?))
    });
    let latencies = values(section, |_, rounds| {
        let half = Line::middle(rounds, |it| it.p50_us)?;
        Some((half, Line::middle(rounds, |it| it.p99_us)?))
    });
    let plots = [
        (
            "rate",
            format!("{unit} (more is better)"),
            Axis::linear(&rates),
            rates,
        ),
        (
            "cpu",
            "processor time of the back-end, µs a request (less is better)".to_owned(),
            Axis::linear(&times),
            times,
        ),
        (
            "latency",
            "µs from being sent to being back: ● half of all, ○ 99 of 100 (less is better)"
                .to_owned(),
            Axis::logarithmic(&latencies),
            latencies,
        ),
    ];
    for (figure, what, axis, values) in plots {
        if values.iter().flatten().flatten().next().is_none() {
            continue;
        }
        let path = folder.join(format!("{name}-{figure}.svg"));
        fs::write(&path, plot(section, &what, &axis, &values)?)?;
        println!("plot: {}", path.display());
    }
    Ok(())
}

fn values(section: &Section, of: impl Fn(&Line, &[Figures]) -> Option<(f64, f64)>) -> Vec<Values> {
    let all = |line: &Line| [&line.ours, &line.other, &line.limit].map(|rounds| of(line, rounds));
    section.lines.iter().map(all).collect()
}

/// Where values lie.
struct Axis {
    ticks: Vec<f64>,
    logarithmic: bool,
}

impl Axis {
    /// From nothing to beyond the greatest, with round numbers at the ticks.
    fn linear(values: &[Values]) -> Self {
        let most = ends(values).fold(0.0, f64::max);
        let tick = round_up(most / 5.0);
        let count = (most / tick).ceil().max(1.0);
        let mut ticks = Vec::new();
        while ticks.len() as f64 <= count {
            ticks.push(ticks.len() as f64 * tick);
        }
        Self {
            ticks,
            logarithmic: false,
        }
    }

    /// From a power of ten below all values to one above.
    fn logarithmic(values: &[Values]) -> Self {
        let most = ends(values).fold(1.0, f64::max);
        let least = values.iter().flatten().flatten().map(|(from, _)| *from);
        let least = least.fold(most, f64::min).max(0.001);
        let mut ticks = vec![10_f64.powf(least.log10().floor())];
        while let Some(&last) = ticks.last().filter(|last| **last < most || ticks.len() < 2) {
            ticks.push(last * 10.0);
        }
        Self {
            ticks,
            logarithmic: true,
        }
    }

    fn place(&self, value: f64) -> f64 {
        let scaled = |value: f64| match self.logarithmic {
            true => value.log10(),
            false => value,
        };
        let (first, last) = (self.ticks[0], self.ticks[self.ticks.len() - 1]);
        let part = (scaled(value) - scaled(first)) / (scaled(last) - scaled(first));
        LEFT + part * (WIDTH - LEFT - RIGHT)
    }
}

fn ends(values: &[Values]) -> impl Iterator<Item = f64> {
    values.iter().flatten().flatten().map(|(_, to)| *to)
}

fn plot(section: &Section, what: &str, axis: &Axis, values: &[Values]) -> Result<String> {
    let bottom = TOP + STEP * values.len() as f64;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"16\" y=\"22\" font-size=\"15\">{}</text>\n\
         <text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{what}</text>\n",
        bottom + BOTTOM,
        section.title,
        LEFT + (WIDTH - LEFT - RIGHT) / 2.0,
        bottom + 38.0
    );
    svg += &legend(section, values)?;
    for &tick in &axis.ticks {
        let x = axis.place(tick);
        // Tenths have no exact sum.
        let value = (tick * 1000.0).round() / 1000.0;
        writeln!(
            svg,
            "<line x1=\"{x:.1}\" y1=\"{}\" x2=\"{x:.1}\" y2=\"{bottom}\" stroke=\"#ccc\"/>\n\
             <text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{value}</text>",
            TOP - 10.0,
            bottom + 18.0
        )?;
    }
    for (at, (line, values)) in section.lines.iter().zip(values).enumerate() {
        let y = TOP + STEP * at as f64;
        writeln!(
            svg,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>",
            LEFT - 8.0,
            y + BAR + 4.0,
            line.name
        )?;
        let [both @ .., limit] = values;
        let limit = limit.map(|(_, limit)| axis.place(limit));
        for (series, value) in both.iter().enumerate() {
            if let Some(value) = value {
                let top = y + BAR * series as f64;
                mark(&mut svg, axis, *value, limit, top, COLOURS[series])?;
            }
        }
        if let Some(x) = limit {
            let bottom = y + 2.0 * BAR;
            writeln!(
                svg,
                "<line x1=\"{x:.1}\" y1=\"{y}\" x2=\"{x:.1}\" y2=\"{bottom}\" stroke=\"{LIMIT}\" \
                 stroke-width=\"3\"/>"
            )?;
        }
    }
    svg += "</svg>\n";
    Ok(svg)
}

/// Who is who.
fn legend(section: &Section, values: &[Values]) -> Result<String> {
    let mut svg = String::new();
    for (at, (who, colour)) in section.series.iter().zip(COLOURS).enumerate() {
        let x = LEFT + 190.0 * at as f64;
        writeln!(
            svg,
            "<rect x=\"{x}\" y=\"38\" width=\"14\" height=\"14\" fill=\"{colour}\"/>\n\
             <text x=\"{}\" y=\"50\">{who}</text>",
            x + 20.0
        )?;
    }
    if values.iter().any(|[.., limit]| limit.is_some()) {
        let x = LEFT + 190.0 * section.series.len() as f64;
        writeln!(
            svg,
            "<line x1=\"{x}\" y1=\"38\" x2=\"{x}\" y2=\"52\" stroke=\"{LIMIT}\" \
             stroke-width=\"3\"/>\n\
             <text x=\"{}\" y=\"50\">limit (bare calls)</text>",
            x + 10.0
        )?;
    }
    Ok(svg)
}

/// A bar, or on a logarithmic axis, which has no zero to begin a bar at, two points on a line. Its
/// value stands behind it, and behind the limit if that is near.
fn mark(
    svg: &mut String,
    axis: &Axis,
    value: (f64, f64),
    limit: Option<f64>,
    top: f64,
    colour: &str,
) -> Result<()> {
    let (from, to) = (axis.place(value.0), axis.place(value.1));
    let middle = top + BAR / 2.0;
    let label = if axis.logarithmic {
        writeln!(
            svg,
            "<line x1=\"{from:.1}\" y1=\"{middle}\" x2=\"{to:.1}\" y2=\"{middle}\" \
             stroke=\"{colour}\" stroke-width=\"2\"/>\n\
             <circle cx=\"{from:.1}\" cy=\"{middle}\" r=\"4.5\" fill=\"{colour}\"/>\n\
             <circle cx=\"{to:.1}\" cy=\"{middle}\" r=\"4\" fill=\"white\" stroke=\"{colour}\" \
             stroke-width=\"2\"/>"
        )?;
        format!("{} … {}", shown(Some(value.0)), shown(Some(value.1)))
    } else {
        let width = to - from;
        writeln!(
            svg,
            "<rect x=\"{from:.1}\" y=\"{top}\" width=\"{width:.1}\" height=\"{BAR}\" \
             fill=\"{colour}\"/>"
        )?;
        shown(Some(value.1))
    };
    let near = limit.filter(|limit| (to - 9.0..to + VALUE).contains(limit));
    let (x, y) = (near.unwrap_or(to).max(to) + 9.0, top + BAR - 3.0);
    writeln!(svg, "<text x=\"{x:.1}\" y=\"{y}\">{label}</text>")?;
    Ok(())
}

/// A round number that is not less.
fn round_up(least: f64) -> f64 {
    let power = 10_f64.powf(least.max(0.000_001).log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0].into_iter();
    let mut found = steps.map(|step| step * power);
    found.find(|step| *step >= least).unwrap_or(power * 10.0)
}
