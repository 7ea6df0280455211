//! The other side of a device, in one process: a driver's rings and memory, and the queues that a
//! device serves on them. No protocol: devices do not know one.

#![allow(dead_code, reason = "each test binary uses its own part of this")]

pub(crate) mod card;
pub(crate) mod costs;
pub(crate) mod disk;
pub(crate) mod limited;
pub(crate) mod terminal;

use std::rc::Rc;
use std::time::{Duration, Instant};

use vudev_executor::{Call, Executor, Handle, Kick, Task};
use vudev_frontend::{Buffer, GuestMemory, Ring, Token, Used};
use vudev_virtio::spec::feature;
use vudev_virtio::{
    Device, Queue, QueueControl, QueueError, QueueParts, Region, RegionLayout, RingAddresses,
};

/// How long anything may take before a test gives up: long beside every lawful wait.
pub(crate) const LIMIT: Duration = Duration::from_secs(5);

/// Guest memory is as large as all tests of one device need.
const MEMORY_SIZE: u64 = 32 << 20;

/// Runs a test on a real ring.
pub(crate) fn run<F: Future>(test: impl FnOnce(Handle) -> F) -> F::Output {
    run_with(1024, test)
}

/// [`run`], for so many operations at once: the kernel counts what a ring locks as its user's until
/// some time after its end, so whoever makes many of them makes small ones.
pub(crate) fn run_with<F: Future>(operations: u32, test: impl FnOnce(Handle) -> F) -> F::Output {
    let executor = Executor::with_operations(operations).expect("io_uring is there");
    let handle = executor.handle().clone();
    executor.run(test(handle)).expect("the ring works")
}

/// A device, and a driver's memory and rings.
pub(crate) struct Rig<D> {
    pub(crate) handle: Handle,
    pub(crate) device: Rc<D>,
    pub(crate) memory: Rc<GuestMemory>,
    pub(crate) features: u64,
    guest: Rc<vudev_virtio::GuestMemory>,
    rings: Vec<Ring>,
    running: Vec<Option<Running>>,
    starts: Vec<u16>,
}

struct Running {
    control: QueueControl,
    task: Task<Result<(), QueueError>>,
}

impl<D: Device> Rig<D> {
    /// Starts all queues of `device` with `own` features of it and those of the framework.
    pub(crate) fn start(handle: &Handle, device: D, own: u64) -> Self {
        Self::prepare(handle, device, own).started()
    }

    /// [`Rig::start`], but no queue runs yet.
    pub(crate) fn prepare(handle: &Handle, device: D, own: u64) -> Self {
        Self::prepare_with(handle, device, own | feature::FRAMEWORK)
    }

    /// [`Rig::prepare`], with these features and no others.
    pub(crate) fn prepare_with(handle: &Handle, device: D, features: u64) -> Self {
        let memory = Rc::new(GuestMemory::new());
        memory.add_region(MEMORY_SIZE).unwrap();
        let rings: Vec<Ring> = (0..)
            .zip(device.identity().queue_sizes)
            .map(|(index, size)| {
                let mut ring = Ring::new(&memory, index, size).unwrap();
                ring.set_features(features);
                ring
            })
            .collect();
        device.negotiated(features);
        Self {
            handle: handle.clone(),
            device: Rc::new(device),
            guest: Rc::new(share(&memory)),
            memory,
            features,
            running: rings.iter().map(|_| None).collect(),
            starts: vec![0; rings.len()],
            rings,
        }
    }

    /// With all queues running.
    pub(crate) fn started(mut self) -> Self {
        (0..self.rings.len()).for_each(|index| self.start_queue(index));
        self
    }

    pub(crate) fn start_queue(&mut self, index: usize) {
        let ring = &self.rings[index];
        let addresses = ring.addresses().unwrap();
        let guest = |user| self.guest.guest_address(user).unwrap();
        let fd = |event: Option<&vudev_frontend::Event>| {
            std::os::fd::AsFd::as_fd(event.unwrap())
                .try_clone_to_owned()
                .unwrap()
        };
        let parts = QueueParts {
            index: ring.index(),
            size: ring.size(),
            rings: RingAddresses {
                descriptors: guest(addresses.descriptors),
                available: guest(addresses.available),
                used: guest(addresses.used),
            },
            next_available: self.starts[index],
            features: self.features,
            memory: self.guest.clone(),
            kick: Some(Kick::new(&self.handle, fd(ring.kick_event())).unwrap()),
            call: Some(Call::new(&self.handle, fd(ring.call_event())).unwrap()),
            error: None,
        };
        let (queue, control) = Queue::start(&self.handle, parts).unwrap();
        let task = self.handle.spawn(self.device.clone().serve(queue));
        self.running[index] = Some(Running { control, task });
    }

    /// Stops a queue as GET_VRING_BASE does, waits for its end, and keeps where it goes on.
    pub(crate) async fn stop_queue(&mut self, index: usize) -> u16 {
        let Running { control, task } = self.running[index].take().unwrap();
        control.stop();
        let ended = self.handle.timeout(LIMIT, task).await;
        ended.expect("the queue ends soon").expect("and well");
        self.starts[index] = control.next_available();
        self.starts[index]
    }

    /// Maps the driver's memory anew, puts that under all queues that run, and waits until nobody
    /// uses the old one.
    pub(crate) async fn replace_memory(&mut self) {
        let new = Rc::new(share(&self.memory));
        for running in self.running.iter().flatten() {
            running.control.set_memory(new.clone()).unwrap();
        }
        let old = Rc::downgrade(&std::mem::replace(&mut self.guest, new));
        wait_until(&self.handle, || old.strong_count() == 0).await;
    }

    /// How many chains the device holds.
    pub(crate) fn in_flight(&self, index: usize) -> usize {
        self.running[index].as_ref().unwrap().control.in_flight()
    }

    /// Whether the device has come to the end of what was made available.
    pub(crate) fn is_idle(&self, index: usize, sent: u16) -> bool {
        let control = &self.running[index].as_ref().unwrap().control;
        control.in_flight() == 0 && control.next_available() == sent
    }

    /// Memory for a buffer.
    pub(crate) fn allocate(&self, length: usize, align: u64) -> Buffer {
        let address = self.memory.allocate(length as u64, align).unwrap();
        Buffer::new(address, length.try_into().unwrap())
    }

    /// A buffer that holds `bytes`.
    pub(crate) fn put(&self, bytes: &[u8]) -> Buffer {
        let buffer = self.allocate(bytes.len(), 1);
        self.memory.write(buffer.address, bytes).unwrap();
        buffer
    }

    /// What a buffer holds.
    pub(crate) fn bytes(&self, buffer: Buffer) -> Vec<u8> {
        let mut bytes = vec![0; buffer.length as usize];
        self.memory.read(buffer.address, &mut bytes).unwrap();
        bytes
    }

    pub(crate) fn ring(&mut self, index: usize) -> &mut Ring {
        &mut self.rings[index]
    }

    /// Makes a chain available and kicks.
    pub(crate) fn send(&mut self, queue: usize, readable: &[Buffer], writable: &[Buffer]) -> Token {
        let ring = &mut self.rings[queue];
        let token = ring.add(readable, writable).unwrap();
        ring.kick().unwrap();
        token
    }

    /// The next chain that comes back. Turns of the loop are the only thing that it uses.
    pub(crate) async fn used(&mut self, queue: usize) -> Used {
        let handle = self.handle.clone();
        let mut used = None;
        wait_until(&handle, || {
            used = self.rings[queue].poll_used().unwrap();
            used.is_some()
        })
        .await;
        used.unwrap()
    }

    /// Gives the device so many turns: whatever it does without waiting is done then.
    pub(crate) async fn settle(&self) {
        for _ in 0..100 {
            self.handle.yield_now().await;
        }
    }
}

/// Waits for something that other tasks or the kernel do.
pub(crate) async fn wait_until(handle: &Handle, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !done() {
        assert!(Instant::now() < deadline, "it takes too long");
        handle.yield_now().await;
    }
}

/// The driver's memory as the device maps it.
fn share(memory: &GuestMemory) -> vudev_virtio::GuestMemory {
    let regions = memory.with_regions(|regions| {
        let map = |(layout, fd): &(vudev_frontend::RegionLayout, std::os::fd::BorrowedFd<'_>)| {
            let layout = RegionLayout {
                guest_address: layout.guest_address,
                user_address: layout.user_address,
                size: layout.size,
                offset: layout.offset,
            };
            Region::map(layout, fd.try_clone_to_owned().unwrap()).unwrap()
        };
        regions.iter().map(map).collect()
    });
    vudev_virtio::GuestMemory::new(regions).unwrap()
}
