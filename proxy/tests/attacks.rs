//! Attacks of a device VM that were thought of one by one: each harms nobody but whoever made it.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};
use vudev_frontend::Connection;
use vudev_frontend::message::{REPLY, VERSION, frame};
use vudev_proxy::SharedMemory;
use vudev_proxy::testing::{
    Area, BACKEND_UP, DeviceVm, FRONTEND_UP, Queue, RX_VECTOR, Raw, Running, SHARED_MEMORY, VIRTIO,
    WRITE, access, command, dma_map, event, longs, words,
};

fn connected() -> (Running, DeviceVm, Connection) {
    let running = Running::start(SharedMemory::Trapped { bytes: 1 << 20 });
    let mut vm = DeviceVm::start(&running.vfio());
    let front = Connection::open(running.vhost()).unwrap();
    vm.bring_up();
    (running, vm, front)
}

/// A driver with queues of 256, whose memory is also that of the driver VM, so that a trapped read
/// shows how far its rings are at that moment.
struct LongQueues {
    client: Raw,
    area: Rc<Area>,
    tx: Queue,
}

impl LongQueues {
    const SIZE: u16 = 256;
    const BUFFER: u64 = 0x6000;
    /// The used index of tx.
    const USED: u64 = 0x5002;

    fn start(running: &Running) -> Self {
        let area = Area::new(0x8000);
        let mut this = Self {
            client: Raw::agreed(UnixStream::connect(running.vfio()).unwrap()),
            tx: Queue::new(&area, 0x3000, Self::SIZE),
            area,
        };
        let map = dma_map(3, 0, 0, 0x8000);
        let mapped = this.client.outcome(2, &map, &[this.area.file()]);
        assert_eq!(mapped, Ok(vec![]));
        for (register, value) in [(0x14, 1), (0x14, 3), (0x08, 1), (0x0c, 3), (0x14, 11)] {
            this.store(register, value);
        }
        for queue in 0..2_u64 {
            this.store(0x16, queue);
            for (register, page) in [(0x20, 0), (0x28, 1), (0x30, 2)] {
                this.store(register, 0x3000 * queue + 0x1000 * page);
            }
            this.store(0x1c, 1);
        }
        this.store(0x14, 15);
        this.store(0x2000, BACKEND_UP.into());
        this
    }

    /// A store in the register's own width.
    fn store(&mut self, register: u64, value: u64) {
        let width = match register {
            0x14 => 1,
            0x16 | 0x1c => 2,
            0x20..0x38 => 8,
            _ => 4,
        };
        let data = &value.to_le_bytes()[..width as usize];
        let access = [&access(register, VIRTIO, width)[..], data].concat();
        self.client.ask(10, &access);
    }

    /// The front-end gives our memory as its own, which is told in a buffer of rx.
    fn share_memory(&self, front: &Connection) {
        let mut rx = Queue::new(&self.area, 0, Self::SIZE);
        rx.describe(0, 0x7000, 0x400, WRITE, 0);
        rx.offer(0);
        let table = [words(&[1, 0]), longs(&[0, 0x8000, 0x7000_0000, 0])].concat();
        let message = frame(5, VERSION, &table);
        front.raw(&message, &[self.area.file()]).unwrap();
        self.await_index(0x2002, 1);
    }

    /// Waits until the device has written this index.
    fn await_index(&self, at: u64, index: u16) {
        let limit = Instant::now() + Duration::from_secs(5);
        while self.area.u16(at) != index {
            assert!(Instant::now() < limit, "{}", self.area.u16(at));
        }
    }
}

#[test]
fn a_driver_that_asks_nobody_without_end_leaves_time_for_its_own_registers() {
    let running = Running::start(SharedMemory::Trapped { bytes: 1 << 20 });
    let front = Connection::open(running.vhost()).unwrap();
    let mut driver = LongQueues::start(&running);
    driver.share_memory(&front);
    // Requests of the back-end's own, where no channel is for them: each is given back at once.
    driver
        .area
        .write(LongQueues::BUFFER, &frame(1, VERSION, &[]));
    for head in 0..LongQueues::SIZE {
        driver.tx.describe(head, LongQueues::BUFFER, 12, 0, 0);
        driver.tx.offer(head);
    }
    let notify = [&access(0x3004, VIRTIO, 2)[..], &[1, 0]].concat();
    let look = access(LongQueues::USED, SHARED_MEMORY, 2);
    let both = [command(1, 10, &notify), command(2, 9, &look)].concat();
    driver.client.send(&both, &[]).unwrap();
    driver.client.answer().unwrap();
    let seen = driver.client.answer().unwrap().payload;
    let used = u16::from_le_bytes([seen[16], seen[17]]);
    assert!(used < LongQueues::SIZE / 2, "{used} requests before a read");
    driver.await_index(LongQueues::USED, LongQueues::SIZE);
}

#[test]
fn interrupts_that_are_not_there_are_disabled_without_those_that_are() {
    let (_running, mut vm, front) = connected();
    for other in [0, 1, 3, 4] {
        vm.client.set_irqs(other, 0x21, 0, 0, &[]).unwrap();
    }
    front.raw(&frame(1, VERSION, &[]), &[]).unwrap();
    // Taken here, and not left for the end: the buffer is there before its interrupt.
    vm.interrupted(RX_VECTOR);
    assert_eq!(vm.receive(), frame(1, VERSION, &[]));
    vm.client.set_irqs(2, 0x21, 0, 0, &[]).unwrap();
    front.raw(&frame(1, VERSION, &[]), &[]).unwrap();
    vm.poll_until(|vm| vm.rx.take_used().is_some());
    assert!(!vm.try_interrupted(RX_VECTOR));
}

#[test]
fn a_vector_whose_eventfd_blocks_is_given_up_and_all_else_goes_on() {
    let (_running, mut vm, front) = connected();
    let full = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    rustix::io::write(&full, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    vm.client
        .set_irqs(2, 0x24, 0, 1, &[full.as_raw_fd()])
        .unwrap();
    front.raw(&frame(1, VERSION, &[]), &[]).unwrap();
    vm.poll_until(|vm| vm.rx.take_used().is_some());
    assert_eq!(vm.status(), BACKEND_UP | FRONTEND_UP);
    let fresh = event();
    vm.client
        .set_irqs(2, 0x24, 0, 1, &[fresh.as_raw_fd()])
        .unwrap();
    vm.vectors[0] = fresh;
    front.raw(&frame(2, VERSION, &[]), &[]).unwrap();
    vm.interrupted(RX_VECTOR);
    let reply = frame(2, VERSION | REPLY, &[1; 8]);
    vm.transmit(&reply);
    assert_eq!(vm.status(), BACKEND_UP | FRONTEND_UP);
}
