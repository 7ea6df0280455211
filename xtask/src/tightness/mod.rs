//! `cargo xtask tightness`: which rules of the policies in `seccomp/` the product's own tests use.
//!
//! It runs the suites that start `vudev`, in several builds and places ([`RUNS`]), with every
//! process of every device recorded; finds for each recorded system call the rule, and of a rule
//! with alternatives the alternative, that allowed it; and names those that no run used. Such a
//! rule either goes, or says above itself why it stays ([`argued`]). It is no part of
//! `cargo xtask test`: it takes a quarter of an hour and wants to be read.

mod argued;
mod build;
mod guest;
mod host;
mod record;
mod report;
mod ring;
mod rules;
mod trace;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use self::build::{Build, Linkage, Profile};
use self::record::Record;
use crate::process::say;
use crate::tools::{self, Tool};
use crate::workspace;

const TOOLS: &[Tool] = &[Tool {
    program: "strace",
    package: "strace",
    purpose: "records system calls",
}];

/// One way to run the suites.
struct Run {
    name: &'static str,
    build: Build,
    place: Place,
}

/// Where and how the recorded program runs.
enum Place {
    /// On this machine.
    Host,
    /// On this machine, where `brk` never finds room. Linux refuses it by a soft RLIMIT_DATA of 0,
    /// but with an unlimited hard one lets `mmap` go on (`may_expand_vm()`, mm/mmap.c), so the C
    /// library's allocator has its heap elsewhere from the first byte on.
    WithoutBrk,
    /// In a guest whose clock has no vDSO, and as the only user of its kernel.
    Guest,
}

const RUNS: [Run; 7] = [
    Run::new("debug", Linkage::Dynamic, Profile::Debug, Place::Host),
    Run::new("release", Linkage::Dynamic, Profile::Release, Place::Host),
    Run::new("static-debug", Linkage::Static, Profile::Debug, Place::Host),
    Run::new("static", Linkage::Static, Profile::Release, Place::Host),
    Run::new(
        "no-brk",
        Linkage::Dynamic,
        Profile::Debug,
        Place::WithoutBrk,
    ),
    Run::new(
        "no-brk-static",
        Linkage::Static,
        Profile::Release,
        Place::WithoutBrk,
    ),
    Run::new("guest", Linkage::Static, Profile::Release, Place::Guest),
];

impl Run {
    const fn new(name: &'static str, linkage: Linkage, profile: Profile, place: Place) -> Self {
        let build = Build { linkage, profile };
        Self { name, build, place }
    }

    fn record(&self) -> Result<Record> {
        let program = self.build.make()?;
        match self.place {
            Place::Host => host::record(&program, ""),
            Place::WithoutBrk => host::record(&program, "ulimit -S -d 0"),
            Place::Guest => guest::record(&program),
        }
    }
}

/// Makes the named recordings, or all, or with `--report` none; then reports on all that there
/// are.
pub(crate) fn run(words: &[&str]) -> Result<()> {
    let names = RUNS.map(|run| run.name);
    if let Some(unknown) = words
        .iter()
        .find(|word| **word != "--report" && !names.contains(word))
    {
        bail!("{unknown}: expected --report or of {}", names.join(", "));
    }
    tools::require(TOOLS)?;
    let folder = folder()?;
    for run in &RUNS {
        if words.is_empty() || words.contains(&run.name) {
            say(&format!("recording: {}", run.name));
            let record = run.record().with_context(|| run.name)?;
            fs::write(folder.join(run.name), record.to_text())?;
        }
    }
    let mut records = Vec::new();
    for name in names {
        match fs::read_to_string(folder.join(name)) {
            Ok(text) => records.push((name, Record::from_text(&text)?)),
            Err(_) => say(&format!("there is no recording of: {name}")),
        }
    }
    report::run(&records)
}

/// Where recordings are kept, beside the builds that they are of.
fn folder() -> Result<PathBuf> {
    let folder = workspace::target()?.join("tightness/records");
    fs::create_dir_all(&folder)?;
    Ok(folder)
}
