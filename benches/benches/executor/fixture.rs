//! What every contestant works on: a file in the page cache, two eventfds, and a future that is
//! ready the second time.

use std::fs::File;
use std::future::{Future, poll_fn};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::LazyLock;
use std::task::Poll;

use rustix::event::{EventfdFlags, eventfd};
use tempfile::{NamedTempFile, TempPath};

/// Of one read.
pub(crate) const BLOCK_BYTES: usize = 4096;
/// Blocks of the file.
const BLOCKS: u64 = 4096;

static IMAGE: LazyLock<TempPath> = LazyLock::new(|| {
    let file = NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR"));
    let mut file = file.expect("a file where cargo has its temporary ones");
    for block in 0..BLOCKS {
        let byte = u8::try_from(block % 251).expect("below 251");
        file.write_all(&[byte; BLOCK_BYTES])
            .expect("room for 16 MiB");
    }
    // Not yet written out, its pages could be written back in the middle of a measurement.
    file.as_file().sync_all().expect("a disk that takes it");
    file.into_temp_path()
});

/// Where the file is.
pub(crate) fn path() -> PathBuf {
    IMAGE.to_path_buf()
}

/// The file, opened anew.
pub(crate) fn file() -> File {
    File::open(&*IMAGE).expect("it was made")
}

/// Where to read: a walk through all blocks that no read-ahead guesses.
pub(crate) struct Places(u64);

impl Places {
    /// A walk of its own for each `seed`.
    pub(crate) fn new(seed: usize) -> Self {
        Self(seed as u64 * 0x9e37_79b9)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.0 >> 33) % BLOCKS * BLOCK_BYTES as u64
    }
}

/// A kick and a call, which do not block.
pub(crate) fn events() -> (OwnedFd, OwnedFd) {
    let event = || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
    (event().expect("an eventfd"), event().expect("an eventfd"))
}

/// Another name for the same eventfd.
pub(crate) fn same(event: &OwnedFd) -> OwnedFd {
    event.try_clone().expect("a free descriptor")
}

/// The plain write that signals an eventfd.
pub(crate) fn signal(event: &OwnedFd) {
    let written = rustix::io::write(event, &1u64.to_ne_bytes());
    assert_eq!(written, Ok(8), "an eventfd with room");
}

/// Gives one turn to everybody else.
pub(crate) fn turn() -> impl Future<Output = ()> {
    let mut yielded = false;
    poll_fn(move |cx| {
        if yielded {
            return Poll::Ready(());
        }
        yielded = true;
        cx.waker().wake_by_ref();
        Poll::Pending
    })
}

/// Polls `future` once, and drops it.
pub(crate) async fn start_and_drop(future: impl Future<Output = ()>) {
    let mut future = std::pin::pin!(future);
    poll_fn(|cx| {
        assert!(future.as_mut().poll(cx).is_pending(), "an hour is long");
        Poll::Ready(())
    })
    .await;
}
