//! Builds programs as one static file each, for the device VMs of the tests: those have a kernel
//! and busybox, and no C library. They are kept in `target/static/`, where `vudev_harness` looks.

use std::fs;

use anyhow::{Context, Result};
use vudev_harness::STATIC_FOLDER;

use crate::built;
use crate::process::say;
use crate::workspace;

/// The product, and the device that tries to break out of its jail.
const PROGRAMS: [(&str, &str); 2] = [("vudev", "vudev"), ("vudev-tests", "vudev-escape")];

/// The programs, made anew where they are not what the sources say. A guest has them in its memory,
/// so that they come without what only a debugger reads.
pub(crate) fn ensure() -> Result<()> {
    say("building the programs of device VMs");
    let folder = workspace::target()?.join(STATIC_FOLDER);
    fs::create_dir_all(&folder)?;
    for (package, name) in PROGRAMS {
        let programs = built::build(
            workspace::cargo()
                .env("RUSTFLAGS", built::STATIC_FLAGS)
                .env("CARGO_PROFILE_DEV_DEBUG", "0")
                .env("CARGO_PROFILE_DEV_STRIP", "debuginfo")
                .args(["build", "-p", package, "--bin", name])
                .args(["--target", &workspace::host()?]),
        )?;
        let program = programs.iter().find(|program| program.name == name);
        let program = program.with_context(|| format!("cargo has built no {name}"))?;
        // Not over the old one, which a guest's maker may be reading.
        let fresh = folder.join(format!("{name}.new"));
        fs::copy(&program.path, &fresh).with_context(|| program.path.display().to_string())?;
        fs::rename(fresh, folder.join(name))?;
    }
    Ok(())
}
