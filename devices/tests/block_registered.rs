//! Direct access through the ring's registered memory: what is bounced goes through it as long as
//! there is some, and otherwise through the heap.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test panics where it fails, and its numbers are small"
)]

use std::fs::File;

use rustix::process::{Resource, Rlimit, setrlimit};
use vudev_devices::block::BlockConfig;
use vudev_executor::{Allowed, Config, Executor, OPCODES, Ring};

mod common;

use common::disk::{
    Disk, IN, IO_ERROR, OK, OUT, SECTOR, UNTOLD, contents, direct_image, disk, header, pattern,
};
use common::limited::run_limited;

/// Sectors of a request of 4 KiB.
const PAGE: usize = 8;
/// What is registered: 128 KiB.
const PAGES: usize = 32;

/// What takes memory that is not registered: READV, WRITEV, READ, WRITE.
const OTHER: [u8; 4] = [1, 2, 22, 23];
/// `IOSQE_CQE_SKIP_SUCCESS`, which cancels carry.
const SKIP_SUCCESS: u8 = 1 << 6;

fn config(direct_alignment: u32) -> BlockConfig {
    BlockConfig {
        direct: true,
        direct_alignment,
        ..BlockConfig::default()
    }
}

/// A disk on a ring that takes reads and writes of registered memory only.
fn with_registered_only(
    (direct, alignment): (&File, u32),
    test: impl AsyncFnOnce(&Executor, &mut Disk),
) {
    let opcodes = OPCODES.iter().copied();
    let allowed = Allowed {
        opcodes: opcodes.filter(|code| !OTHER.contains(code)).collect(),
        flags: SKIP_SUCCESS,
    };
    let ring = Config {
        allowed: Some(allowed),
        ..Config::new(256)
    };
    let executor = Executor::new(Ring::new(&ring).unwrap());
    let mut disk = disk(executor.handle(), direct, config(alignment));
    executor.enable().unwrap();
    executor.run(test(&executor, &mut disk)).unwrap();
}

/// Asks for so many pages at once, into or from odd addresses; the status of each.
async fn at_once(disk: &mut Disk, kind: u32, pages: usize) -> Vec<u8> {
    let _ = disk.allocate(1, 1);
    let mut requests = Vec::new();
    for number in 0..pages {
        let head = disk.put(&header(kind, (number * PAGE) as u64));
        let data = disk.allocate(PAGE * SECTOR, 1);
        let status = disk.put(&[UNTOLD]);
        let written = pattern(number * PAGE + 1, PAGE);
        if kind == OUT {
            disk.memory.write(data.address, &written).unwrap();
            disk.ring(0).add(&[head, data], &[status]).unwrap();
        } else {
            disk.ring(0).add(&[head], &[data, status]).unwrap();
        }
        requests.push((data, status));
    }
    disk.ring(0).kick().unwrap();
    for _ in 0..pages {
        let _ = disk.used(0).await;
    }
    let told = |(number, (data, status)): (usize, _)| {
        let status = disk.bytes(status)[0];
        if kind == IN && status == OK {
            assert_eq!(disk.bytes(data), pattern(number * PAGE, PAGE));
        }
        status
    };
    requests.into_iter().enumerate().map(told).collect()
}

#[test]
fn bounced_requests_go_through_registered_memory_until_all_of_it_is_lent() {
    let (named, direct, alignment) = direct_image((PAGES + 1) * PAGE);
    with_registered_only((&direct, alignment), async |executor, disk| {
        let before = executor.handle().stats().operations;
        assert_eq!(at_once(disk, IN, PAGES).await, [OK; PAGES]);
        let operations = executor.handle().stats().operations - before;
        assert_eq!(operations, PAGES as u64);
        // This one is the heap's.
        let mut one_more = at_once(disk, IN, PAGES + 1).await;
        assert_eq!(one_more.pop(), Some(IO_ERROR));
        assert_eq!(one_more, [OK; PAGES]);
        // All has come back; and a part of a block is bounced as well.
        assert_eq!(at_once(disk, OUT, PAGES).await, [OK; PAGES]);
        assert_eq!(disk.write(1, &[7; SECTOR]).await.status, OK);
    });
    let mut expected: Vec<u8> = (0..PAGES)
        .flat_map(|number| pattern(number * PAGE + 1, PAGE))
        .collect();
    expected[SECTOR..2 * SECTOR].fill(7);
    assert!(contents(named.as_file())[..expected.len()] == expected);
}

/// Runs the next test in a process of its own, as a user whom a limit on locked memory binds.
#[test]
fn where_no_memory_may_be_locked_a_direct_disk_works_all_the_same() {
    run_limited("a_direct_disk_works_without_locked_memory");
}

#[test]
#[ignore = "limits its own process: run by the test above"]
fn a_direct_disk_works_without_locked_memory() {
    let (_named, direct, alignment) = direct_image(PAGES * PAGE);
    let executor = Executor::with_operations(256).unwrap();
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    setrlimit(Resource::Memlock, none).unwrap();
    let refused = executor.handle().registered().err();
    let errno = refused.and_then(|error| error.raw_os_error());
    assert_eq!(errno, Some(libc::ENOMEM), "the limit does not bind");
    let mut disk = disk(executor.handle(), &direct, config(alignment));
    let run = executor.run(async {
        assert_eq!(at_once(&mut disk, IN, PAGES).await, [OK; PAGES]);
        assert_eq!(at_once(&mut disk, OUT, PAGES).await, [OK; PAGES]);
    });
    run.unwrap();
}
