//! Chains that stand where others stood before them: whatever a device did with those, and whatever
//! became of their memory, a chain has the bytes that its descriptors say and no others.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::collections::VecDeque;
use std::rc::{Rc, Weak};

use proptest::prelude::*;
use vudev_executor::{Executor, Handle, IoBuffers as _};
use vudev_virtio::spec::descriptor_flag;
use vudev_virtio::testing::{GUEST_BASE, Guest, RawDescriptor, Ring};
use vudev_virtio::{Chain, GuestBuffers, GuestMemory, Queue, QueueControl};

mod regions;

use regions::{Edges, Places, map};

const SIZE: u16 = 32;
/// Of each chain's descriptors in the ring's own table: the first is its head.
const DIRECT_MAX: u16 = 4;
const CHAINS: u16 = SIZE / DIRECT_MAX;

const BYTES: u64 = 1 << 20;
/// Where the tables of indirect descriptors are, 4 KiB for each chain.
const TABLES: u64 = GUEST_BASE + 0x1_0000;
/// Where buffers are, over the edges of regions.
const BUFFERS: u64 = GUEST_BASE + 0x3_0000;
const EDGES: Edges = [0, 0x3_0200, 0x3_0300, BYTES];

/// How far into the buffers' part, and how many bytes.
type Range = (u64, u32);

#[derive(Clone, Debug)]
enum Step {
    /// The guest makes a chain available.
    Add(Vec<Range>, Vec<Range>),
    Take,
    Complete(usize, u32),
    PutBackNewest,
    PutBack(usize),
    Lose(usize),
    NewMemory,
    /// A side of a chain is taken out, to lie about.
    Out(usize, bool),
    /// What lies about gets into a chain's side, and what was there is dropped.
    In(usize, bool, usize),
    SwapSides(usize, usize),
    /// Of what lies about.
    Split(usize, usize),
    Advance(usize, usize),
    Append(usize, usize),
    Forget(usize),
}

fn ranges() -> impl Strategy<Value = Vec<Range>> {
    let range = (0..0x600_u64, 1..0x180_u32);
    let adjacent = (0..0x100_u64, 1..20_u32).prop_map(|(at, count)| {
        let step = |it: u32| (at + u64::from(it) * 8, 8);
        (0..count).map(step).collect::<Vec<_>>()
    });
    prop_oneof![
        1 => Just(Vec::new()),
        4 => proptest::collection::vec(range.clone(), 0..3),
        1 => proptest::collection::vec(range, 30..100),
        1 => adjacent,
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let which = 0..8_usize;
    let side = any::<bool>();
    prop_oneof![
        8 => (ranges(), ranges()).prop_map(|(reads, writes)| Step::Add(reads, writes)),
        9 => Just(Step::Take),
        5 => (which.clone(), 0..0x1_0000_u32).prop_map(|(at, bytes)| Step::Complete(at, bytes)),
        1 => Just(Step::PutBackNewest),
        1 => which.clone().prop_map(Step::PutBack),
        1 => which.clone().prop_map(Step::Lose),
        1 => Just(Step::NewMemory),
        2 => (which.clone(), side).prop_map(|(at, side)| Step::Out(at, side)),
        1 => (which.clone(), side, which.clone()).prop_map(|(at, side, of)| Step::In(at, side, of)),
        1 => (which.clone(), which.clone()).prop_map(|(a, b)| Step::SwapSides(a, b)),
        2 => (which.clone(), 0..0x400_usize).prop_map(|(at, bytes)| Step::Split(at, bytes)),
        2 => (which.clone(), 0..0x400_usize).prop_map(|(at, bytes)| Step::Advance(at, bytes)),
        2 => (which.clone(), which.clone()).prop_map(|(a, b)| Step::Append(a, b)),
        1 => which.prop_map(Step::Forget),
    ]
}

/// Where the bytes of these ranges are mapped.
fn mapped(memory: &Rc<GuestMemory>, ranges: &[Range]) -> Vec<usize> {
    let places = Places::of(memory, &EDGES);
    let bytes = |&(at, len): &Range| at..at + u64::from(len);
    ranges
        .iter()
        .flat_map(bytes)
        .map(|at| places.host(BUFFERS + at).1)
        .collect()
}

fn addresses(buffers: &GuestBuffers) -> Vec<usize> {
    let bytes = |it: &libc::iovec| it.iov_base.addr()..it.iov_base.addr() + it.iov_len;
    buffers.iovecs().iter().flat_map(bytes).collect()
}

/// Buffers, the bytes that they are to have, and the memory that these are of.
#[derive(Clone, Default)]
struct Expected {
    bytes: Vec<usize>,
    memory: Weak<GuestMemory>,
}

impl Expected {
    fn check(&self, buffers: &GuestBuffers) {
        assert_eq!(addresses(buffers), self.bytes);
        assert_eq!(
            (buffers.len(), buffers.bytes()),
            (self.bytes.len(), self.bytes.len())
        );
        // Those without bytes may keep the memory of what they had.
        if !self.bytes.is_empty() {
            let own = buffers.memory().map(Rc::as_ptr);
            assert_eq!(own, Some(self.memory.as_ptr()));
        }
    }
}

struct Held {
    chain: Chain,
    head: u16,
    writable_bytes: u32,
    sides: [Expected; 2],
}

struct Scene {
    handle: Handle,
    guest: Rc<Guest>,
    ring: Ring,
    queue: Queue,
    control: QueueControl,
    memory: Rc<GuestMemory>,
    /// All that were replaced.
    old: Vec<Weak<GuestMemory>>,
    free: VecDeque<u16>,
    /// By the position of each.
    added: Vec<(u16, [Vec<Range>; 2])>,
    next: usize,
    held: Vec<Held>,
    loose: Vec<(GuestBuffers, Expected)>,
    used: Vec<(u16, u32)>,
    lost: usize,
}

impl Scene {
    fn new(handle: &Handle) -> Self {
        let guest = Guest::new(BYTES);
        let ring = guest.ring(SIZE);
        let memory = map(&guest, &EDGES);
        let mut parts = ring.parts(handle, 0);
        parts.memory = memory.clone();
        let (queue, control) = Queue::start(handle, parts).unwrap();
        Self {
            handle: handle.clone(),
            guest,
            ring,
            queue,
            control,
            memory,
            old: Vec::new(),
            free: (0..CHAINS).map(|it| it * DIRECT_MAX).collect(),
            added: Vec::new(),
            next: 0,
            held: Vec::new(),
            loose: Vec::new(),
            used: Vec::new(),
            lost: 0,
        }
    }

    fn add(&mut self, sides: &[Vec<Range>; 2]) {
        let flags = [0, descriptor_flag::WRITE];
        let of_side = |(side, flags): (&Vec<Range>, u16)| -> Vec<_> {
            side.iter().map(|&(at, len)| (at, len, flags)).collect()
        };
        let all: Vec<_> = sides.iter().zip(flags).flat_map(of_side).collect();
        if all.is_empty() {
            return;
        }
        let Some(head) = self.free.pop_front() else {
            return;
        };
        let direct = all.len() <= usize::from(DIRECT_MAX);
        let first = if direct { head } else { 0 };
        let table = TABLES + u64::from(head) * 0x400;
        let mut entries = Vec::new();
        for (index, &(at, len, flags)) in (1_u16..).zip(&all) {
            let more = usize::from(index) < all.len();
            let descriptor = RawDescriptor {
                address: BUFFERS + at,
                len,
                flags: flags | if more { descriptor_flag::NEXT } else { 0 },
                next: if more { first + index } else { 0 },
            };
            match direct {
                true => self.ring.set_descriptor(first + index - 1, descriptor),
                false => entries.extend(descriptor.to_bytes()),
            }
        }
        if !direct {
            self.guest.write(table, &entries);
            let descriptor = RawDescriptor {
                address: table,
                len: u32::try_from(entries.len()).unwrap(),
                flags: descriptor_flag::INDIRECT,
                next: 0,
            };
            self.ring.set_descriptor(head, descriptor);
        }
        self.ring.publish(head);
        self.added.push((head, sides.clone()));
    }

    fn take(&mut self) {
        let taken = self.queue.try_next().unwrap();
        let Some((head, sides)) = self.added.get(self.next) else {
            assert!(taken.is_none());
            return;
        };
        let chain = taken.unwrap();
        assert_eq!(
            (chain.head(), usize::from(chain.position())),
            (*head, self.next)
        );
        self.next += 1;
        let sides = sides.each_ref().map(|ranges| Expected {
            bytes: mapped(&self.memory, ranges),
            memory: Rc::downgrade(&self.memory),
        });
        for (side, buffers) in sides.iter().zip([&chain.readable, &chain.writable]) {
            assert_eq!(buffers.memory().is_none(), side.bytes.is_empty());
        }
        self.held.push(Held {
            chain,
            head: *head,
            writable_bytes: u32::try_from(sides[1].bytes.len()).unwrap(),
            sides,
        });
    }

    fn complete(&mut self, held: Held, written: u32) {
        self.queue.complete(held.chain, written);
        self.used
            .push((held.head, written.min(held.writable_bytes)));
        self.free.push_back(held.head);
    }

    fn put_back(&mut self, held: Held) {
        let newest = usize::from(held.chain.position()) + 1 == self.next;
        self.queue.put_back(held.chain);
        match newest {
            true => self.next -= 1,
            false => {
                self.used.push((held.head, 0));
                self.free.push_back(held.head);
            }
        }
    }

    fn on_a_chain(&mut self, step: &Step) {
        let count = self.held.len();
        if count == 0 {
            return;
        }
        match *step {
            Step::Complete(at, written) => {
                let held = self.held.swap_remove(at % count);
                self.complete(held, written);
            }
            Step::PutBackNewest => {
                let held = self.held.iter().enumerate();
                let (newest, _) = held.max_by_key(|(_, it)| it.chain.position()).unwrap();
                let held = self.held.swap_remove(newest);
                self.put_back(held);
            }
            Step::PutBack(at) => {
                let held = self.held.swap_remove(at % count);
                self.put_back(held);
            }
            // Few, or nothing comes through the ring any more.
            Step::Lose(at) if self.lost < 2 => {
                drop(self.held.swap_remove(at % count));
                self.lost += 1;
            }
            Step::Out(at, side) => {
                let held = &mut self.held[at % count];
                let buffers = side_of(&mut held.chain, side).take();
                let expected = std::mem::take(&mut held.sides[usize::from(side)]);
                self.loose.push((buffers, expected));
            }
            Step::In(at, side, of) if !self.loose.is_empty() => {
                let (buffers, expected) = self.loose.swap_remove(of % self.loose.len());
                let held = &mut self.held[at % count];
                *side_of(&mut held.chain, side) = buffers;
                held.sides[usize::from(side)] = expected;
            }
            Step::SwapSides(a, b) if a % count != b % count => {
                let [a, b] = self.held.get_disjoint_mut([a % count, b % count]).unwrap();
                std::mem::swap(&mut a.chain.readable, &mut b.chain.writable);
                std::mem::swap(&mut a.sides[0], &mut b.sides[1]);
            }
            _ => {}
        }
    }

    fn on_what_lies_about(&mut self, step: &Step) {
        let count = self.loose.len();
        if count == 0 {
            return;
        }
        match *step {
            Step::Split(at, bytes) => {
                let (buffers, expected) = &mut self.loose[at % count];
                let bytes = bytes.min(expected.bytes.len());
                let tail = buffers.split_off(bytes).unwrap();
                let rest = Expected {
                    bytes: expected.bytes.split_off(bytes),
                    memory: expected.memory.clone(),
                };
                self.loose.push((tail, rest));
            }
            Step::Advance(at, bytes) => {
                let (buffers, expected) = &mut self.loose[at % count];
                let bytes = bytes.min(expected.bytes.len());
                buffers.advance(bytes).unwrap();
                expected.bytes.drain(..bytes);
            }
            Step::Append(a, b) if a % count != b % count => {
                let (more, of_more) = std::mem::take(&mut self.loose[b % count]);
                let (buffers, expected) = &mut self.loose[a % count];
                match buffers.append(more) {
                    Ok(()) => {
                        if expected.bytes.is_empty() {
                            expected.memory = of_more.memory;
                        }
                        expected.bytes.extend(of_more.bytes);
                    }
                    Err(more) => self.loose[b % count] = (more, of_more),
                }
            }
            Step::Forget(at) => drop(self.loose.swap_remove(at % count)),
            _ => {}
        }
    }

    fn check(&mut self) {
        for held in &self.held {
            held.sides[0].check(&held.chain.readable);
            held.sides[1].check(&held.chain.writable);
        }
        for (buffers, expected) in &self.loose {
            expected.check(buffers);
        }
        assert_eq!(self.control.in_flight(), self.held.len());
        assert_eq!(self.control.dropped(), self.lost);
        assert!(!self.control.is_retired());
        assert_eq!(usize::from(self.ring.used_index()), self.used.len());
        let entry = |index: usize| {
            let at = 4 + 8 * (index as u64 % u64::from(SIZE));
            let bytes = self.guest.read(self.ring.addresses().used + at, 8);
            let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
            (u16::try_from(word(0)).unwrap(), word(4))
        };
        for (index, used) in self.used.iter().enumerate().rev().take(4) {
            assert_eq!(entry(index), *used);
        }
        // Memory goes with the last that is in it, whatever lists are kept for others.
        let holders = self.held.iter().map(|it| &*it.chain);
        let holders = holders.flat_map(|it| [&it.readable, &it.writable]);
        let holders = holders.chain(self.loose.iter().map(|(buffers, _)| buffers));
        let used: Vec<_> = holders
            .filter_map(|it| it.memory().map(Rc::as_ptr))
            .collect();
        for old in &self.old {
            let count = used.iter().filter(|it| **it == old.as_ptr()).count();
            assert_eq!(old.strong_count(), count);
        }
    }

    async fn play(&mut self, steps: &[Step]) {
        for step in steps {
            // A turn's budget is not what is at stake here.
            self.handle.yield_now().await;
            match step {
                Step::Add(reads, writes) => self.add(&[reads.clone(), writes.clone()]),
                Step::Take => self.take(),
                Step::NewMemory => {
                    let new = map(&self.guest, &EDGES);
                    self.control.set_memory(new.clone()).unwrap();
                    let old = std::mem::replace(&mut self.memory, new);
                    self.old.push(Rc::downgrade(&old));
                }
                Step::Split(..) | Step::Advance(..) | Step::Append(..) | Step::Forget(_) => {
                    self.on_what_lies_about(step);
                }
                _ => self.on_a_chain(step),
            }
            self.check();
        }
    }
}

fn side_of(chain: &mut Chain, writable: bool) -> &mut GuestBuffers {
    match writable {
        true => &mut chain.writable,
        false => &mut chain.readable,
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        cases: 64,
        ..Default::default()
    })]

    #[test]
    fn a_chain_has_the_bytes_of_its_descriptors_whatever_stood_in_its_place(
        steps in proptest::collection::vec(step(), 0..200),
    ) {
        let executor = Executor::with_operations(16).unwrap();
        let handle = executor.handle().clone();
        executor.run(async {
            let mut scene = Scene::new(&handle);
            scene.play(&steps).await;
        }).unwrap();
    }
}
