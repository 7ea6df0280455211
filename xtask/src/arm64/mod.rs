//! `cargo xtask arm64`: the workspace's suites, built for 64-bit ARM and run there, under the
//! policies of that architecture: a stock kernel in an emulated machine, as root and as an ordinary
//! user. It needs no ARM machine, installs nothing, and is no part of `cargo xtask test`: software
//! emulation is slow. Suites that need programs of a whole distribution are left out by name.

mod boot;
mod build;
mod excluded;
mod filter;
mod parts;
mod report;

use std::time::Instant;

use anyhow::{Result, ensure};

use self::parts::{Parts, TRIPLE};
use crate::process::say;

/// Runs everything; with filters only the tests in whose suite and name one of them is.
pub(crate) fn run(filters: &[&str]) -> Result<()> {
    let started = Instant::now();
    let parts = Parts::ensure()?;
    say(&format!("building for {TRIPLE}"));
    let built = build::build(&parts)?;
    let build_seconds = started.elapsed().as_secs();
    say(&format!(
        "{} suites are built ({build_seconds} s)",
        built.suites.len()
    ));
    filter::check(filters, &built.suites)?;
    let booted = Instant::now();
    let report = boot::run(&parts, &built, filters)?;
    for (reason, tests) in report.excluded() {
        println!("left out, {reason}: {}", tests.join(", "));
    }
    let seconds = booted.elapsed().as_secs();
    println!("on {} in {seconds} s:", report.kernel);
    for (user, outcome) in &report.passes {
        for skip in &outcome.skips {
            println!("skipped as {user}: {skip}");
        }
        println!("as {user}: {}", outcome.closing_line());
    }
    let total = report.total();
    println!("{}", total.closing_line());
    ensure!(total.failed == 0, "{} tests failed", total.failed);
    ensure!(total.passed > 0, "no test ran");
    if filters.is_empty() {
        ensure!(
            report.stale_exclusions().is_empty(),
            "no longer there, but left out: {}",
            report.stale_exclusions().join(", ")
        );
    }
    Ok(())
}
