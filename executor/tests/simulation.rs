//! What the simulated ring promises: the same code runs on it, and a seed replays a run.

mod common;

use std::time::Duration;

use common::disk;
use vudev_executor::{Bytes, Executor, Faults, File};

const FAULTS: Faults = Faults {
    short: 200,
    failed: 100,
    delayed: 500,
};

/// Reads 64 blocks at once; in what order they complete, and with what result.
fn run(seed: u64) -> Vec<(u64, Result<usize, i32>)> {
    let executor = Executor::simulated(seed, FAULTS);
    let handle = executor.handle();
    let file = File::new(handle, disk(&[7; 64 * 16]));
    let order = std::rc::Rc::new(std::cell::RefCell::new(Vec::new()));
    executor
        .run(async {
            let tasks: Vec<_> = (0..64)
                .map(|i| {
                    let (file, order) = (file.clone(), order.clone());
                    handle.spawn(async move {
                        let (read, bytes) = file.read_at(Bytes::zeroed(16), i * 16).await;
                        let read = read.map_err(|error| error.raw_os_error().unwrap_or(0));
                        let transferred = read.unwrap_or(0);
                        assert!(
                            bytes.as_slice()[..transferred]
                                .iter()
                                .all(|&byte| byte == 7)
                        );
                        order.borrow_mut().push((i, read));
                    })
                })
                .collect();
            for task in tasks {
                task.await;
            }
        })
        .expect("a run to its end");
    order.take()
}

#[test]
fn a_seed_replays_a_run_and_another_differs() {
    let first = run(1);
    assert_eq!(first, run(1));
    assert_ne!(first, run(2));
    assert!(
        !first.is_sorted_by_key(|(i, _)| *i),
        "completions overtake each other"
    );
    assert!(first.iter().any(|(_, read)| *read == Err(libc::EIO)));
    assert!(first.iter().any(|(_, read)| matches!(read, Ok(1..16))));
    assert!(first.iter().any(|(_, read)| *read == Ok(16)));
}

#[test]
fn its_clock_costs_no_time() {
    let executor = Executor::simulated(3, Faults::default());
    let handle = executor.handle();
    let real = std::time::Instant::now();
    executor
        .run(async {
            let start = handle.now();
            handle.sleep(Duration::from_secs(3600)).await;
            assert!(handle.now() - start >= Duration::from_secs(3600));
        })
        .unwrap();
    assert!(real.elapsed() < Duration::from_secs(60));
    assert_eq!(Executor::simulated(9, FAULTS).handle().random(), {
        let again = Executor::simulated(9, FAULTS);
        again.handle().random()
    });
}
