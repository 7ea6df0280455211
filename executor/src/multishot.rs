//! One multishot poll of a descriptor, for as long as somebody wants to hear of it. What is read or
//! written then is not its affair.

use std::future::poll_fn;
use std::io;
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use crate::executor::Handle;
use crate::slot::{Abandoned, Key};

/// A descriptor that is polled from the first wait on. Dropped, it is kept until the kernel has let
/// go of it.
pub(crate) struct MultishotPoll<K: AsRawFd + 'static> {
    handle: Handle,
    kept: Rc<K>,
    events: u32,
    key: Option<Key>,
}

impl<K: AsRawFd + 'static> MultishotPoll<K> {
    /// Polls the descriptor of `kept` for `events` (`POLL*`).
    pub(crate) fn new(handle: &Handle, kept: &Rc<K>, events: i16) -> Self {
        Self {
            handle: handle.clone(),
            kept: kept.clone(),
            events: u32::from(events.cast_unsigned()),
            key: None,
        }
    }

    /// Completes when there was an event since the last call. May complete without.
    pub(crate) async fn wait(&mut self) -> io::Result<()> {
        poll_fn(|cx| self.poll_wait(cx)).await
    }

    pub(crate) fn poll_wait(&mut self, cx: &Context<'_>) -> Poll<io::Result<()>> {
        let driver = self.handle.driver();
        loop {
            let Some(key) = self.key else {
                let fd = self.kept.as_raw_fd();
                self.key = Some(ready!(driver.watch(cx, fd, self.events))?);
                continue;
            };
            match ready!(driver.poll_watch(key, cx)) {
                Ok(()) => return Poll::Ready(Ok(())),
                // The kernel has ended it without error (its queue was full): renewed by the next
                // turn of this loop, which sees an event that came in between.
                Err(0..) => self.key = None,
                Err(result) => {
                    self.key = None;
                    let errno = io::Error::from_raw_os_error(result.wrapping_neg());
                    return Poll::Ready(Err(errno));
                }
            }
        }
    }
}

impl<K: AsRawFd + 'static> Drop for MultishotPoll<K> {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            let kept = Box::new(Kept(self.kept.clone()));
            self.handle.driver().abandon(key, kept);
        }
    }
}

struct Kept<K>(#[expect(dead_code, reason = "held open, not read")] Rc<K>);

impl<K> Abandoned for Kept<K> {
    fn finish(self: Box<Self>, _: i32) {}
}
