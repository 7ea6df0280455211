//! A wake-up between tasks of one thread.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::task::{Poll, Waker};

/// One pending bit and whoever waits for it.
#[derive(Default)]
pub struct Notify {
    /// Grows with every notification; a waiter looks for a change since it last looked.
    generation: Cell<u64>,
    taken: Cell<u64>,
    waiters: RefCell<Vec<Waker>>,
    /// The other vector, so that a notification allocates nothing.
    spare: Cell<Vec<Waker>>,
}

impl Notify {
    /// Nothing pending.
    pub fn new() -> Self {
        Self::default()
    }

    /// Wakes everyone who waits, or the next who will. Where one thing became free, each of them
    /// looks whether it still is.
    pub fn notify(&self) {
        self.generation.set(self.generation.get().wrapping_add(1));
        // Wakers run foreign code, so no borrow is held then.
        let mut woken = self.waiters.replace(self.spare.take());
        woken.drain(..).for_each(Waker::wake);
        self.spare.set(woken);
    }

    /// Nothing is pending any more.
    pub fn forget(&self) {
        self.taken.set(self.generation.get());
    }

    /// Completes at the next notification, or at once when one is pending. Those who wait already
    /// are all woken by one notification.
    pub fn notified(&self) -> impl Future<Output = ()> + '_ {
        let seen = self.taken.get();
        poll_fn(move |cx| {
            let now = self.generation.get();
            if now != seen {
                self.taken.set(now);
                return Poll::Ready(());
            }
            let mut waiters = self.waiters.borrow_mut();
            if !waiters.iter().any(|waker| waker.will_wake(cx.waker())) {
                waiters.push(cx.waker().clone());
            }
            Poll::Pending
        })
    }
}
