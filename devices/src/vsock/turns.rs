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
    /// Whose turn it is afterwards.
    next: Cell<u64>,
}

impl Turns {
    /// The next place.
    pub(super) fn place(&self) -> Place<'_> {
        let number = self.taken.get();
        self.taken.set(number + 1);
        Place {
            turns: self,
            number,
            next: Cell::new(number + 1),
        }
    }

    /// Sends everybody away, each when its turn comes: what is being done meanwhile is done first.
    pub(super) fn end(&self) {
        self.over.set(true);
        self.changed.notify();
    }

    pub(super) fn is_over(&self) -> bool {
        self.over.get()
    }

    fn pass(&self, mut next: u64) {
        let mut given_up = self.given_up.borrow_mut();
        given_up.retain(|number| *number >= next);
        while let Some(at) = given_up.iter().position(|number| *number == next) {
            given_up.swap_remove(at);
            next += 1;
        }
        drop(given_up);
        self.passed.set(next);
        self.changed.notify();
    }
}

impl Place<'_> {
    /// Waits until everyone before has gone. Whether it is one's turn: if not, it is all over, or
    /// whoever was before has done this one's work ([`Place::cover_next`]).
    pub(super) async fn wait(&self) -> bool {
        while self.turns.passed.get() < self.number {
            self.turns.changed.notified().await;
        }
        self.turns.passed.get() == self.number && !self.turns.over.get()
    }

    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// Whose turn it is afterwards, unless [`Place::cover_next`] is called.
    pub(super) fn next(&self) -> u64 {
        self.next.get()
    }

    /// Does the work of [`Place::next`] too: its turn is over with this one's.
    pub(super) fn cover_next(&self) {
        self.next.set(self.next.get() + 1);
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let passed = self.turns.passed.get();
        if passed == self.number {
            self.turns.pass(self.next.get());
        } else if passed < self.number {
            self.turns.given_up.borrow_mut().push(self.number);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    fn done(wait: impl Future<Output = bool>) -> Option<bool> {
        match pin!(wait).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(turn) => Some(turn),
            Poll::Pending => None,
        }
    }

    fn is_ready(wait: impl Future<Output = bool>) -> bool {
        done(wait) == Some(true)
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

    #[test]
    fn whose_work_was_done_by_another_is_not_asked_for_it() {
        let turns = Turns::default();
        let [first, second, third, fourth] = [(); 4].map(|()| turns.place());
        first.cover_next();
        first.cover_next();
        assert_eq!(first.next(), 3);
        drop(second);
        assert_eq!(done(third.wait()), None);
        drop(first);
        assert_eq!(done(third.wait()), Some(false));
        drop(third);
        assert_eq!(done(fourth.wait()), Some(true));
    }

    #[test]
    fn who_is_sent_away_waits_for_what_is_being_done() {
        let turns = Turns::default();
        let [first, second] = [(); 2].map(|()| turns.place());
        assert_eq!(done(first.wait()), Some(true));
        turns.end();
        assert_eq!(done(second.wait()), None);
        drop(first);
        assert_eq!(done(second.wait()), Some(false));
    }
}
