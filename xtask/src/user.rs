//! Runs test programs as an ordinary user when we are root. Cargo and nextest stay root and start
//! each test program through the runner made here, so that the user needs no toolchain.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::process::{run, text};
use crate::workspace;

/// The user that owns nothing, on every Linux.
const NOBODY: u32 = 65534;

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
        fs::write(&runner, script(&home, &workspace::root(), target))?;
        fs::set_permissions(&runner, fs::Permissions::from_mode(0o755))?;
        let user = Self { temporary, runner };
        user.check()?;
        Ok(user)
    }

    /// Makes a cargo command start test programs as this user.
    pub(crate) fn configure(&self, cargo: &mut Command) -> Result<()> {
        let version = text(Command::new("rustc").arg("-vV"))?;
        let host = version.lines().find_map(|line| line.strip_prefix("host: "));
        let host = host
            .context("rustc names no host")?
            .to_uppercase()
            .replace('-', "_");
        cargo.env(format!("CARGO_TARGET_{host}_RUNNER"), &self.runner);
        Ok(())
    }

    fn check(&self) -> Result<()> {
        let id = text(Command::new(&self.runner).args(["/usr/bin/id", "-u"]))?;
        ensure!(
            id.trim() == NOBODY.to_string(),
            "the runner runs as user {}",
            id.trim()
        );
        let manifest = workspace::root().join("Cargo.toml");
        run(Command::new(&self.runner)
            .args(["test", "-r"])
            .arg(manifest))
        .context("an ordinary user cannot read the workspace")?;
        Ok(())
    }
}

impl Drop for OrdinaryUser {
    fn drop(&mut self) {
        // Tests may have left files of the user's; the folder is removed as a whole.
        let _ = fs::remove_dir_all(self.temporary.path().join("home"));
    }
}

/// The runner: a shell script that runs its arguments as the user.
///
/// Where a folder above the workspace is closed to others (root's home, say), it covers that folder
/// with an empty one, in a mount namespace of its own, and binds the workspace and the target
/// folder back to where they were.
fn script(home: &Path, root: &Path, target: &Path) -> String {
    let (home, root, target) = (home.display(), root.display(), target.display());
    format!(
        r#"#!/bin/sh
export HOME='{home}' TMPDIR='{home}' PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin
as_user() {{
    exec setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups --inh-caps=-all -- "$@"
}}
reaches() {{
    (as_user test -x "$1")
}}
if reaches '{root}' && reaches '{target}'; then
    as_user "$@"
fi
if [ -z "$VUDEV_BOUND" ]; then
    VUDEV_BOUND=1 exec unshare --mount --propagation private "$0" "$@"
fi
set -e
aside='{home}/../aside'
mkdir -p "$aside/root" "$aside/target"
mount --bind '{root}' "$aside/root"
mount --bind '{target}' "$aside/target"
for path in '{root}' '{target}'; do
    until reaches "$path"; do
        closed=$path
        while [ "$closed" != / ] && ! reaches "$(dirname "$closed")"; do
            closed=$(dirname "$closed")
        done
        mount -t tmpfs -o mode=755 tmpfs "$closed"
        mkdir -p '{root}' '{target}'
    done
done
mount --bind "$aside/root" '{root}'
mount --bind "$aside/target" '{target}'
cd "$PWD"
as_user "$@"
"#
    )
}
