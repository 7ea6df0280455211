//! Random messages and random rings against the real, jailed `vudev`: it may refuse, retire or
//! close whatever it likes, and must live, serve the next and keep nothing. `VUDEV_NOISE_SEED` and
//! `VUDEV_NOISE_ROUNDS` look further than the few seconds of a test run.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test that fails here says where; noise may lose bits"
)]

#[path = "support/random.rs"]
mod random;
mod support;

use std::{
    env,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use random::Random;
use support::{Running, descriptors_at_work};
use vudev_frontend::{
    Block, Connection, Descriptor, Error, GuestMemory, RegionLayout,
    message::{
        NEED_REPLY, NO_DESCRIPTOR, VERSION, frame, frame_with_size, long_words, request, words,
    },
    requests::{region, single_region},
    ring::flag::{INDIRECT, NEXT, WRITE},
};

/// Connections in a run.
const ROUNDS: u64 = 150;
/// Messages on a connection at most.
const MESSAGES: u64 = 40;
/// How long an answer is waited for, where one may come or not.
const GLANCE: Duration = Duration::from_millis(2);

#[test]
fn random_messages_leave_the_process_as_it_was() {
    let running = Running::disk(",queues=2");
    let before = (running.device(), descriptors_at_work(&running));
    let mut random = Random::seeded();
    for round in 0..rounds() {
        let begun = random.clone();
        let mut block = Block::start(running.front().queues(2), 1, 4096).unwrap();
        for _ in 0..random.below(MESSAGES) {
            if !send_noise(&mut block, &mut random) {
                break;
            }
        }
        drop(block);
        let after = (running.device(), descriptors_at_work(&running));
        assert_eq!(
            after,
            before,
            "round {round}, seed {}: {}",
            begun.0,
            running.log()
        );
    }
}

#[test]
fn random_rings_leave_the_process_as_it_was() {
    let running = Running::disk(",queues=2");
    let before = (running.device(), descriptors_at_work(&running));
    let mut random = Random::seeded();
    for round in 0..rounds() {
        let begun = random.clone();
        let mut block = Block::start(running.front().queues(2), 1, 4096).unwrap();
        let memory = block.front().memory().clone();
        for _ in 0..1 + random.below(4) {
            let ring = block.front().ring(u16::from(random.coin()));
            write_noise(&memory, ring, &mut random);
            ring.kick_anyway().unwrap();
        }
        // Requests may be nonsense and go on being so; a stop drains or ends the connection.
        let stopped = block.front().stop();
        assert!(
            !matches!(stopped, Err(Error::Deadline { .. })),
            "round {round}, seed {}: {stopped:?}",
            begun.0
        );
        drop(block);
        let after = (running.device(), descriptors_at_work(&running));
        assert_eq!(
            after,
            before,
            "round {round}, seed {}: {}",
            begun.0,
            running.log()
        );
    }
}

#[test]
fn random_rings_leave_a_console_as_it_was() {
    let running = Running::console(None);
    let before = running.device();
    let mut random = Random::seeded();
    for round in 0..rounds() {
        let begun = random.clone();
        let mut console = running.console_driver();
        let memory = console.front().memory().clone();
        let ring = console.front().ring(u16::from(random.coin()));
        write_noise(&memory, ring, &mut random);
        ring.kick_anyway().unwrap();
        let stopped = console.front().stop();
        let hangs = matches!(stopped, Err(Error::Deadline { .. }));
        assert!(!hangs, "round {round}, seed {}: {stopped:?}", begun.0);
        drop(console);
        assert_eq!(running.device(), before, "round {round}, seed {}", begun.0);
        running.console_driver().send(b"alive").unwrap();
    }
}

/// Sends one random message; whether the connection lives as far as is known.
fn send_noise(block: &mut Block, random: &mut Random) -> bool {
    let code = match random.below(20) {
        0 => u32::try_from(random.next() & 0xff).unwrap(),
        _ => 1 + u32::try_from(random.below(43)).unwrap(),
    };
    let payload = noisy_payload(block, code, random);
    let fds = noisy_descriptors(random);
    let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
    let flags = if random.coin() {
        VERSION | NEED_REPLY
    } else {
        VERSION
    };
    let bytes = match random.below(30) {
        0 => frame_with_size(code, flags, random.word(), &payload),
        1 => frame(code, random.word(), &payload),
        _ => frame(code, flags, &payload),
    };
    let _ = block.front().ring(0).kick_anyway();
    let connection = block.front().connection();
    connection.set_limit(GLANCE);
    connection.raw(&bytes, &borrowed).is_ok() && take_answers(connection)
}

/// Takes what has come; false at the end of the connection.
fn take_answers(connection: &Connection) -> bool {
    match connection.outcome() {
        Ok(vudev_frontend::Outcome::Closed) => false,
        Ok(vudev_frontend::Outcome::Answered(..)) | Err(_) => true,
    }
}

/// A payload of the right form more often than not, with values near the right ones.
fn noisy_payload(block: &mut Block, code: u32, random: &mut Random) -> Vec<u8> {
    let ring = random.small();
    let mut payload = match code {
        request::SET_FEATURES | request::SET_PROTOCOL_FEATURES => long_words(&[random.next()]),
        request::SET_VRING_NUM => words(&[ring, 1 << random.below(17)]),
        request::SET_VRING_BASE | request::GET_VRING_BASE => words(&[ring, random.small()]),
        request::SET_VRING_ENABLE => words(&[ring, u32::from(random.coin())]),
        request::SET_VRING_KICK | request::SET_VRING_CALL | request::SET_VRING_ERR => {
            let flag = if random.coin() { NO_DESCRIPTOR } else { 0 };
            long_words(&[u64::from(ring) | flag])
        }
        request::SET_VRING_ADDR => {
            let addresses = block.front().ring(0).addresses().unwrap();
            let mut near = |address: u64| address.wrapping_add(random.below(4) * 4096);
            let areas = [addresses.descriptors, addresses.used, addresses.available].map(&mut near);
            [words(&[ring, 0]), long_words(&areas), long_words(&[0])].concat()
        }
        request::SET_MEM_TABLE => {
            let count = random.below(3);
            let regions = (0..count).flat_map(|_| region(&random.region()));
            words(&[u32::try_from(count).unwrap(), 0])
                .into_iter()
                .chain(regions)
                .collect()
        }
        request::ADD_MEM_REG | request::REM_MEM_REG => single_region(&random.region()),
        request::GET_CONFIG | request::SET_CONFIG => {
            let length = u32::try_from(random.below(64)).unwrap();
            let mut payload = words(&[random.small(), length, 0]);
            payload.resize(12 + usize::try_from(length).unwrap(), 0xff);
            payload
        }
        _ => vec![0x11; usize::try_from(random.below(64)).unwrap()],
    };
    if random.below(8) == 0 && !payload.is_empty() {
        let at = usize::try_from(random.below(payload.len() as u64)).unwrap();
        payload[at] ^= 1 << random.below(8);
    }
    if random.below(20) == 0 {
        payload.truncate(usize::try_from(random.below(40)).unwrap());
    }
    payload
}

fn noisy_descriptors(random: &mut Random) -> Vec<OwnedFd> {
    let one = |random: &mut Random| match random.below(6) {
        0 => rustix::pipe::pipe().unwrap().0,
        1 => tempfile::tempfile().unwrap().into(),
        2 | 3 => {
            let file = rustix::fs::memfd_create("noise", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
            rustix::fs::ftruncate(&file, random.below(4) * 0x10000).unwrap();
            file
        }
        _ => rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap(),
    };
    let count = [0, 0, 0, 1, 1, 1, 1, 2, 9, 40][usize::try_from(random.below(10)).unwrap()];
    (0..count).map(|_| one(random)).collect()
}

/// Fills a ring's descriptors, a table of them, and its available entries with values near right.
fn write_noise(memory: &GuestMemory, ring: &mut vudev_frontend::Ring, random: &mut Random) {
    let base = memory.allocate(64 << 10, 4096).unwrap();
    let table: Vec<u8> = (0..128)
        .flat_map(|_| random.descriptor(base).bytes())
        .collect();
    memory.write(base, &table).unwrap();
    for slot in 0..ring.size() {
        let descriptor = random.descriptor(base);
        ring.write_descriptor(slot, &descriptor).unwrap();
    }
    for _ in 0..1 + random.below(20) {
        let head = random.small() as u16
            % if random.below(40) == 0 {
                300
            } else {
                ring.size()
            };
        ring.make_available(head).unwrap();
    }
    if random.below(20) == 0 {
        ring.set_available_index(random.word() as u16).unwrap();
    }
}

fn rounds() -> u64 {
    env::var("VUDEV_NOISE_ROUNDS").map_or(ROUNDS, |rounds| rounds.parse().unwrap())
}

impl Random {
    fn seeded() -> Self {
        Self(env::var("VUDEV_NOISE_SEED").map_or(0x5eed, |seed| seed.parse().unwrap()))
    }

    fn coin(&mut self) -> bool {
        self.below(2) == 0
    }

    fn word(&mut self) -> u32 {
        (self.next() >> 16) as u32
    }

    /// Mostly 0, 1 or 2, seldom anything.
    fn small(&mut self) -> u32 {
        match self.below(12) {
            0 => self.word(),
            1 => self.word() & 0xffff,
            2 => 2,
            number => u32::from(number % 2 == 0),
        }
    }

    fn region(&mut self) -> RegionLayout {
        let number = self.below(4) << 32;
        RegionLayout {
            guest_address: 0x4000_0000 + number,
            user_address: 0x7000_4000_0000 + number,
            size: self.below(5) * 0x8000,
            offset: self.below(3) * 0x1000,
        }
    }

    fn descriptor(&mut self, base: u64) -> Descriptor {
        let address = match self.below(12) {
            0 => self.next(),
            1 => 0x4000_0000 + (2 << 20) - self.below(64),
            _ => base + self.below(64 << 10),
        };
        let length = match self.below(12) {
            0 => self.word(),
            1 => 0,
            2 => 16,
            3 => 1,
            4 => 32 * 16,
            _ => u32::try_from(self.below(4097)).unwrap(),
        };
        let mut flags =
            [0, NEXT, NEXT, WRITE, NEXT | WRITE, INDIRECT][usize::try_from(self.below(6)).unwrap()];
        if self.below(40) == 0 {
            flags = self.word() as u16;
        }
        let next = self.small() as u16 % if self.below(30) == 0 { 300 } else { 128 };
        Descriptor {
            address,
            length,
            flags,
            next,
        }
    }
}
