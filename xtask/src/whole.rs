//! Builds `vudev` as one static file, for the device VMs of the tests: those have a kernel and
//! busybox, and no C library. It is kept in `target/static/`, where `vudev_harness` looks for it.

use std::fs;

use anyhow::{Context, Result};
use vudev_harness::STATIC_FOLDER;

use crate::built;
use crate::process::say;
use crate::workspace;

/// The program, made anew where it is not what the sources say. `--target` keeps the flags away
/// from build scripts and macros, which cannot be static; a guest has it in its memory, so that it
/// comes without what only a debugger reads.
pub(crate) fn ensure() -> Result<()> {
    say("building vudev for device VMs");
    let flags = "-C target-feature=+crt-static";
    let programs = built::build(
        workspace::cargo()
            .env("RUSTFLAGS", flags)
            .env("CARGO_PROFILE_DEV_DEBUG", "0")
            .env("CARGO_PROFILE_DEV_STRIP", "debuginfo")
            .args(["build", "-p", "vudev", "--target", &workspace::host()?]),
    )?;
    let program = programs.iter().find(|program| program.name == "vudev");
    let program = program.context("cargo has built no vudev")?;
    let folder = workspace::target()?.join(STATIC_FOLDER);
    fs::create_dir_all(&folder)?;
    // Not over the old one, which a guest's maker may be reading.
    let fresh = folder.join("vudev.new");
    fs::copy(&program.path, &fresh).with_context(|| program.path.display().to_string())?;
    fs::rename(fresh, folder.join("vudev"))?;
    Ok(())
}
