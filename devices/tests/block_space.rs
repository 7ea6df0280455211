//! What a driver can ask of a disk beyond reading and writing: ranges given back or made zero, the
//! cache mode, and another size.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test panics where it fails, and its numbers are small"
)]

use std::fs::File;
use std::os::unix::fs::MetadataExt;

use rustix::fs::{MemfdFlags, memfd_create};
use vudev_devices::block::BlockConfig;
use vudev_executor::Handle;
use vudev_virtio::Device;

mod common;

use common::disk::{
    DISCARD, Disk, F_CONFIG_WCE, F_DISCARD, F_FLUSH, F_WRITE_ZEROES, FLUSH, IO_ERROR, OK, SECTOR,
    UNMAP, UNSUPPORTED, WRITE_ZEROES, contents, disk, disk_with, image, pattern, range,
};
use common::{LIMIT, run};

const ALL: u64 = F_FLUSH | F_CONFIG_WCE | F_DISCARD | F_WRITE_ZEROES;

/// Where the cache mode is in the configuration space.
const WRITEBACK_AT: usize = 32;

/// A driver that took everything.
fn whole(handle: &Handle, file: &File, config: BlockConfig) -> Disk {
    disk_with(handle, file, config, ALL)
}

/// A file in memory, which has no zeroed ranges (tmpfs).
fn in_memory(sectors: usize) -> File {
    let file = File::from(memfd_create("disk", MemfdFlags::CLOEXEC).unwrap());
    std::io::Write::write_all(&mut &file, &pattern(0, sectors)).unwrap();
    file
}

/// Bytes that a file takes, in sectors of 512 whatever its file system has.
fn taken(file: &File) -> u64 {
    file.sync_all().unwrap();
    file.metadata().unwrap().blocks()
}

fn capacity(disk: &Disk) -> u64 {
    let mut bytes = [0; 8];
    disk.device.read_config(0, &mut bytes);
    u64::from_le_bytes(bytes)
}

fn is_writeback(disk: &Disk) -> bool {
    let mut mode = [0xff];
    disk.device.read_config(WRITEBACK_AT, &mut mode);
    mode == [1]
}

#[test]
fn discarded_ranges_are_given_back_and_nothing_else_is_touched() {
    let file = image(1024);
    let before = taken(&file);
    run(async |handle| {
        let mut disk = whole(&handle, &file, BlockConfig::default());
        let ranges = [range(8, 256, 0), range(512, 256, 0), range(1024, 0, 0)].concat();
        assert_eq!(disk.change(DISCARD, &ranges).await.status, OK);
        let mut expected = pattern(0, 1024);
        expected[8 * SECTOR..264 * SECTOR].fill(0);
        expected[512 * SECTOR..768 * SECTOR].fill(0);
        assert!(contents(&file) == expected);
    });
    assert!(taken(&file) <= before - 400, "{before}");
}

#[test]
fn zeroed_ranges_read_as_zeros_and_only_unmap_gives_space_back() {
    let file = image(1024);
    let before = taken(&file);
    run(async |handle| {
        let mut disk = whole(&handle, &file, BlockConfig::default());
        let mut expected = pattern(0, 1024);
        let kept = disk.change(WRITE_ZEROES, &range(3, 301, 0)).await;
        assert_eq!(kept.status, OK);
        expected[3 * SECTOR..304 * SECTOR].fill(0);
        assert!(contents(&file) == expected);
        assert_eq!(taken(&file), before);

        let freed = disk.change(WRITE_ZEROES, &range(500, 400, UNMAP)).await;
        assert_eq!(freed.status, OK);
        expected[500 * SECTOR..900 * SECTOR].fill(0);
        assert!(contents(&file) == expected);
        assert!(taken(&file) <= before - 300);
    });
}

#[test]
fn a_disk_that_is_not_sparse_offers_no_discard_and_keeps_its_space() {
    let file = image(256);
    let before = taken(&file);
    run(async |handle| {
        let config = BlockConfig {
            sparse: false,
            ..BlockConfig::default()
        };
        let mut disk = disk_with(&handle, &file, config, ALL & !F_DISCARD);
        assert_eq!(disk.device.identity().features & F_DISCARD, 0);
        let refused = disk.change(DISCARD, &range(0, 8, 0)).await;
        assert_eq!(refused.status, UNSUPPORTED);
        let zeroed = disk.change(WRITE_ZEROES, &range(0, 256, UNMAP)).await;
        assert_eq!(zeroed.status, OK);
        assert!(contents(&file).iter().all(|byte| *byte == 0));
        assert_eq!(taken(&file), before);
    });
}

#[test]
fn where_the_file_system_zeroes_no_ranges_zeros_are_written() {
    const SECTORS: usize = 2048;
    let file = in_memory(SECTORS);
    run(async |handle| {
        let mut disk = whole(&handle, &file, BlockConfig::default());
        let mut expected = pattern(0, SECTORS);
        // Longer than a bounce buffer, and at its edges.
        for (first, count) in [(1, 1), (5, 700), (1000, 256), (2047, 1)] {
            let zeroed = disk.change(WRITE_ZEROES, &range(first, count, 0)).await;
            assert_eq!(zeroed.status, OK);
            let (first, count) = (first as usize, count as usize);
            expected[first * SECTOR..(first + count) * SECTOR].fill(0);
            assert!(contents(&file) == expected, "{first} {count}");
        }
    });
}

#[test]
fn a_range_made_zero_beyond_the_end_of_a_shortened_file_makes_it_no_longer() {
    for file in [image(64), in_memory(64)] {
        run(async |handle| {
            let mut disk = whole(&handle, &file, BlockConfig::default());
            file.set_len(32 * 512).unwrap();
            for (kind, flags) in [(DISCARD, 0), (WRITE_ZEROES, UNMAP), (WRITE_ZEROES, 0)] {
                // Whether that is an error is the file system's to say; an answer comes.
                let answer = disk.change(kind, &range(16, 32, flags)).await;
                assert!([OK, IO_ERROR].contains(&answer.status), "{kind}");
                assert_eq!(file.metadata().unwrap().len(), 32 * 512);
            }
            assert_eq!(disk.read(0, 512).await.data, pattern(0, 1));
        });
    }
}

#[test]
fn ranges_that_cannot_be_change_nothing() {
    let file = image(64);
    run(async |handle| {
        let mut disk = whole(&handle, &file, BlockConfig::default());
        let good = range(0, 8, 0);
        let cases = [
            (DISCARD, Vec::new(), IO_ERROR),
            (DISCARD, good[..15].to_vec(), IO_ERROR),
            (DISCARD, [&good[..], &[0; 4]].concat(), IO_ERROR),
            (DISCARD, good.repeat(17), IO_ERROR),
            (DISCARD, [&good[..], &range(63, 2, 0)].concat(), IO_ERROR),
            (
                DISCARD,
                [&good[..], &range(u64::MAX, 1, 0)].concat(),
                IO_ERROR,
            ),
            (
                DISCARD,
                [&good[..], &range(8, 8, UNMAP)].concat(),
                UNSUPPORTED,
            ),
            (DISCARD, range(0, 8, 1 << 31), UNSUPPORTED),
            (DISCARD, range(0, u32::MAX, 0), IO_ERROR),
            (WRITE_ZEROES, range(0, 8, 2), UNSUPPORTED),
            (WRITE_ZEROES, good.repeat(2), IO_ERROR),
            (WRITE_ZEROES, range(64, 1, UNMAP), IO_ERROR),
        ];
        for (kind, ranges, status) in cases {
            let answer = disk.change(kind, &ranges).await;
            assert_eq!(answer.status, status, "{kind} {ranges:?}");
        }
        // Room for an answer that such a request does not have.
        let answer = disk.request(DISCARD, 0, &good, 512).await;
        assert_eq!(answer.status, IO_ERROR);
        assert!(contents(&file) == pattern(0, 64));
        assert_eq!(disk.change(DISCARD, &good.repeat(16)).await.status, OK);
    });
}

#[test]
fn what_was_not_negotiated_is_unsupported_but_for_a_flush() {
    let file = image(64);
    run(async |handle| {
        let mut disk = disk_with(&handle, &file, BlockConfig::default(), 0);
        for (kind, ranges) in [(DISCARD, range(0, 8, 0)), (WRITE_ZEROES, range(0, 8, 0))] {
            assert_eq!(disk.change(kind, &ranges).await.status, UNSUPPORTED);
        }
        // There is nothing left to make durable, and drivers ask for it all the same.
        assert_eq!(disk.request(FLUSH, 0, &[], 0).await.status, OK);
        assert!(disk.device.write_config(WRITEBACK_AT, &[0]).is_err());
        assert!(contents(&file) == pattern(0, 64));
    });
}

#[test]
fn a_read_only_disk_offers_nothing_that_changes_it() {
    let file = image(8);
    run(async |handle| {
        let config = BlockConfig {
            read_only: true,
            ..BlockConfig::default()
        };
        let mut disk = disk(&handle, &file, config);
        let changing = F_DISCARD | F_WRITE_ZEROES | F_CONFIG_WCE;
        assert_eq!(disk.device.identity().features & changing, 0);
        for kind in [DISCARD, WRITE_ZEROES] {
            let answer = disk.change(kind, &range(0, 8, 0)).await;
            assert_eq!(answer.status, UNSUPPORTED);
        }
        assert!(contents(&file) == pattern(0, 8));
    });
}

/// How many operations a write comes to: with a sync it is two.
async fn operations_of_a_write(disk: &mut Disk) -> u64 {
    disk.settle().await;
    let before = disk.handle.stats().operations;
    assert_eq!(disk.write(0, &[1; 512]).await.status, OK);
    disk.handle.stats().operations - before
}

#[test]
fn writethrough_makes_each_write_durable_until_the_driver_chooses_otherwise() {
    let file = image(8);
    run(async |handle| {
        let config = BlockConfig {
            write_through: true,
            ..BlockConfig::default()
        };
        let mut disk = whole(&handle, &file, config);
        assert!(!is_writeback(&disk));
        assert_eq!(operations_of_a_write(&mut disk).await, 2);
        assert_eq!(disk.request(FLUSH, 0, &[], 0).await.status, OK);

        disk.device.write_config(WRITEBACK_AT, &[1]).unwrap();
        assert!(is_writeback(&disk));
        assert_eq!(operations_of_a_write(&mut disk).await, 1);

        let _ = disk.stop_queue(0).await;
        disk.device.reset();
        disk.device.negotiated(disk.features);
        disk.start_queue(0);
        assert!(!is_writeback(&disk), "a reset brings the operator's choice");
        assert_eq!(operations_of_a_write(&mut disk).await, 2);
    });
}

#[test]
fn a_driver_that_chooses_writethrough_finds_what_it_wrote_before_durable_too() {
    let file = image(8);
    run(async |handle| {
        let mut disk = whole(&handle, &file, BlockConfig::default());
        assert!(is_writeback(&disk));
        assert_eq!(operations_of_a_write(&mut disk).await, 1);
        let before = handle.stats().operations;
        disk.device.write_config(WRITEBACK_AT, &[0]).unwrap();
        disk.settle().await;
        assert_eq!(handle.stats().operations - before, 1, "a sync");
        assert!(!is_writeback(&disk));
        assert_eq!(operations_of_a_write(&mut disk).await, 2);
        let zeroed = disk.change(WRITE_ZEROES, &range(0, 8, 0)).await;
        assert_eq!(zeroed.status, OK);
        // Neither the field's neighbours nor more than it can be written.
        for (offset, bytes) in [(31, &[0][..]), (33, &[0]), (32, &[1, 0]), (0, &[0; 8])] {
            assert!(disk.device.write_config(offset, bytes).is_err());
        }
    });
}

#[test]
fn a_driver_that_took_the_mode_but_no_flush_finds_writethrough() {
    let file = image(8);
    run(async |handle| {
        let mut disk = disk_with(&handle, &file, BlockConfig::default(), F_CONFIG_WCE);
        assert!(!is_writeback(&disk));
        assert_eq!(operations_of_a_write(&mut disk).await, 2);
        // It could not make anything durable, whatever it chooses.
        disk.device.write_config(WRITEBACK_AT, &[1]).unwrap();
        assert_eq!(operations_of_a_write(&mut disk).await, 2);
    });
}

#[test]
fn a_refresh_tells_of_a_grown_and_of_a_shrunk_file_and_of_nothing_else() {
    let file = image(16);
    run(async |handle| {
        let mut disk = whole(&handle, &file, BlockConfig::default());
        let device = disk.device.clone();
        let told = async || {
            let told = handle.timeout(LIMIT, device.config_changed()).await;
            told.expect("the driver is told");
        };
        device.refresh();
        let mut waiting = Box::pin(device.config_changed());
        disk.settle().await;
        assert!(futures_poll(waiting.as_mut()), "nothing has changed");
        drop(waiting);
        assert_eq!(disk.read(16, 512).await.status, IO_ERROR);

        file.set_len(32 * 512).unwrap();
        device.refresh();
        told().await;
        assert_eq!(capacity(&disk), 32);
        assert_eq!(disk.write(31, &pattern(7, 1)).await.status, OK);
        assert_eq!(disk.read(31, 512).await.data, pattern(7, 1));
        assert_eq!(disk.read(32, 512).await.status, IO_ERROR);

        // No whole sector more.
        file.set_len(8 * 512 + 100).unwrap();
        device.refresh();
        told().await;
        assert_eq!(capacity(&disk), 8);
        for sector in [8, 31] {
            assert_eq!(disk.read(sector, 512).await.status, IO_ERROR);
            assert_eq!(disk.write(sector, &[1; 512]).await.status, IO_ERROR);
            let zeroes = disk.change(WRITE_ZEROES, &range(sector, 1, 0)).await;
            assert_eq!(zeroes.status, IO_ERROR);
        }
        assert_eq!(file.metadata().unwrap().len(), 8 * 512 + 100);
        assert_eq!(disk.read(7, 512).await.data, pattern(7, 1));

        file.set_len(0).unwrap();
        device.refresh();
        told().await;
        assert_eq!(capacity(&disk), 0);
        assert_eq!(disk.read(0, 512).await.status, IO_ERROR);
    });
}

/// Whether a future is not ready yet.
fn futures_poll<F: Future>(future: std::pin::Pin<&mut F>) -> bool {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    future.poll(&mut context).is_pending()
}
