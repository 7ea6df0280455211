//! Runs suites on this machine, recorded.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use super::build::{Program, Wrapped};
use super::record::Record;
use super::ring::Ring;
use super::trace;
use crate::built::Executable;
use crate::outcome::Outcome;
use crate::process::say;
use crate::workspace;

/// A suite that hangs under the recorder is ended, and counts as failed.
const LIMIT_SECONDS: &str = "900";

/// Suites that measure times; their tests run one at a time.
const ALONE: [&str; 1] = ["supervision"];

/// Runs all suites of a program. `before` are the shell's commands before the program.
pub(super) fn record(program: &Program, before: &str) -> Result<Record> {
    crate::guest::ensure()?;
    let guest = workspace::target()?.join("guest");
    let folder = tempfile::Builder::new().prefix("vudev-record-").tempdir()?;
    // Some tests start the program as another user.
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o1777))?;
    let wrapped = Wrapped::new(&program.path, folder.path(), before)?;
    let mut record = Record::default();
    for suite in &program.suites {
        let ring = Ring::start(folder.path())?;
        let outcome = run(suite, &guest)?;
        let submissions = ring.map(Ring::stop).transpose()?;
        say(&format!("{}: {}", suite.name, outcome.closing_line()));
        record.remark(&format!("{}: {}", suite.name, outcome.closing_line()));
        trace::collect(folder.path(), submissions.as_deref(), &mut record)?;
    }
    drop(wrapped);
    Ok(record)
}

fn run(suite: &Executable, guest: &Path) -> Result<Outcome> {
    let mut command = Command::new("timeout");
    command
        .args(["--kill-after=5", LIMIT_SECONDS])
        .arg(&suite.path)
        .current_dir(&suite.folder)
        .env("CARGO_MANIFEST_DIR", &suite.folder)
        .env("VUDEV_GUEST_DIR", guest);
    if ALONE.contains(&&*suite.name) {
        command.args(["--test-threads", "1"]);
    }
    let output = command
        .stdin(Stdio::null())
        .output()
        .context("timeout(1)")?;
    let printed = String::from_utf8_lossy(&output.stdout);
    let mut outcome = Outcome::from_cargo_test(&printed);
    if !output.status.success() {
        let path = super::folder()?.join(format!("{}.log", suite.name));
        fs::write(&path, &output.stdout)?;
        say(&format!("{}: see {}", suite.name, path.display()));
        outcome.failed = outcome.failed.max(1);
    }
    Ok(outcome)
}
