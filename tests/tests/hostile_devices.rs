//! Guests, front-ends and programs of the host that make it hard for one device, against the real,
//! jailed `vudev`: what they must not get is a queue that is lost, a front-end that waits, memory
//! without end, or more than a line of log.

#![allow(clippy::unwrap_used, reason = "a test that fails here says where")]

use std::io::Read;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use vudev_frontend::{Buffer, Builder, FrontEnd, LIMIT, Step};
use vudev_tests::{Vudev, VudevCommand};

const TRANSMIT: u16 = 1;

/// More than any socket between has room for.
const TOO_MUCH: u32 = 2 << 20;

/// A folder for a device and its ends.
struct Scene {
    folder: TempDir,
}

impl Scene {
    fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("vudev-").tempdir().unwrap();
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A device of this kind, `DIR` standing for the folder; ready.
    fn start(&self, kind: &str, options: &str) -> Vudev {
        let folder = self.folder.path().to_str().unwrap();
        let options = options.replace("DIR", folder);
        let command = VudevCommand::new().unwrap();
        let command = command.device(kind, &options, &self.path("vhost"));
        let vudev = command.start().unwrap();
        until(
            || vudev.log().unwrap().contains("device is ready"),
            || vudev.log().unwrap(),
        );
        vudev
    }

    fn front(&self) -> Builder {
        FrontEnd::connect(self.path("vhost"))
    }
}

fn until(mut done: impl FnMut() -> bool, awaited: impl Fn() -> String) {
    let deadline = Instant::now() + LIMIT;
    while !done() {
        assert!(Instant::now() < deadline, "{}", awaited());
        std::thread::yield_now();
    }
}

/// Waits until something can be read.
fn wait_for_bytes(from: &UnixStream) {
    let arrived = || rustix::io::ioctl_fionread(from).unwrap() > 0;
    until(arrived, || "nothing comes".to_owned());
}

fn read_exactly(from: &mut UnixStream, length: usize) -> Vec<u8> {
    from.set_read_timeout(Some(LIMIT)).unwrap();
    let mut bytes = vec![0; length];
    from.read_exact(&mut bytes).unwrap();
    bytes
}

#[test]
fn memory_is_replaced_at_once_under_output_that_nobody_reads_and_no_byte_is_lost() {
    for options in ["", ",out-timestamp"] {
        let scene = Scene::new();
        let listener = UnixListener::bind(scene.path("out")).unwrap();
        let vudev = scene.start(
            "serial",
            &format!("type=unix-stream,path=DIR/out,overflow=block{options}"),
        );
        let (mut reader, _) = listener.accept().unwrap();
        let mut front = scene.front().memory(8 << 20).queues(2).start().unwrap();
        let address = front.memory().allocate(TOO_MUCH.into(), 4096).unwrap();
        let words = (0..TOO_MUCH / 4).flat_map(|word| (word | 0x8080_8080).to_le_bytes());
        let sent: Vec<u8> = words.collect();
        front.memory().write(address, &sent).unwrap();
        let ring = front.ring(TRANSMIT);
        ring.add(&[Buffer::new(address, TOO_MUCH)], &[]).unwrap();
        ring.kick().unwrap();
        wait_for_bytes(&reader);
        for _ in 0..3 {
            let begun = Instant::now();
            front.take(Step::MemoryTable).unwrap();
            assert!(
                begun.elapsed() < Duration::from_secs(2),
                "{:?}",
                begun.elapsed()
            );
        }
        // Without an end of line there is one time, before all of it.
        let stamp = if options.is_empty() {
            0
        } else {
            "[ 2022-08-19 11:22:33.000000000 ]: ".len()
        };
        let seen = read_exactly(&mut reader, stamp + sent.len());
        assert!(seen[stamp..] == sent, "other bytes");
        let _used = front.ring(TRANSMIT).wait_used(LIMIT).unwrap();
        assert!(
            !vudev.log().unwrap().contains("retired"),
            "{}",
            vudev.log().unwrap()
        );
    }
}
