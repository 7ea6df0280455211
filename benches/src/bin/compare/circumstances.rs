//! Where and how figures came about: what has to be known to compare two tables. Not the figures.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Result;
use vudev_benches::disk::STORAGE_DAEMON;
use vudev_benches::peer;
use vudev_benches::streams::{CONSOLE, RNG, VSOCK};

use crate::Effort;

/// A list of them, a line each.
pub(crate) fn told(effort: &Effort) -> Result<String> {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let load = fs::read_to_string("/proc/loadavg")?;
    let folder = &effort.folder;
    let beside = match effort.in_place_of_peers("vudev-benched") {
        Some(build) => format!("{} {}", build.program.display(), build.options),
        None => peers().join(", "),
    };
    let lines = [
        ("at", said("date", &["--utc", "+%F %H:%M UTC"])),
        ("vudev", format!("{} {}", commit(), effort.options)),
        ("beside", beside),
        ("kernel", kernel.trim().to_owned()),
        ("processors", processors()?),
        (
            "file system",
            said("stat", &["-f", "-c", "%T", &folder.to_string_lossy()]),
        ),
        (
            "rounds",
            format!("{} of {} ms", effort.rounds, effort.window.as_millis()),
        ),
        ("load at the end", load.trim().to_owned()),
    ];
    Ok(lines.map(|(what, it)| format!("- {what}: {it}\n")).concat())
}

/// How many this process may use, of which kind.
fn processors() -> Result<String> {
    let count = std::thread::available_parallelism()?;
    let text = fs::read_to_string("/proc/cpuinfo")?;
    let model = text.lines().find(|line| line.starts_with("model name"));
    let model = model.and_then(|line| line.split(": ").nth(1));
    Ok(format!(
        "{count}, {}",
        model.unwrap_or(std::env::consts::ARCH)
    ))
}

/// The commit that this program was built from, as far as its folder of sources still says.
fn commit() -> String {
    let sources = env!("CARGO_MANIFEST_DIR");
    said(
        "git",
        &[
            "-C",
            sources,
            "describe",
            "--always",
            "--dirty",
            "--exclude",
            "*",
        ],
    )
}

/// The peers that are there, with their versions.
fn peers() -> Vec<String> {
    let daemon = [Path::new(STORAGE_DAEMON).to_owned()];
    let of_rust = [&CONSOLE, &RNG, &VSOCK].into_iter();
    let of_rust = of_rust.filter_map(|stream| peer::find(stream.peer));
    let programs = daemon.into_iter().chain(of_rust);
    programs
        .map(|program| said(&program.to_string_lossy(), &["--version"]))
        .collect()
}

/// The first line that a program says, or that it says none.
fn said(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let output = output.map(|output| output.stdout).unwrap_or_default();
    match String::from_utf8_lossy(&output).lines().next() {
        Some(line) => line.to_owned(),
        None => format!("({program} says nothing)"),
    }
}
