//! Builds the workspace's programs and suites for the emulated machine, with the toolchain of
//! [`Parts`] and the host's cargo. All are static, so that the machine needs no libraries.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use super::parts::{Parts, TRIPLE};
use crate::{built, workspace};

/// The linker is called directly, since no C compiler is there to do it; and the C runtime's start
/// files, which the wrapper adds, are those for programs at a fixed address.
const RUST_FLAGS: &str =
    "-C linker-flavor=ld -C target-feature=+crt-static -C relocation-model=static";

/// What was built.
pub(super) struct Built {
    /// Programs that the suites start.
    pub(super) programs: Vec<PathBuf>,
    /// Programs that are suites.
    pub(super) suites: Vec<Suite>,
    /// What `CARGO_TARGET_TMPDIR` was while they were built.
    pub(super) temporary: PathBuf,
}

/// A program with tests.
pub(super) struct Suite {
    /// Its source file without `.rs`, in the workspace.
    pub(super) name: String,
    /// Where it is.
    pub(super) program: PathBuf,
    /// Where cargo would start it: its package's folder.
    pub(super) folder: PathBuf,
}

/// Builds all of it.
pub(super) fn build(parts: &Parts) -> Result<Built> {
    let target = parts.build_folder();
    let variable = |key| workspace::target_variable(TRIPLE, key);
    let mut cargo = workspace::cargo();
    cargo
        .args(["test", "--no-run", "--workspace"])
        // They run nowhere but on the host; and a part of the benches is C.
        .args(["--exclude", "xtask", "--exclude", "vudev-benches"])
        .args(["--lib", "--bins", "--tests"])
        .args(["--target", TRIPLE, "--target-dir"])
        .arg(&target)
        .env("RUSTC", parts.rustc())
        .env(variable("LINKER"), parts.linker())
        .env(variable("RUSTFLAGS"), RUST_FLAGS)
        // They are all unpacked into the machine's memory.
        .env("CARGO_PROFILE_DEV_DEBUG", "0")
        .env("CARGO_PROFILE_DEV_STRIP", "debuginfo")
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("RUSTC_WRAPPER");
    let mut built = Built {
        programs: Vec::new(),
        suites: Vec::new(),
        temporary: target.join(TRIPLE).join("tmp"),
    };
    for executable in built::build(&mut cargo)? {
        if executable.is_suite {
            built.suites.push(Suite {
                name: suite_name(&executable.source),
                program: executable.path,
                folder: executable.folder,
            });
        } else {
            built.programs.push(executable.path);
        }
    }
    if built.suites.is_empty() || built.programs.is_empty() {
        bail!("cargo named no program that it had built");
    }
    built.suites.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(built)
}

fn suite_name(source: &Path) -> String {
    let name = source.strip_prefix(workspace::root()).unwrap_or(source);
    name.with_extension("").to_string_lossy().into_owned()
}
