//! `tokio-uring` at the work: its operations, on tokio's own tasks and timers.

use std::fs::File as StdFile;
use std::rc::Rc;
use std::time::Duration;

use tokio_uring::fs::File;

use vudev_benches::contest::ProcessorTime;

use crate::fixture::{self, BLOCK_BYTES, Places};

pub(crate) fn turns(times: u64) -> Duration {
    tokio_uring::start(async {
        let start = ProcessorTime::start();
        for _ in 0..times {
            fixture::turn().await;
        }
        start.elapsed()
    })
}

pub(crate) fn spawns(times: u64) -> Duration {
    tokio_uring::start(async {
        let start = ProcessorTime::start();
        for _ in 0..times {
            tokio_uring::spawn(async {}).await.expect("no panic");
        }
        start.elapsed()
    })
}

pub(crate) fn timers(times: u64) -> Duration {
    tokio_uring::start(async {
        let start = ProcessorTime::start();
        for _ in 0..times {
            fixture::start_and_drop(tokio::time::sleep(Duration::from_secs(3600))).await;
        }
        start.elapsed()
    })
}

pub(crate) fn rounds(times: u64) -> Duration {
    let (kick, call) = fixture::events();
    tokio_uring::start(async {
        let waiting = File::from_std(StdFile::from(fixture::same(&kick)));
        let mut buffer = vec![0; 8];
        let start = ProcessorTime::start();
        for _ in 0..times {
            fixture::signal(&kick);
            let (read, back) = waiting.read_at(buffer, 0).await;
            assert_eq!(read.expect("an eventfd can be read"), 8);
            fixture::signal(&call);
            buffer = back;
        }
        start.elapsed()
    })
}

pub(crate) fn reads(depth: usize, times: u64) -> Duration {
    tokio_uring::start(async {
        let file = Rc::new(File::from_std(fixture::file()));
        let each = times.div_ceil(depth as u64);
        let start = ProcessorTime::start();
        let reader = |seed| tokio_uring::spawn(read(file.clone(), Places::new(seed), each));
        let readers: Vec<_> = (0..depth).map(reader).collect();
        for reader in readers {
            reader.await.expect("no panic");
        }
        start.elapsed()
    })
}

async fn read(file: Rc<File>, mut places: Places, times: u64) {
    let mut buffer = vec![0; BLOCK_BYTES];
    for _ in 0..times {
        let (read, back) = file.read_at(buffer, places.next()).await;
        assert_eq!(read.expect("a file that can be read"), BLOCK_BYTES);
        buffer = back;
    }
}
