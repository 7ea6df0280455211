//! The device VM's side of a proxy: a client of vfio-user that is not ours, and a driver of the
//! function behind it by hand. Registers by their numbers in the specifications.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use vfio_user::Client;

use super::driver::{Area, Queue, WRITE};

/// The region of virtio's registers.
pub const VIRTIO: u32 = 0;
/// That of the doorbells and the notification registers.
pub const DOORBELLS: u32 = 2;
/// That of the driver VM's memory.
pub const SHARED_MEMORY: u32 = 4;
/// The configuration space.
pub const CONFIGURATION: u32 = 7;

/// Interrupts of the device's messages.
pub const RX_VECTOR: u16 = 0;
/// Of buffers that were sent.
pub const TX_VECTOR: u16 = 1;
/// Of a changed status.
pub const CONFIG_VECTOR: u16 = 2;
/// Of the kicks of the first of four queues.
pub const FIRST_KICK_VECTOR: u16 = 3;

/// The status bit that the driver sets.
pub const BACKEND_UP: u32 = 1;
/// The one that the device sets.
pub const FRONTEND_UP: u32 = 2;

/// Bytes of each buffer: more than a page, for the longest message.
const BUFFER: u32 = 8192;
const QUEUE_SIZE: u16 = 8;
/// Where the area lies for the function, which is not where it lies in its file.
const IOVA: u64 = 0x7_0000_0000;

/// Waits until an eventfd is signalled, and takes the signals.
pub fn await_event(event: &OwnedFd, what: &str) -> u64 {
    let mut ready = [PollFd::new(event, PollFlags::IN)];
    let limit = Timespec {
        tv_sec: 5,
        tv_nsec: 0,
    };
    assert_eq!(poll(&mut ready, Some(&limit)).unwrap(), 1, "no {what}");
    let mut bytes = [0; 8];
    rustix::io::read(event, &mut bytes).unwrap();
    u64::from_ne_bytes(bytes)
}

/// An eventfd.
pub fn event() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap()
}

/// The device VM.
pub struct DeviceVm {
    /// The VMM's connection.
    pub client: Client,
    /// The part of the VM's memory that the driver gives the function.
    pub area: Rc<Area>,
    /// Messages of the front-end.
    pub rx: Queue,
    /// Messages to it.
    pub tx: Queue,
    /// What interrupts signal.
    pub vectors: Vec<OwnedFd>,
    /// A message came whose buffer is to be looked at.
    next_transmission: u16,
}

impl DeviceVm {
    /// Connects, gives memory and eventfds, and sets the function up.
    pub fn start(path: &Path) -> Self {
        let mut client = Client::new(path).unwrap();
        let pages = 0x6000 + 2 * u64::from(QUEUE_SIZE) * u64::from(BUFFER);
        let area = Area::new(pages);
        // Page by page, as with an IOMMU.
        for page in 0..pages / 4096 {
            let (at, file) = (page * 4096, area.file().as_raw_fd());
            client.dma_map(at, IOVA + at, 4096, file).unwrap();
        }
        let mut vectors = Vec::new();
        for vector in 0..FIRST_KICK_VECTOR + 4 {
            let event = event();
            let start = u32::from(vector);
            client
                .set_irqs(2, 0x24, start, 1, &[event.as_raw_fd()])
                .unwrap();
            vectors.push(event);
        }
        let mut this = Self {
            client,
            rx: Queue::new(&area, 0, QUEUE_SIZE),
            tx: Queue::new(&area, 0x3000, QUEUE_SIZE),
            area,
            vectors,
            next_transmission: 0,
        };
        this.set_up();
        this
    }

    /// What a driver does at its start: also after a reset, with empty queues.
    pub fn set_up(&mut self) {
        self.area.write(0, &[0; 0x6000]);
        self.rx = Queue::new(&self.area, 0, QUEUE_SIZE);
        self.tx = Queue::new(&self.area, 0x3000, QUEUE_SIZE);
        self.next_transmission = 0;
        for status in [0, 1, 3] {
            self.write(VIRTIO, 0x14, &[status]);
        }
        for select in 0..2_u32 {
            self.write(VIRTIO, 0x00, &select.to_le_bytes());
            self.write(VIRTIO, 0x08, &select.to_le_bytes());
            let offered = self.u32(VIRTIO, 0x04);
            self.write(VIRTIO, 0x0c, &offered.to_le_bytes());
        }
        self.write(VIRTIO, 0x14, &[11]);
        assert_eq!(self.read(VIRTIO, 0x14, 1), [11], "FEATURES_OK");
        self.write(VIRTIO, 0x10, &CONFIG_VECTOR.to_le_bytes());
        for queue in 0..2_u16 {
            let at = IOVA + 0x3000 * u64::from(queue);
            self.write(VIRTIO, 0x16, &queue.to_le_bytes());
            self.write(VIRTIO, 0x18, &QUEUE_SIZE.to_le_bytes());
            self.write(VIRTIO, 0x1a, &queue.to_le_bytes());
            for (part, register) in (0..3).zip([0x20, 0x28, 0x30]) {
                let address = (at + 0x1000 * part).to_le_bytes();
                self.write(VIRTIO, register, &address[..4]);
                self.write(VIRTIO, register + 4, &address[4..]);
            }
            self.write(VIRTIO, 0x1c, &[1, 0]);
        }
        for kick in 0..4_u16 {
            let vector = FIRST_KICK_VECTOR + kick;
            self.write(DOORBELLS, 0x2000, &kick.to_le_bytes());
            self.write(DOORBELLS, 0x2002, &vector.to_le_bytes());
            assert_eq!(self.read(DOORBELLS, 0x2002, 2), vector.to_le_bytes());
        }
        self.write(VIRTIO, 0x14, &[15]);
        for head in 0..QUEUE_SIZE {
            let address = IOVA + Self::buffer(head);
            self.rx.describe(head, address, BUFFER, WRITE, 0);
            self.rx.offer(head);
        }
        self.write(VIRTIO, 0x3000, &[0, 0]);
    }

    fn buffer(index: u16) -> u64 {
        0x6000 + u64::from(index) * u64::from(BUFFER)
    }

    /// A load.
    pub fn read(&mut self, region: u32, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.client.region_read(region, offset, &mut bytes).unwrap();
        bytes
    }

    /// A load of a word.
    pub fn u32(&mut self, region: u32, offset: u64) -> u32 {
        u32::from_le_bytes(self.read(region, offset, 4).try_into().unwrap())
    }

    /// A store.
    pub fn write(&mut self, region: u32, offset: u64, bytes: &[u8]) {
        self.client.region_write(region, offset, bytes).unwrap();
    }

    /// Both bits of the device's status.
    pub fn status(&mut self) -> u32 {
        self.u32(VIRTIO, 0x2000)
    }

    /// Writes the device's status.
    pub fn set_status(&mut self, status: u32) {
        self.write(VIRTIO, 0x2000, &status.to_le_bytes());
    }

    /// The device status of virtio.
    pub fn device_status(&mut self) -> u8 {
        self.read(VIRTIO, 0x14, 1)[0]
    }

    /// Waits for an interrupt.
    pub fn interrupted(&self, vector: u16) -> u64 {
        await_event(
            &self.vectors[usize::from(vector)],
            &format!("vector {vector}"),
        )
    }

    /// Waits until the status is this one, by interrupts.
    pub fn await_status(&mut self, status: u32) {
        while self.status() != status {
            self.interrupted(CONFIG_VECTOR);
        }
    }

    /// Takes an interrupt, if one comes within a moment.
    pub fn try_interrupted(&self, vector: u16) -> bool {
        let event = &self.vectors[usize::from(vector)];
        let limit = Timespec {
            tv_sec: 0,
            tv_nsec: 200_000_000,
        };
        poll(&mut [PollFd::new(event, PollFlags::IN)], Some(&limit)).unwrap();
        rustix::io::read(event, &mut [0; 8]).is_ok()
    }

    /// Looks again and again, where no interrupt tells when.
    pub fn poll_until(&mut self, mut done: impl FnMut(&mut Self) -> bool) {
        let limit = Instant::now() + Duration::from_secs(5);
        while !done(self) {
            assert!(Instant::now() < limit, "polled in vain");
        }
    }

    /// Says that a front-end may come, and waits for it.
    pub fn bring_up(&mut self) {
        self.set_status(BACKEND_UP);
        self.await_status(BACKEND_UP | FRONTEND_UP);
    }

    /// How many messages the device has put into rx.
    pub fn rx_index(&self) -> u16 {
        self.area.u16(0x2002)
    }

    /// The next message from the device, whose buffer is made available again.
    pub fn receive(&mut self) -> Vec<u8> {
        let (head, len) = loop {
            if let Some(used) = self.rx.take_used() {
                break used;
            }
            self.interrupted(RX_VECTOR);
        };
        let message = self.area.read(Self::buffer(head), len as usize);
        self.rx.offer(head);
        self.write(VIRTIO, 0x3000, &[0, 0]);
        message
    }

    /// Sends a message, and waits until its buffer is given back.
    pub fn transmit(&mut self, message: &[u8]) {
        self.offer_transmission(message);
        while self.tx.take_used().is_none() {
            self.interrupted(TX_VECTOR);
        }
    }

    /// Sends a message.
    pub fn offer_transmission(&mut self, message: &[u8]) {
        let head = self.next_transmission;
        self.next_transmission = (head + 1) % QUEUE_SIZE;
        let at = Self::buffer(QUEUE_SIZE + head);
        self.area.write(at, message);
        let len = u32::try_from(message.len()).unwrap();
        self.tx.describe(head, IOVA + at, len, 0, 0);
        self.tx.offer(head);
        self.write(VIRTIO, 0x3004, &[1, 0]);
    }
}

/// A file as a driver VM has its memory in.
pub fn ram_file(size: u64) -> File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(size).unwrap();
    file
}

/// The same file once more.
pub fn borrowed(file: &impl AsFd) -> OwnedFd {
    file.as_fd().try_clone_to_owned().unwrap()
}
