//! A disk's data under random requests of every size, scattered over memory, many at once on both
//! queues, against the real, jailed `vudev`: what comes back agrees with a model.

#![allow(clippy::unwrap_used, reason = "a test that fails here says where")]

#[path = "support/random.rs"]
mod random;
mod support;

use std::{collections::HashMap, os::unix::fs::FileExt};

use random::Random;
use support::{DISK_SIZE, Running};
use vudev_frontend::{
    Buffer, FrontEnd, LIMIT, Token,
    block::{SECTOR, kind},
    message::feature::{EVENT_IDX, INDIRECT_DESC},
};

/// Requests in flight on each queue; each owns a part of the disk, so that no two race.
const DEPTH: usize = 16;
/// Bytes of the disk that one slot owns.
const PART: usize = (8 << 20) / (2 * DEPTH);
/// Bytes of a request at most.
const LONGEST: usize = 64 << 10;
/// Requests in a run.
const REQUESTS: usize = 1500;

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
    write: bool,
    disk: usize,
    pieces: Vec<Buffer>,
}

#[test]
fn random_requests_agree_with_a_model() {
    for (seed, without) in [
        (1, 0),
        (2, EVENT_IDX),
        (3, INDIRECT_DESC),
        (4, EVENT_IDX | INDIRECT_DESC),
    ] {
        let running = Running::disk(",queues=2");
        let model = run(&running, seed, without);
        let mut disk = vec![0; model.len()];
        running.disk_file().read_exact_at(&mut disk, 0).unwrap();
        assert!(
            disk == model,
            "seed {seed}: the disk differs from the model"
        );
        running.stop();
    }
}

fn run(running: &Running, seed: u64, without: u64) -> Vec<u8> {
    let front = FrontEnd::connect(running.socket())
        .memory(8 << 20)
        .queues(2)
        .queue_size(256);
    let mut front = front.without_features(without).start().unwrap();
    let slots: Vec<_> = (0..2 * DEPTH)
        .map(|number| Slot::new(&front, number))
        .collect();
    let mut model = vec![0; usize::try_from(DISK_SIZE).unwrap()];
    assert_eq!(model.len(), 2 * DEPTH * PART);
    let mut random = Random(seed);
    let mut pending: [HashMap<Token, Pending>; 2] = [HashMap::new(), HashMap::new()];
    let mut idle: Vec<usize> = (0..slots.len()).collect();
    let mut sent = 0;
    while sent < REQUESTS || idle.len() < slots.len() {
        while sent < REQUESTS
            && let Some(number) = idle.pop()
        {
            let (token, request) =
                send(&mut front, &slots[number], number, &mut model, &mut random);
            pending[usize::from(slots[number].queue)].insert(token, request);
            sent += 1;
        }
        for queue in [0, 1] {
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

fn send(
    front: &mut FrontEnd,
    slot: &Slot,
    number: usize,
    model: &mut [u8],
    random: &mut Random,
) -> (Token, Pending) {
    let sectors = 1 + below(random, LONGEST / 512);
    let length = sectors * 512;
    let disk = slot.disk + below(random, (PART - length) / 512 + 1) * 512;
    let write = below(random, 2) == 0;
    let pieces = scatter(slot.data, length, random);
    let kind = if write { kind::OUT } else { kind::IN };
    let mut header = kind.to_le_bytes().to_vec();
    header.extend([0; 4]);
    header.extend((disk as u64 / SECTOR).to_le_bytes());
    front.memory().write(slot.header, &header).unwrap();
    front.memory().write(slot.status, &[0xee]).unwrap();
    if write {
        let bytes = random_bytes(random, length);
        model[disk..disk + length].copy_from_slice(&bytes);
        let mut rest = &bytes[..];
        for piece in &pieces {
            let (now, later) = rest.split_at(piece.length as usize);
            front.memory().write(piece.address, now).unwrap();
            rest = later;
        }
    }
    let head = Buffer::new(slot.header, 16);
    let tail = Buffer::new(slot.status, 1);
    let (mut readable, mut writable) = (vec![head], vec![]);
    if write {
        readable.extend(&pieces);
    } else {
        writable.extend(&pieces);
    }
    writable.push(tail);
    let token = front.ring(slot.queue).add(&readable, &writable).unwrap();
    (
        token,
        Pending {
            slot: number,
            write,
            disk,
            pieces,
        },
    )
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

fn check(front: &FrontEnd, slot: &Slot, request: &Pending, model: &[u8], written: u32) {
    let mut status = [0xff];
    front.memory().read(slot.status, &mut status).unwrap();
    assert_eq!(status, [0], "status");
    let length: u32 = request.pieces.iter().map(|piece| piece.length).sum();
    let expected = if request.write { 1 } else { length + 1 };
    assert_eq!(written, expected, "bytes that the device says it wrote");
    if request.write {
        return;
    }
    let mut at = request.disk;
    for piece in &request.pieces {
        let mut bytes = vec![0; piece.length as usize];
        front.memory().read(piece.address, &mut bytes).unwrap();
        assert!(
            bytes == model[at..at + bytes.len()],
            "a read at {at:#x} differs from the model"
        );
        at += bytes.len();
    }
}

impl Slot {
    fn new(front: &FrontEnd, number: usize) -> Self {
        let memory = front.memory();
        Self {
            queue: u16::try_from(number % 2).unwrap(),
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
