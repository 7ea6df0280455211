//! What a driver can rely on from the disk, told by a driver.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test panics where it fails, and its numbers are small"
)]

use std::fs::File;
use std::os::unix::fs::FileExt;

use vudev_devices::block::BlockConfig;
use vudev_executor::{Executor, Faults};
use vudev_frontend::Buffer;
use vudev_virtio::Device;

mod common;

use common::disk::{
    Answer, FLUSH, GET_ID, IN, IO_ERROR, OK, OUT, SECTOR, UNSUPPORTED, UNTOLD, contents,
    direct_image, disk, disk_with, header, image, pattern,
};
use common::run;

/// A request that was refused: nothing written but its status.
fn refused(status: u8, room: usize) -> Answer {
    Answer {
        status,
        data: vec![UNTOLD; room],
        written: if room == 0 { 1 } else { 0 },
    }
}

#[test]
fn what_was_written_and_flushed_is_in_the_file_and_is_read_back() {
    let file = image(64);
    run(async |handle| {
        let mut disk = disk(&handle, &file, BlockConfig::default());
        let data = pattern(1000, 8);
        assert_eq!(disk.write(4, &data).await.status, OK);
        assert_eq!(disk.request(FLUSH, 0, &[], 0).await, refused(OK, 0));
        let read = disk.read(3, 10 * SECTOR).await;
        assert_eq!(read.status, OK);
        assert_eq!(read.written, 10 * 512 + 1);
        assert_eq!(read.data[..SECTOR], pattern(3, 1));
        assert_eq!(read.data[SECTOR..9 * SECTOR], data);
        assert_eq!(read.data[9 * SECTOR..], pattern(12, 1));
        assert_eq!(contents(&file)[4 * SECTOR..12 * SECTOR], data);
    });
}

#[test]
fn the_disk_tells_its_name() {
    let file = image(1);
    run(async |handle| {
        let config = BlockConfig {
            id: Some("vudev-disk-42".into()),
            ..BlockConfig::default()
        };
        let mut disk = disk(&handle, &file, config);
        let answer = disk.request(GET_ID, 0, &[], 20).await;
        assert_eq!((answer.status, answer.written), (OK, 21));
        assert_eq!(answer.data, b"vudev-disk-42\0\0\0\0\0\0\0");
    });
}

#[test]
fn configuration_space_is_read_in_any_pieces() {
    let file = image(8);
    run(async |handle| {
        let disk = disk(&handle, &file, BlockConfig::default());
        let mut capacity = [0; 8];
        disk.device.read_config(0, &mut capacity[..3]);
        disk.device.read_config(3, &mut capacity[3..]);
        assert_eq!(u64::from_le_bytes(capacity), 8);
        let size = disk.device.identity().config_size;
        disk.device.read_config(size, &mut []);
        assert!(disk.device.write_config(32, &[1]).is_err());
    });
}

#[test]
fn a_request_beyond_the_end_or_not_in_whole_sectors_touches_nothing() {
    let file = image(8);
    run(async |handle| {
        let mut disk = disk(&handle, &file, BlockConfig::default());
        for (sector, length) in [
            (8, 512),
            (7, 1024),
            (u64::MAX, 512),
            (1 << 55, 512),
            (0, 511),
        ] {
            let read = disk.read(sector, length).await;
            assert_eq!(read, refused(IO_ERROR, length), "{sector} {length}");
            let write = disk.write(sector, &vec![0xaa; length]).await;
            assert_eq!(write, refused(IO_ERROR, 0), "{sector} {length}");
        }
        assert_eq!(contents(&file), pattern(0, 8));
        assert_eq!(disk.read(7, 512).await.status, OK);
    });
}

#[test]
fn a_read_only_disk_can_be_read_and_flushed_but_not_written() {
    let file = image(8);
    run(async |handle| {
        let config = BlockConfig {
            read_only: true,
            ..BlockConfig::default()
        };
        let mut disk = disk(&handle, &file, config);
        assert_eq!(disk.write(0, &[0xaa; 512]).await, refused(IO_ERROR, 0));
        assert_eq!(disk.read(0, 512).await.data, pattern(0, 1));
        assert_eq!(disk.request(FLUSH, 0, &[], 0).await.status, OK);
        assert_eq!(contents(&file), pattern(0, 8));
    });
}

#[test]
fn data_in_the_wrong_direction_is_an_error_and_an_unknown_type_is_unsupported() {
    let file = image(8);
    run(async |handle| {
        let mut disk = disk(&handle, &file, BlockConfig::default());
        assert_eq!(
            disk.request(IN, 0, &[0; 512], 512).await,
            refused(IO_ERROR, 512)
        );
        assert_eq!(disk.request(OUT, 0, &[], 512).await, refused(IO_ERROR, 512));
        assert_eq!(
            disk.request(OUT, 0, &[1; 512], 512).await,
            refused(IO_ERROR, 512)
        );
        assert_eq!(
            disk.request(GET_ID, 0, &[], 19).await,
            refused(IO_ERROR, 19)
        );
        assert_eq!(
            disk.request(11, 0, &[1; 16], 0).await,
            refused(UNSUPPORTED, 0)
        );
        assert_eq!(contents(&file), pattern(0, 8));
    });
}

#[test]
fn chains_that_are_too_short_come_back_and_the_next_request_is_served() {
    let file = image(8);
    run(async |handle| {
        let mut disk = disk(&handle, &file, BlockConfig::default());
        let status = disk.put(&[UNTOLD]);
        let short = disk.put(&header(IN, 0)[..10]);
        assert_eq!(disk.chain(&[short], &[status]).await.written, 1);
        assert_eq!(disk.bytes(status), [IO_ERROR]);

        // A status and nothing else.
        disk.memory.write(status.address, &[UNTOLD]).unwrap();
        assert_eq!(disk.chain(&[], &[status]).await.written, 1);
        assert_eq!(disk.bytes(status), [IO_ERROR]);

        // No room for a status.
        let write = disk.put(&[header(OUT, 0), vec![0xaa; 512]].concat());
        assert_eq!(disk.chain(&[write], &[]).await.written, 0);
        assert_eq!(disk.read(0, 512).await.data, pattern(0, 1));
    });
}

#[test]
fn how_a_request_is_cut_into_buffers_means_nothing() {
    let file = image(8);
    run(async |handle| {
        let mut disk = disk(&handle, &file, BlockConfig::default());
        // Header, data and status of a read in odd pieces, with the status behind data.
        let head = header(IN, 2);
        let readable: Vec<Buffer> = head.chunks(5).map(|piece| disk.put(piece)).collect();
        let writable = [
            disk.allocate(1, 1),
            disk.allocate(510, 1),
            disk.allocate(514, 1),
        ];
        assert_eq!(disk.chain(&readable, &writable).await.written, 1025);
        let data: Vec<u8> = writable
            .iter()
            .flat_map(|piece| disk.bytes(*piece))
            .collect();
        assert_eq!(data[..1024], pattern(2, 2));
        assert_eq!(data[1024], OK);

        // A write whose header and data share a buffer.
        let write = disk.put(&[header(OUT, 5), pattern(70, 1)].concat());
        let status = disk.put(&[UNTOLD]);
        let _ = disk.chain(&[write], &[status]).await;
        assert_eq!(disk.bytes(status), [OK]);
        assert_eq!(contents(&file)[5 * SECTOR..6 * SECTOR], pattern(70, 1));
    });
}

#[test]
fn many_requests_in_flight_each_get_their_own_data() {
    let file = image(512);
    run(async |handle| {
        let mut disk = disk(&handle, &file, BlockConfig::default());
        let mut expected = std::collections::HashMap::new();
        for request in 0..60usize {
            let sector = request * 37 % 500;
            let head = disk.put(&header(IN, sector as u64));
            let data = disk.allocate(4 * SECTOR, 512);
            let status = disk.put(&[UNTOLD]);
            let token = disk.ring(0).add(&[head], &[data, status]).unwrap();
            expected.insert(token, (sector, data, status));
        }
        disk.ring(0).kick().unwrap();
        while !expected.is_empty() {
            let used = disk.used(0).await;
            let (sector, data, status) = expected.remove(&used.token).unwrap();
            assert_eq!(disk.bytes(status), [OK]);
            assert_eq!(disk.bytes(data), pattern(sector, 4));
        }
    });
}

#[test]
fn a_file_that_has_become_shorter_gives_errors_beyond_its_end_and_tells_what_was_read() {
    let file = image(16);
    run(async |handle| {
        let mut disk = disk(&handle, &file, BlockConfig::default());
        file.set_len(4 * 512).unwrap();
        assert_eq!(disk.read(8, 512).await, refused(IO_ERROR, 512));
        let half = disk.read(2, 4 * SECTOR).await;
        assert_eq!((half.status, half.written), (IO_ERROR, 2 * 512));
        assert_eq!(half.data[..2 * SECTOR], pattern(2, 2));
        assert_eq!(disk.read(0, 512).await.status, OK);
    });
}

#[test]
fn a_full_disk_is_an_error_and_the_next_request_is_served() {
    // Takes no byte more, and reads as zeros.
    let full = File::options().read(true).write(true).open("/dev/full");
    let full = full.unwrap();
    run(async |handle| {
        let config = BlockConfig {
            capacity: 4096,
            ..BlockConfig::default()
        };
        let mut disk = disk(&handle, &full, config);
        assert_eq!(disk.write(0, &[1; 512]).await, refused(IO_ERROR, 0));
        assert_eq!(disk.read(0, 512).await.data, [0; 512]);
    });
}

#[test]
fn a_write_that_the_file_refuses_is_an_error() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(4096).unwrap();
    let read_only = File::open(file.path()).unwrap();
    run(async |handle| {
        let mut disk = disk(&handle, &read_only, BlockConfig::default());
        assert_eq!(disk.write(0, &[1; 512]).await, refused(IO_ERROR, 0));
        assert_eq!(disk.read(0, 512).await.status, OK);
    });
}

#[test]
fn direct_access_takes_memory_at_any_address_and_requests_longer_than_a_bounce_buffer() {
    const SECTORS: usize = 1024;
    let (named, direct, alignment) = direct_image(SECTORS);
    run(async |handle| {
        let config = BlockConfig {
            direct: true,
            direct_alignment: alignment,
            ..BlockConfig::default()
        };
        let mut disk = disk(&handle, &direct, config);
        for align in [1, 4096] {
            // An odd address for the first, a page for the second.
            let _ = disk.allocate(1, 1);
            let head = disk.put(&header(IN, 0));
            let data = disk.allocate(SECTORS * SECTOR, align);
            let status = disk.put(&[UNTOLD]);
            let used = disk.chain(&[head], &[data, status]).await;
            assert_eq!(disk.bytes(status), [OK]);
            assert_eq!(used.written as usize, SECTORS * SECTOR + 1);
            assert_eq!(disk.bytes(data), pattern(0, SECTORS));

            let bytes = pattern(align as usize, SECTORS / 2);
            let data = disk.allocate(bytes.len(), align);
            disk.memory.write(data.address, &bytes).unwrap();
            let head = disk.put(&header(OUT, 512));
            let _ = disk.chain(&[head, data], &[status]).await;
            assert_eq!(disk.bytes(status), [OK]);
            assert_eq!(contents(named.as_file())[512 * SECTOR..], bytes);
            named
                .as_file()
                .write_all_at(&pattern(0, SECTORS), 0)
                .unwrap();
        }
    });
}

#[test]
fn a_stopped_queue_goes_on_where_it_was() {
    let file = image(8);
    run(async |handle| {
        let mut disk = disk(&handle, &file, BlockConfig::default());
        assert_eq!(disk.read(0, 512).await.status, OK);
        assert_eq!(disk.stop_queue(0).await, 1);
        disk.start_queue(0);
        assert_eq!(disk.read(1, 512).await.data, pattern(1, 1));
        assert_eq!(disk.stop_queue(0).await, 2);
    });
}

#[test]
fn whatever_a_driver_sends_comes_back_and_a_read_only_disk_stays_as_it_is() {
    const SEED: u64 = 4;
    let file = image(16);
    // Only its randomness and its order are played here; nothing fails.
    let executor = Executor::simulated(SEED, Faults::default());
    let handle = executor.handle().clone();
    let run = executor.run(async {
        let config = BlockConfig {
            read_only: true,
            ..BlockConfig::default()
        };
        let mut disk = disk_with(&handle, &file, config, 0);
        let random = |below: u64| handle.random() % below;
        for _ in 0..3000 {
            let kind = [IN, OUT, FLUSH, GET_ID, random(20) as u32][random(5) as usize];
            let sector = [random(20), u64::MAX - random(3), 1 << random(64)][random(3) as usize];
            let mut head = header(kind, sector);
            if random(4) == 0 {
                head.truncate(random(16) as usize);
            }
            let mut readable: Vec<Buffer> = Vec::new();
            if !head.is_empty() {
                readable.push(disk.put(&head));
            }
            let some = |most| -> Vec<Buffer> {
                let length = |exact: bool| {
                    if exact {
                        512
                    } else {
                        1 + random(1500) as usize
                    }
                };
                (0..random(most))
                    .map(|_| disk.allocate(length(random(3) > 0), 1))
                    .collect()
            };
            readable.extend(some(3));
            let mut writable = some(4);
            if random(2) == 0 || readable.len() + writable.len() == 0 {
                writable.push(disk.put(&[UNTOLD]));
            }
            let room: u32 = writable.iter().map(|buffer| buffer.length).sum();
            let used = disk.chain(&readable, &writable).await;
            assert!(used.written <= room);
        }
        assert_eq!(disk.read(15, SECTOR).await.data, pattern(15, 1));
    });
    run.unwrap();
    assert_eq!(contents(&file), pattern(0, 16));
}
