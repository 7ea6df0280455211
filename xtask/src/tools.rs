//! Programs of the system that the chores and tests use: found, installed where that needs no
//! question (root on Debian), or named together with the command that installs them.

use std::env;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, bail};

use crate::process::{output, say};

/// A program and the Debian package that has it.
pub(crate) struct Tool {
    /// The program's name.
    pub(crate) program: &'static str,
    /// The package's name.
    pub(crate) package: &'static str,
    /// What it is used for.
    pub(crate) purpose: &'static str,
}

/// What `cargo xtask test` needs beside cargo.
pub(crate) const FOR_TESTS: &[Tool] = &[
    Tool {
        program: "setpriv",
        package: "util-linux",
        purpose: "runs the tests as an ordinary user",
    },
    Tool {
        program: "qemu-storage-daemon",
        package: "qemu-utils",
        purpose: "is the back-end that ours is compared with",
    },
    Tool {
        program: "cc",
        package: "gcc",
        purpose: "links programs",
    },
];

/// What fetching a guest needs.
pub(crate) const FOR_GUEST: &[Tool] = &[
    Tool {
        program: "apt-get",
        package: "apt",
        purpose: "fetches QEMU and a kernel",
    },
    Tool {
        program: "dpkg-deb",
        package: "dpkg",
        purpose: "unpacks them",
    },
];

/// Makes sure that all these programs are there.
pub(crate) fn require(tools: &[Tool]) -> Result<()> {
    let missing: Vec<_> = tools
        .iter()
        .filter(|tool| find(tool.program).is_none())
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let mut packages: Vec<_> = missing.iter().map(|tool| tool.package).collect();
    packages.sort_unstable();
    packages.dedup();
    if is_root() && find("apt-get").is_some() {
        return install(&packages);
    }
    let lines: Vec<_> = missing
        .iter()
        .map(|tool| format!("  {} {}", tool.program, tool.purpose))
        .collect();
    bail!(
        "missing:\n{}\non Debian this installs them: apt-get install {}",
        lines.join("\n"),
        packages.join(" ")
    )
}

/// Where a program is: in `PATH`, or in the folders that an ordinary user's `PATH` leaves out.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|folder| folder.join(program))
        .find(|path| path.is_file())
}

/// Whether we may do anything.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn install(packages: &[&str]) -> Result<()> {
    say(&format!("installing {}", packages.join(" ")));
    output(apt().arg("update"))?;
    output(
        apt()
            .args(["install", "-y", "--no-install-recommends"])
            .args(packages),
    )?;
    Ok(())
}

fn apt() -> Command {
    let mut apt = Command::new("apt-get");
    apt.arg("-q").env("DEBIAN_FRONTEND", "noninteractive");
    apt
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_outside_an_ordinary_users_path_is_found() {
        assert!(find("sh").is_some());
        assert!(find("no-such-program").is_none());
    }
}
