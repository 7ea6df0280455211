//! What the disk's requests cost the executor, and what happens where the kernel cannot pay.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test panics where it fails, and its numbers are small"
)]

use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::fs::fstatfs;
use rustix::process::{Resource, Rlimit, getuid, setrlimit};
use vudev_devices::block::BlockConfig;
use vudev_executor::{Executor, Faults, Handle};
use vudev_frontend::Buffer;

mod common;

use common::disk::{
    DISCARD, F_DISCARD, F_FLUSH, F_WRITE_ZEROES, FLUSH, IN, OK, SECTOR, UNMAP, UNTOLD,
    WRITE_ZEROES, disk, disk_with, header, image, pattern, range,
};
use common::run;

const DEPTH: usize = 32;

/// What so many reads at once have cost.
#[derive(Debug, PartialEq, Eq)]
struct Costs {
    operations: u64,
    /// Until the last one was complete.
    enters: u64,
    calls: u64,
}

/// Sends [`DEPTH`] reads with one kick, and checks what they read.
async fn costs(handle: &Handle, file: &std::fs::File) -> Costs {
    let mut disk = disk(handle, file, BlockConfig::default());
    // Whatever is made on first use is made now, and the pages are cached.
    assert_eq!(disk.read(0, 64 * DEPTH * SECTOR).await.status, OK);
    disk.settle().await;
    let requests: Vec<[Buffer; 3]> = (0..DEPTH)
        .map(|number| {
            let head = disk.put(&header(IN, number as u64 * 8));
            [head, disk.allocate(4096, 4096), disk.put(&[UNTOLD])]
        })
        .collect();
    for [head, data, status] in &requests {
        disk.ring(0).add(&[*head], &[*data, *status]).unwrap();
    }
    let before = handle.stats();
    let calls = disk.ring(0).calls().unwrap();
    disk.ring(0).suppress_calls(false).unwrap();
    disk.ring(0).kick().unwrap();
    for _ in 0..DEPTH {
        let _ = disk.used(0).await;
    }
    let enters = handle.stats().enters - before.enters;
    disk.settle().await;
    let after = handle.stats();
    for (number, [_, data, status]) in requests.iter().enumerate() {
        assert_eq!(disk.bytes(*status), [OK]);
        assert_eq!(disk.bytes(*data), pattern(number * 8, 8));
    }
    let calls = disk.ring(0).calls().unwrap() - calls;
    assert_eq!(calls, after.calls - before.calls);
    let operations = after.operations - before.operations;
    Costs {
        operations,
        enters,
        calls,
    }
}

#[test]
fn thirty_two_reads_cost_thirty_two_operations_one_enter_and_one_call() {
    let file = image(64 * DEPTH);
    let costs = run(async |handle| costs(&handle, &file).await);
    assert_eq!(costs.operations, DEPTH as u64);
    // Where a file system cannot read cached pages without a worker thread (tmpfs), completions
    // come in their own time.
    let tmpfs = fstatfs(&file).unwrap().f_type == libc::TMPFS_MAGIC;
    if !tmpfs {
        // One enter to see the kick, one that submits all reads and completes them too.
        assert!(costs.enters <= 2 && costs.calls == 1, "{costs:?}");
    }
}

#[test]
fn a_turn_s_completions_are_told_by_one_call_on_a_played_ring_too() {
    let file = image(64 * DEPTH);
    let executor = Executor::simulated(1, Faults::default());
    let costs = executor.run(costs(executor.handle(), &file)).unwrap();
    assert_eq!(costs.operations, DEPTH as u64);
    assert!(costs.enters <= 2 && costs.calls == 1, "{costs:?}");
}

#[test]
fn without_flush_negotiated_a_write_is_followed_by_a_sync() {
    let file = image(8);
    run(async |handle| {
        let mut through = disk_with(&handle, &file, BlockConfig::default(), 0);
        through.settle().await;
        let before = handle.stats().operations;
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
    let mut child = Command::new("/proc/self/exe");
    child.args(["--exact", "writes_and_flushes_without_worker_threads"]);
    child.args(["--ignored", "--test-threads=1"]);
    if getuid().is_root() {
        // The user that owns nothing, on every Linux.
        child
            .uid(65534)
            .gid(65534)
            .current_dir("/")
            .env_remove("TMPDIR");
    }
    let output = child.output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && told.contains("1 passed"),
        "{told}"
    );
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
        let data = pattern(7, 48);
        assert_eq!(disk.write(8, &data).await.status, OK);
        assert!(
            handle.stats().operations > before + 1,
            "the limit does not bind"
        );
        assert_eq!(disk.read(8, data.len()).await.data, data);
        assert_eq!(disk.request(FLUSH, 0, &[], 0).await.status, OK);
        // Zeros are written then, and giving space back can wait.
        assert_eq!(disk.change(DISCARD, &range(0, 8, 0)).await.status, OK);
        let zeroed = disk.change(WRITE_ZEROES, &range(8, 40, UNMAP)).await;
        assert_eq!(zeroed.status, OK);
        assert_eq!(disk.read(8, 40 * SECTOR).await.data, [0; 40 * SECTOR]);
        assert_eq!(disk.read(48, 8 * SECTOR).await.data, data[40 * SECTOR..]);
    });
}
