//! Builds the workspace's programs and suites for the emulated machine, with the toolchain of
//! [`Parts`] and the host's cargo. All are static, so that the machine needs no libraries.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::Architecture;
use super::parts::Parts;
use crate::workspace;

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
pub(super) fn build(architecture: Architecture, parts: &Parts) -> Result<Built> {
    let target = parts.build_folder();
    let variable = architecture.triple.to_uppercase().replace('-', "_");
    let mut cargo = workspace::cargo();
    cargo
        .args(["test", "--no-run", "--workspace"])
        // They run nowhere but on the host; and a part of the benches is C.
        .args(["--exclude", "xtask", "--exclude", "vudev-benches"])
        .args(["--lib", "--bins", "--tests"])
        .args(["--message-format", "json-render-diagnostics"])
        .args(["--target", architecture.triple, "--target-dir"])
        .arg(&target)
        .env("RUSTC", parts.rustc())
        .env(format!("CARGO_TARGET_{variable}_LINKER"), parts.linker())
        .env(format!("CARGO_TARGET_{variable}_RUSTFLAGS"), RUST_FLAGS)
        // They are all unpacked into the machine's memory.
        .env("CARGO_PROFILE_DEV_DEBUG", "0")
        .env("CARGO_PROFILE_DEV_STRIP", "debuginfo")
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("RUSTC_WRAPPER");
    let output = cargo
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("cargo test --no-run")?;
    ensure!(output.status.success(), "cargo: {}", output.status);
    let mut built = Built {
        programs: Vec::new(),
        suites: Vec::new(),
        temporary: target.join(architecture.triple).join("tmp"),
    };
    for line in String::from_utf8(output.stdout)?.lines() {
        built.take(line)?;
    }
    if built.suites.is_empty() || built.programs.is_empty() {
        bail!("cargo named no program that it had built");
    }
    built.suites.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(built)
}

impl Built {
    /// Reads one of cargo's messages.
    fn take(&mut self, line: &str) -> Result<()> {
        let message: Value = serde_json::from_str(line).context("cargo's message")?;
        let Some(program) = message["executable"].as_str() else {
            return Ok(());
        };
        let text = |value: &Value| value.as_str().map(PathBuf::from);
        if message["profile"]["test"] != Value::Bool(true) {
            self.programs.push(program.into());
            return Ok(());
        }
        let source = text(&message["target"]["src_path"]).context("a program without source")?;
        let manifest = text(&message["manifest_path"]).context("a program without a package")?;
        self.suites.push(Suite {
            name: suite_name(&source),
            program: program.into(),
            folder: manifest.parent().map(Path::to_owned).unwrap_or_default(),
        });
        Ok(())
    }
}

fn suite_name(source: &Path) -> String {
    let name = source.strip_prefix(workspace::root()).unwrap_or(source);
    name.with_extension("").to_string_lossy().into_owned()
}
