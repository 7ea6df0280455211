//! `cargo xtask demo`: vudev with a console and a disk, and a guest on them. It shows; what must
//! hold is tested in `tests/`.

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use tempfile::TempDir;
use vudev_harness::{Assets, Guest, VudevCommand};

use crate::process::{run as run_loudly, say, text};
use crate::{guest, workspace};

/// Room for the 64 MiB that the smoke script writes, and to play with.
const DISK_MIB: u64 = 256;

/// Someone at a shell may take all day.
const INTERACTIVE_LIMIT: Duration = Duration::from_secs(24 * 3600);

/// What the smoke run's guest writes to its console, to be found at the other end.
const CONSOLE_GREETING: &str = "hello from the guest's hvc0";

/// What the smoke run does in its guest. The checksum is taken while the data is written, and
/// again after the page cache has forgotten it.
const SMOKE: &str = r#"
set -e
echo "kernel: $(uname -r)"
console=$(cat /sys/class/tty/console/active)
echo "console: $console"
echo "$1" >/dev/hvc0
echo "block size: $(blockdev --getss /dev/vda)"
mount -t ext4 /dev/vda /mnt
grep ' /mnt ' /proc/mounts
dd if=/dev/urandom bs=1M count=64 2>/dev/null | tee /mnt/data | sha256sum >/tmp/written
sync
echo 3 >/proc/sys/vm/drop_caches
sectors() { awk '{ print $3 }' /sys/block/vda/stat; }
before=$(sectors)
sha256sum </mnt/data >/tmp/read
after=$(sectors)
umount /mnt
echo "written: $(cat /tmp/written)"
echo "read:    $(cat /tmp/read)"
echo "from the disk: $(((after - before) / 2048)) MiB"
[ "$console" = hvc0 ]
cmp /tmp/written /tmp/read
[ $((after - before)) -ge 131072 ]
"#;

/// Shows it to who is at the terminal, or to a script.
pub(crate) fn run(words: &[&str]) -> Result<()> {
    match words {
        [] => interactive(),
        _ => smoke(),
    }
}

/// Boots a guest to a shell on our console.
fn interactive() -> Result<()> {
    let stage = Stage::set()?;
    let _terminal = SavedTerminal::save();
    say("starting vudev and a guest; `exit` in the guest's shell ends both");
    let vudev = VudevCommand::of(&stage.vudev)
        .serial(&console("stdout,stdin"), &stage.console())
        .block(&stage.block_options(), &stage.block())
        .input(std::process::Stdio::inherit())
        .output(std::process::Stdio::inherit())
        .errors(std::process::Stdio::inherit())
        .start()?;
    let mut guest = Guest::new(&stage.assets)
        .console(&stage.console())
        .block(&stage.block(), 1)
        .deadline(INTERACTIVE_LIMIT)
        .start()?;
    guest.wait(INTERACTIVE_LIMIT)?;
    vudev.stop()
}

/// Runs a script in a guest on our console and disk, and prints what it saw.
fn smoke() -> Result<()> {
    let stage = Stage::set()?;
    say("starting vudev and a guest");
    let screen = stage.folder.path().join("screen");
    let vudev = VudevCommand::of(&stage.vudev)
        .serial(&console("stdout"), &stage.console())
        .block(&stage.block_options(), &stage.block())
        .output(File::create(&screen)?)
        .start()?;
    let script = format!("set -- \"{CONSOLE_GREETING}\"\n{SMOKE}");
    let report = Guest::new(&stage.assets)
        .console(&stage.console())
        .block(&stage.block(), 1)
        .script(&script)
        .run();
    let report = match report {
        Ok(report) => report,
        Err(error) => bail!("{error:#}\n-- vudev --\n{}", vudev.log()?),
    };
    vudev.stop()?;
    print!("{}", report.output);
    ensure!(
        report.status == Some(0),
        "the guest's script failed: {:?}",
        report.status
    );
    let seen = String::from_utf8_lossy(&fs::read(&screen)?).into_owned();
    ensure!(
        seen.contains(CONSOLE_GREETING),
        "our console did not show what the guest wrote"
    );
    stage.compare_with_image(&report.output)?;
    say("all as it should be");
    Ok(())
}

fn console(kind: &str) -> String {
    format!("type={kind}")
}

/// Everything that both kinds of demo need before vudev starts.
struct Stage {
    assets: Assets,
    vudev: PathBuf,
    folder: TempDir,
}

impl Stage {
    fn set() -> Result<Self> {
        let assets = guest::ensure()?;
        say("building vudev");
        run_loudly(workspace::cargo().args(["build", "--release", "--package", "vudev"]))?;
        let vudev = workspace::target()?.join("release/vudev");
        let folder = tempfile::Builder::new().prefix("vudev-demo-").tempdir()?;
        assets.make_ext4(&folder.path().join("disk.img"), DISK_MIB)?;
        Ok(Self {
            assets,
            vudev,
            folder,
        })
    }

    fn console(&self) -> PathBuf {
        self.folder.path().join("console.sock")
    }

    fn block(&self) -> PathBuf {
        self.folder.path().join("block.sock")
    }

    fn image(&self) -> PathBuf {
        self.folder.path().join("disk.img")
    }

    fn block_options(&self) -> String {
        format!("path={}", self.image().display())
    }

    /// Takes the checksum of the file in the image from outside, without the guest's help.
    fn compare_with_image(&self, guest_said: &str) -> Result<()> {
        let copy = self.folder.path().join("data");
        let request = format!("dump /data {}", copy.display());
        text(
            self.assets
                .debugfs()?
                .args(["-R", &request])
                .arg(self.image()),
        )?;
        let sum = text(Command::new("sha256sum").arg(&copy))?;
        let sum = sum
            .split_whitespace()
            .next()
            .context("sha256sum says nothing")?;
        println!("in the image: {sum}");
        ensure!(
            guest_said.contains(sum),
            "the image holds other data than the guest wrote"
        );
        Ok(())
    }
}

/// Puts the terminal back as it was, even if vudev could not.
struct SavedTerminal(Option<Termios>);

impl SavedTerminal {
    fn save() -> Self {
        Self(tcgetattr(io::stdin()).ok())
    }
}

impl Drop for SavedTerminal {
    fn drop(&mut self) {
        if let Some(modes) = &self.0 {
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, modes);
        }
    }
}
