//! A running `vudev` with one device, and what the suites ask about its process: descriptors,
//! memory and life. Not a place for a suite's own scripts.

#![allow(dead_code, reason = "each suite uses its part of what they share")]
#![allow(
    clippy::unwrap_used,
    reason = "a suite whose own set-up fails has nothing to test"
)]

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use vudev_frontend::{Block, Builder, Console, FrontEnd, LIMIT};
use vudev_tests::{Vudev, VudevCommand};

/// Bytes on a test's disk.
pub(crate) const DISK_SIZE: u64 = 8 << 20;

/// How long something that must not happen is waited for, at most.
pub(crate) const SHORTLY: Duration = Duration::from_millis(100);

/// A `vudev` with one device.
pub(crate) struct Running {
    vudev: Vudev,
    directory: tempfile::TempDir,
}

impl Running {
    /// A disk of [`DISK_SIZE`] bytes with zeros; `options` begin with a comma.
    pub(crate) fn disk(options: &str) -> Self {
        Self::disk_in(tempfile::tempdir().unwrap(), DISK_SIZE, options)
    }

    /// The same of another size, in this folder.
    pub(crate) fn disk_in(directory: tempfile::TempDir, size: u64, options: &str) -> Self {
        let disk = directory.path().join("disk");
        File::create(&disk).unwrap().set_len(size).unwrap();
        let options = format!("path={}{options}", disk.display());
        let command = VudevCommand::new().unwrap();
        let vudev = command
            .block(&options, &directory.path().join("socket"))
            .start()
            .unwrap();
        Self { vudev, directory }.ready()
    }

    /// A console whose output goes to a file and whose input comes from what is given.
    pub(crate) fn console(input: Option<File>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let output = directory.path().join("output");
        File::create(&output).unwrap();
        let stdin = if input.is_some() { ",stdin" } else { "" };
        let options = format!(
            "hardware=virtio-console,type=file,path={}{stdin}",
            output.display()
        );
        let mut command = VudevCommand::new().unwrap();
        if let Some(input) = input {
            command = command.input(input);
        }
        let vudev = command
            .serial(&options, &directory.path().join("socket"))
            .start()
            .unwrap();
        Self { vudev, directory }.ready()
    }

    /// A proxy, whose device VM connects at `vfio`; with a file `ram` of so many bytes for the
    /// memory of the driver VM, or without one.
    pub(crate) fn proxy(ram: Option<u64>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = |name| directory.path().join(name);
        let mut command = VudevCommand::new().unwrap().argument("vvu-proxy");
        for (key, file) in [("--socket", "vfio"), ("--vhost", "socket")] {
            command = command.argument(key).argument(path(file));
        }
        if let Some(bytes) = ram {
            File::create(path("ram")).unwrap().set_len(bytes).unwrap();
            command = command.argument("--ram-file").argument(path("ram"));
        }
        let vudev = command.argument("--log-level=debug").start().unwrap();
        Self { vudev, directory }.ready()
    }

    /// Waits until the device is in its jail: its socket listens before.
    fn ready(self) -> Self {
        self.wait_for("device is ready", 1);
        self
    }

    /// Waits until the device has noticed that so many front-ends have left.
    pub(crate) fn wait_until_left(&self, times: usize) {
        self.wait_for("the front-end has left", times);
    }

    /// Tells it to read sizes again.
    pub(crate) fn tell_refresh(&self) {
        self.vudev.signal(rustix::process::Signal::USR1).unwrap();
    }

    /// The same, and waits until it has said what it found.
    pub(crate) fn refresh(&self, found: &str) {
        self.tell_refresh();
        self.wait_for(found, 1);
    }

    /// Waits until `vudev` has said this so many times.
    pub(crate) fn wait_for(&self, words: &str, times: usize) {
        let deadline = Instant::now() + LIMIT;
        while self.log().matches(words).count() < times {
            assert!(
                Instant::now() < deadline,
                "{words:?} awaited: {}",
                self.log()
            );
            std::thread::yield_now();
        }
    }

    /// The device's socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    /// Another file of its folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The file of a disk.
    pub(crate) fn disk_file(&self) -> File {
        File::options()
            .read(true)
            .write(true)
            .open(self.directory.path().join("disk"))
            .unwrap()
    }

    /// What a console has written.
    pub(crate) fn output(&self) -> Vec<u8> {
        fs::read(self.directory.path().join("output")).unwrap()
    }

    /// Begins a front-end.
    pub(crate) fn front(&self) -> Builder {
        FrontEnd::connect(self.socket()).memory(2 << 20)
    }

    /// A block driver with one queue.
    pub(crate) fn block(&self) -> Block {
        Block::start(self.front(), 1, 4096).unwrap()
    }

    /// A block driver over a new connection, in place of another.
    pub(crate) fn block_after(&self, old: Block) -> Block {
        drop(old);
        self.block()
    }

    /// A console driver with a few receive buffers.
    pub(crate) fn console_driver(&self) -> Console {
        Console::start(self.front(), 4).unwrap()
    }

    /// The device's process.
    pub(crate) fn device(&self) -> u32 {
        let devices = self.vudev.devices().unwrap();
        assert_eq!(devices.len(), 1, "one device was started: {}", self.log());
        devices[0]
    }

    /// The descriptors of the device's process, by what they are, sorted.
    pub(crate) fn descriptors(&self) -> Vec<String> {
        let folder = format!("/proc/{}/fd", self.device());
        let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{folder}: {error}"));
        let target = |path: &Path| {
            let name = fs::read_link(path)
                .unwrap_or_default()
                .display()
                .to_string();
            // Sockets and pipes have a number that differs each time.
            name.split(':').next().unwrap_or_default().to_owned()
        };
        let mut names: Vec<_> = entries
            .map(|entry| target(&entry.unwrap().path()))
            .collect();
        names.sort();
        names
    }

    /// Pages of its own that the device's process holds, in KiB.
    pub(crate) fn private_memory(&self) -> u64 {
        let path = format!("/proc/{}/status", self.device());
        let status = fs::read_to_string(&path).unwrap();
        let line = status
            .lines()
            .find(|line| line.starts_with("RssAnon:"))
            .unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// Number of mappings of the device's process.
    pub(crate) fn mappings(&self) -> usize {
        fs::read_to_string(format!("/proc/{}/maps", self.device()))
            .unwrap()
            .lines()
            .count()
    }

    /// What `vudev` said.
    pub(crate) fn log(&self) -> String {
        self.vudev.log().unwrap()
    }

    /// Ends it, which must work.
    pub(crate) fn stop(self) {
        self.vudev.stop().unwrap();
    }
}

/// Does one write and one read of a disk over a new connection, and tells the descriptors that the
/// device's process has meanwhile.
pub(crate) fn descriptors_at_work(running: &Running) -> Vec<String> {
    let mut block = running.block();
    block.write(0, &pattern(4096, 1)).unwrap();
    let mut back = vec![0; 4096];
    block.read(0, &mut back).unwrap();
    assert_eq!(back, pattern(4096, 1));
    let descriptors = running.descriptors();
    block.into_front().leave().map(drop).unwrap();
    descriptors
}

/// Bytes that differ from place to place and from seed to seed.
pub(crate) fn pattern(length: usize, seed: u8) -> Vec<u8> {
    (0..=250_u8)
        .cycle()
        .take(length)
        .map(|byte| byte.wrapping_mul(7) ^ seed)
        .collect()
}
