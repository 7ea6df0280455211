//! The disk on a played ring: completions come late, in another order, short or as errors, all
//! from a seed. A failure names its seed; `VUDEV_SEED=… cargo test -p vudev-devices --test
//! simulated` plays that one again.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test panics where it fails, and its numbers are small"
)]

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

use rustix::fs::{MemfdFlags, memfd_create};
use vudev_devices::block::BlockConfig;
use vudev_executor::{Executor, Faults};
use vudev_frontend::{Buffer, Token};

mod common;

use common::disk::{
    DISCARD, Disk, F_DISCARD, F_FLUSH, F_WRITE_ZEROES, FLUSH, IN, IO_ERROR, OK, OUT, SECTOR, UNMAP,
    UNTOLD, WRITE_ZEROES, disk_with, header, range,
};

const SECTORS: usize = 64;
/// Requests in flight at once, each on sectors of its own.
const LANES: usize = 8;
const LANE_SECTORS: usize = SECTORS / LANES;
/// Rounds of [`LANES`] requests.
const ROUNDS: usize = 40;
const SEEDS: u64 = 30;

const FAULTS: Faults = Faults {
    short: 300,
    failed: 60,
    delayed: 300,
};

/// What the disk must hold. `None`: a write there failed, so either is right.
type Model = Vec<Option<u8>>;

struct Sent {
    kind: u32,
    /// In bytes.
    place: usize,
    bytes: Vec<u8>,
    data: Buffer,
    status: Buffer,
}

/// As if open for direct access in blocks greater than a sector, so that lanes share blocks. The
/// file takes everything else too.
fn config() -> BlockConfig {
    BlockConfig {
        direct: true,
        direct_alignment: 2048,
        physical_block_size: 2048,
        ..BlockConfig::default()
    }
}

/// Plays one seed, and gives what happened: which request ended how, in order.
fn play(seed: u64) -> Vec<(usize, u8)> {
    // In memory: what a real disk does with a sync is not what this is about.
    let file = memfd_create("disk", MemfdFlags::CLOEXEC).unwrap();
    let file = File::from(file);
    file.set_len((SECTORS * SECTOR) as u64).unwrap();
    let executor = Executor::simulated(seed, FAULTS);
    let handle = executor.handle().clone();
    let played = executor.run(async {
        let features = F_FLUSH | F_DISCARD | F_WRITE_ZEROES;
        let mut disk = disk_with(&handle, &file, config(), features);
        let mut model: Model = vec![Some(0); SECTORS * SECTOR];
        let mut trace = Vec::new();
        for round in 0..ROUNDS {
            let mut sent = HashMap::new();
            for lane in 0..LANES {
                let (token, request) = send(&mut disk, lane, round);
                sent.insert(token, (lane, request));
            }
            while !sent.is_empty() {
                let used = disk.used(0).await;
                let (lane, request) = sent.remove(&used.token).unwrap();
                let status = disk.bytes(request.status)[0];
                judge(&disk, &mut model, &request, status, seed);
                trace.push((lane, status));
            }
        }
        check_file(&file, &model, seed);
        trace
    });
    played.unwrap()
}

/// A read, a write or a flush, chosen by the seed, of some of the lane's sectors.
fn send(disk: &mut Disk, lane: usize, round: usize) -> (Token, Sent) {
    let random = |below: usize| (disk.handle.random() % below as u64) as usize;
    let kind = [IN, OUT, OUT, FLUSH, DISCARD, WRITE_ZEROES][random(6)];
    let first = random(LANE_SECTORS);
    let sectors = 1 + random(LANE_SECTORS - first);
    let cut = random(sectors * SECTOR);
    let sector = lane * LANE_SECTORS + first;
    let filling = |at: usize| match kind {
        DISCARD | WRITE_ZEROES => 0,
        _ => (at + round * 41 + lane) as u8,
    };
    let bytes: Vec<u8> = (0..sectors * SECTOR).map(filling).collect();
    let flags = if kind == WRITE_ZEROES && cut.is_multiple_of(2) {
        UNMAP
    } else {
        0
    };
    let ranges = disk.put(&range(sector as u64, sectors as u32, flags));
    let head = disk.put(&header(kind, sector as u64));
    let status = disk.put(&[UNTOLD]);
    let data = disk.put(&bytes);
    let parts: Vec<Buffer> = [
        Buffer::new(data.address, cut as u32),
        Buffer::new(data.address + cut as u64, data.length - cut as u32),
    ]
    .into_iter()
    .filter(|part| part.length > 0)
    .collect();
    let token = match kind {
        IN => disk.send(0, &[head], &[parts.as_slice(), &[status]].concat()),
        OUT => disk.send(0, &[&[head], parts.as_slice()].concat(), &[status]),
        DISCARD | WRITE_ZEROES => disk.send(0, &[head, ranges], &[status]),
        _ => disk.send(0, &[head], &[status]),
    };
    let place = sector * SECTOR;
    (
        token,
        Sent {
            kind,
            place,
            bytes,
            data,
            status,
        },
    )
}

/// The guest was told OK and it is so, or it was told of an error.
fn judge(disk: &Disk, model: &mut Model, request: &Sent, status: u8, seed: u64) {
    let range = request.place..request.place + request.bytes.len();
    match (request.kind, status) {
        (IN, OK) => {
            let read = disk.bytes(request.data);
            let right = model[range]
                .iter()
                .zip(&read)
                .all(|(is, got)| is.is_none_or(|is| is == *got));
            assert!(right, "seed {seed}: wrong data at {}", request.place);
        }
        (OUT | DISCARD | WRITE_ZEROES, OK) => {
            let written = model[range].iter_mut().zip(&request.bytes);
            written.for_each(|(is, byte)| *is = Some(*byte));
        }
        (OUT | DISCARD | WRITE_ZEROES, IO_ERROR) => {
            let tried = model[range].iter_mut().zip(&request.bytes);
            tried.for_each(|(is, byte)| *is = is.filter(|is| is == byte));
        }
        (IN, IO_ERROR) | (FLUSH, OK | IO_ERROR) => {}
        other => panic!("seed {seed}: {other:?}"),
    }
}

fn check_file(file: &File, model: &Model, seed: u64) {
    let mut bytes = vec![0; model.len()];
    file.read_exact_at(&mut bytes, 0).unwrap();
    let wrong = model
        .iter()
        .zip(&bytes)
        .position(|(is, got)| is.is_some_and(|is| is != *got));
    assert_eq!(wrong, None, "seed {seed}: the file is wrong there");
}

#[test]
fn whatever_the_ring_does_data_is_right_or_the_guest_is_told_of_an_error() {
    if let Ok(seed) = std::env::var("VUDEV_SEED") {
        play(seed.parse().expect("VUDEV_SEED is a number"));
        return;
    }
    let mut statuses = HashMap::new();
    for seed in 0..SEEDS {
        for (_, status) in play(seed) {
            *statuses.entry(status).or_insert(0u32) += 1;
        }
    }
    // The faults are really there, and not everywhere.
    assert!(
        statuses[&OK] > statuses[&IO_ERROR] && statuses[&IO_ERROR] > 50,
        "{statuses:?}"
    );
}

#[test]
fn a_seed_plays_the_same_again_and_another_one_differently() {
    let first = play(7);
    assert_eq!(first, play(7));
    assert_ne!(first, play(8));
    // Overtaking happens: not every round ends in the order it was sent.
    let in_order = first
        .chunks(LANES)
        .filter(|round| round.is_sorted_by_key(|it| it.0))
        .count();
    assert!(
        in_order < ROUNDS / 2,
        "{in_order} of {ROUNDS} rounds ended in order"
    );
}
