//! The word that a queue shall stop, and everyone who waits for it. Not a general signal: it is
//! said once and stands.

use std::cell::{Cell, RefCell};
use std::task::{Context, Waker};

/// Said once; waiters are woken once.
#[derive(Default)]
pub(super) struct Stop {
    said: Cell<bool>,
    waiters: RefCell<Vec<Option<Waker>>>,
}

impl Stop {
    pub(super) fn is_said(&self) -> bool {
        self.said.get()
    }

    pub(super) fn say(&self) {
        self.said.set(true);
        // Taken first: a waker may run foreign code, which may come back here.
        let waiters = self.waiters.take();
        waiters.into_iter().flatten().for_each(Waker::wake);
    }

    /// A place to wait in, given up when dropped: a stop may be long in coming, and whoever waits
    /// for something else meanwhile must leave nothing behind.
    pub(super) fn place(&self) -> Place<'_> {
        Place {
            stop: self,
            index: None,
        }
    }
}

/// Somebody's place among the waiters.
pub(super) struct Place<'s> {
    stop: &'s Stop,
    index: Option<usize>,
}

impl Place<'_> {
    /// Whether stop was said; if not, `cx` is woken when it is.
    pub(super) fn poll(&mut self, cx: &Context<'_>) -> bool {
        if self.stop.is_said() {
            return true;
        }
        let mut waiters = self.stop.waiters.borrow_mut();
        let index = *self.index.get_or_insert_with(|| {
            let free = waiters.iter().position(Option::is_none);
            free.unwrap_or_else(|| {
                waiters.push(None);
                waiters.len() - 1
            })
        });
        match &mut waiters[index] {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        false
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if let Some(index) = self.index
            && let Some(waiter) = self.stop.waiters.borrow_mut().get_mut(index)
        {
            *waiter = None;
        }
    }
}
