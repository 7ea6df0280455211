//! A model of a frame: random chains over three regions come and go, in one memory and the next,
//! and at every moment the kernel is given the bytes of those that are there and no others.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::collections::VecDeque;
use std::rc::{Rc, Weak};

use proptest::prelude::*;
use vudev_executor::{Executor, Handle, IoBuffers as _};
use vudev_virtio::spec::descriptor_flag::{INDIRECT, NEXT, WRITE};
use vudev_virtio::testing::{GUEST_BASE, Guest, RawDescriptor, Ring};
use vudev_virtio::{Framed, GuestMemory, Queue, QueueControl, Taken};

mod regions;

use regions::{Edges, Places, map};

const SIZE: u16 = 64;
/// Of each chain's descriptors in the ring's own table: the first is its head.
const DIRECT_MAX: u16 = 4;
const CHAINS: u16 = SIZE / DIRECT_MAX;

const BYTES: u64 = 1 << 20;
/// Where the tables of indirect descriptors are, 16 bytes for each of the ring's own.
const TABLES: u64 = GUEST_BASE + 0x1_0000;
/// Where buffers are, over the edges of regions.
const BUFFERS: u64 = GUEST_BASE + 0x3_0000;
const BUFFERS_BYTES: u16 = 0x400;
const EDGES: Edges = [0, 0x3_0100, 0x3_0180, BYTES];

/// A descriptor: so far behind where the last one ended, or there if it is `None`; so many bytes.
type Buffer = (Option<u64>, u32);

#[derive(Clone, Debug)]
enum Step {
    /// The guest makes a chain available: of which so many descriptors are readable, and through
    /// an indirect table or not.
    Add(Vec<Buffer>, usize, bool),
    Take(usize),
    /// As many chains as have so many bytes.
    CompleteFor(usize),
    /// So many chains with so many bytes, whether they have them or not.
    Complete(usize, usize),
    PutBackAll,
    NewMemory,
}

fn step() -> impl Strategy<Value = Step> {
    let gap = prop_oneof![
        3 => Just(None),
        1 => (1..40_u64).prop_map(Some),
        1 => (0..u64::from(BUFFERS_BYTES)).prop_map(Some),
    ];
    let len = prop_oneof![1..8_u32, 1..60_u32];
    let buffers = proptest::collection::vec((gap, len), 1..=usize::from(DIRECT_MAX));
    let readable = prop_oneof![3 => Just(0), 1 => 1..=4_usize];
    let add = (buffers, readable, any::<bool>());
    prop_oneof![
        8 => add.prop_map(|(buffers, readable, indirect)| Step::Add(buffers, readable, indirect)),
        7 => (1..4_usize).prop_map(Step::Take),
        5 => (0..250_usize).prop_map(Step::CompleteFor),
        2 => (0..5_usize, 0..250_usize).prop_map(|(count, bytes)| Step::Complete(count, bytes)),
        1 => Just(Step::PutBackAll),
        1 => Just(Step::NewMemory),
    ]
}

/// Memory in three regions, and where these are mapped.
struct Mapped {
    memory: Weak<GuestMemory>,
    places: Places,
    /// How often the queue that goes on in it has it.
    of_queue: usize,
}

impl Mapped {
    fn new(guest: &Guest) -> (Rc<GuestMemory>, Self) {
        let memory = map(guest, &EDGES);
        let mapped = Self {
            memory: Rc::downgrade(&memory),
            places: Places::of(&memory, &EDGES),
            of_queue: 0,
        };
        (memory, mapped)
    }

    /// Address and length of the pieces that these bytes are.
    fn pieces(&self, bytes: impl Iterator<Item = u64>) -> Vec<(usize, usize)> {
        let mut pieces: Vec<(usize, usize)> = Vec::new();
        let mut next = None;
        for (region, host) in bytes.map(|address| self.places.host(address)) {
            match pieces.last_mut() {
                Some(last) if next == Some((region, host)) => last.1 += 1,
                _ => pieces.push((host, 1)),
            }
            next = Some((region, host + 1));
        }
        pieces
    }
}

/// A chain: its head, and the guest addresses of its writable bytes.
struct Link {
    head: u16,
    bytes: Vec<u64>,
}

struct Scene<const HEAD: usize, const TAIL: usize, const SKIP: usize> {
    handle: Handle,
    guest: Rc<Guest>,
    ring: Ring,
    queue: Queue,
    control: QueueControl,
    /// The last one is the queue's.
    memories: Vec<Mapped>,
    frame: Framed<HEAD, TAIL>,
    /// Our own pieces.
    own: Vec<(usize, usize)>,
    /// Which memory the frame's chains lie in, and their positions.
    of: usize,
    held: VecDeque<usize>,
    free: VecDeque<u16>,
    /// By the position of each.
    added: Vec<Link>,
    next: usize,
    used: Vec<(u16, usize)>,
    /// Where the last descriptor ended, in the buffers' part.
    end: u64,
    stamp: u8,
}

fn pieces<const HEAD: usize, const TAIL: usize>(frame: &Framed<HEAD, TAIL>) -> Vec<(usize, usize)> {
    let piece = |it: &libc::iovec| (it.iov_base.addr(), it.iov_len);
    frame.iovecs().iter().map(piece).collect()
}

impl<const HEAD: usize, const TAIL: usize, const SKIP: usize> Scene<HEAD, TAIL, SKIP> {
    fn new(handle: &Handle) -> Self {
        let guest = Guest::new(BYTES);
        let ring = guest.ring(SIZE);
        let (memory, mut mapped) = Mapped::new(&guest);
        let mut parts = ring.parts(handle, 0);
        parts.memory = memory;
        let (queue, control) = Queue::start(handle, parts).unwrap();
        mapped.of_queue = mapped.memory.strong_count();
        let frame = Framed::skipping(SKIP);
        Self {
            handle: handle.clone(),
            guest,
            ring,
            queue,
            control,
            memories: vec![mapped],
            own: pieces(&frame),
            frame,
            of: 0,
            held: VecDeque::new(),
            free: (0..CHAINS).map(|it| it * DIRECT_MAX).collect(),
            added: Vec::new(),
            next: 0,
            used: Vec::new(),
            end: 0,
            stamp: 0,
        }
    }

    /// Where a buffer lies.
    fn place(&mut self, (gap, len): Buffer) -> u64 {
        let (len, bytes) = (u64::from(len), u64::from(BUFFERS_BYTES));
        let at = (self.end + gap.unwrap_or(0)) % bytes;
        let at = if at + len > bytes { 0 } else { at };
        self.end = at + len;
        BUFFERS + at
    }

    fn add(&mut self, buffers: &[Buffer], readable: usize, indirect: bool) {
        let Some(head) = self.free.pop_front() else {
            return;
        };
        let first = if indirect { 0 } else { head };
        let mut bytes = Vec::new();
        let mut table = Vec::new();
        for (index, &buffer) in (1_u16..).zip(buffers) {
            let (address, len) = (self.place(buffer), buffer.1);
            let mut flags = 0;
            if usize::from(index) > readable {
                flags |= WRITE;
                bytes.extend(address..address + u64::from(len));
            }
            let more = usize::from(index) < buffers.len();
            let descriptor = RawDescriptor {
                address,
                len,
                flags: flags | if more { NEXT } else { 0 },
                next: if more { first + index } else { 0 },
            };
            match indirect {
                true => table.extend(descriptor.to_bytes()),
                false => self.ring.set_descriptor(first + index - 1, descriptor),
            }
        }
        if indirect {
            let address = TABLES + 16 * u64::from(head);
            self.guest.write(address, &table);
            let descriptor = RawDescriptor {
                address,
                len: u32::try_from(table.len()).unwrap(),
                flags: INDIRECT,
                next: 0,
            };
            self.ring.set_descriptor(head, descriptor);
        }
        self.ring.publish(head);
        self.added.push(Link { head, bytes });
    }

    fn is_used(&mut self, position: usize, written: usize) {
        let head = self.added[position].head;
        self.used.push((head, written));
        self.free.push_back(head);
    }

    fn take(&mut self) {
        let current = self.memories.len() - 1;
        let expected = match self.added.get(self.next) {
            None => Taken::None,
            Some(_) if !self.held.is_empty() && self.of != current => Taken::Elsewhere,
            Some(link) if link.bytes.len() < SKIP.max(1) => Taken::Unfit,
            Some(_) => Taken::Chain,
        };
        assert_eq!(self.queue.take_into(&mut self.frame).unwrap(), expected);
        match expected {
            Taken::None | Taken::Elsewhere => return,
            Taken::Unfit => self.is_used(self.next, 0),
            Taken::Chain => {
                self.held.push_back(self.next);
                self.of = current;
            }
        }
        self.next += 1;
    }

    fn complete(&mut self, count: usize, bytes: usize) {
        self.queue.complete_first(&mut self.frame, count, bytes);
        let mut left = bytes;
        for _ in 0..count {
            let Some(position) = self.held.pop_front() else {
                return;
            };
            let written = left.min(self.added[position].bytes.len());
            left -= written;
            self.is_used(position, written);
        }
    }

    fn put_back_all(&mut self) {
        self.queue.put_back_all(&mut self.frame);
        while let Some(position) = self.held.pop_back() {
            match position + 1 == self.next {
                true => self.next = position,
                false => self.is_used(position, 0),
            }
        }
    }

    fn set_memory(&mut self) {
        let (memory, mut mapped) = Mapped::new(&self.guest);
        self.control.set_memory(memory).unwrap();
        mapped.of_queue = mapped.memory.strong_count();
        self.memories.push(mapped);
    }

    /// Bytes of the chains in the frame, those that are left out too.
    fn bytes(&self) -> Vec<u64> {
        let of = |&position: &usize| self.added[position].bytes.clone();
        self.held.iter().flat_map(of).collect()
    }

    fn chains_for(&self, bytes: usize) -> usize {
        let mut sum = 0;
        let begins = self.held.iter().map(|&position| {
            let begin = sum;
            sum += self.added[position].bytes.len();
            begin
        });
        begins.filter(|&begin| begin < bytes).count()
    }

    /// What is left out can be written, and all that is there be looked at.
    fn check_front(&mut self, bytes: &[u64]) {
        self.stamp = self.stamp.wrapping_add(1);
        let stamp = usize::from(self.stamp);
        let from: [u8; SKIP] = std::array::from_fn(|at| (stamp + 7 * at).to_le_bytes()[0]);
        let area = || self.guest.read(BUFFERS, BUFFERS_BYTES.into());
        let mut expected = area();
        let index = |address: &u64| usize::try_from(address - BUFFERS).unwrap();
        for (address, byte) in bytes.iter().zip(from) {
            expected[index(address)] = byte;
        }
        assert_eq!(self.frame.write_front(&from).is_ok(), !bytes.is_empty());
        assert_eq!(area(), expected);
        let seen: Vec<u8> = bytes.iter().map(|it| expected[index(it)]).collect();
        let mut into = [0; 40];
        let count = self.frame.peek(&mut into);
        assert_eq!(count, seen.len().min(40));
        assert_eq!(into[..count], seen[..count]);
        assert!(into[count..].iter().all(|&byte| byte == 0));
    }

    fn check(&mut self) {
        let bytes = self.bytes();
        let memory = &self.memories[self.of];
        let mut expected = self.own.clone();
        let front = usize::from(HEAD > 0);
        expected.splice(
            front..front,
            memory.pieces(bytes.iter().copied().skip(SKIP)),
        );
        assert_eq!(pieces(&self.frame), expected);
        let room = bytes.len().saturating_sub(SKIP);
        let frame = &self.frame;
        assert_eq!((frame.room(), frame.bytes()), (room, HEAD + room + TAIL));
        let counts = (frame.chains(), frame.pieces());
        assert_eq!(counts, (self.held.len(), expected.len()));
        let all = bytes.len();
        for bytes in [0, 1, SKIP, all / 2, all.saturating_sub(1), all, usize::MAX] {
            assert_eq!(frame.chains_for(bytes), self.chains_for(bytes));
        }
        self.check_front(&bytes);
        self.check_queue();
    }

    fn check_queue(&self) {
        let control = &self.control;
        assert_eq!(control.in_flight(), self.held.len());
        assert_eq!(usize::from(control.next_available()), self.next);
        assert_eq!((control.dropped(), control.is_retired()), (0, false));
        assert_eq!(usize::from(self.ring.used_index()), self.used.len());
        for (index, used) in self.used.iter().enumerate().rev().take(8) {
            let at = 4 + 8 * (index as u64 % u64::from(SIZE));
            let bytes = self.guest.read(self.ring.addresses().used + at, 8);
            let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
            assert_eq!((u32::from(used.0), used.1), (word(0), word(4) as usize));
        }
        // Memory is kept by the queue that goes on in it, and by chains that lie there.
        for (index, mapped) in self.memories.iter().enumerate() {
            let of_queue = match index + 1 == self.memories.len() {
                true => mapped.of_queue,
                false => 0,
            };
            let of_frame = usize::from(index == self.of && !self.held.is_empty());
            assert_eq!(mapped.memory.strong_count(), of_queue + of_frame);
        }
    }

    async fn play(mut self, steps: &[Step]) {
        for step in steps {
            // A turn's budget is not what is at stake here.
            self.handle.yield_now().await;
            match step {
                Step::Add(buffers, readable, indirect) => self.add(buffers, *readable, *indirect),
                Step::Take(count) => (0..*count).for_each(|_| self.take()),
                Step::CompleteFor(bytes) => self.complete(self.chains_for(*bytes), *bytes),
                Step::Complete(count, bytes) => self.complete(*count, *bytes),
                Step::PutBackAll => self.put_back_all(),
                Step::NewMemory => self.set_memory(),
            }
            self.check();
        }
        drop(self.frame);
        let lost = (self.control.in_flight(), self.control.dropped());
        assert_eq!(lost, (0, self.held.len()));
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        cases: 64,
        ..Default::default()
    })]

    #[test]
    fn the_kernel_is_given_the_bytes_of_the_chains_that_are_there_and_no_others(
        steps in proptest::collection::vec(step(), 0..150),
    ) {
        let executor = Executor::with_operations(16).unwrap();
        let handle = executor.handle().clone();
        executor.run(async {
            Scene::<12, 1, 12>::new(&handle).play(&steps).await;
            Scene::<12, 0, 0>::new(&handle).play(&steps).await;
            Scene::<0, 0, 5>::new(&handle).play(&steps).await;
        }).unwrap();
    }
}
