//! A device in this process, with a driver beside it and no messages in between.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests, outside of any #[test]"
)]

mod common;

/// There is no wire at all here.
const WIRE: common::Wire = common::Wire::Socket;

use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use vudev_executor::{Executor, File};
use vudev_frontend::{Buffer, Event, GuestMemory, LIMIT, Ring};
use vudev_transports::direct::{Direct, DirectError, DirectRing};
use vudev_virtio::spec::feature::VERSION_1;
use vudev_virtio::{Region, RegionLayout, RingAddresses};

use crate::common::{Forgetful, MIRROR_FEATURE, Mirror};

/// A driver on the device's own thread: it waits by the executor.
struct Driver {
    memory: Rc<GuestMemory>,
    ring: Ring,
    called: File,
}

impl Driver {
    fn new(executor: &Executor) -> Self {
        let memory = Rc::new(GuestMemory::new());
        memory.add_region(0x10000).unwrap();
        let mut ring = Ring::new(&memory, 0, 16).unwrap();
        ring.set_features(VERSION_1);
        let called = File::new(executor.handle(), copy(ring.call_event().unwrap()));
        Self {
            memory,
            ring,
            called,
        }
    }

    fn shared(&self) -> Rc<vudev_virtio::GuestMemory> {
        let regions = (0..self.memory.region_count()).map(|number| {
            let map = |layout: &vudev_frontend::RegionLayout, file: std::os::fd::BorrowedFd<'_>| {
                let layout = RegionLayout {
                    guest_address: layout.guest_address,
                    user_address: layout.user_address,
                    size: layout.size,
                    offset: layout.offset,
                };
                Region::map(layout, file.try_clone_to_owned().unwrap()).unwrap()
            };
            self.memory.with_region(number, map)
        });
        Rc::new(vudev_virtio::GuestMemory::new(regions.collect()).unwrap())
    }

    fn ring(&self, shared: &vudev_virtio::GuestMemory, next_available: u16) -> DirectRing {
        let user = self.ring.addresses().unwrap();
        let guest = |address| shared.guest_address(address).unwrap();
        DirectRing {
            index: 0,
            size: 16,
            rings: RingAddresses {
                descriptors: guest(user.descriptors),
                available: guest(user.available),
                used: guest(user.used),
            },
            next_available,
            kick: Some(copy(self.ring.kick_event().unwrap())),
            call: Some(copy(self.ring.call_event().unwrap())),
            error: Some(copy(self.ring.error_event())),
        }
    }

    async fn mirror(&mut self) {
        let (there, back) = (
            self.memory.allocate(4, 1).unwrap(),
            self.memory.allocate(4, 1).unwrap(),
        );
        self.memory.write(there, b"ping").unwrap();
        self.ring
            .add(&[Buffer::new(there, 4)], &[Buffer::new(back, 4)])
            .unwrap();
        self.ring.kick().unwrap();
        let used = loop {
            if let Some(used) = self.ring.poll_used().unwrap() {
                break used;
            }
            self.called.readable().await.unwrap();
            self.ring.call_event().unwrap().take().unwrap();
        };
        assert_eq!(used.written, 4);
        let mut answer = [0; 4];
        self.memory.read(back, &mut answer).unwrap();
        assert_eq!(answer, b"ping".map(|byte| !byte));
    }
}

fn copy(event: &Event) -> OwnedFd {
    event.as_fd().try_clone_to_owned().unwrap()
}

fn executor() -> Executor {
    Executor::with_operations(32).unwrap()
}

fn direct(executor: &Executor, driver: &Driver) -> (Rc<Mirror>, Direct<Mirror>) {
    let device = Rc::new(Mirror::new());
    let direct = Direct::new(
        executor.handle(),
        device.clone(),
        driver.shared(),
        VERSION_1,
    )
    .unwrap();
    (device, direct)
}

#[test]
fn a_queue_starts_stops_and_goes_on_where_it_was() {
    let executor = executor();
    let mut driver = Driver::new(&executor);
    let (device, mut direct) = direct(&executor, &driver);
    executor
        .run(async {
            let mut next = 0;
            for round in 1..=3 {
                direct.start(driver.ring(&driver.shared(), next)).unwrap();
                driver.mirror().await;
                driver.mirror().await;
                next = direct.stop(0).await.unwrap();
                assert_eq!(next, round * 2);
            }
            assert!(matches!(
                direct.stop(0).await,
                Err(DirectError::NotRunning(0))
            ));
            direct.reset().await;
        })
        .unwrap();
    assert_eq!(device.resets.get(), 1);
    assert_eq!(device.running.get(), 0);
}

#[test]
fn chains_that_the_device_drops_are_counted_also_after_a_stop() {
    let executor = executor();
    let mut driver = Driver::new(&executor);
    let handle = executor.handle();
    let device = Rc::new(Forgetful);
    let mut direct = Direct::new(handle, device, driver.shared(), VERSION_1).unwrap();
    executor
        .run(async {
            let mut next = 0;
            for round in 1..=2 {
                direct.start(driver.ring(&driver.shared(), next)).unwrap();
                let buffer = driver.memory.allocate(4, 1).unwrap();
                driver.ring.add(&[Buffer::new(buffer, 4)], &[]).unwrap();
                driver.ring.kick().unwrap();
                while direct.dropped(0) < round {
                    handle.yield_now().await;
                }
                next = direct.stop(0).await.unwrap();
                assert_eq!(direct.dropped(0), round);
            }
            assert_eq!(direct.dropped(1), 0);
            direct.reset().await;
        })
        .unwrap();
}

#[test]
fn memory_is_swapped_under_a_running_queue() {
    let executor = executor();
    let mut driver = Driver::new(&executor);
    let (_, mut direct) = direct(&executor, &driver);
    executor
        .run(async {
            direct.start(driver.ring(&driver.shared(), 0)).unwrap();
            driver.mirror().await;
            driver.memory.add_region(0x1000).unwrap();
            direct.set_memory(driver.shared()).unwrap();
            driver.mirror().await;
            let nothing = Rc::new(vudev_virtio::GuestMemory::new(Vec::new()).unwrap());
            assert!(direct.set_memory(nothing).is_err());
            driver.ring.wait_error(LIMIT).unwrap();
            assert!(matches!(
                direct.stop(0).await,
                Err(DirectError::NotRunning(0))
            ));
            direct.reset().await;
        })
        .unwrap();
}

#[test]
fn a_queue_that_ends_by_itself_can_be_awaited() {
    let executor = executor();
    let mut driver = Driver::new(&executor);
    let (_, mut direct) = direct(&executor, &driver);
    executor
        .run(async {
            direct.start(driver.ring(&driver.shared(), 0)).unwrap();
            driver.ring.set_available_index(17).unwrap();
            driver.ring.kick_anyway().unwrap();
            direct.ended(0).await;
            driver.ring.wait_error(LIMIT).unwrap();
            assert_eq!(direct.stop(0).await.unwrap(), 0);
            direct.reset().await;
        })
        .unwrap();
}

#[test]
fn what_cannot_be_is_refused() {
    let executor = executor();
    let driver = Driver::new(&executor);
    let (device, mut direct) = direct(&executor, &driver);
    let handle = executor.handle();
    for features in [0, MIRROR_FEATURE, VERSION_1 | 1 << 63] {
        let refused = Direct::new(handle, device.clone(), driver.shared(), features);
        assert!(matches!(refused, Err(DirectError::Features { .. })));
    }
    let ring = || driver.ring(&driver.shared(), 0);
    let refused = direct.start(DirectRing { index: 2, ..ring() });
    assert!(matches!(refused, Err(DirectError::NoSuchQueue { .. })));
    for size in [0, 100, 512] {
        let refused = direct.start(DirectRing { size, ..ring() });
        assert!(matches!(refused, Err(DirectError::Size { .. })));
    }
    let (pipe, _other) = rustix::pipe::pipe().unwrap();
    let refused = direct.start(DirectRing {
        kick: Some(pipe),
        ..ring()
    });
    assert!(matches!(refused, Err(DirectError::Event(_))));
    direct.start(ring()).unwrap();
    assert!(matches!(direct.start(ring()), Err(DirectError::Running(0))));
    executor.run(direct.reset()).unwrap();
}

#[test]
fn configuration_space_is_read_and_written_within_its_bounds() {
    let executor = executor();
    let driver = Driver::new(&executor);
    let (_, direct) = direct(&executor, &driver);
    direct.write_config(0, &[7]).unwrap();
    let mut bytes = [0; 2];
    direct.read_config(0, &mut bytes).unwrap();
    assert_eq!(bytes, [7, 2]);
    assert!(matches!(
        direct.write_config(8, &[1]),
        Err(DirectError::ConfigReadOnly(_))
    ));
    for offset in [15, 16, usize::MAX] {
        let refused = direct.read_config(offset, &mut bytes);
        assert!(matches!(refused, Err(DirectError::ConfigRange { .. })));
    }
}
