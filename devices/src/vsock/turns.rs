//! Whose turn it is to send on a connection: places are taken when packets come, and used in that
//! order, however long each takes.

use std::cell::{Cell, RefCell};

use vudev_executor::Notify;

#[derive(Default)]
pub(super) struct Turns {
    taken: Cell<u64>,
    passed: Cell<u64>,
    /// Places that were given up before their turn.
    given_up: RefCell<Vec<u64>>,
    changed: Notify,
    /// Nobody's turn comes any more.
    over: Cell<bool>,
}

/// A place in the order. Dropped, it is given up, and held while it is one's turn.
#[must_use = "dropped, it is given up"]
pub(super) struct Place<'t> {
    turns: &'t Turns,
    number: u64,
}

impl Turns {
    /// The next place.
    pub(super) fn place(&self) -> Place<'_> {
        let number = self.taken.get();
        self.taken.set(number + 1);
        let turns = self;
        Place { turns, number }
    }

    /// Sends everybody away.
    pub(super) fn end(&self) {
        self.over.set(true);
        self.changed.notify();
    }

    pub(super) fn is_over(&self) -> bool {
        self.over.get()
    }

    fn pass(&self) {
        let mut given_up = self.given_up.borrow_mut();
        loop {
            let next = self.passed.get() + 1;
            self.passed.set(next);
            let Some(at) = given_up.iter().position(|number| *number == next) else {
                break;
            };
            given_up.swap_remove(at);
        }
        drop(given_up);
        self.changed.notify();
    }
}

impl Place<'_> {
    /// Waits until everyone before has gone. Whether it is one's turn: if not, it is all over.
    pub(super) async fn wait(&self) -> bool {
        loop {
            if self.turns.over.get() {
                return false;
            }
            if self.turns.passed.get() == self.number {
                return true;
            }
            self.turns.changed.notified().await;
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if self.turns.passed.get() == self.number {
            self.turns.pass();
        } else {
            self.turns.given_up.borrow_mut().push(self.number);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Waker};

    use super::*;

    fn is_ready(wait: impl Future<Output = bool>) -> bool {
        pin!(wait)
            .poll(&mut Context::from_waker(Waker::noop()))
            .is_ready()
    }

    #[test]
    fn a_place_that_is_given_up_keeps_nobody_waiting() {
        let turns = Turns::default();
        let [first, second, third, fourth] = [(); 4].map(|()| turns.place());
        assert!(is_ready(first.wait()) && !is_ready(second.wait()));
        drop((second, third));
        assert!(!is_ready(fourth.wait()));
        drop(first);
        assert!(is_ready(fourth.wait()));
    }
}
