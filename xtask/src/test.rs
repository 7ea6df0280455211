//! `cargo xtask test`: everything that can be tested, as whoever runs it and, if that is root, as
//! an ordinary user too. It closes with the counts of all runs together.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::outcome::Outcome;
use crate::process::{run as run_loudly, say};
use crate::user::OrdinaryUser;
use crate::{guest, static_programs, tools, workspace};

/// Reasons for a skip that CI accepts: it is root, so what needs root is skipped in the run as an
/// ordinary user only. Anything else means that CI did not test what it should.
const SKIPS_ALLOWED_IN_CI: &[&str] = &["needs root"];

/// Where nextest writes its report (`.config/nextest.toml`): always there, whatever folder cargo
/// builds into.
const JUNIT: &str = "target/nextest/default/junit.xml";

/// Runs everything; with filters only the tests whose names contain one of them.
pub(crate) fn run(filters: &[&str]) -> Result<()> {
    let started = Instant::now();
    tools::require(tools::FOR_TESTS)?;
    guest::ensure()?;
    say("building everything");
    run_loudly(workspace::cargo().args(["build", "--workspace", "--all-targets"]))?;
    static_programs::ensure(false)?;

    let mut total = Outcome::default();
    total += step("tests", filters, None)?;
    if filters.is_empty() {
        total += doc_tests()?;
    }
    if tools::is_root() {
        let user = OrdinaryUser::new(&workspace::target()?)?;
        total += step("tests as an ordinary user", filters, Some(&user))?;
    } else {
        total
            .skips
            .push("tests as root: this user is not root".to_owned());
    }
    conclude(&total, started)
}

/// One run of all unit, contract and end-to-end tests.
fn step(what: &str, filters: &[&str], user: Option<&OrdinaryUser>) -> Result<Outcome> {
    say(what);
    let started = Instant::now();
    let outcome = if tools::find("cargo-nextest").is_some() || cargo_home_has_nextest() {
        nextest(filters, user)?
    } else {
        cargo_test(filters, user)?
    };
    let seconds = started.elapsed().as_secs_f64();
    say(&format!(
        "{what}: {} ({seconds:.0} s)",
        outcome.closing_line()
    ));
    Ok(outcome)
}

fn nextest(filters: &[&str], user: Option<&OrdinaryUser>) -> Result<Outcome> {
    let report = workspace::root().join(JUNIT);
    // A report of an earlier run must not be taken for this one's.
    let _ = fs::remove_file(&report);
    let mut cargo = workspace::cargo();
    cargo.args([
        "nextest",
        "run",
        "--workspace",
        "--all-targets",
        "--no-fail-fast",
    ]);
    cargo
        .args(["--show-progress", "none", "--status-level", "slow"])
        .args(filters);
    if let Some(user) = user {
        user.configure(&mut cargo)?;
    }
    let status = cargo
        .stdin(Stdio::null())
        .status()
        .context("cargo nextest")?;
    let text = fs::read_to_string(&report)
        .with_context(|| format!("nextest ({status}) wrote no {}", report.display()))?;
    let outcome = Outcome::from_junit(&text);
    if !status.success() && outcome.failed == 0 {
        bail!("nextest: {status}, though no test failed");
    }
    Ok(outcome)
}

fn cargo_test(filters: &[&str], user: Option<&OrdinaryUser>) -> Result<Outcome> {
    let mut cargo = workspace::cargo();
    cargo.args([
        "test",
        "--workspace",
        "--lib",
        "--bins",
        "--tests",
        "--no-fail-fast",
        "--",
    ]);
    cargo.arg("--show-output").args(filters);
    if let Some(user) = user {
        user.configure(&mut cargo)?;
    }
    captured(&mut cargo)
}

fn doc_tests() -> Result<Outcome> {
    say("doc tests");
    let mut cargo = workspace::cargo();
    let outcome = captured(cargo.args(["test", "--workspace", "--doc", "--no-fail-fast"]))?;
    say(&format!("doc tests: {}", outcome.closing_line()));
    Ok(outcome)
}

/// Runs `cargo test`, and shows what it printed only where something failed.
fn captured(cargo: &mut Command) -> Result<Outcome> {
    let output = cargo.stdin(Stdio::null()).output().context("cargo test")?;
    let printed = String::from_utf8_lossy(&output.stdout);
    let outcome = Outcome::from_cargo_test(&printed);
    if !output.status.success() {
        eprintln!("{printed}\n{}", String::from_utf8_lossy(&output.stderr));
        if outcome.failed == 0 {
            bail!("`cargo test`: {}, though no test failed", output.status);
        }
    }
    Ok(outcome)
}

fn cargo_home_has_nextest() -> bool {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    home.is_some_and(|home| home.join("bin/cargo-nextest").is_file())
}

fn conclude(total: &Outcome, started: Instant) -> Result<()> {
    for skip in &total.skips {
        println!("skipped: {skip}");
    }
    println!("in {:.0} s:", started.elapsed().as_secs_f64());
    println!("{}", total.closing_line());
    let allowed = |skip: &&String| {
        SKIPS_ALLOWED_IN_CI
            .iter()
            .any(|start| skip.starts_with(start))
    };
    let unexpected = total.skips.iter().filter(|skip| !allowed(skip)).count();
    if std::env::var_os("CI").is_some() && unexpected > 0 {
        bail!("CI must not skip tests, but {unexpected} were");
    }
    if total.failed > 0 {
        bail!("{} tests failed", total.failed);
    }
    if total.passed == 0 {
        bail!("no test ran");
    }
    Ok(())
}
