//! Our executor at the work.

use std::time::Duration;

use vudev_executor::{Bytes, Call, Executor, File, Handle, Kick};

use vudev_benches::contest::ProcessorTime;

use crate::fixture::{self, BLOCK_BYTES, Places};

/// Operations of the rings: as many as a disk has.
const OPERATIONS: u32 = 128;

/// Runs `work`, which says how long it took.
fn run(work: impl AsyncFnOnce(Handle) -> Duration) -> Duration {
    let executor = Executor::with_operations(OPERATIONS).expect("a ring");
    let handle = executor.handle().clone();
    executor.run(work(handle)).expect("a ring that works")
}

pub(crate) fn turns(times: u64) -> Duration {
    run(async |_| {
        let start = ProcessorTime::start();
        for _ in 0..times {
            fixture::turn().await;
        }
        start.elapsed()
    })
}

pub(crate) fn spawns(times: u64) -> Duration {
    run(async |handle| {
        let start = ProcessorTime::start();
        for _ in 0..times {
            handle.spawn(async {}).await;
        }
        start.elapsed()
    })
}

pub(crate) fn timers(times: u64) -> Duration {
    run(async |handle| {
        let start = ProcessorTime::start();
        for _ in 0..times {
            fixture::start_and_drop(handle.sleep(Duration::from_secs(3600))).await;
        }
        start.elapsed()
    })
}

pub(crate) fn rounds(times: u64) -> Duration {
    let (kick, call) = fixture::events();
    run(async |handle| {
        let mut waiting = Kick::new(&handle, fixture::same(&kick)).expect("an eventfd");
        let call = Call::new(&handle, call).expect("an eventfd");
        let start = ProcessorTime::start();
        for _ in 0..times {
            fixture::signal(&kick);
            waiting.wait().await.expect("an eventfd can be polled");
            call.signal().expect("an eventfd with room");
        }
        start.elapsed()
    })
}

pub(crate) fn reads(depth: usize, times: u64) -> Duration {
    run(async |handle| {
        let file = File::new(&handle, fixture::file());
        let each = times.div_ceil(depth as u64);
        let start = ProcessorTime::start();
        let reader = |seed| handle.spawn(read(file.clone(), Places::new(seed), each));
        let readers: Vec<_> = (0..depth).map(reader).collect();
        for reader in readers {
            reader.await;
        }
        start.elapsed()
    })
}

async fn read(file: File, mut places: Places, times: u64) {
    let mut buffer = Bytes::zeroed(BLOCK_BYTES);
    for _ in 0..times {
        let (read, back) = file.read_at(buffer, places.next()).await;
        assert_eq!(read.expect("a file that can be read"), BLOCK_BYTES);
        buffer = back;
    }
}
