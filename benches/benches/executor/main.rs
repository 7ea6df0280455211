//! The executor beside `tokio-uring`, `monoio`, `compio`, a loop over the bare ring and bare system
//! calls, each at the same work on one thread:
//!
//! - `turn`: a task gives one turn to everybody else;
//! - `round`: an eventfd is signalled, the task that waits for it wakes and signals another, as a
//!   device does for its guest. Both signals are plain writes; only the wait is the executor's;
//! - `spawn`: a task is made, run and awaited;
//! - `timer`: a deadline that does not come is set and taken back, as around every operation with a
//!   time limit;
//! - `read 4 KiB` at depth 1 and 32: of a file in the page cache, in random places, by that many
//!   tasks.
//!
//! Time is the processor time of the process: nobody here waits for anything, so it is what a clock
//! would show on an idle machine. Rings and files are made before it is looked at. There is no
//! device in it.

mod bare;
mod compio;
mod fixture;
mod monoio;
mod ours;
mod tokio_uring;

use std::path::Path;

use anyhow::Result;
use criterion::{Criterion, Throughput};
use vudev_benches::contest::{Contest, Report};

/// Promised of a round and of reads at depth 32: at most so much of their time.
const OF_TOKIO_URING: f64 = 0.8;
const OF_THE_RING: f64 = 1.15;

fn main() -> Result<()> {
    let mut criterion = Criterion::default().configure_from_args();
    let mut report = Report::default();
    tasks(&mut criterion, &mut report);
    rounds(&mut criterion, &mut report);
    reads(&mut criterion, &mut report);
    criterion.final_summary();
    report.close(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("executor.txt"))?;
    Ok(())
}

fn tasks(criterion: &mut Criterion, report: &mut Report) {
    Contest::new("turn")
        .of("vudev", ours::turns)
        .of("tokio-uring", tokio_uring::turns)
        .of("monoio", monoio::turns)
        .of("compio", compio::turns)
        .of("enter", bare::turns)
        .run(criterion, report);
    Contest::new("spawn")
        .of("vudev", ours::spawns)
        .of("tokio-uring", tokio_uring::spawns)
        .of("monoio", monoio::spawns)
        .of("compio", compio::spawns)
        .run(criterion, report);
    Contest::new("timer")
        .of("vudev", ours::timers)
        .of("tokio-uring", tokio_uring::timers)
        .of("monoio", monoio::timers)
        .of("compio", compio::timers)
        .of("timerfd", bare::timers)
        .run(criterion, report);
}

fn rounds(criterion: &mut Criterion, report: &mut Report) {
    Contest::new("round")
        .of("vudev", ours::rounds)
        .of("tokio-uring", tokio_uring::rounds)
        .of("monoio", monoio::rounds)
        .of("compio", compio::rounds)
        .of("ring", bare::ring_rounds)
        .of("epoll", bare::epoll_rounds)
        .promise("tokio-uring", OF_TOKIO_URING)
        .promise("ring", OF_THE_RING)
        .run(criterion, report);
}

fn reads(criterion: &mut Criterion, report: &mut Report) {
    for depth in [1, 32] {
        let mut contest = Contest::new(format!("read 4 KiB at depth {depth}"))
            .moves(Throughput::Bytes(fixture::BLOCK_BYTES as u64))
            .of("vudev", move |times| ours::reads(depth, times))
            .of("tokio-uring", move |times| tokio_uring::reads(depth, times))
            .of("monoio", move |times| monoio::reads(depth, times))
            .of("compio", move |times| compio::reads(depth, times))
            .of("ring", move |times| bare::ring_reads(depth, times))
            .of("pread", bare::preads);
        if depth == 32 {
            contest = contest
                .promise("tokio-uring", OF_TOKIO_URING)
                .promise("ring", OF_THE_RING);
        }
        contest.run(criterion, report);
    }
}
