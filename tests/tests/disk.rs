//! What a disk's keys and its file come to for a front-end of the real, jailed `vudev`: what is
//! offered, the cache mode, another size, a full file system, a block device.

#![allow(clippy::unwrap_used, reason = "a test that fails here says where")]

mod support;

use std::{
    fs::File,
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    process::Command,
};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use support::{DISK_SIZE, Running, pattern};
use vudev_frontend::{
    Block, Connection, Error,
    block::{UNMAP, WRITEBACK_AT, feature},
    message::{u32_at, u64_at},
};
use vudev_tests::VudevCommand;

/// `VHOST_USER_BACKEND_CONFIG_CHANGE_MSG` of the protocol.
const CONFIG_CHANGE: u32 = 2;

const ALL: u64 = feature::FLUSH
    | feature::CONFIG_WCE
    | feature::DISCARD
    | feature::WRITE_ZEROES
    | feature::TOPOLOGY
    | feature::SIZE_MAX
    | feature::SEG_MAX
    | feature::BLK_SIZE
    | feature::MQ;

/// A driver that takes everything.
fn whole(running: &Running) -> Block {
    Block::start(running.front().features(ALL), 1, 4096).unwrap()
}

fn status(error: &Error) -> Option<u8> {
    match error {
        Error::Status { status } => Some(*status),
        _ => None,
    }
}

/// What is at the end of a file that only part of a request touches.
fn space(block: &mut Block) -> Vec<u8> {
    block.front().connection().config(0, 60).unwrap()
}

#[test]
fn the_configuration_space_tells_what_the_keys_say() {
    let running = Running::disk(",block-size=4096,queues=3,queue-size=64,id=serial-7");
    let larger = running.front().queue_size(128).start();
    assert!(larger.is_err(), "a ring of 128 for queue-size=64");
    let front = running.front().queue_size(64).features(ALL);
    let mut block = Block::start(front, 1, 4096).unwrap();
    assert_eq!(block.id().unwrap(), b"serial-7");
    let space = space(&mut block);
    assert_eq!(u64_at(&space, 0), Some(DISK_SIZE / 512));
    assert_eq!(u32_at(&space, 8), Some(4 << 20), "size_max");
    assert_eq!(u32_at(&space, 12), Some(62), "seg_max");
    assert_eq!(u32_at(&space, 20), Some(4096), "blk_size");
    assert!(space[26] >= 1, "min_io_size in blocks");
    assert_eq!(space[32], 1, "writeback");
    assert_eq!(space[34..36], [3, 0], "num_queues");
    assert_eq!(u32_at(&space, 36), Some(1 << 21), "max_discard_sectors");
    assert_eq!(u32_at(&space, 40), Some(16), "max_discard_seg");
    assert!(u32_at(&space, 44).unwrap() >= 8, "discard_sector_alignment");
    assert_eq!(
        u32_at(&space, 48),
        Some(1 << 15),
        "max_write_zeroes_sectors"
    );
    assert_eq!(u32_at(&space, 52), Some(1), "max_write_zeroes_seg");
    assert_eq!(space[56], 1, "write_zeroes_may_unmap");
    running.stop();
}

#[test]
fn sparse_false_and_ro_offer_less() {
    let running = Running::disk(",sparse=false");
    let offered = running.block().front().offered();
    assert_eq!(offered & feature::DISCARD, 0);
    assert_ne!(offered & feature::WRITE_ZEROES, 0);
    running.stop();

    let running = Running::disk(",ro,queues=1");
    let mut block = running.block();
    let changing = feature::DISCARD | feature::WRITE_ZEROES | feature::CONFIG_WCE | feature::MQ;
    assert_eq!(
        block.front().offered() & (changing | feature::RO),
        feature::RO
    );
    assert_eq!(status(&block.write(0, &[1; 512]).unwrap_err()), Some(1));
    assert_eq!(status(&block.discard(0, 8).unwrap_err()), Some(2));
    drop(block);
    running.stop();
}

#[test]
fn space_that_is_given_back_is_free_on_the_host() {
    let running = Running::disk("");
    let mut block = whole(&running);
    block.write(0, &pattern(1 << 20, 1)).unwrap();
    block.flush().unwrap();
    let taken = || running.disk_file().metadata().unwrap().blocks();
    let before = taken();
    block.discard(0, 1024).unwrap();
    let after_discard = taken();
    block.write_zeroes(1024, 1024, UNMAP).unwrap();
    let after_both = taken();
    assert!(before >= 2048, "{before}");
    assert!(after_discard < before - 900, "{before} {after_discard}");
    assert!(
        after_both < after_discard - 900,
        "{after_discard} {after_both}"
    );
    let mut bytes = vec![1; 1 << 20];
    block.read(0, &mut bytes).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 0));
    running.stop();
}

#[test]
fn the_cache_mode_is_the_operators_until_the_driver_writes_another() {
    for (options, first) in [("", 1), (",cache=writethrough", 0), (",cache=writeback", 1)] {
        let running = Running::disk(options);
        let mut block = whole(&running);
        let other = 1 - first;
        assert_eq!(space(&mut block)[32], first, "{options}");
        let connection = block.front().connection();
        connection.set_config(WRITEBACK_AT, 0, &[other]).unwrap();
        assert_eq!(space(&mut block)[32], other);
        block.write(0, &pattern(4096, 3)).unwrap();
        // The next driver finds the operator's choice, and one that may not choose cannot.
        drop(block);
        let mut block = running.block();
        assert_eq!(space(&mut block)[32], first, "{options}");
        let connection = block.front().connection();
        assert!(connection.set_config(WRITEBACK_AT, 0, &[other]).is_err());
        drop(block);
        let mut block = whole(&running);
        assert_eq!(space(&mut block)[32], first, "{options}");
        let mut bytes = vec![0; 4096];
        block.read(0, &mut bytes).unwrap();
        assert_eq!(bytes, pattern(4096, 3));
        running.stop();
    }
}

/// Waits for the back-end's word that the configuration has changed.
fn wait_for_change(channel: &Connection) {
    assert_eq!(channel.backend_request().unwrap(), CONFIG_CHANGE);
}

#[test]
fn a_file_that_grows_and_shrinks_is_a_disk_that_does_once_vudev_is_told() {
    let running = Running::disk("");
    let mut block = whole(&running);
    let channel = block.front().connection().backend_channel().unwrap();
    let file = running.disk_file();
    let capacity = |block: &mut Block| u64_at(&space(block), 0).unwrap() * 512;

    file.set_len(2 * DISK_SIZE).unwrap();
    assert_eq!(capacity(&mut block), DISK_SIZE, "nobody has said so yet");
    running.refresh("the disk has 16777216 bytes now, 8388608 before");
    wait_for_change(&channel);
    assert_eq!(capacity(&mut block), 2 * DISK_SIZE);
    let last = 2 * DISK_SIZE - 4096;
    block.write(last, &pattern(4096, 5)).unwrap();
    let mut bytes = vec![0; 4096];
    file.read_exact_at(&mut bytes, last).unwrap();
    assert_eq!(bytes, pattern(4096, 5));

    file.set_len(4096 + 100).unwrap();
    running.refresh("the disk has 4096 bytes now, 16777216 before");
    wait_for_change(&channel);
    assert!(running.log().contains("the last 100 bytes of the file"));
    assert_eq!(capacity(&mut block), 4096);
    for offset in [4096, last] {
        let write = block.write(offset, &[1; 512]).unwrap_err();
        let read = block.read(offset, &mut [0; 512]).unwrap_err();
        let zeroes = block.write_zeroes(offset / 512, 1, 0).unwrap_err();
        assert_eq!([&write, &read, &zeroes].map(status), [Some(1); 3]);
    }
    block.write(0, &pattern(4096, 6)).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 4096 + 100);
    running.stop();
}

/// A mounted tmpfs, or any other mount; gone when dropped.
struct Mount(tempfile::TempDir);

impl Mount {
    /// `None`, and the reason on standard output, where that may not be.
    fn tmpfs(options: &str) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let options = std::ffi::CString::new(options).unwrap();
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        match mount("tmpfs", folder.path(), "tmpfs", flags, options.as_c_str()) {
            Ok(()) => Some(Self(folder)),
            Err(error) => {
                println!("SKIPPED: needs root to mount a file system that is full soon ({error})");
                None
            }
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = unmount(self.0.path(), UnmountFlags::DETACH);
    }
}

#[test]
fn a_full_file_system_is_an_error_that_ends_when_space_is_given_back() {
    let Some(mount) = Mount::tmpfs("size=1m,mode=0777") else {
        return;
    };
    let folder = tempfile::tempdir_in(mount.0.path()).unwrap();
    let running = Running::disk_in(folder, DISK_SIZE, "");
    let mut block = whole(&running);
    let mut written = 0;
    let full = loop {
        match block.write(written * 4096, &pattern(4096, 7)) {
            Ok(()) => written += 1,
            Err(error) => break error,
        }
        assert!(written < 300, "it is never full");
    };
    assert_eq!(status(&full), Some(1));
    // This file system has no zeroed ranges, so zeros would have to be written.
    let sector = written * 8;
    assert_eq!(
        status(&block.write_zeroes(sector, 8, 0).unwrap_err()),
        Some(1)
    );
    let mut bytes = vec![0; 4096];
    block.read(0, &mut bytes).unwrap();
    assert_eq!(bytes, pattern(4096, 7));
    block.discard(0, 8).unwrap();
    block.write(written * 4096, &pattern(4096, 8)).unwrap();
    block.read(written * 4096, &mut bytes).unwrap();
    assert_eq!(bytes, pattern(4096, 8));
    running.wait_for("No space left", 1);
    running.stop();
}

/// A loop device on a file; detached when dropped.
struct Loop(PathBuf);

impl Loop {
    fn attach(file: &Path) -> Result<Self, String> {
        let mut losetup = Command::new("losetup");
        let output = losetup.args(["--find", "--show"]).arg(file).output();
        let output = output.map_err(|error| error.to_string())?;
        match output.status.success() {
            true => {
                let name = String::from_utf8_lossy(&output.stdout);
                Ok(Self(name.trim().into()))
            }
            false => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        }
    }

    fn reread_size(&self) {
        let mut losetup = Command::new("losetup");
        let status = losetup.arg("--set-capacity").arg(&self.0).status();
        assert!(status.unwrap().success());
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup")
            .arg("--detach")
            .arg(&self.0)
            .status();
    }
}

#[test]
fn a_block_device_is_a_disk_that_discards_zeroes_and_grows() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = folder.path().join("behind");
    let behind = File::create_new(&path).unwrap();
    behind.write_all_at(&pattern(4 << 20, 9), 0).unwrap();
    let device = match Loop::attach(&path) {
        Ok(device) => device,
        Err(error) => {
            println!("SKIPPED: needs root and a loop device ({error})");
            return;
        }
    };
    for options in ["", ",direct"] {
        let socket = folder.path().join("socket");
        let command = VudevCommand::new().unwrap();
        let options = format!("path={}{options}", device.0.display());
        let vudev = command.block(&options, &socket).start().unwrap();
        let front = vudev_frontend::FrontEnd::connect(&socket);
        let front = front.memory(2 << 20).features(ALL);
        let mut block = Block::start(front, 1, 1 << 19).unwrap();
        let size = behind.metadata().unwrap().len();
        assert_eq!(block.config().capacity * 512, size);
        block.write(0, &pattern(1 << 19, 2)).unwrap();
        block.discard(0, 256).unwrap();
        block.write_zeroes(256, 128, 0).unwrap();
        block.write_zeroes(384, 128, UNMAP).unwrap();
        block.write_zeroes(513, 3, 0).unwrap();
        let mut bytes = vec![1; 1 << 19];
        block.read(0, &mut bytes).unwrap();
        assert!(bytes[256 * 512..512 * 512].iter().all(|byte| *byte == 0));
        block.read(0, &mut bytes[..2048]).unwrap();
        block.flush().unwrap();

        behind.set_len(size + (1 << 20)).unwrap();
        device.reread_size();
        vudev.signal(rustix::process::Signal::USR1).unwrap();
        let channel = block.front().connection().backend_channel().unwrap();
        wait_for_change(&channel);
        let now = u64_at(&space(&mut block), 0).unwrap() * 512;
        assert_eq!(now, size + (1 << 20));
        block.write(now - 512, &pattern(512, 3)).unwrap();
        drop(block);
        vudev.stop().unwrap();
    }
}
