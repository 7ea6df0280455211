//! `cargo xtask compare`: a release of ours and of the benchmarks' `compare`, which does the work;
//! the benchmarks that need crates of their own, before it; and peers that cargo installs.

use std::fs;
use std::process::Command;

use anyhow::{Result, bail};

use crate::process::{run, say};
use crate::workspace;

pub(crate) const HELP: &str = "\
measures a release of ours beside the peers that are installed and beside bare calls, or
beside another build of ours, and writes tables and plots into target/compare/; all of
it takes ten minutes, a disk of 1 GiB in the build folder, which must not be a tmpfs, and
root for net

  --peers   installs those of rust-vmm first, into target/peers/; qemu-storage-daemon
            is of Debian's qemu-utils
  --rounds  how often each figure is measured; 5 without it
  --window  how long a measurement takes; 300 without it
  --only    only what has these words in its name: \"read, depth 1\", vsock, start of, idle;
            a name that there is not is answered with all that there are; executor and net,
            which are benchmarks of their own, go by these two words alone
  --options what our devices are started with besides, poll-us=0 say: what all have that
            are measured, or --only names those that have it
  --beside  another build of ours in place of the peers: what a change brings
  --beside-options
            what that one's devices are started with besides; without --beside it is this
            build once more: what an option brings

VUDEV_VHOST_DEVICE_CONSOLE, _RNG and _VSOCK name those peers where they are elsewhere.
Exit status: 0 all was measured, kept or NOT KEPT, and be it after a peer that had fallen
silent was asked again; 1 something FAILED, or was not built; 2 wrong arguments, told
before anything is measured.";

/// Peers that cargo installs, with their versions. A C compiler links them; they need no library.
const PEERS: [(&str, &str); 3] = [
    ("vhost-device-console", "0.1.0"),
    ("vhost-device-rng", "0.1.0"),
    ("vhost-device-vsock", "0.3.0"),
];

/// Benchmarks that are programs of their own, and what of them is compared: a part of its name.
const BENCHMARKS: [(&str, &str); 2] = [("executor", "round|depth 32"), ("net", "")];

/// Installs peers if it is asked to, builds, and measures into `target/compare/`; the other
/// arguments are the program's.
pub(crate) fn compare(arguments: &[&str]) -> Result<()> {
    let (ours, theirs): (Vec<&str>, Vec<&str>) = arguments
        .iter()
        .partition(|argument| **argument == "--peers");
    let target = workspace::target()?;
    build()?;
    let figures = target.join("tmp");
    let program = || {
        let mut program = Command::new(target.join("release/compare"));
        let names = BENCHMARKS.map(|(name, _)| name).join(",");
        program.args(&theirs).args(["--benchmarks", &names]);
        program.arg("--figures").arg(&figures);
        program.arg(target.join("compare"));
        program
    };
    // It names what there is, before much time is spent.
    if program().arg("--check").status()?.code() == Some(2) {
        return Err(Misuse.into());
    }
    if !ours.is_empty() {
        for (name, version) in PEERS {
            install(name, version)?;
        }
    }
    for (name, part) in BENCHMARKS {
        // Else those of an earlier run would be taken for this one's.
        for kind in ["tsv", "txt"] {
            let _ = fs::remove_file(figures.join(format!("{name}.{kind}")));
        }
        if wants(&theirs, name) {
            bench(name, part);
        }
    }
    // The benchmarks have left their own build in the release's place.
    build()?;
    // What failed stands in its table.
    match program().status()?.success() {
        true => Ok(()),
        false => bail!("not everything could be measured"),
    }
}

/// Something in the arguments that only the program knows to be wrong; it has said what.
#[derive(Debug)]
pub(crate) struct Misuse;

impl std::fmt::Display for Misuse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("see cargo xtask compare --help")
    }
}

impl std::error::Error for Misuse {}

/// Ours as packagers build it, the device of nothing, and the program that measures them.
fn build() -> Result<()> {
    say("compare: building a release");
    let mut cargo = workspace::cargo();
    run(cargo.args(["build", "--release", "-p", "vudev-benches", "--bins"]))
}

/// Into `target/peers/bin`, where benchmarks look; does nothing where it is that version already.
fn install(name: &str, version: &str) -> Result<()> {
    say(&format!("compare: the peer {name} {version}"));
    let peers = workspace::target()?.join("peers");
    let mut cargo = workspace::cargo();
    cargo.args(["install", "--locked", name, "--version", version]);
    cargo.arg("--root").arg(&peers);
    run(cargo.arg("--target-dir").arg(peers.join("build")))
}

/// Whether the measurements that are asked for have this benchmark's among them.
fn wants(arguments: &[&str], name: &str) -> bool {
    let mut after = arguments.iter().skip_while(|it| **it != "--only").skip(1);
    after.next().is_none_or(|only| name.contains(only))
}

/// Runs a benchmark; the report names it if it has left nothing.
fn bench(name: &str, part: &str) {
    say(&format!("compare: the benchmark {name}"));
    let mut cargo = workspace::cargo();
    cargo.args(["bench", "-p", "vudev-benches", "--bench", name]);
    cargo.args(["--", "--quick"]);
    if !part.is_empty() {
        cargo.arg(part);
    }
    if let Err(error) = run(&mut cargo) {
        say(&format!("compare: {error:#}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_benchmark_runs_unless_something_else_is_asked_for() {
        assert!(wants(&[], "net"));
        assert!(wants(&["--rounds", "3"], "net"));
        assert!(wants(&["--only", "net"], "net"));
        assert!(!wants(&["--only", "read, depth 1"], "net"));
    }
}
