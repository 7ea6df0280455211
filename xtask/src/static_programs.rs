//! Builds programs as one static file each, for the device VMs of the tests: those have a kernel
//! and busybox, and no C library. They are kept in `target/static/`, where `vudev_harness` looks,
//! and releases of them for measurements in `target/static-release/`.

use std::fs;

use anyhow::{Context, Result, bail};
use vudev_harness::static_folder;

use crate::built;
use crate::process::say;
use crate::workspace;

/// The product, and the device that tries to break out of its jail.
const PROGRAMS: [(&str, &str); 2] = [("vudev", "vudev"), ("vudev-tests", "vudev-escape")];

/// What `cargo xtask static` asks for.
pub(crate) fn run(arguments: &[&str]) -> Result<()> {
    match arguments {
        [] => ensure(false),
        ["--release"] => ensure(true),
        _ => bail!("usage: cargo xtask static [--release]"),
    }
}

/// The programs, made anew where they are not what the sources say. A guest has them in its memory,
/// so that they come without what only a debugger reads.
pub(crate) fn ensure(release: bool) -> Result<()> {
    say("building the programs of device VMs");
    let folder = workspace::target()?.join(static_folder(release));
    fs::create_dir_all(&folder)?;
    for (package, name) in PROGRAMS {
        let mut cargo = workspace::cargo();
        cargo
            .env("RUSTFLAGS", built::STATIC_FLAGS)
            .args(["build", "-p", package, "--bin", name])
            .args(["--target", &workspace::host()?])
            .args(release.then_some("--release"));
        for profile in ["DEV", "RELEASE"] {
            cargo.env(format!("CARGO_PROFILE_{profile}_DEBUG"), "0");
            cargo.env(format!("CARGO_PROFILE_{profile}_STRIP"), "debuginfo");
        }
        let programs = built::build(&mut cargo)?;
        let program = programs.iter().find(|program| program.name == name);
        let program = program.with_context(|| format!("cargo has built no {name}"))?;
        // Not over the old one, which a guest's maker may be reading.
        let fresh = folder.join(format!("{name}.new"));
        fs::copy(&program.path, &fresh).with_context(|| program.path.display().to_string())?;
        fs::rename(fresh, folder.join(name))?;
    }
    Ok(())
}
