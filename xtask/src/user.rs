//! Runs test programs as an ordinary user when we are root. Cargo and nextest stay root and start
//! each test program through the runner made here, so that the user needs no toolchain.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::process::{run, text, write_script};
use crate::workspace;

/// The user that owns nothing, on every Linux.
const NOBODY: u32 = 65534;

/// The words before a program that make it run as that user, who has no way back.
const AS_USER: [&str; 6] = [
    "setpriv",
    "--reuid=65534",
    "--regid=65534",
    "--clear-groups",
    "--inh-caps=-all",
    "--",
];

/// An ordinary user's way to run programs, with a temporary folder of its own.
pub(crate) struct OrdinaryUser {
    temporary: TempDir,
    runner: PathBuf,
}

impl OrdinaryUser {
    /// Prepares the runner and checks that the user can reach what it is to run.
    pub(crate) fn new(target: &Path) -> Result<Self> {
        let temporary = tempfile::Builder::new().prefix("vudev-user-").tempdir()?;
        fs::set_permissions(temporary.path(), fs::Permissions::from_mode(0o755))?;
        let home = temporary.path().join("home");
        fs::create_dir(&home)?;
        chown(&home, Some(NOBODY), Some(NOBODY))?;
        // Cargo offers tests this folder (`CARGO_TARGET_TMPDIR`) beside the system's own, which
        // may be a tmpfs; as that one, it is for everybody.
        let shared = target.join("tmp");
        fs::create_dir_all(&shared)?;
        fs::set_permissions(&shared, fs::Permissions::from_mode(0o1777))?;
        let runner = temporary.path().join("as-user");
        write_script(&runner, &script(&home, &workspace::root(), target))?;
        let user = Self { temporary, runner };
        user.check(target)?;
        Ok(user)
    }

    /// Makes a cargo command start test programs as this user.
    pub(crate) fn configure(&self, cargo: &mut Command) -> Result<()> {
        let variable = workspace::target_variable(&workspace::host()?, "RUNNER");
        cargo.env(variable, &self.runner);
        Ok(())
    }

    fn check(&self, target: &Path) -> Result<()> {
        let id = text(Command::new(&self.runner).args(["/usr/bin/id", "-u"]))?;
        ensure!(
            id.trim() == NOBODY.to_string(),
            "the runner runs as user {}",
            id.trim()
        );
        for folder in [&workspace::root(), target] {
            run(Command::new(&self.runner).args(["test", "-x"]).arg(folder))
                .with_context(|| format!("an ordinary user has no way to {}", folder.display()))?;
        }
        Ok(())
    }
}

impl Drop for OrdinaryUser {
    fn drop(&mut self) {
        // Tests may have left files of the user's; the folder is removed as a whole.
        let _ = fs::remove_dir_all(self.temporary.path().join("home"));
    }
}

/// Whether the user may look for names inside this folder.
fn reaches(folder: &Path) -> bool {
    let (program, options) = (AS_USER[0], &AS_USER[1..]);
    let mut command = Command::new(program);
    command.args(options).args(["test", "-x"]).arg(folder);
    command.status().is_ok_and(|status| status.success())
}

/// The highest folder on the way to this one that is closed to the user.
fn closed_folder(folder: &Path) -> Option<&Path> {
    folder
        .ancestors()
        .take_while(|folder| !reaches(folder))
        .last()
}

/// The runner: a shell script that runs its arguments as the user.
///
/// Where a folder above the workspace is closed to others (root's home, say), it covers that folder
/// with an empty one, in a mount namespace of its own, and binds the workspace and the target
/// folder back to where they were.
fn script(home: &Path, root: &Path, target: &Path) -> String {
    let uncover = match closed_folder(root).or_else(|| closed_folder(target)) {
        Some(closed) => uncovering(home, root, target, closed),
        None => String::new(),
    };
    let (home, as_user) = (home.display(), AS_USER.join(" "));
    format!(
        r#"#!/bin/sh
set -e
{uncover}
export HOME='{home}' TMPDIR='{home}' PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin
exec {as_user} "$@"
"#
    )
}

/// The script's part for a closed folder; run a second time, it is inside of the namespace.
fn uncovering(home: &Path, root: &Path, target: &Path, closed: &Path) -> String {
    let [home, root, target, closed] = [home, root, target, closed].map(Path::display);
    format!(
        r#"if [ -z "$VUDEV_UNCOVERED" ]; then
    VUDEV_UNCOVERED=1 exec unshare --mount --propagation private "$0" "$@"
fi
aside='{home}/../aside'
mkdir -p "$aside/root" "$aside/target"
mount --bind '{root}' "$aside/root"
mount --bind '{target}' "$aside/target"
mount -t tmpfs -o mode=755 tmpfs '{closed}'
mkdir -p '{root}' '{target}'
mount --bind "$aside/root" '{root}'
mount --bind "$aside/target" '{target}'
cd "$PWD"
"#
    )
}
