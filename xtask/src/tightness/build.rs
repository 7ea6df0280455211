//! The builds whose device processes are recorded, each with the suites that belong to it. They
//! have target folders of their own: what is recorded stands in the place of the program there.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::built::{self, Executable};
use crate::process::{say, write_script};
use crate::workspace;

/// What a program is built as.
#[derive(Clone, Copy)]
pub(super) struct Build {
    pub(super) linkage: Linkage,
    pub(super) profile: Profile,
}

/// Where the C library is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Linkage {
    Dynamic,
    Static,
}

/// Debug builds look at more: descriptors at each close, for one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Profile {
    Debug,
    Release,
}

/// Suites that are left out, and why.
const LEFT_OUT: [(&str, &str); 7] = [
    ("author", "starts a program with policies of its own"),
    ("check", "starts no device"),
    ("escape", "starts an intruder, whose attempts are no use"),
    ("intruder", "as escape"),
    ("keys", "starts no device"),
    ("modes", "as escape"),
    ("usage", "starts no device"),
];

/// A program and its suites.
pub(super) struct Program {
    /// What the suites start.
    pub(super) path: PathBuf,
    pub(super) suites: Vec<Executable>,
}

impl Build {
    /// Builds it.
    pub(super) fn make(self) -> Result<Program> {
        let (name, flags) = match self.linkage {
            Linkage::Dynamic => ("dynamic", ""),
            Linkage::Static => ("static", built::STATIC_FLAGS),
        };
        let (profile, profile_flags): (_, &[&str]) = match self.profile {
            Profile::Debug => ("debug", &[]),
            Profile::Release => ("release", &["--release"]),
        };
        say(&format!("building: {name} {profile}"));
        let target = workspace::target()?.join("tightness").join(name);
        let host = workspace::host()?;
        let mut suites = built::build(
            workspace::cargo()
                .env("CARGO_TARGET_DIR", &target)
                .env("RUSTFLAGS", flags)
                .args(["test", "--no-run", "--tests", "--target", &host])
                .args(["-p", "vudev", "-p", "vudev-tests"])
                .args(profile_flags),
        )?;
        suites.retain(|suite| {
            suite.kind == "test" && LEFT_OUT.iter().all(|(name, _)| *name != suite.name)
        });
        suites.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Program {
            path: target.join(host).join(profile).join("vudev"),
            suites,
        })
    }
}

/// Puts a script in the place of a program, which moves to a folder beside it, for as long as
/// this lives.
pub(super) struct Wrapped {
    plain: PathBuf,
    path: PathBuf,
}

impl Wrapped {
    pub(super) fn new(program: &Path, folder: &Path, before: &str) -> Result<Self> {
        let plain = plain(program);
        fs::create_dir_all(plain.parent().context("a program in a folder")?)?;
        let wrapped = Self {
            path: program.to_owned(),
            plain,
        };
        fs::rename(&wrapped.path, &wrapped.plain)?;
        write_script(&wrapped.path, &script(&wrapped.plain, folder, before))?;
        Ok(wrapped)
    }
}

impl Drop for Wrapped {
    fn drop(&mut self) {
        // Cargo would put it back as well, at its next build.
        let _ = fs::rename(&self.plain, &self.path);
    }
}

/// Where the program itself is while it is wrapped: under its own name, which it prints.
pub(super) fn plain(program: &Path) -> PathBuf {
    program.with_file_name("plain").join("vudev")
}

/// Runs the program under strace, with one file a process in `folder`. `-D` leaves the program its
/// process id and its parent. Arguments are numbers, but for those calls from which a process's
/// device is known. A user who cannot write there runs the program unrecorded.
pub(super) fn script(plain: &Path, folder: &Path, before: &str) -> String {
    let (plain, folder) = (plain.display(), folder.display());
    format!(
        r#"#!/bin/sh
{before}
[ -w '{folder}' ] || exec '{plain}' "$@"
exec strace -D -f -ff -qq -n -v -s 400 -e signal=none -e 'raw=!recvmsg' \
    -o '{folder}'/$$ '{plain}' "$@"
"#
    )
}
