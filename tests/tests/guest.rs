//! Real guests: an unmodified QEMU with a stock Debian kernel on our consoles and disks. What can
//! be shown without a guest is tested elsewhere, faster.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;
use vudev_tests::{Assets, Child, Guest, wait_until_listening};

/// The guest's parts; `cargo xtask guest` gets them.
fn assets() -> Assets {
    Assets::find().unwrap()
}

/// A folder of the test's own, short enough for socket paths in it.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::Builder::new().prefix("vudev-").tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

#[test]
fn the_harness_returns_what_a_script_printed_and_its_exit_status() {
    let report = Guest::new(&assets())
        .script("echo one; echo two >&2; exit 7")
        .run()
        .unwrap();
    assert_eq!(report.output, "one\ntwo\n");
    assert_eq!(report.status, Some(7));
}

#[test]
fn the_harness_works_with_a_back_end_that_is_not_ours() {
    let folder = Folder::new();
    let (image, socket) = (folder.path("disk.img"), folder.path("block.sock"));
    let assets = assets();
    assets.make_ext4(&image, 64).unwrap();
    let mut command = Command::new("qemu-storage-daemon");
    let node = format!("driver=file,node-name=disk,filename={}", image.display());
    let export = format!(
        "type=vhost-user-blk,id=e,node-name=disk,writable=on,addr.type=unix,addr.path={}",
        socket.display()
    );
    command.args(["--blockdev", &node, "--export", &export]);
    let mut daemon = Child::start("qemu-storage-daemon", &command).unwrap();
    wait_until_listening(&socket, &mut daemon, Duration::from_secs(20)).unwrap();
    let script = "set -e; mount -t ext4 /dev/vda /mnt; echo kept >/mnt/file; cat /mnt/file";
    let report = Guest::new(&assets)
        .block(&socket, 1)
        .script(script)
        .run()
        .unwrap();
    assert_eq!(report.output, "kept\n");
    assert_eq!(report.status, Some(0));
}
