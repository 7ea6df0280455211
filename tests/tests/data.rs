//! A disk's data under random requests of every kind and size, scattered over memory, many at once
//! on four queues, against the real, jailed `vudev`: what comes back agrees with a model.
//!
//! A failure names its seed; `VUDEV_SEED=… cargo test -p vudev-tests --test data` plays that one
//! again.

#![allow(clippy::unwrap_used, reason = "a test that fails here says where")]

#[path = "support/random.rs"]
mod random;
mod support;

use std::{collections::HashMap, os::unix::fs::FileExt};

use random::Random;
use support::Running;
use vudev_frontend::{
    Buffer, FrontEnd, LIMIT, Token,
    block::{SECTOR, UNMAP, feature, kind, range},
    message::feature::{EVENT_IDX, INDIRECT_DESC},
};

const QUEUES: u16 = 4;
/// Requests in flight on each queue; each owns a part of the disk, so that no two race.
const DEPTH: usize = 4;
const SLOTS: usize = QUEUES as usize * DEPTH;
/// Bytes of the disk that one slot owns.
const PART: usize = 2 << 20;
const DISK: usize = SLOTS * PART;
/// Bytes of a request at most.
const LONGEST: usize = 1 << 20;
/// Requests in a run.
const REQUESTS: usize = 600;
/// Bytes of a sector.
const BYTES: usize = 512;

/// A place for one request at a time.
struct Slot {
    queue: u16,
    disk: usize,
    header: u64,
    status: u64,
    data: u64,
}

/// What a request in flight is to do.
struct Pending {
    slot: usize,
    kind: u32,
    disk: usize,
    pieces: Vec<Buffer>,
}

/// What the disk should hold.
struct Model {
    bytes: Vec<u8>,
    /// Sectors that were discarded since they were written: they hold what they did, or zeros.
    discarded: Vec<bool>,
}

#[test]
fn random_requests_agree_with_a_model_whatever_the_ring_s_features_are() {
    for (seed, without) in [
        (1, 0),
        (2, EVENT_IDX),
        (3, INDIRECT_DESC),
        (4, EVENT_IDX | INDIRECT_DESC),
    ] {
        agrees("", seed, without);
    }
}

#[test]
fn random_requests_agree_with_a_model_through_a_cache_that_is_written_through() {
    agrees(",cache=writethrough", 5, 0);
}

#[test]
fn random_requests_agree_with_a_model_on_a_disk_that_keeps_its_space() {
    agrees(",sparse=false", 6, 0);
}

#[test]
fn random_requests_agree_with_a_model_past_the_page_cache() {
    agrees(",direct", 7, 0);
}

fn agrees(options: &str, seed: u64, without: u64) {
    let seed = std::env::var("VUDEV_SEED").map_or(seed, |seed| seed.parse().unwrap());
    println!("VUDEV_SEED={seed}");
    let options = format!(",queues={QUEUES}{options}");
    let running = Running::disk_in(folder(), DISK as u64, &options);
    let model = run(&running, seed, without);
    let mut disk = vec![0; DISK];
    running.disk_file().read_exact_at(&mut disk, 0).unwrap();
    model.check(0, &disk);
    let length = running.disk_file().metadata().unwrap().len();
    assert_eq!(length, DISK as u64, "the file is as long as it was");
    running.stop();
}

/// A folder on the disk that builds are on: a tmpfs has no zeroed ranges, and not always direct
/// access.
fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn run(running: &Running, seed: u64, without: u64) -> Model {
    let offered = running.block().front().offered();
    let own = offered & (feature::FLUSH | feature::DISCARD | feature::WRITE_ZEROES);
    let front = FrontEnd::connect(running.socket())
        .memory(24 << 20)
        .queues(QUEUES)
        .queue_size(256)
        .features(own);
    let mut front = front.without_features(without).start().unwrap();
    let slots: Vec<_> = (0..SLOTS).map(|number| Slot::new(&front, number)).collect();
    let mut model = Model {
        bytes: vec![0; DISK],
        discarded: vec![false; DISK / BYTES],
    };
    let mut random = Random(seed);
    let mut pending: Vec<HashMap<Token, Pending>> = (0..QUEUES).map(|_| HashMap::new()).collect();
    let mut idle: Vec<usize> = (0..SLOTS).collect();
    let mut sent = 0;
    while sent < REQUESTS || idle.len() < SLOTS {
        while sent < REQUESTS
            && let Some(number) = idle.pop()
        {
            let slot = &slots[number];
            let kind = choose(own, &mut random);
            let (token, request) = send(&mut front, slot, number, kind, &mut model, &mut random);
            pending[usize::from(slot.queue)].insert(token, request);
            sent += 1;
        }
        for queue in 0..QUEUES {
            front.ring(queue).kick().unwrap();
            let pending = &mut pending[usize::from(queue)];
            if pending.is_empty() {
                continue;
            }
            let mut used = Some(front.ring(queue).wait_used(LIMIT).unwrap());
            while let Some(one) = used {
                let request = pending.remove(&one.token).unwrap();
                check(&front, &slots[request.slot], &request, &model, one.written);
                idle.push(request.slot);
                used = front.ring(queue).poll_used().unwrap();
            }
        }
    }
    model
}

fn choose(features: u64, random: &mut Random) -> u32 {
    match below(random, 10) {
        0 if features & feature::DISCARD != 0 => kind::DISCARD,
        1 | 2 if features & feature::WRITE_ZEROES != 0 => kind::WRITE_ZEROES,
        3 => kind::FLUSH,
        4..=6 => kind::IN,
        _ => kind::OUT,
    }
}

fn send(
    front: &mut FrontEnd,
    slot: &Slot,
    number: usize,
    kind: u32,
    model: &mut Model,
    random: &mut Random,
) -> (Token, Pending) {
    // Small ones as often as large ones.
    let most = (LONGEST / BYTES) >> below(random, 12);
    let sectors = 1 + below(random, most.max(1));
    let length = sectors * BYTES;
    let disk = slot.disk + below(random, (PART - length) / BYTES + 1) * BYTES;
    let pieces = match kind {
        kind::IN => scatter(slot.data, length, random),
        kind::OUT => {
            let bytes = random_bytes(random, length);
            model.write(disk, &bytes);
            put(front, scatter(slot.data, length, random), &bytes)
        }
        kind::FLUSH => Vec::new(),
        _ => {
            let ranges = ranges(kind, disk, sectors, model, random);
            put(front, scatter(slot.data, ranges.len(), random), &ranges)
        }
    };
    let sector = if matches!(kind, kind::IN | kind::OUT) {
        disk as u64 / SECTOR
    } else {
        0
    };
    let mut header = kind.to_le_bytes().to_vec();
    header.extend([0; 4]);
    header.extend(sector.to_le_bytes());
    front.memory().write(slot.header, &header).unwrap();
    front.memory().write(slot.status, &[0xee]).unwrap();
    let head = Buffer::new(slot.header, 16);
    let tail = Buffer::new(slot.status, 1);
    let (mut readable, mut writable) = (vec![head], vec![]);
    if kind == kind::IN {
        writable.extend(&pieces);
    } else {
        readable.extend(&pieces);
    }
    writable.push(tail);
    let token = front.ring(slot.queue).add(&readable, &writable).unwrap();
    let slot = number;
    let request = Pending {
        slot,
        kind,
        disk,
        pieces,
    };
    (token, request)
}

/// One range to zero, or up to three to discard, one behind the other.
fn ranges(
    kind: u32,
    disk: usize,
    sectors: usize,
    model: &mut Model,
    random: &mut Random,
) -> Vec<u8> {
    let discard = kind == kind::DISCARD;
    let pieces = if discard { 1 + below(random, 3) } else { 1 };
    let each = sectors.div_ceil(pieces);
    let mut bytes = Vec::new();
    for first in (0..sectors).step_by(each) {
        let count = each.min(sectors - first);
        let sector = disk / BYTES + first;
        let flags = match discard || below(random, 2) == 0 {
            true => 0,
            false => UNMAP,
        };
        bytes.extend(range(sector as u64, u32::try_from(count).unwrap(), flags));
        if discard {
            model.discarded[sector..sector + count].fill(true);
        } else {
            model.write(sector * BYTES, &vec![0; count * BYTES]);
        }
    }
    bytes
}

/// Puts bytes into the pieces that are to hold them.
fn put(front: &FrontEnd, pieces: Vec<Buffer>, bytes: &[u8]) -> Vec<Buffer> {
    let mut rest = bytes;
    for piece in &pieces {
        let (now, later) = rest.split_at(piece.length as usize);
        front.memory().write(piece.address, now).unwrap();
        rest = later;
    }
    pieces
}

/// Cuts a buffer into up to 6 pieces of any length, with holes between them.
fn scatter(start: u64, length: usize, random: &mut Random) -> Vec<Buffer> {
    let mut pieces = Vec::new();
    let (mut at, mut left) = (start, length);
    while left > 0 {
        let last = pieces.len() == 5;
        let now = if last { left } else { 1 + below(random, left) };
        pieces.push(Buffer::new(at, u32::try_from(now).unwrap()));
        at += now as u64 + below(random, 64) as u64;
        left -= now;
    }
    pieces
}

fn check(front: &FrontEnd, slot: &Slot, request: &Pending, model: &Model, written: u32) {
    let mut status = [0xff];
    front.memory().read(slot.status, &mut status).unwrap();
    assert_eq!(status, [0], "status of a request of type {}", request.kind);
    let length: u32 = request.pieces.iter().map(|piece| piece.length).sum();
    let expected = if request.kind == kind::IN {
        length + 1
    } else {
        1
    };
    assert_eq!(written, expected, "bytes that the device says it wrote");
    if request.kind != kind::IN {
        return;
    }
    let mut read = Vec::new();
    for piece in &request.pieces {
        let mut bytes = vec![0; piece.length as usize];
        front.memory().read(piece.address, &mut bytes).unwrap();
        read.extend(bytes);
    }
    model.check(request.disk, &read);
}

impl Model {
    fn write(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        self.discarded[at / BYTES..(at + bytes.len()) / BYTES].fill(false);
    }

    fn check(&self, at: usize, read: &[u8]) {
        for (number, sector) in read.chunks(BYTES).enumerate() {
            let place = at + number * BYTES;
            let gone = self.discarded[place / BYTES] && sector.iter().all(|byte| *byte == 0);
            let right = gone || self.bytes[place..place + BYTES] == *sector;
            assert!(right, "the sector at {place:#x} differs from the model");
        }
    }
}

impl Slot {
    fn new(front: &FrontEnd, number: usize) -> Self {
        let memory = front.memory();
        Self {
            queue: u16::try_from(number % usize::from(QUEUES)).unwrap(),
            disk: number * PART,
            header: memory.allocate(16, 1).unwrap(),
            status: memory.allocate(1, 1).unwrap(),
            data: memory.allocate(LONGEST as u64 + 6 * 64, 1).unwrap(),
        }
    }
}

/// A length or a position.
fn below(random: &mut Random, limit: usize) -> usize {
    usize::try_from(random.below(limit as u64)).unwrap()
}

/// Bytes of a few hundred random words, over and over: cheap without optimisation, and no two
/// requests are alike.
fn random_bytes(random: &mut Random, length: usize) -> Vec<u8> {
    let words: Vec<u8> = (0..=250)
        .flat_map(|_| random.next().to_le_bytes())
        .collect();
    let mut bytes = words.repeat(length / words.len() + 1);
    bytes.truncate(length);
    bytes
}
