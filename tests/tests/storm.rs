//! A guest that rewrites all of its memory and kicks at every moment, and a front-end that changes
//! everything meanwhile, against the real, jailed `vudev`: whatever they get, the process lives,
//! serves the next and keeps nothing. `VUDEV_NOISE_SEED` and `VUDEV_NOISE_ROUNDS` look further.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test that fails here says where; its numbers are small"
)]

#[path = "support/random.rs"]
mod random;
mod support;

use std::{
    env,
    fs::File,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::FileExt,
    },
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use random::Random;
use support::{Running, descriptors_at_work};
use vudev_frontend::{
    Block, Error, FrontEnd, RegionLayout,
    RingStep::{Addresses, Call, Enable, Kick, Size},
    Step::{MemoryTable, Ring, SetFeatures},
};

/// Connections in a run.
const ROUNDS: u64 = 25;
/// Things that a front-end does on a connection.
const CHANGES: u64 = 80;
/// How far rings and headers reach from the beginning of memory, and some.
const RINGS: u64 = 32 << 10;
/// The guest's memory.
const MEMORY: u64 = 2 << 20;

#[test]
fn memory_and_set_up_that_change_at_every_moment_leave_the_process_as_it_was() {
    let running = Running::disk(",queues=2");
    let before = (running.device(), descriptors_at_work(&running));
    let seed = env::var("VUDEV_NOISE_SEED").map_or(0x5eed, |seed| seed.parse().unwrap());
    let rounds = env::var("VUDEV_NOISE_ROUNDS").map_or(ROUNDS, |rounds| rounds.parse().unwrap());
    let mut random = Random(seed);
    let mut used = 0;
    for round in 0..rounds {
        let begun = random.0;
        used += storm(&running, &mut random);
        let after = (running.device(), descriptors_at_work(&running));
        assert_eq!(
            after,
            before,
            "round {round}, seed {begun}: {}",
            running.log()
        );
    }
    assert!(used > rounds, "only {used} chains came through");
}

/// One connection's life; about how many chains its device has used.
fn storm(running: &Running, random: &mut Random) -> u64 {
    let mut block = Block::start(running.front().queues(2), 8, 4096).unwrap();
    let front = block.front();
    // Few lose their memory, for that is the end of all else.
    let shrinks = random.below(5) == 0;
    let mut guests: Vec<_> = (0..2).map(|ring| Guest::new(front, ring, random)).collect();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let guest = scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                guests.iter_mut().for_each(Guest::scribble);
                if shrinks && guests[0].random.below(500) == 0 {
                    guests[0].file.set_len(MEMORY / 2).unwrap();
                    guests[0].file.set_len(MEMORY).unwrap();
                }
            }
            guests.iter().map(|guest| u64::from(guest.used())).sum()
        });
        let ended = (0..CHANGES).find_map(|_| match change(block.front(), random) {
            Err(error @ (Error::Deadline { .. } | Error::Closed { .. })) => Some(error),
            Ok(()) | Err(_) => None,
        });
        over.store(true, Ordering::Relaxed);
        let hangs = matches!(ended, Some(Error::Deadline { .. }));
        assert!(!hangs, "it hangs: {}", running.log());
        guest.join().unwrap()
    })
}

/// One queue's driver, which is mostly right and looks at nothing twice.
struct Guest {
    file: File,
    kick: OwnedFd,
    /// Offsets in the file.
    descriptors: u64,
    available: u64,
    used: u64,
    size: u64,
    base: u64,
    random: Random,
}

impl Guest {
    fn new(front: &mut FrontEnd, ring: u16, random: &mut Random) -> Self {
        let memory = front.memory().clone();
        let copy = |layout: &RegionLayout, file: BorrowedFd<'_>| {
            (*layout, file.try_clone_to_owned().unwrap())
        };
        let (layout, file) = memory.with_region(0, copy);
        let ring = front.ring(ring);
        let rings = ring.addresses().unwrap();
        let kick = ring.kick_event().unwrap();
        Self {
            file: file.into(),
            kick: kick.as_fd().try_clone_to_owned().unwrap(),
            descriptors: rings.descriptors - layout.user_address,
            available: rings.available - layout.user_address,
            used: rings.used - layout.user_address,
            size: ring.size().into(),
            base: layout.guest_address,
            random: Random(random.next() | 1),
        }
    }

    fn index(&self, at: u64) -> u16 {
        let mut index = [0; 2];
        // Beyond the end while it is shrunk.
        let _ = self.file.read_at(&mut index, at + 2);
        u16::from_le_bytes(index)
    }

    fn used(&self) -> u16 {
        self.index(self.used)
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        self.file.write_all_at(bytes, at).unwrap();
    }

    /// Rewrites descriptors, headers and, seldom, anything; publishes a chain, and kicks.
    fn scribble(&mut self) {
        for _ in 0..8 {
            // Headers, data and indirect tables lie in the upper half, upon each other.
            let at = MEMORY / 2 + self.random.below(256) * 16;
            let kind = [0, 0, 1, 1, 4, 8, 99, 3][self.random.below(8) as usize];
            let header = [u64::to_le_bytes(kind), self.random.below(9).to_le_bytes()];
            self.write(at, &header.concat());
            let slot = self.random.below(self.size);
            let descriptor = self.descriptor();
            self.write(self.descriptors + slot * 16, &descriptor);
        }
        let available = self.index(self.available);
        if u64::from(available.wrapping_sub(self.used())) < self.size {
            let head = self.random.below(self.size).to_le_bytes();
            let slot = u64::from(available) % self.size;
            self.write(self.available + 4 + slot * 2, &head[..2]);
            let next = available.wrapping_add(1).to_le_bytes();
            self.write(self.available + 2, &next);
        }
        if self.random.below(500) == 0 {
            let at = self.random.below(RINGS);
            let word = self.random.next().to_le_bytes();
            self.write(at, &word);
        }
        rustix::io::write(&self.kick, &1_u64.to_ne_bytes()).unwrap();
    }

    /// Readable ones go on, writable ones end a chain; some are tables of descriptors.
    fn descriptor(&mut self) -> Vec<u8> {
        let at = MEMORY / 2 + self.random.below(256) * 16;
        let (length, flags) = match self.random.below(40) {
            0 => (self.random.below(1 << 20), self.random.below(8)),
            1 => (self.random.below(64) * 16, 4),
            2..20 => ([16, 16, 16, 512][self.random.below(4) as usize], 1),
            _ => ([1, 513, 4097, 0x1_0001][self.random.below(4) as usize], 2),
        };
        let rest = length | flags << 32 | self.random.below(self.size) << 48;
        [(self.base + at).to_le_bytes(), rest.to_le_bytes()].concat()
    }
}

/// One thing that a front-end may do at any time.
fn change(front: &mut FrontEnd, random: &mut Random) -> Result<(), Error> {
    let ring = u16::from(random.below(2) == 0);
    let number = u32::from(ring);
    match random.below(10) {
        0 => front.connection().set_ring_enable(number, false),
        1 => front.connection().set_ring_enable(number, true),
        2 => front.take(Ring(ring, Kick)),
        3 => front.take(Ring(ring, Call)),
        4 => front.take(MemoryTable),
        5 => {
            front.connection().reset_device()?;
            front.take(SetFeatures)?;
            restart(front, 0)?;
            restart(front, 1)
        }
        6 => {
            let memory = front.memory().clone();
            let number = memory.add_region(1 << 16)?;
            let connection = front.connection();
            memory.with_region(number, |layout, file| {
                connection.add_memory_region(layout, file)
            })?;
            let layout = memory.remove_last_region().unwrap();
            connection.remove_memory_region(&layout, None)
        }
        _ => {
            let base = front.connection().ring_base(number)?;
            front.connection().set_ring_base(number, base)?;
            front.connection().set_ring_enable(number, true)?;
            front.take(Ring(ring, Kick))
        }
    }
}

/// Starts a ring that was reset.
fn restart(front: &mut FrontEnd, ring: u16) -> Result<(), Error> {
    front.take(Ring(ring, Size))?;
    front.take(Ring(ring, Addresses))?;
    let used = front.ring(ring).used_index()?;
    front.connection().set_ring_base(ring.into(), used)?;
    front.take(Ring(ring, Enable))?;
    front.take(Ring(ring, Kick))
}
