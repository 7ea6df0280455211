//! `cargo xtask fuzz`: all targets of `fuzz/`, or one, for a limited time each. What the targets
//! do is theirs; `cargo xtask test` runs them too, without a fuzzer.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::process::{run as run_loudly, say};
use crate::tools::{self, Tool};
use crate::workspace;

/// How long each target runs, if nothing else is said.
const SECONDS: u32 = 60;

/// An input that takes longer hangs.
const INPUT_SECONDS_MAX: u32 = 20;

/// What libFuzzer itself, which is C++, needs.
const FOR_FUZZING: &[Tool] = &[Tool {
    program: "c++",
    package: "g++",
    purpose: "builds libFuzzer",
}];

/// What was asked for.
#[derive(Debug, PartialEq, Eq)]
struct Asked<'a> {
    target: Option<&'a str>,
    seconds: u32,
}

/// Runs them one after the other; the first that fails ends it.
pub(crate) fn run(arguments: &[&str]) -> Result<()> {
    let asked = asked(arguments)?;
    let all = targets()?;
    let chosen: Vec<_> = match asked.target {
        Some(target) if all.iter().any(|known| known == target) => vec![target.to_owned()],
        Some(target) => bail!("{target} is no target; there are {}", all.join(", ")),
        None => all,
    };
    require()?;
    for target in &chosen {
        say(&format!("fuzzing {target} for {} seconds", asked.seconds));
        fuzz(target, asked.seconds)?;
    }
    Ok(())
}

fn asked<'a>(arguments: &[&'a str]) -> Result<Asked<'a>> {
    let (target, rest) = match arguments {
        [target, rest @ ..] if !target.starts_with('-') => (Some(*target), rest),
        rest => (None, rest),
    };
    let seconds = match rest {
        [] => SECONDS,
        ["--seconds", seconds] => seconds.parse().context("--seconds takes a number")?,
        _ => bail!("usage: cargo xtask fuzz [TARGET] [--seconds N]"),
    };
    Ok(Asked { target, seconds })
}

fn folder() -> PathBuf {
    workspace::root().join("fuzz")
}

/// The names of all targets.
fn targets() -> Result<Vec<String>> {
    let folder = folder().join("fuzz_targets");
    let entries = fs::read_dir(&folder).with_context(|| folder.display().to_string())?;
    let mut names = Vec::new();
    for entry in entries {
        let path = entry?.path();
        names.extend(path.file_stem().map(|name| name.to_string_lossy().into()));
    }
    names.sort();
    Ok(names)
}

/// What it takes, or the commands that install it.
fn require() -> Result<()> {
    tools::require(FOR_FUZZING)?;
    let answers = |arguments: &[&str]| {
        let mut rustup = Command::new("rustup");
        rustup
            .args(arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        rustup.status().is_ok_and(|status| status.success())
    };
    if !answers(&["run", "nightly", "rustc", "--version"]) {
        bail!("a fuzzer needs a nightly compiler: rustup toolchain install nightly");
    }
    if !answers(&["run", "nightly", "cargo", "fuzz", "--version"]) {
        bail!("cargo-fuzz is missing: cargo install cargo-fuzz");
    }
    Ok(())
}

/// What the fuzzer learns stays in `fuzz/corpus/`, and an input that fails in `fuzz/artifacts/`;
/// git knows neither.
fn fuzz(target: &str, seconds: u32) -> Result<()> {
    let learned = folder().join("corpus").join(target);
    fs::create_dir_all(&learned).with_context(|| learned.display().to_string())?;
    let mut command = Command::new("rustup");
    command
        .args(["run", "nightly", "cargo", "fuzz", "run", target])
        .arg(&learned)
        .arg(folder().join("inputs").join(target))
        .arg("--")
        .arg(format!("-max_total_time={seconds}"))
        // Long inputs from the start: slow targets would never come to them.
        .args(["-max_len=4096", "-len_control=0"])
        .arg(format!("-timeout={INPUT_SECONDS_MAX}"))
        .arg("-print_final_stats=1")
        .current_dir(workspace::root());
    run_loudly(&mut command).with_context(|| {
        format!("copy the input it names into fuzz/inputs/{target}/, and fix what it found")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_target_or_all_run_for_the_time_that_was_asked_for() {
        let of = |target, seconds| Asked { target, seconds };
        assert_eq!(asked(&[]).unwrap(), of(None, SECONDS));
        assert_eq!(asked(&["--seconds", "5"]).unwrap(), of(None, 5));
        assert_eq!(
            asked(&["chain_walk"]).unwrap(),
            of(Some("chain_walk"), SECONDS)
        );
        let both = ["chain_walk", "--seconds", "7"];
        assert_eq!(asked(&both).unwrap(), of(Some("chain_walk"), 7));
        for wrong in [&["--seconds"][..], &["--seconds", "x"], &["a", "b"]] {
            assert!(asked(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn the_targets_are_the_files_for_the_fuzzer_and_no_other_is_run() {
        assert!(targets().unwrap().contains(&"capability_walk".to_owned()));
        let error = run(&["no-such-target"]).unwrap_err().to_string();
        let expected = "no-such-target is no target; there are capability_walk, ";
        assert!(error.starts_with(expected), "{error}");
    }
}
