//! What the disk's requests cost the executor, and what happens where the kernel cannot pay.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test panics where it fails, and its numbers are small"
)]

use std::time::Duration;

use rustix::fs::fstatfs;
use rustix::process::{Resource, Rlimit, setrlimit};
use vudev_devices::block::BlockConfig;
use vudev_executor::{Executor, Faults, Handle};
use vudev_frontend::Buffer;
use vudev_virtio::spec::feature;

mod common;

use common::costs::{Costs, wake_ups};
use common::disk::{
    DISCARD, Disk, F_DISCARD, F_FLUSH, F_WRITE_ZEROES, FLUSH, IN, OK, OUT, SECTOR, UNMAP, UNTOLD,
    WRITE_ZEROES, block, disk, disk_with, header, image, pattern, range,
};
use common::limited::run_limited;
use common::{Rig, run};

/// Sends `depth` requests with one kick, and checks what they read. The enters are those until the
/// last one was complete.
async fn costs(
    handle: &Handle,
    file: &std::fs::File,
    config: BlockConfig,
    kind: u32,
    depth: usize,
) -> Costs {
    costs_of(disk(handle, file, config), kind, depth).await
}

async fn costs_of(mut disk: Disk, kind: u32, depth: usize) -> Costs {
    let handle = &disk.handle.clone();
    // Whatever is made on first use is made now, and the pages are cached.
    let all = disk.read(0, 8 * depth * SECTOR).await;
    assert_eq!(all.status, OK);
    disk.settle().await;
    let requests: Vec<[Buffer; 3]> = (0..depth)
        .map(|number| {
            let head = disk.put(&header(kind, number as u64 * 8));
            let data = disk.allocate(4096, 4096);
            [head, data, disk.put(&[UNTOLD])]
        })
        .collect();
    for [head, data, status] in &requests {
        match kind {
            IN => disk.ring(0).add(&[*head], &[*data, *status]).unwrap(),
            _ => disk.ring(0).add(&[*head, *data], &[*status]).unwrap(),
        };
    }
    let before = Costs::so_far(handle);
    let calls = disk.ring(0).calls().unwrap();
    disk.ring(0).suppress_calls(false).unwrap();
    disk.ring(0).kick().unwrap();
    for _ in 0..depth {
        let _ = disk.used(0).await;
    }
    let Costs { enters, .. } = Costs::so_far(handle) - before;
    disk.settle().await;
    let costs = Costs {
        enters,
        ..Costs::so_far(handle) - before
    };
    for (number, [_, data, status]) in requests.iter().enumerate() {
        assert_eq!(disk.bytes(*status), [OK]);
        if kind == IN {
            assert_eq!(disk.bytes(*data), pattern(number * 8, 8));
        }
    }
    assert_eq!(disk.ring(0).calls().unwrap() - calls, costs.calls);
    costs
}

/// Depths at which a disk is counted.
const DEPTHS: [usize; 2] = [1, 32];

fn is_tmpfs(file: &std::fs::File) -> bool {
    fstatfs(file).unwrap().f_type == libc::TMPFS_MAGIC
}

#[test]
fn cached_requests_cost_one_system_call_each_one_enter_and_one_call_together() {
    for (kind, depth) in [IN, OUT]
        .into_iter()
        .flat_map(|kind| DEPTHS.map(|it| (kind, it)))
    {
        let file = image(8 * depth);
        if is_tmpfs(&file) {
            println!("SKIPPED: needs a temporary folder whose reads need no worker thread");
            return;
        }
        let config = BlockConfig::default();
        let costs = run(async |handle| costs(&handle, &file, config, kind, depth).await);
        let Costs {
            operations,
            at_once,
            enters,
            calls,
            ..
        } = costs;
        // A write may find out first that the file system cannot say whether it would wait.
        let tried = if kind == OUT { depth + 1 } else { depth } as u64;
        assert!(
            at_once == depth as u64 || at_once == tried,
            "{kind} {costs:?}"
        );
        assert_eq!((operations, calls), (0, 1), "{kind} {costs:?}");
        // The one that sees the kick.
        assert!(enters <= 1, "{kind} {costs:?}");
    }
}

#[test]
fn direct_requests_cost_one_operation_each_and_two_enters_together() {
    for depth in DEPTHS {
        let file = image(8 * depth);
        // The file takes everything, and what is asked for is as direct access wants it.
        let config = BlockConfig {
            direct: true,
            direct_alignment: 4096,
            physical_block_size: 4096,
            ..BlockConfig::default()
        };
        let costs = run(async |handle| costs(&handle, &file, config, IN, depth).await);
        assert_eq!((costs.operations, costs.at_once), (depth as u64, 0));
        // Where a file system cannot read cached pages without a worker thread (tmpfs), completions
        // come in their own time.
        if !is_tmpfs(&file) {
            // One enter to see the kick, one that submits all reads and completes them too.
            assert!(costs.enters <= 2 && costs.calls == 1, "{costs:?}");
        }
    }
}

#[test]
fn a_turn_s_completions_are_told_by_one_call_on_a_played_ring_too() {
    let file = image(8 * 32);
    let delayed = Faults {
        delayed: 500,
        ..Faults::default()
    };
    let executor = Executor::simulated(1, Faults::default());
    let config = BlockConfig::default();
    let at_once = costs(executor.handle(), &file, config.clone(), IN, 32);
    let at_once = executor.run(at_once).unwrap();
    assert_eq!((at_once.operations, at_once.at_once), (0, 32));
    assert!(at_once.enters <= 2 && at_once.calls == 1, "{at_once:?}");
    // What would wait goes through the ring, and nothing is lost on the way.
    let executor = Executor::simulated(1, delayed);
    let mixed = costs(executor.handle(), &file, config, IN, 32);
    let mixed = executor.run(mixed).unwrap();
    assert_eq!(mixed.at_once, 32);
    assert!((1..32).contains(&mixed.operations), "{mixed:?}");
}

#[test]
fn a_write_that_had_to_wait_sends_those_after_it_through_the_ring_for_a_while() {
    let file = image(64);
    let faults = Faults {
        delayed: 500,
        ..Faults::default()
    };
    let executor = Executor::simulated(1, faults);
    let handle = executor.handle();
    let run = executor.run(async {
        let mut disk = disk(handle, &file, BlockConfig::default());
        let counts = || (handle.stats().at_once, handle.stats().operations);
        for _ in 0..20 {
            assert_eq!(disk.write(8, &pattern(1, 8)).await.status, OK);
        }
        // The seed has let two of these wait, two milliseconds each: the second one was watched.
        let (at_once, operations) = counts();
        for _ in 0..20 {
            assert_eq!(disk.write(8, &pattern(2, 8)).await.status, OK);
        }
        assert_eq!(counts(), (at_once, operations + 20));
        handle.sleep(Duration::from_millis(40)).await;
        assert_eq!(disk.write(8, &pattern(3, 8)).await.status, OK);
        assert_eq!(counts(), (at_once + 1, operations + 20));
    });
    run.unwrap();
}

/// Without event indices the driver wants every call that it gets: a call for each completion
/// would be counted, where with them the first one says it all.
#[test]
fn a_turn_s_completions_are_told_by_one_call_to_a_driver_without_event_indices_too() {
    let features = F_FLUSH | feature::FRAMEWORK & !feature::EVENT_IDX;
    for kind in [IN, OUT] {
        for depth in DEPTHS {
            let file = image(8 * depth);
            let costs = run(async |handle| {
                let block = block(&handle, &file, BlockConfig::default());
                let disk = Rig::prepare_with(&handle, block, features).started();
                costs_of(disk, kind, depth).await
            });
            if is_tmpfs(&file) {
                println!("SKIPPED: needs a temporary folder whose reads need no worker thread");
                return;
            }
            assert_eq!(costs.calls, 1, "{kind} {costs:?}");
        }
    }
}

#[test]
fn an_idle_disk_is_not_woken() {
    let file = image(8);
    run(async |handle| {
        let mut disk = disk(&handle, &file, BlockConfig::default());
        assert_eq!(disk.read(0, 512).await.status, OK);
        assert_eq!(wake_ups(&disk).await, 0);
    });
}

#[test]
fn one_turn_moves_only_so_much_at_once_and_the_rest_through_the_ring() {
    // Two requests of 1 MiB each: the first one spends the turn.
    const LONG: usize = 2048;
    let file = image(2 * LONG);
    if is_tmpfs(&file) {
        println!("SKIPPED: needs a temporary folder whose reads need no worker thread");
        return;
    }
    run(async |handle| {
        let mut disk = disk(&handle, &file, BlockConfig::default());
        disk.settle().await;
        let mut parts = Vec::new();
        for number in [0, LONG] {
            let head = disk.put(&header(IN, number as u64));
            let data = disk.allocate(LONG * SECTOR, 4096);
            let status = disk.put(&[UNTOLD]);
            disk.ring(0).add(&[head], &[data, status]).unwrap();
            parts.push((number, data, status));
        }
        let before = handle.stats();
        disk.ring(0).kick().unwrap();
        for _ in &parts {
            let _ = disk.used(0).await;
        }
        let after = handle.stats();
        assert_eq!(after.at_once - before.at_once, 1);
        assert!(after.operations > before.operations);
        for (number, data, status) in parts {
            assert_eq!(disk.bytes(status), [OK]);
            assert_eq!(disk.bytes(data), pattern(number, LONG));
        }
    });
}

#[test]
fn without_flush_negotiated_a_write_is_followed_by_a_sync() {
    let file = image(8);
    run(async |handle| {
        let mut through = disk_with(&handle, &file, BlockConfig::default(), 0);
        through.settle().await;
        let before = handle.stats().operations;
        // A part of a page is the ring's to write: it may have to be read first.
        assert_eq!(through.write(0, &[1; 512]).await.status, OK);
        assert_eq!(handle.stats().operations - before, 2);

        let mut back = disk(&handle, &file, BlockConfig::default());
        back.settle().await;
        let before = handle.stats().operations;
        assert_eq!(back.write(0, &[1; 512]).await.status, OK);
        assert_eq!(handle.stats().operations - before, 1);
    });
}

/// Runs the next test in a process of its own, as a user whom a limit on processes binds.
#[test]
fn where_the_kernel_can_make_no_worker_thread_requests_are_done_all_the_same() {
    run_limited("writes_and_flushes_without_worker_threads");
}

#[test]
#[ignore = "limits its own process: run by the test above"]
fn writes_and_flushes_without_worker_threads() {
    let file = image(64);
    run(async |handle| {
        let features = F_FLUSH | F_DISCARD | F_WRITE_ZEROES;
        let mut disk = disk_with(&handle, &file, BlockConfig::default(), features);
        let none = Rlimit {
            current: Some(0),
            maximum: Some(0),
        };
        setrlimit(Resource::Nproc, none).unwrap();
        assert_eq!(disk.request(FLUSH, 0, &[], 0).await.status, OK);
        let before = handle.stats().operations;
        let data = pattern(7, 47);
        // Parts of pages, which the ring would hand to a worker.
        assert_eq!(disk.write(9, &data).await.status, OK);
        assert!(
            handle.stats().operations > before + 1,
            "the limit does not bind"
        );
        assert_eq!(disk.read(9, data.len()).await.data, data);
        assert_eq!(disk.request(FLUSH, 0, &[], 0).await.status, OK);
        // Zeros are written then, and giving space back can wait.
        assert_eq!(disk.change(DISCARD, &range(0, 8, 0)).await.status, OK);
        let zeroed = disk.change(WRITE_ZEROES, &range(8, 40, UNMAP)).await;
        assert_eq!(zeroed.status, OK);
        assert_eq!(disk.read(8, 40 * SECTOR).await.data, [0; 40 * SECTOR]);
        assert_eq!(disk.read(48, 8 * SECTOR).await.data, data[39 * SECTOR..]);
    });
}
