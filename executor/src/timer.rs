//! Deadlines: an ordered map on this side, the ring's own wait timeout on the kernel's. A timer
//! costs no operation.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use crate::executor::Handle;

#[derive(Default)]
pub(crate) struct Timers {
    wakers: BTreeMap<(Instant, u64), Waker>,
    next_id: u64,
}

impl Timers {
    /// How long the loop may sleep; `None` for ever.
    pub(crate) fn wait(&self, now: Instant) -> Option<Duration> {
        self.wakers
            .first_key_value()
            .map(|((deadline, _), _)| deadline.saturating_duration_since(now))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.wakers.is_empty()
    }

    /// Takes the wakers whose deadline has come.
    pub(crate) fn due(&mut self, now: Instant) -> Option<Waker> {
        let first = self.wakers.first_entry()?;
        (first.key().0 <= now).then(|| first.remove())
    }
}

/// Completes at its deadline.
#[must_use = "a sleep does nothing unless awaited"]
pub struct Sleep {
    handle: Handle,
    deadline: Instant,
    id: Option<u64>,
}

impl Sleep {
    pub(crate) fn new(handle: &Handle, deadline: Instant) -> Self {
        Self {
            handle: handle.clone(),
            deadline,
            id: None,
        }
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        if this.handle.now() >= this.deadline {
            return Poll::Ready(());
        }
        let mut timers = this.handle.driver().timers.borrow_mut();
        let id = *this.id.get_or_insert_with(|| {
            timers.next_id += 1;
            timers.next_id
        });
        timers
            .wakers
            .insert((this.deadline, id), cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            let mut timers = self.handle.driver().timers.borrow_mut();
            timers.wakers.remove(&(self.deadline, id));
        }
    }
}
