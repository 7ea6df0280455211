//! Bars, as SVG: ours and the peer's side by side, one plot for each figure. Not a plotting
//! library: bars, an axis from zero and a legend are all that is needed.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::Result;

use crate::report::{Figures, Line};

/// Which figure a plot shows.
type Figure = fn(&Figures) -> f64;

const WIDTH: f64 = 860.0;
/// Room for the names of the work.
const LEFT: f64 = 250.0;
/// Room for the value behind the longest bar.
const RIGHT: f64 = 70.0;
const TOP: f64 = 70.0;
const BOTTOM: f64 = 50.0;
const BAR: f64 = 14.0;
/// From one kind of work to the next.
const STEP: f64 = 42.0;

/// Who is shown, and in which colour: two that are told apart in grey too.
const SERIES: [(&str, &str); 2] = [("vudev", "#1b6ca8"), ("peer", "#e8a33d")];

/// Writes `NAME-iops.svg` and `NAME-cpu.svg` into `folder`.
pub(crate) fn write(folder: &Path, name: &str, lines: &[Line]) -> Result<()> {
    let plots: [(&str, &str, Figure); 2] = [
        (
            "iops",
            "thousand requests a second (more is better)",
            |it| it.rate / 1000.0,
        ),
        (
            "cpu",
            "processor time of the back-end, µs a request (less is better)",
            |it| it.cpu_us,
        ),
    ];
    for (figure, unit, of) in plots {
        let path = folder.join(format!("{name}-{figure}.svg"));
        fs::write(&path, plot(&format!("{name}: {unit}"), lines, of)?)?;
        println!("plot: {}", path.display());
    }
    Ok(())
}

fn plot(title: &str, lines: &[Line], of: Figure) -> Result<String> {
    let rows: Vec<(&str, [Option<f64>; 2])> = lines
        .iter()
        .map(|line| {
            let values = [&line.ours, &line.peer].map(|rounds| Line::middle(rounds, of));
            (line.name.as_str(), values)
        })
        .collect();
    let greatest = rows.iter().flat_map(|(_, values)| values).flatten();
    let tick = tick(greatest.fold(0.0, |most, value| value.max(most)) / 5.0);
    let most = rows.iter().flat_map(|(_, values)| values).flatten();
    let end = most.fold(tick, |end, value| value.max(end));
    let end = (end / tick).ceil() * tick;
    let scale = (WIDTH - LEFT - RIGHT) / end;
    let height = TOP + BOTTOM + STEP * rows.len() as f64;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"16\" y=\"24\" font-size=\"15\">{title}</text>\n"
    );
    for (at, (who, colour)) in SERIES.iter().enumerate() {
        let x = LEFT + 110.0 * at as f64;
        writeln!(
            svg,
            "<rect x=\"{x}\" y=\"38\" width=\"14\" height=\"14\" fill=\"{colour}\"/>"
        )?;
        writeln!(svg, "<text x=\"{}\" y=\"50\">{who}</text>", x + 20.0)?;
    }
    axis(&mut svg, tick, end, scale, height - BOTTOM)?;
    for (at, (name, values)) in rows.iter().enumerate() {
        let y = TOP + STEP * at as f64;
        let middle = y + BAR + 4.0;
        let x = LEFT - 8.0;
        writeln!(
            svg,
            "<text x=\"{x}\" y=\"{middle}\" text-anchor=\"end\">{name}</text>"
        )?;
        for (series, value) in values.iter().enumerate() {
            let Some(value) = value else { continue };
            let y = y + BAR * series as f64;
            let (width, colour) = (value * scale, SERIES[series].1);
            writeln!(
                svg,
                "<rect x=\"{LEFT}\" y=\"{y}\" width=\"{width:.1}\" height=\"{BAR}\" \
                 fill=\"{colour}\"/>\n<text x=\"{:.1}\" y=\"{}\">{value:.1}</text>",
                LEFT + width + 4.0,
                y + BAR - 3.0
            )?;
        }
    }
    svg += "</svg>\n";
    Ok(svg)
}

/// The axis below, with lines up through the bars.
fn axis(svg: &mut String, tick: f64, end: f64, scale: f64, bottom: f64) -> Result<()> {
    let mut at = 0.0;
    while at * tick <= end {
        // Tenths have no exact sum.
        let value = (at * tick * 1000.0).round() / 1000.0;
        let x = LEFT + value * scale;
        writeln!(
            svg,
            "<line x1=\"{x:.1}\" y1=\"{TOP}\" x2=\"{x:.1}\" y2=\"{bottom}\" stroke=\"#ccc\"/>\n\
             <text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{value}</text>",
            bottom + 18.0
        )?;
        at += 1.0;
    }
    Ok(())
}

/// A round number that is not less.
fn tick(least: f64) -> f64 {
    let mut power = 1.0;
    while power < least {
        power *= 10.0;
    }
    while power > least.max(0.001) {
        power /= 10.0;
    }
    let steps = [1.0, 2.0, 5.0, 10.0].into_iter();
    steps
        .map(|step| step * power)
        .find(|step| *step >= least)
        .unwrap_or(power)
}
