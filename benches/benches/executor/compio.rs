//! `compio` at the work.

use std::fs::File as StdFile;
use std::future::Future;
use std::time::Duration;

use compio::BufResult;
use compio::fs::File;
use compio::io::{AsyncRead, AsyncReadAt};
use compio::runtime::Runtime;
use compio::runtime::fd::AsyncFd;

use vudev_benches::contest::ProcessorTime;

use crate::fixture::{self, BLOCK_BYTES, Places};

fn run(work: impl Future<Output = Duration>) -> Duration {
    Runtime::new().expect("a ring").block_on(work)
}

pub(crate) fn turns(times: u64) -> Duration {
    run(async {
        let start = ProcessorTime::start();
        for _ in 0..times {
            fixture::turn().await;
        }
        start.elapsed()
    })
}

pub(crate) fn spawns(times: u64) -> Duration {
    run(async {
        let start = ProcessorTime::start();
        for _ in 0..times {
            compio::runtime::spawn(async {}).await.expect("no panic");
        }
        start.elapsed()
    })
}

pub(crate) fn timers(times: u64) -> Duration {
    run(async {
        let start = ProcessorTime::start();
        for _ in 0..times {
            fixture::start_and_drop(compio::time::sleep(Duration::from_secs(3600))).await;
        }
        start.elapsed()
    })
}

pub(crate) fn rounds(times: u64) -> Duration {
    let (kick, call) = fixture::events();
    run(async {
        let mut waiting = AsyncFd::new(StdFile::from(fixture::same(&kick))).expect("an eventfd");
        let mut buffer = vec![0; 8];
        let start = ProcessorTime::start();
        for _ in 0..times {
            fixture::signal(&kick);
            buffer.clear();
            let BufResult(read, back) = waiting.read(buffer).await;
            assert_eq!(read.expect("an eventfd can be read"), 8);
            fixture::signal(&call);
            buffer = back;
        }
        start.elapsed()
    })
}

pub(crate) fn reads(depth: usize, times: u64) -> Duration {
    run(async {
        let file = File::open(fixture::path()).await.expect("it was made");
        let each = times.div_ceil(depth as u64);
        let start = ProcessorTime::start();
        let reader = |seed| compio::runtime::spawn(read(file.clone(), Places::new(seed), each));
        let readers: Vec<_> = (0..depth).map(reader).collect();
        for reader in readers {
            reader.await.expect("no panic");
        }
        start.elapsed()
    })
}

async fn read(file: File, mut places: Places, times: u64) {
    let mut buffer = vec![0; BLOCK_BYTES];
    for _ in 0..times {
        let BufResult(read, back) = file.read_at(buffer, places.next()).await;
        assert_eq!(read.expect("a file that can be read"), BLOCK_BYTES);
        buffer = back;
    }
}
