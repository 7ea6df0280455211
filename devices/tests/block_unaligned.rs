//! Direct access in blocks greater than a guest's sectors: parts of blocks are read, changed and
//! written back, and no write of another request is lost by that.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test panics where it fails, and its numbers are small"
)]

use std::collections::HashMap;
use std::fs::File;

use vudev_devices::block::BlockConfig;
use vudev_executor::{Executor, Faults, Handle};
use vudev_frontend::{Buffer, Token};

mod common;

use common::disk::{
    DISCARD, Disk, F_DISCARD, F_FLUSH, F_WRITE_ZEROES, IN, IO_ERROR, OK, OUT, SECTOR, UNTOLD,
    WRITE_ZEROES, contents, direct_image, disk_with, header, image, pattern, range,
};
use common::run;

/// Sectors in a block of direct access, as these tests have it.
const BLOCK: usize = 8;

fn config() -> BlockConfig {
    BlockConfig {
        direct: true,
        direct_alignment: (BLOCK * SECTOR) as u32,
        physical_block_size: (BLOCK * SECTOR) as u32,
        ..BlockConfig::default()
    }
}

fn start(handle: &Handle, file: &File) -> Disk {
    disk_with(handle, file, config(), F_FLUSH | F_DISCARD | F_WRITE_ZEROES)
}

#[test]
fn any_sectors_are_read_and_written_with_direct_access_to_greater_blocks() {
    // Two bounce buffers and a bit.
    const SECTORS: usize = 1024;
    let (named, direct, _) = direct_image(SECTORS);
    run(async |handle| {
        let mut disk = start(&handle, &direct);
        let mut expected = pattern(0, SECTORS);
        for (seed, (first, count)) in [
            (0, 1),
            (1, 1),
            (7, 2),
            (8, 8),
            (9, 6),
            (15, 18),
            (3, 700),
            (256, 511),
            (1023, 1),
            (0, 1024),
        ]
        .into_iter()
        .enumerate()
        {
            let bytes = pattern(seed * 31 + 1, count);
            assert_eq!(disk.write(first as u64, &bytes).await.status, OK);
            expected[first * SECTOR..][..bytes.len()].copy_from_slice(&bytes);
            assert!(contents(named.as_file()) == expected, "{first} {count}");
            let read = disk.read(first as u64, bytes.len()).await;
            assert_eq!((read.status, read.written as usize), (OK, bytes.len() + 1));
            assert!(read.data == bytes, "{first} {count}");
        }
        assert_eq!(disk.read(1, 510).await.status, IO_ERROR);
        assert_eq!(disk.read(1023, 1024).await.status, IO_ERROR);
    });
    assert_eq!(named.as_file().metadata().unwrap().len(), 1024 * 512);
}

#[test]
fn a_part_of_a_block_that_is_no_longer_in_the_file_is_an_error_and_the_file_stays_short() {
    let (named, direct, _) = direct_image(64);
    run(async |handle| {
        let mut disk = start(&handle, &direct);
        named.as_file().set_len(32 * 512).unwrap();
        assert_eq!(disk.write(40, &[1; 512]).await.status, IO_ERROR);
        assert_eq!(disk.write(31, &[1; 1024]).await.status, IO_ERROR);
        assert_eq!(disk.read(40, 512).await.status, IO_ERROR);
        assert_eq!(named.as_file().metadata().unwrap().len(), 32 * 512);
        assert_eq!(disk.write(31, &pattern(9, 1)).await.status, OK);
        assert_eq!(disk.read(30, 512).await.data, pattern(30, 1));
    });
}

/// A request in flight: which sectors it changes, and to what.
struct Sent {
    kind: u32,
    place: usize,
    bytes: Vec<u8>,
    data: Buffer,
    status: Buffer,
}

/// Sends a request for some of the sectors that belong to one lane. `kind` says which.
fn send(disk: &mut Disk, kind: u32, sector: usize, sectors: usize, seed: usize) -> (Token, Sent) {
    let bytes = match kind {
        OUT => pattern(seed, sectors),
        _ => vec![0; sectors * SECTOR],
    };
    let head = disk.put(&header(kind, sector as u64));
    let status = disk.put(&[UNTOLD]);
    let data = match kind {
        DISCARD | WRITE_ZEROES => disk.put(&range(sector as u64, sectors as u32, 0)),
        _ => disk.put(&bytes),
    };
    let token = match kind {
        IN => disk.send(0, &[head], &[data, status]),
        _ => disk.send(0, &[head, data], &[status]),
    };
    let sent = Sent {
        kind,
        place: sector * SECTOR,
        bytes,
        data,
        status,
    };
    (token, sent)
}

/// Requests for neighbouring sectors of the same blocks, many at once, again and again. No two at
/// a time are for the same sector, so a driver may rely on each.
async fn play(disk: &mut Disk, file: &File, rounds: usize, seed: u64) {
    const SECTORS: usize = 64;
    let random = |below: usize| (disk.handle.random() % below as u64) as usize;
    let mut choices = (0..rounds * SECTORS).map(|_| [random(12), random(11), random(251)]);
    let choices: Vec<[usize; 3]> = choices.by_ref().collect();
    let mut choices = choices.into_iter();
    let mut model = pattern(0, SECTORS);
    for _ in 0..rounds {
        let mut sent = HashMap::new();
        let mut sector = 0;
        while sector < SECTORS {
            let [length, kind, filling] = choices.next().unwrap();
            let sectors = (1 + length).min(SECTORS - sector);
            let kind = [
                OUT,
                OUT,
                OUT,
                OUT,
                OUT,
                OUT,
                IN,
                IN,
                WRITE_ZEROES,
                DISCARD,
                OUT,
            ][kind];
            let (token, request) = send(disk, kind, sector, sectors, filling);
            sent.insert(token, request);
            sector += sectors;
        }
        while !sent.is_empty() {
            let used = disk.used(0).await;
            let request = sent.remove(&used.token).unwrap();
            assert_eq!(disk.bytes(request.status), [OK], "seed {seed}");
            let place = request.place..request.place + request.bytes.len();
            match request.kind {
                IN => {
                    let read = disk.bytes(request.data);
                    assert!(
                        read == model[place],
                        "seed {seed}: read at {}",
                        request.place
                    );
                }
                _ => model[place].copy_from_slice(&request.bytes),
            }
        }
        assert!(contents(file) == model, "seed {seed}");
    }
}

#[test]
fn writes_to_neighbouring_sectors_of_one_block_lose_nothing_of_each_other() {
    for seed in 1..20 {
        // Nothing fails here, but completions come late and in another order.
        let faults = Faults {
            delayed: 500,
            ..Faults::default()
        };
        // The order is what is played, so the file need not really be open for direct access.
        let file = image(64);
        let executor = Executor::simulated(seed, faults);
        let handle = executor.handle().clone();
        let played = executor.run(async {
            let mut disk = start(&handle, &file);
            play(&mut disk, &file, 20, seed).await;
        });
        played.unwrap();
    }
}

#[test]
fn the_same_holds_on_the_kernels_ring_and_a_real_disk() {
    let (named, direct, _) = direct_image(64);
    run(async |handle| {
        let mut disk = start(&handle, &direct);
        play(&mut disk, named.as_file(), 60, 0).await;
    });
}
