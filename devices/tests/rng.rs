//! The entropy device on a played clock: what a rate limit lets through, and what a guest gets of a
//! source that ends, waits, or is stopped.

#![allow(
    clippy::unwrap_used,
    reason = "a test panics where it fails, and its numbers are small"
)]

use std::io::{Seek, Write};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, memfd_create};
use vudev_devices::rng::{ANSWER_MAX, RateLimit, Rng};
use vudev_executor::{Executor, Faults, Handle};
use vudev_transports::direct::{Direct, DirectRing};
use vudev_virtio::spec::feature;
use vudev_virtio::testing::{Guest, Ring};

const SIZE: u16 = 16;

/// A driver of a device, on a clock that jumps.
struct Rig {
    handle: Handle,
    ring: Ring,
    direct: Direct<Rng>,
}

impl Rig {
    fn new(handle: &Handle, guest: &Rc<Guest>, rng: Rng) -> Self {
        let ring = guest.ring(SIZE);
        let features = feature::FRAMEWORK;
        let mut direct = Direct::new(handle, Rc::new(rng), guest.memory(), features).unwrap();
        // By no eventfd: one that was kicked stays readable, and a played clock that always has
        // something to do stands still.
        let start = DirectRing::polled(0, SIZE, ring.addresses());
        direct.start(start).unwrap();
        Self {
            handle: handle.clone(),
            ring,
            direct,
        }
    }

    /// What one request of so many bytes gets.
    async fn read(&self, bytes: u32) -> Vec<u8> {
        self.ring.add(&[], &[bytes]);
        let used = loop {
            match self.ring.used() {
                Some(used) => break used,
                // Where nobody does anything, time passes only for those who sleep.
                None => self.handle.sleep(Duration::from_millis(20)).await,
            }
        };
        used.bytes[..usize::try_from(used.written).unwrap()].to_vec()
    }
}

/// Runs on a simulated clock, without faults.
fn play<F: Future>(test: impl FnOnce(Handle, Rc<Guest>) -> F) -> F::Output {
    let executor = Executor::simulated(1, Faults::default());
    let handle = executor.handle().clone();
    executor.run(test(handle, Guest::new(1 << 20))).unwrap()
}

fn file(bytes: &[u8]) -> OwnedFd {
    let file = memfd_create("source", MemfdFlags::CLOEXEC).unwrap();
    let mut file = std::fs::File::from(file);
    file.write_all(bytes).unwrap();
    file.rewind().unwrap();
    file.into()
}

#[test]
fn the_kernels_bytes_come_as_many_as_one_answer_may_have_and_differ_each_time() {
    play(async |handle, guest| {
        let rig = Rig::new(&handle, &guest, Rng::new(&handle, None, None));
        assert_eq!(rig.read(16).await.len(), 16);
        let (first, second) = (rig.read(60_000).await, rig.read(60_000).await);
        assert_eq!((first.len(), second.len()), (ANSWER_MAX, ANSWER_MAX));
        assert!(first != second && first.iter().any(|byte| *byte != 0));
    });
}

#[test]
fn a_source_is_given_in_order_and_its_end_is_an_empty_answer() {
    play(async |handle, guest| {
        let rng = Rng::new(&handle, Some(file(b"not random")), None);
        let rig = Rig::new(&handle, &guest, rng);
        assert_eq!(rig.read(4).await, b"not ");
        assert_eq!(rig.read(64).await, b"random");
        for _ in 0..3 {
            assert_eq!(rig.read(64).await, b"");
        }
    });
}

#[test]
fn a_chain_without_room_comes_back_and_takes_nothing_from_the_source() {
    play(async |handle, guest| {
        let rng = Rng::new(&handle, Some(file(b"all of it")), None);
        let rig = Rig::new(&handle, &guest, rng);
        rig.ring.add(&[b"nobody reads this"], &[]);
        assert_eq!(rig.ring.next_used(&handle).await.written, 0);
        assert_eq!(rig.read(64).await, b"all of it");
    });
}

#[test]
fn a_rate_limit_gives_its_bytes_in_each_period_and_no_more() {
    const LIMIT: RateLimit = RateLimit {
        max_bytes: 100,
        period_ms: 500,
    };
    play(async |handle, guest| {
        let rig = Rig::new(&handle, &guest, Rng::new(&handle, None, Some(LIMIT)));
        let start = handle.now();
        let mut given = Vec::new();
        while given.iter().map(|(_, bytes)| bytes).sum::<usize>() < 1000 {
            let bytes = rig.read(32).await.len();
            given.push((handle.now() - start, bytes));
        }
        // 32, 32, 32 and the 4 that are left, ten times over.
        let sizes: Vec<_> = given.iter().map(|(_, bytes)| *bytes).collect();
        assert_eq!(sizes, [32, 32, 32, 4].repeat(10));
        let period = Duration::from_millis(LIMIT.period_ms.into());
        for begin in (0..10).map(|number| period * number) {
            let within = |at: &Duration| (begin..begin + period).contains(at);
            let given = given.iter().filter(|(at, _)| within(at));
            assert!(given.map(|it| it.1).sum::<usize>() <= 100);
        }
        assert!(given.last().unwrap().0 >= period * 9, "{given:?}");
    });
}

#[test]
fn a_stop_does_not_wait_for_a_period_and_leaves_the_request_in_the_ring() {
    const LIMIT: RateLimit = RateLimit {
        max_bytes: 8,
        period_ms: u32::MAX,
    };
    play(async |handle, guest| {
        let mut rig = Rig::new(&handle, &guest, Rng::new(&handle, None, Some(LIMIT)));
        assert_eq!(rig.read(64).await.len(), 8);
        rig.ring.add(&[], &[64]);
        for _ in 0..10 {
            handle.yield_now().await;
        }
        let before = handle.now();
        assert_eq!(rig.direct.stop(0).await.unwrap(), 1, "one was answered");
        assert!(handle.now() - before < Duration::from_secs(1));
    });
}

#[test]
fn a_front_end_that_comes_back_does_not_begin_a_period() {
    const LIMIT: RateLimit = RateLimit {
        max_bytes: 8,
        period_ms: 60_000,
    };
    play(async |handle, guest| {
        let mut rig = Rig::new(&handle, &guest, Rng::new(&handle, None, Some(LIMIT)));
        let start: Instant = handle.now();
        assert_eq!(rig.read(64).await.len(), 8);
        let next = rig.direct.stop(0).await.unwrap();
        let again = DirectRing {
            next_available: next,
            ..DirectRing::polled(0, SIZE, rig.ring.addresses())
        };
        rig.direct.start(again).unwrap();
        assert_eq!(rig.read(64).await.len(), 8);
        assert!(handle.now() - start >= Duration::from_secs(60));
    });
}

#[test]
fn a_source_that_has_nothing_yet_holds_no_chain_and_is_heard_once_it_has() {
    let executor = Executor::with_operations(16).unwrap();
    let handle = executor.handle().clone();
    let guest = Guest::new(1 << 20);
    let run = executor.run(async {
        let (source, mut writer) = std::io::pipe().unwrap();
        let rng = Rng::new(&handle, Some(source.into()), None);
        let mut rig = Rig::new(&handle, &guest, rng);
        rig.ring.add(&[], &[64]);
        for _ in 0..100 {
            handle.yield_now().await;
        }
        assert_eq!(rig.direct.stop(0).await.unwrap(), 0);
        let again = DirectRing {
            kick: Some(rig.ring.kick_descriptor()),
            ..DirectRing::polled(0, SIZE, rig.ring.addresses())
        };
        rig.direct.start(again).unwrap();
        writer.write_all(b"late").unwrap();
        let used = rig.ring.next_used(&handle).await;
        assert_eq!(&used.bytes[..4], b"late");
        assert_eq!(used.written, 4);
    });
    run.unwrap();
}
