//! `cargo xtask compare`: a release of ours and of the benchmarks' `compare`, which does the work.

use std::process::Command;

use anyhow::Result;

use crate::process::{run, say};
use crate::workspace;

/// Builds both, and measures into `target/compare/`; `arguments` are the program's.
pub(crate) fn compare(arguments: &[&str]) -> Result<()> {
    say("compare: building a release");
    let mut cargo = workspace::cargo();
    run(cargo.args(["build", "--release", "-p", "vudev-benches", "--bins"]))?;
    let target = workspace::target()?;
    let mut program = Command::new(target.join("release/compare"));
    run(program.args(arguments).arg(target.join("compare")))
}
