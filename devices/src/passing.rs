//! Ring operations that end without a word about their file: errors that pass, memory that is gone,
//! and a stop that came first. What is done then is the device's affair: ask again later, or ask by
//! a system call.

use std::future::{Future, pending};
use std::io;
use std::pin::pin;
use std::time::Duration;

use futures_util::future::{Either, select};
use rustix::io::Errno;
use vudev_executor::Vectored;
use vudev_virtio::Queue;

/// How long a file is left alone that says it is ready and then is not, or that the ring has no
/// worker thread for.
pub(crate) const PAUSE: Duration = Duration::from_millis(10);

/// Whether the same can be tried again: io-wq had no worker thread for it, since a limit on
/// processes was reached (ECANCELED, or EAGAIN), a stop interrupted it, or somebody else was
/// quicker at a shared descriptor (EAGAIN).
pub(crate) fn is_passing(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::AGAIN | Errno::INTR | Errno::CANCELED)
    )
}

/// Whether the file behind guest memory has shrunk under the chain (the kernel answers EFAULT): the
/// fault of a front-end, which must not cost the next one anything.
pub(crate) fn is_memory_lost(error: &io::Error) -> bool {
    Errno::from_io_error(error) == Some(Errno::FAULT)
}

/// Leaves a file alone for a moment; `None` when a stop is asked for meanwhile.
pub(crate) async fn rest(queue: &Queue) -> Option<()> {
    queue.until_stop(queue.handle().sleep(PAUSE)).await
}

/// Awaits `operation`; a stop or a recall ends it early. Either way its answer counts.
pub(crate) async fn until_recall<B>(
    queue: &Queue,
    operation: impl Vectored<B>,
) -> (io::Result<usize>, B) {
    let recalled = queue.until_recall(pending::<()>());
    let (output, _cut_short) = cut_short_by(recalled, operation).await;
    output
}

/// Awaits `operation`, which `end` cuts short; its output if it did. The operation's answer counts
/// even so: bytes may have moved before the end came, and forgetting them would lose or double
/// them.
pub(crate) async fn cut_short_by<B, E: Future>(
    end: E,
    mut operation: impl Vectored<B>,
) -> ((io::Result<usize>, B), Option<E::Output>) {
    // It is polled before the end is looked at, so it has begun: only then can it be cancelled.
    match select(&mut operation, pin!(end)).await {
        Either::Left((output, _)) => (output, None),
        Either::Right((end, _)) => {
            operation.cancel();
            (operation.await, Some(end))
        }
    }
}
