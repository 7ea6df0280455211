//! Counts what the disk allocates for a request, which is nothing. In a binary of its own, since
//! the allocator is replaced.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test panics where it fails, and its numbers are small"
)]

use vudev_devices::block::BlockConfig;
use vudev_virtio::testing::allocations::{CountingAllocator, allocations};

mod common;

use common::disk::{
    DISCARD, Disk, F_DISCARD, F_FLUSH, F_WRITE_ZEROES, IN, OK, OUT, SECTOR, UNTOLD, WRITE_ZEROES,
    disk_with, header, image, range,
};
use common::run;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const DEPTH: usize = 32;

/// Sends [`DEPTH`] requests at once, and counts what is allocated until the last is done, by the
/// device and the executor: the driver allocates before and after.
async fn serve_and_count(disk: &mut Disk, kind: u32, sent: &mut u16) -> u64 {
    let mut statuses = Vec::new();
    for number in 0..DEPTH {
        let head = disk.put(&header(kind, number as u64));
        let data = match kind {
            DISCARD | WRITE_ZEROES => disk.put(&range(number as u64, 1, 0)),
            _ => disk.allocate(SECTOR, 512),
        };
        let status = disk.put(&[UNTOLD]);
        let (readable, writable) = match kind {
            IN => (vec![head], vec![data, status]),
            _ => (vec![head, data], vec![status]),
        };
        disk.ring(0).add(&readable, &writable).unwrap();
        statuses.push(status);
    }
    *sent += DEPTH as u16;
    let before = allocations();
    disk.ring(0).kick().unwrap();
    while !disk.is_idle(0, *sent) {
        disk.handle.yield_now().await;
    }
    let allocated = allocations() - before;
    for status in statuses {
        let _ = disk.used(0).await;
        assert_eq!(disk.bytes(status), [OK]);
    }
    allocated
}

/// Once the disk has warmed up, requests of every kind allocate nothing.
fn allocates_nothing(config: BlockConfig) {
    let file = image(64);
    run(async |handle| {
        let features = F_FLUSH | F_DISCARD | F_WRITE_ZEROES;
        let mut disk = disk_with(&handle, &file, config, features);
        let kinds = [IN, OUT, DISCARD, WRITE_ZEROES];
        let mut sent = 0;
        for _ in 0..4 {
            for kind in kinds {
                serve_and_count(&mut disk, kind, &mut sent).await;
            }
        }
        for kind in kinds {
            let count = serve_and_count(&mut disk, kind, &mut sent).await;
            assert_eq!(count, 0, "for {DEPTH} requests of type {kind}");
        }
    });
}

#[test]
fn a_request_allocates_nothing_once_the_disk_has_warmed_up() {
    allocates_nothing(BlockConfig::default());
}

#[test]
fn a_request_for_a_part_of_a_block_allocates_nothing_either() {
    // The bounce buffers are those of direct access; the file takes everything.
    allocates_nothing(BlockConfig {
        direct: true,
        direct_alignment: 4096,
        physical_block_size: 4096,
        ..BlockConfig::default()
    });
}
