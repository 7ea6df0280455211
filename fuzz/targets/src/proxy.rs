//! The whole proxy: a client of vfio-user, the driver behind it, and a front-end, each of whom does
//! anything. Whatever they did, the next client is served.

use std::os::fd::OwnedFd;
use std::pin::pin;

use futures_util::future::{Either, select};
use rustix::fs::ftruncate;
use rustix::io::pwrite;
use vudev_executor::Handle;
use vudev_proxy::{Parts, Proxy, SharedMemory};

use crate::descriptors::{Files, event};
use crate::executor::{run, turns};
use crate::input::Input;
use crate::messages::{framed, payload};
use crate::peer::{Peer, Place};

/// Deeds of one input, at most.
const DEEDS_MAX: usize = 128;

/// Turns in which the end of a connection is seen, or a command answered.
const TURNS_MAX: u32 = 500;

/// The driver's memory, where the function sees it, and what lies where in it.
const MEMORY_SIZE: u64 = 0x1_0000;
const MEMORY: u64 = 0x10_0000;
const PAGE: usize = 0x1000;
const QUEUE: u64 = PAGE as u64;
const AVAILABLE: u64 = 0x400;
const USED: u64 = 0x800;
const BUFFERS: u64 = 0x4000;
const BUFFER_SIZE: u32 = 0x400;
const QUEUE_SIZE: u16 = 8;

/// The RAM file's.
const RAM_SIZE: u64 = 0x8000;

/// Commands of vfio-user.
const VERSION: u16 = 1;
const DMA_MAP: u16 = 2;
const DMA_UNMAP: u16 = 3;
const GET_INFO: u16 = 4;
const SET_IRQS: u16 = 8;
const READ: u16 = 9;
const WRITE: u16 = 10;
const RESET: u16 = 13;

/// Regions.
const VIRTIO: u32 = 0;
const DOORBELLS: u32 = 2;
const REGIONS: [u32; 8] = [VIRTIO, VIRTIO, 1, DOORBELLS, 4, 7, 3, 9];

/// Registers that do something: region, offset, width.
const REGISTERS: [(u32, u64, u8); 18] = [
    (VIRTIO, 0x08, 4),
    (VIRTIO, 0x0c, 4),
    (VIRTIO, 0x10, 2),
    (VIRTIO, 0x14, 1),
    (VIRTIO, 0x16, 2),
    (VIRTIO, 0x18, 2),
    (VIRTIO, 0x1a, 2),
    (VIRTIO, 0x1c, 2),
    (VIRTIO, 0x20, 8),
    (VIRTIO, 0x28, 8),
    (VIRTIO, 0x30, 8),
    (VIRTIO, 0x2000, 4),
    (VIRTIO, 0x3000, 2),
    (VIRTIO, 0x3004, 2),
    (DOORBELLS, 0x0000, 2),
    (DOORBELLS, 0x2000, 2),
    (DOORBELLS, 0x2002, 2),
    (7, 0x54, 1),
];

pub(crate) fn proxy(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let choice = input.u8();
    let files = Files::new(MEMORY_SIZE, RAM_SIZE);
    let shared_memory = match choice & 1 {
        0 => SharedMemory::RamFile(files.other.try_clone().expect("a descriptor")),
        _ => SharedMemory::Trapped { bytes: RAM_SIZE },
    };
    let (clients, client_listener) = Place::listen();
    let (front_ends, front_end_listener) = Place::listen();
    let parts = Parts {
        clients: client_listener,
        shared_memory,
        identity: Default::default(),
        uuid: [7; 16],
    };
    run(async move |handle: Handle| {
        let proxy = Proxy::new(&handle, parts).expect("a proxy");
        let mut vms = Vms {
            handle,
            client: clients.connect(),
            front_end: front_ends.connect(),
            clients,
            front_ends,
            files,
            transmitted: 0,
            read: Vec::new(),
        };
        let script = pin!(async {
            if choice & 2 == 0 {
                vms.set_up().await;
            }
            for _ in 0..DEEDS_MAX {
                if input.is_empty() {
                    break;
                }
                vms.deed(&mut input).await;
            }
            vms.conclude().await;
        });
        match select(pin!(proxy.run(front_end_listener)), script).await {
            Either::Left(((), _)) => panic!("the proxy has ended by itself"),
            Either::Right(((), _)) => {}
        }
    });
}

/// Both VMs.
struct Vms {
    handle: Handle,
    clients: Place,
    client: Peer,
    front_ends: Place,
    front_end: Peer,
    files: Files,
    /// Messages in the tx queue.
    transmitted: u16,
    /// What the client has received last.
    read: Vec<u8>,
}

impl Vms {
    /// What a lawful client and its driver do at first.
    async fn set_up(&mut self) {
        self.command(VERSION, &[0; 4], &[]).await;
        let memory = [self.files.memory.try_clone().expect("a descriptor")];
        let map = payload(&[32, 3], &[0, MEMORY, MEMORY_SIZE]);
        self.command(DMA_MAP, &map, &memory).await;
        let vectors: Vec<OwnedFd> = (0..6).map(|_| event()).collect();
        let assign = payload(&[20, 0x24, 2, 0, 6], &[]);
        self.command(SET_IRQS, &assign, &vectors).await;
        self.driver().await;
    }

    async fn driver(&mut self) {
        for status in [0, 1, 3] {
            self.store(VIRTIO, 0x14, &[status]).await;
        }
        for (select, features) in [(0_u32, 0_u32), (1, 3)] {
            self.store(VIRTIO, 0x08, &select.to_le_bytes()).await;
            self.store(VIRTIO, 0x0c, &features.to_le_bytes()).await;
        }
        self.store(VIRTIO, 0x14, &[11]).await;
        self.store(VIRTIO, 0x10, &[2, 0]).await;
        for queue in 0..2_u16 {
            let at = MEMORY + QUEUE * u64::from(queue);
            self.store(VIRTIO, 0x16, &queue.to_le_bytes()).await;
            self.store(VIRTIO, 0x18, &QUEUE_SIZE.to_le_bytes()).await;
            self.store(VIRTIO, 0x1a, &queue.to_le_bytes()).await;
            for (register, part) in [(0x20, 0), (0x28, AVAILABLE), (0x30, USED)] {
                self.store(VIRTIO, register, &(at + part).to_le_bytes())
                    .await;
            }
            self.store(VIRTIO, 0x1c, &[1, 0]).await;
        }
        self.store(DOORBELLS, 0x2000, &[0, 0, 3, 0]).await;
        self.store(VIRTIO, 0x14, &[15]).await;
        self.write(0, &[0; 2 * PAGE]);
        for head in 0..QUEUE_SIZE {
            self.describe(0, head, 2);
            self.write(AVAILABLE + 4 + 2 * u64::from(head), &head.to_le_bytes());
        }
        self.write(AVAILABLE + 2, &QUEUE_SIZE.to_le_bytes());
        self.transmitted = 0;
        self.store(VIRTIO, 0x3000, &[0, 0]).await;
        self.store(VIRTIO, 0x2000, &[1, 0, 0, 0]).await;
    }

    /// Descriptor `head` of a queue: its own buffer.
    fn describe(&self, queue: u64, head: u16, flags: u16) {
        let number = u64::from(head) + u64::from(QUEUE_SIZE) * queue;
        let buffer = MEMORY + BUFFERS + number * u64::from(BUFFER_SIZE);
        let words = [buffer, u64::from(BUFFER_SIZE) | u64::from(flags) << 32];
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.write(QUEUE * queue + 16 * u64::from(head), &bytes);
    }

    /// Writes the driver's memory, which may have shrunk.
    fn write(&self, at: u64, bytes: &[u8]) {
        let _ = pwrite(&self.files.memory, bytes, at);
    }

    async fn deed(&mut self, input: &mut Input<'_>) {
        match input.u8() % 16 {
            0 => {
                let files = self.files.choose(input, 20);
                self.client.send(input.counted(64), &files);
                self.settle().await;
            }
            1 => {
                let number = input.u8() % 20;
                let files = self.files.choose(input, 3);
                self.command(number.into(), input.counted(64), &files).await;
            }
            2 => {
                let (region, offset) = (input.of(&REGIONS), input.number());
                self.store(region, offset, input.counted(300)).await;
            }
            3 => {
                let (region, offset) = (input.of(&REGIONS), input.number());
                let access = access(offset, region, input.u16().into());
                self.command(READ, &access, &[]).await;
            }
            4 => self.map(input).await,
            5 => {
                let unmap = payload(&[24, input.u8().into()], &[input.number(), input.number()]);
                self.command(DMA_UNMAP, &unmap, &[]).await;
            }
            6 => self.interrupts(input).await,
            7 => {
                let at = u64::from(input.u16()) % MEMORY_SIZE;
                self.write(at, input.counted(32));
            }
            8 | 9 => self.transmit(input).await,
            10 | 11 => self.front_end_says(input).await,
            12 => self.front_end_otherwise(input).await,
            13 => {
                let size = input.number() % (2 * MEMORY_SIZE);
                let which = input.u8().is_multiple_of(2);
                let file = if which {
                    &self.files.memory
                } else {
                    &self.files.other
                };
                ftruncate(file, size).expect("a memfd takes any size");
            }
            14 => self.begin_anew(input).await,
            _ => {
                let (region, offset, width) = input.of(&REGISTERS);
                let value = input.number().to_le_bytes();
                self.store(region, offset, &value[..usize::from(width)])
                    .await;
            }
        }
    }

    async fn map(&mut self, input: &mut Input<'_>) {
        let (flags, files) = (input.u8() % 5, self.files.choose(input, 2));
        let (offset, address, size) = (input.number(), input.number(), input.number());
        let map = payload(&[32, flags.into()], &[offset, address, size]);
        self.command(DMA_MAP, &map, &files).await;
    }

    async fn interrupts(&mut self, input: &mut Input<'_>) {
        const FLAGS: [u32; 6] = [0x24, 0x24, 0x21, 0x22, 0x20, 0x0a];
        let (flags, index) = (input.of(&FLAGS), input.of(&[2, 2, 2, 0, 3, 9]));
        let (start, count) = (input.u8().into(), input.u8() % 70);
        let files = self.files.choose(input, 16);
        let mut set = payload(&[20, flags, index, start, count.into()], &[]);
        set.extend_from_slice(input.counted(70));
        self.command(SET_IRQS, &set, &files).await;
    }

    /// A message through the tx queue, as it should be or not.
    async fn transmit(&mut self, input: &mut Input<'_>) {
        let head = self.transmitted % QUEUE_SIZE;
        self.describe(1, head, 0);
        let message = message(input);
        let number = u64::from(head + QUEUE_SIZE);
        self.write(BUFFERS + number * u64::from(BUFFER_SIZE), &message);
        // The chain as long as the message.
        if !input.u8().is_multiple_of(8) {
            let bytes = u32::try_from(message.len()).expect("short");
            self.write(QUEUE + 16 * u64::from(head) + 8, &bytes.to_le_bytes());
        }
        self.write(
            QUEUE + AVAILABLE + 4 + 2 * u64::from(head),
            &head.to_le_bytes(),
        );
        self.transmitted = self.transmitted.wrapping_add(1);
        self.write(QUEUE + AVAILABLE + 2, &self.transmitted.to_le_bytes());
        self.store(VIRTIO, 0x3004, &[1, 0]).await;
    }

    async fn front_end_says(&mut self, input: &mut Input<'_>) {
        let files = self.files.choose(input, 9);
        self.front_end.send(&message(input), &files);
        self.settle().await;
    }

    async fn front_end_otherwise(&mut self, input: &mut Input<'_>) {
        match input.u8() % 4 {
            0 => self.front_end.send(input.counted(40), &[]),
            1 => self.front_end.finish(),
            _ => self.front_end = self.front_ends.connect(),
        }
        self.settle().await;
    }

    async fn begin_anew(&mut self, input: &mut Input<'_>) {
        match input.u8() % 4 {
            0 => self.command(RESET, &[], &[]).await,
            1 => self.driver().await,
            2 => {
                self.client = self.clients.connect();
                self.settle().await;
            }
            _ => {
                self.client = self.clients.connect();
                self.set_up().await;
            }
        }
    }

    async fn command(&mut self, number: u16, payload: &[u8], files: &[OwnedFd]) {
        let size = u32::try_from(16 + payload.len()).expect("short");
        let mut bytes = vec![77, 0];
        bytes.extend(number.to_ne_bytes());
        bytes.extend(size.to_ne_bytes());
        bytes.extend([0; 8]);
        bytes.extend_from_slice(payload);
        self.client.send(&bytes, files);
        self.settle().await;
    }

    async fn store(&mut self, region: u32, offset: u64, data: &[u8]) {
        let count = u32::try_from(data.len()).expect("short");
        let access = [&access(offset, region, count), data].concat();
        self.command(WRITE, &access, &[]).await;
    }

    /// Lets the proxy work, and takes what it says.
    async fn settle(&mut self) {
        turns(&self.handle, 4).await;
        self.client.drain(&mut self.read);
        self.front_end.drain(&mut Vec::new());
    }

    /// All goes; the proxy lets go of it, and serves another client.
    async fn conclude(&mut self) {
        self.client.finish();
        self.front_end.finish();
        self.await_end(|vms| !vms.client.drain(&mut Vec::new()), "of a client")
            .await;
        self.client = self.clients.connect();
        self.command(VERSION, &[0; 4], &[]).await;
        self.read.clear();
        self.command(GET_INFO, &payload(&[16, 0, 0, 0], &[]), &[])
            .await;
        self.await_end(
            |vms| {
                vms.client.drain(&mut vms.read);
                vms.read.len() >= 32
            },
            "of waiting for an answer",
        )
        .await;
        let flags = &self.read[self.read.len() - 24..][..4];
        assert_eq!(flags, 1_u32.to_ne_bytes(), "a reply without an error");
    }

    async fn await_end(&mut self, mut over: impl FnMut(&mut Self) -> bool, what: &str) {
        for _ in 0..TURNS_MAX {
            if over(self) {
                return;
            }
            turns(&self.handle, 1).await;
        }
        panic!("no end {what}");
    }
}

/// A message of vhost-user, mostly with a header that is right.
fn message(input: &mut Input<'_>) -> Vec<u8> {
    let (kind, number) = (input.u8(), input.u8() % 48);
    let payload = input.counted(300);
    let flags = match kind & 7 {
        0..=2 => 1,
        3..=5 => 5,
        6 => 9,
        _ => input.u32(),
    };
    let mut message = framed(number.into(), flags, payload);
    if kind & 8 != 0 {
        message[8..12].copy_from_slice(&u32::from(input.u16()).to_ne_bytes());
    }
    message
}

fn access(offset: u64, region: u32, count: u32) -> Vec<u8> {
    [payload(&[], &[offset]), payload(&[region, count], &[])].concat()
}
