//! The driver of a virtio-vhost-user function, and the session above it, against a function that
//! lies: registers that read as anything, used rings, messages, memory that shrinks. Whatever it
//! did, a function that takes its front-end away ends the session.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::rc::Rc;

use futures_util::future::select;
use rustix::fs::ftruncate;
use vudev_executor::Handle;
use vudev_transports::Session;
use vudev_transports::vvu::{
    BARS, CONFIGURATION_SIZE, DMA_ADDRESS, DMA_SIZE, Function, Layout, Listener, MemoryPlacement,
    Width, Window,
};
use vudev_virtio::{
    Chain, Device, GuestMemory, Identity, Queue, QueueError, Region, RegionLayout,
    install_sigbus_guard,
};

use crate::descriptors::{event, memory};
use crate::executor::{run, turns};
use crate::input::Input;
use crate::messages::{framed, payload};

/// Deeds of one input, at most.
const DEEDS_MAX: usize = 128;

/// Turns in which a session ends that has to.
const TURNS_MAX: u32 = 500;

const QUEUES: u16 = 2;
const SHARED_MEMORY: u64 = 0x1_0000;
const BAR: u64 = 0x8000;

/// A register, by window and place.
type Register = (usize, u64);

const FEATURES: Register = (Window::Common as usize, 4);
const QUEUE_COUNT: Register = (Window::Common as usize, 18);
const DEVICE_STATUS: Register = (Window::Common as usize, 20);
const QUEUE_SELECT: Register = (Window::Common as usize, 22);
const QUEUE_SIZE: Register = (Window::Common as usize, 24);
const NOTIFY_OFFSET: Register = (Window::Common as usize, 30);
const STATUS: Register = (Window::Device as usize, 0);
const VHOST_QUEUES: Register = (Window::Device as usize, 4);

/// Both bits of the status.
const BOTH_UP: u32 = 3;

pub(crate) fn function(bytes: &[u8]) {
    install_sigbus_guard().expect("a handler");
    let mut input = Input::new(bytes);
    let placement = input.of(&[
        MemoryPlacement::WholeFiles,
        MemoryPlacement::Regions,
        MemoryPlacement::FileOffsets,
    ]);
    let Some(function) = Lying::new(&mut input) else {
        return;
    };
    let function = Rc::new(function);
    run(async |handle: Handle| {
        let listener = Listener::new(&handle, function.clone(), QUEUES, placement);
        let Ok(listener) = listener else { return };
        let ended = Cell::new(true);
        let served = pin!(async {
            // The function is reset and set up anew for each front-end.
            while let Ok(transport) = listener.accept().await {
                ended.set(false);
                let _ = Session::new(&handle, transport, Rc::new(Quiet)).run().await;
                ended.set(true);
            }
            ended.set(true);
            std::future::pending::<()>().await;
        });
        let script = pin!(async {
            turns(&handle, 8).await;
            for _ in 0..DEEDS_MAX {
                if input.is_empty() {
                    break;
                }
                function.deed(&mut input, &handle).await;
            }
            function.lies.borrow_mut().clear();
            function.is_last.set(true);
            function.front_end_leaves();
            for _ in 0..TURNS_MAX {
                if ended.get() {
                    return;
                }
                turns(&handle, 1).await;
            }
            panic!("the session has no end");
        });
        select(served, script).await;
    });
}

/// Answers every chain with its own length.
struct Quiet;

impl Device for Quiet {
    fn identity(&self) -> Identity {
        Identity {
            device_id: 63,
            features: 1,
            queue_sizes: vec![256; QUEUES.into()],
            config_size: 16,
            operations: 2,
        }
    }

    fn read_config(&self, _offset: usize, into: &mut [u8]) {
        into.fill(7);
    }

    async fn serve(self: Rc<Self>, queue: Queue) -> Result<(), QueueError> {
        let answer = async |chain: &mut Chain| {
            let _ = chain.writable.write(&[1]);
            u32::from(!chain.writable.is_empty())
        };
        queue.serve(2, answer).await
    }
}

/// The function. Registers keep what is written to them, but for lies.
struct Lying {
    layout: Layout,
    registers: RefCell<HashMap<Register, u32>>,
    /// By the number of the read that they are the answer to.
    lies: RefCell<HashMap<u32, u32>>,
    reads: Cell<u32>,
    /// What of the used rings was written.
    used: [Cell<u16>; 2],
    /// No front-end comes any more.
    is_last: Cell<bool>,
    dma: Rc<GuestMemory>,
    vectors: Vec<OwnedFd>,
    memory: Rc<OwnedFd>,
}

impl Lying {
    fn new(input: &mut Input<'_>) -> Option<Self> {
        let layout = layout(input)?;
        let lies = (0..input.u8() % 5)
            .map(|_| {
                let read = u32::from(input.u8());
                let lie = match input.u8() % 2 {
                    0 => input.u8().into(),
                    _ => input.u32(),
                };
                (read, lie)
            })
            .collect();
        let place = RegionLayout {
            guest_address: DMA_ADDRESS,
            user_address: DMA_ADDRESS,
            size: DMA_SIZE,
            offset: 0,
        };
        let dma = Region::map(place, memory(DMA_SIZE)).expect("a mapping");
        let vectors = input.of(&[5, 5, 4, 6, 3, 0]);
        Some(Self {
            layout,
            registers: RefCell::default(),
            lies: RefCell::new(lies),
            reads: Cell::new(0),
            used: Default::default(),
            is_last: Cell::new(false),
            dma: Rc::new(GuestMemory::new(vec![dma]).expect("one region")),
            vectors: (0..vectors).map(|_| event()).collect(),
            memory: Rc::new(memory(SHARED_MEMORY)),
        })
    }

    fn set(&self, register: Register, value: u32) {
        self.registers.borrow_mut().insert(register, value);
    }

    fn get(&self, register: Register) -> u32 {
        let kept = self.registers.borrow().get(&register).copied();
        kept.unwrap_or_else(|| match register {
            FEATURES => 3,
            QUEUE_COUNT => 2,
            QUEUE_SIZE => 16,
            VHOST_QUEUES => 8,
            NOTIFY_OFFSET => self.get(QUEUE_SELECT),
            _ => 0,
        })
    }

    fn interrupt(&self, vector: usize) {
        if let Some(event) = self.vectors.get(vector) {
            let _ = rustix::io::write(event, &1_u64.to_ne_bytes());
        }
    }

    fn front_end_leaves(&self) {
        self.set(STATUS, 0);
        self.interrupt(2);
    }

    async fn deed(&self, input: &mut Input<'_>, handle: &Handle) {
        match input.u8() % 12 {
            0..=2 => self.say(&message(input)),
            3 => self.set_up_ring(handle).await,
            4 => {
                let (queue, buffer) = (input.u8() % 2, input.u32());
                self.give_back(queue.into(), buffer % 32, input.u32() % 0x1200);
            }
            5 => {
                let (queue, at) = (input.u8() % 2, input.u16());
                self.used[usize::from(queue)].set(at);
                self.write(used(queue.into()) + 2, &at.to_le_bytes());
                self.interrupt(queue.into());
            }
            6 => {
                let at = input.u64() % DMA_SIZE;
                self.write(DMA_ADDRESS + at, input.counted(64));
            }
            7 => {
                self.set(STATUS, input.u8().into());
                self.interrupt(2);
            }
            8 => self.interrupt(usize::from(input.u8() % 8)),
            9 => {
                let at = u64::from(input.u16());
                let _ = rustix::io::pwrite(&self.memory, input.counted(64), at);
            }
            10 => self.transmitted(),
            _ => match input.u8() {
                0..=15 => {
                    let size = u64::from(input.u16());
                    ftruncate(&self.memory, size).expect("a memfd takes any size");
                }
                16..=63 => {
                    self.set(DEVICE_STATUS, input.u8().into());
                    self.interrupt(2);
                }
                _ => self.front_end_leaves(),
            },
        }
        turns(handle, 4).await;
    }

    /// What the driver has made available in a queue: its index.
    fn available(&self, queue: u64) -> u16 {
        let mut index = [0; 2];
        self.dma
            .read(available(queue) + 2, &mut index)
            .expect("in memory");
        u16::from_le_bytes(index)
    }

    /// The next buffer of a queue, if there is one.
    fn next_buffer(&self, queue: u64) -> Option<u16> {
        let at = self.used[usize::from(queue == 1)].get();
        if self.available(queue) == at {
            return None;
        }
        let mut head = [0; 2];
        let entry = available(queue) + 4 + 2 * u64::from(at % 16);
        self.dma.read(entry, &mut head).expect("in memory");
        Some(u16::from_le_bytes(head))
    }

    /// A message of the front-end's, as it should come.
    fn say(&self, message: &[u8]) {
        let Some(buffer) = self.next_buffer(0) else {
            return;
        };
        let mut address = [0; 8];
        let descriptor = DMA_ADDRESS + 16 * u64::from(buffer % 16);
        self.dma.read(descriptor, &mut address).expect("in memory");
        self.write(u64::from_le_bytes(address), message);
        let length = u32::try_from(message.len()).expect("short");
        self.give_back(0, buffer.into(), length);
    }

    /// All messages of the driver's are sent.
    fn transmitted(&self) {
        for _ in 0..16 {
            let Some(buffer) = self.next_buffer(1) else {
                return;
            };
            self.give_back(1, buffer.into(), 0);
        }
    }

    fn give_back(&self, queue: u64, buffer: u32, length: u32) {
        let index = &self.used[usize::from(queue == 1)];
        let at = used(queue) + 4 + 8 * u64::from(index.get() % 16);
        self.write(at, &buffer.to_le_bytes());
        self.write(at + 4, &length.to_le_bytes());
        index.set(index.get().wrapping_add(1));
        self.write(used(queue) + 2, &index.get().to_le_bytes());
        self.interrupt(usize::from(queue == 1));
    }

    /// Writes the DMA area, if that is where it is.
    fn write(&self, address: u64, bytes: &[u8]) {
        let _ = self.dma.write(address, bytes);
    }

    /// What a lawful front-end says until ring 0 runs.
    async fn set_up_ring(&self, handle: &Handle) {
        let user = 0x7000_0000_u64;
        let messages: [(u32, Vec<u64>); 9] = [
            // VERSION_1, EVENT_IDX and protocol features; then MQ, REPLY_ACK, CONFIG.
            (2, vec![1 << 32 | 1 << 30 | 1 << 29]),
            (16, vec![1 << 0 | 1 << 3 | 1 << 5 | 1 << 9]),
            (5, vec![1, 0, SHARED_MEMORY, user, 0]),
            (8, vec![16 << 32]),
            (9, vec![0, user, user + 0x800, user + 0x400, 0]),
            (10, vec![0]),
            (13, vec![0]),
            (12, vec![0]),
            (18, vec![1 << 32]),
        ];
        for (number, longs) in messages {
            self.say(&framed(number, 1, &payload(&[], &longs)));
            turns(handle, 4).await;
        }
        self.interrupt(3);
    }
}

impl Function for Lying {
    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn read(&self, window: Window, at: u64, width: Width) -> u32 {
        self.check(window, at, width);
        let number = self.reads.replace(self.reads.get().wrapping_add(1));
        let lie = self.lies.borrow().get(&number).copied();
        lie.unwrap_or_else(|| self.get((window as usize, at)))
    }

    fn write(&self, window: Window, at: u64, width: Width, value: u32) {
        self.check(window, at, width);
        match (window as usize, at) {
            DEVICE_STATUS if value == 0 => {
                self.registers.borrow_mut().clear();
                self.used.iter().for_each(|used| used.set(0));
            }
            STATUS if value & 1 != 0 && !self.is_last.get() => self.set(STATUS, BOTH_UP),
            register => self.set(register, value),
        }
    }

    fn dma(&self) -> &Rc<GuestMemory> {
        &self.dma
    }

    fn vectors(&self) -> &[OwnedFd] {
        &self.vectors
    }

    fn shared_memory(&self, at: u64, size: u64) -> Option<(Rc<OwnedFd>, u64)> {
        let end = at.checked_add(size).expect("a part of the window");
        assert!(
            end <= self.layout.shared_memory.size,
            "a part of the window"
        );
        Some((self.memory.clone(), at))
    }
}

impl Lying {
    /// What a driver promises of every access.
    fn check(&self, window: Window, at: u64, width: Width) {
        let bytes = width as u64;
        let end = at.checked_add(bytes).expect("an end");
        assert!(end <= self.layout.window(window).size && at.is_multiple_of(bytes));
    }
}

/// Where a queue has its rings: the driver's own place for them.
fn available(queue: u64) -> u64 {
    DMA_ADDRESS + 0x800 * queue + 0x100
}

fn used(queue: u64) -> u64 {
    available(queue) + 0x80
}

/// Windows as a lawful function has them, some of them small, and its multipliers.
fn layout(input: &mut Input<'_>) -> Option<Layout> {
    let mut bytes = [0; CONFIGURATION_SIZE];
    bytes[0x06] = 0x10;
    bytes[0x34] = 0x40;
    let multiplier = |input: &mut Input<'_>| input.of(&[4_u32, 4, 2, 0, 0x1000, 1 << 31]);
    let small = |input: &mut Input<'_>| input.of(&[0x1000_u32, 0x1000, 2, 0x20]);
    let bar = u32::try_from(BAR).expect("small");
    let memory = u32::try_from(SHARED_MEMORY).expect("small");
    let windows = [
        (1, 0, 0x38, 0),
        (2, 0x1000, small(input), multiplier(input)),
        (3, 0x2000, 4, 0),
        (4, 0x3000, 24, 0),
        (6, 0x4000, small(input), multiplier(input)),
        (7, 0x5000, 4, 0),
        (8, bar, memory, 0),
    ];
    let mut at = 0x40;
    for (kind, offset, size, extra) in windows {
        // The shared memory's without upper halves.
        let (length, next) = (if kind == 8 { 16 } else { 20 }, at + 20);
        let next = if kind == 8 { 0 } else { next };
        bytes[at..at + 5].copy_from_slice(&[9, next.try_into().ok()?, length, kind, 0]);
        for (place, word) in [(8, offset), (12, size), (16, extra)] {
            bytes[at + place..at + place + 4].copy_from_slice(&word.to_le_bytes());
        }
        at += 20;
    }
    let mut bars = [0; BARS];
    bars[0] = BAR + SHARED_MEMORY;
    Layout::parse(&bytes, &bars).ok()
}

fn message(input: &mut Input<'_>) -> Vec<u8> {
    let (kind, number) = (input.u8(), input.u8() % 48);
    let payload = input.counted(300);
    let flags = match kind & 7 {
        0..=2 => 1,
        3..=5 => 9,
        6 => 5,
        _ => input.u32(),
    };
    let mut message = framed(number.into(), flags, payload);
    if kind & 0x78 == 0 {
        message[8..12].copy_from_slice(&input.array::<4>());
    }
    message
}
