//! A word that is said once and stands, a stop above all, and everyone who waits for it. Not a
//! general signal: what happens again and again is [`crate::Notify`]'s.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

/// Set once; whoever waits is woken once.
#[derive(Default)]
pub struct Latch {
    set: Cell<bool>,
    waiters: RefCell<Vec<Option<Waker>>>,
}

impl Latch {
    /// Not set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether it was set.
    pub fn is_set(&self) -> bool {
        self.set.get()
    }

    /// Sets it, and wakes everyone who waits. A second time it does nothing.
    pub fn set(&self) {
        self.set.set(true);
        // Taken first: a waker may run foreign code, which may come back here.
        let waiters = self.waiters.take();
        waiters.into_iter().flatten().for_each(Waker::wake);
    }

    /// Completes once it is set. Dropped before, it leaves nothing behind: a stop may be long in
    /// coming, and whoever waits for something else meanwhile does so again and again.
    pub fn wait(&self) -> LatchWait<'_> {
        LatchWait {
            latch: self,
            place: None,
        }
    }
}

/// Somebody's place among those who wait for a [`Latch`].
#[must_use = "waiting does nothing unless awaited"]
pub struct LatchWait<'l> {
    latch: &'l Latch,
    place: Option<usize>,
}

impl Future for LatchWait<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        if this.latch.is_set() {
            return Poll::Ready(());
        }
        let mut waiters = this.latch.waiters.borrow_mut();
        let place = *this.place.get_or_insert_with(|| {
            let free = waiters.iter().position(Option::is_none);
            free.unwrap_or_else(|| {
                waiters.push(None);
                waiters.len() - 1
            })
        });
        match &mut waiters[place] {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        Poll::Pending
    }
}

impl Drop for LatchWait<'_> {
    fn drop(&mut self) {
        if let Some(place) = self.place
            && let Some(waiter) = self.latch.waiters.borrow_mut().get_mut(place)
        {
            *waiter = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use super::*;

    #[test]
    fn a_wait_that_is_dropped_leaves_nothing_behind() {
        let latch = Latch::new();
        for _ in 0..100 {
            let mut wait = latch.wait();
            let cx = &mut Context::from_waker(Waker::noop());
            assert!(Pin::new(&mut wait).poll(cx).is_pending());
        }
        assert_eq!(latch.waiters.borrow().len(), 1);
        assert!(latch.waiters.borrow()[0].is_none());
    }

    #[test]
    fn a_latch_that_was_set_stays_set() {
        let latch = Latch::new();
        latch.set();
        latch.set();
        for _ in 0..2 {
            let cx = &mut Context::from_waker(Waker::noop());
            assert!(pin!(latch.wait()).poll(cx).is_ready());
        }
    }
}
