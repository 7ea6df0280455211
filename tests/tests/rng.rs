//! The entropy device as users start it: jailed, with each of its keys, driven over its socket.

#![expect(
    clippy::unwrap_used,
    reason = "a suite whose own set-up fails has nothing to test"
)]

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use vudev_frontend::{Error, FrontEnd, LIMIT, Rng};
use vudev_tests::{Vudev, VudevCommand};

/// How long something that must not happen is waited for.
const SHORTLY: Duration = Duration::from_millis(100);

struct Running {
    vudev: Vudev,
    folder: TempDir,
}

impl Running {
    /// `DIR` in the options is a folder of the test's own.
    fn new(folder: TempDir, options: &str) -> Self {
        let options = options.replace("DIR", folder.path().to_str().unwrap());
        let socket = folder.path().join("rng.sock");
        let command = VudevCommand::new().unwrap();
        let vudev = command.device("rng", &options, &socket).start().unwrap();
        Self { vudev, folder }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("rng.sock")
    }

    fn driver(&self) -> Rng {
        Rng::start(FrontEnd::connect(self.socket()).queue_size(16)).unwrap()
    }
}

fn folder() -> TempDir {
    tempfile::Builder::new().prefix("vudev-").tempdir().unwrap()
}

#[test]
fn a_jailed_device_gives_the_kernels_bytes() {
    let running = Running::new(folder(), "max-bytes=1G");
    let mut rng = running.driver();
    let (first, second) = (rng.read(512, LIMIT).unwrap(), rng.read(512, LIMIT).unwrap());
    assert_eq!((first.len(), second.len()), (512, 512));
    assert_ne!(first, second);
    // Many at once, each with bytes of its own.
    for _ in 0..16 {
        rng.ask(64).unwrap();
    }
    let mut answers: Vec<_> = (0..16).map(|_| rng.answer(LIMIT).unwrap()).collect();
    answers.sort();
    answers.dedup();
    assert_eq!(answers.len(), 16);
    drop(rng);
    running.vudev.stop().unwrap();
}

#[test]
fn a_sources_bytes_are_read_on_by_the_next_front_end_and_its_end_is_said_once() {
    let folder = folder();
    fs::write(folder.path().join("bytes"), "one two three").unwrap();
    let running = Running::new(folder, "source=DIR/bytes");
    assert_eq!(running.driver().read(4, LIMIT).unwrap(), b"one ");
    let mut rng = running.driver();
    assert_eq!(rng.read(64, LIMIT).unwrap(), b"two three");
    for _ in 0..3 {
        assert_eq!(rng.read(64, LIMIT).unwrap(), b"");
    }
    drop(rng);
    let said = || {
        let log = running.vudev.log().unwrap();
        log.matches("the source gives no more bytes").count()
    };
    // The supervisor prints it when it comes to it.
    let deadline = Instant::now() + LIMIT;
    while said() == 0 {
        assert!(Instant::now() < deadline, "the end is not said");
        std::thread::yield_now();
    }
    assert_eq!(said(), 1);
    running.vudev.stop().unwrap();
}

#[test]
fn a_device_node_is_a_source() {
    let running = Running::new(folder(), "source=/dev/zero");
    let bytes = running.driver().read(5000, LIMIT).unwrap();
    assert_eq!(bytes, vec![0; 4096]);
    running.vudev.stop().unwrap();
}

#[test]
fn a_limit_holds_across_front_ends_and_a_stop_does_not_wait_for_the_period() {
    let running = Running::new(folder(), "max-bytes=100,period=3600000");
    let mut rng = running.driver();
    assert_eq!(rng.read(64, LIMIT).unwrap().len(), 64);
    assert_eq!(rng.read(64, LIMIT).unwrap().len(), 36);
    rng.ask(64).unwrap();
    let waits = rng.answer(SHORTLY);
    assert!(matches!(waits, Err(Error::Deadline { .. })), "{waits:?}");
    assert_eq!(rng.front().stop().unwrap(), [2]);
    drop(rng);
    let waits = running.driver().read(64, SHORTLY);
    assert!(matches!(waits, Err(Error::Deadline { .. })), "{waits:?}");
    running.vudev.stop().unwrap();
}

#[test]
fn a_period_that_is_over_gives_bytes_again() {
    let running = Running::new(folder(), "max-bytes=10,period=1");
    let mut rng = running.driver();
    let got: usize = (0..20).map(|_| rng.read(64, LIMIT).unwrap().len()).sum();
    assert_eq!(got, 200);
    running.vudev.stop().unwrap();
}
