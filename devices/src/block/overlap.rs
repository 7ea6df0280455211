//! Keeps writes to parts of one aligned block apart. Such a write reads the block, changes its part
//! and writes the whole: any other write to that block in between would be undone. Reads need
//! nothing: what such a write puts back beside its own part is what was there.

use std::cell::{Cell, RefCell};
use std::ops::Range;

use vudev_executor::Notify;

/// The writes of one disk that are under way or wait for others, in the order they came.
#[derive(Default)]
pub(super) struct Overlaps {
    entries: RefCell<Vec<Entry>>,
    next: Cell<u64>,
    left: Notify,
}

struct Entry {
    ticket: u64,
    range: Range<u64>,
    alone: bool,
}

impl Overlaps {
    /// Waits until all earlier writes that overlap `range` are done, if either they or this one
    /// must be `alone`. Whoever came first goes first, so nobody waits for ever.
    pub(super) async fn enter(&self, range: Range<u64>, alone: bool) -> Turn<'_> {
        let ticket = self.next.get();
        self.next.set(ticket + 1);
        let turn = Turn {
            overlaps: self,
            ticket,
        };
        self.entries.borrow_mut().push(Entry {
            ticket,
            range: range.clone(),
            alone,
        });
        while self.is_held_up(ticket, &range, alone) {
            self.left.notified().await;
        }
        turn
    }

    fn is_held_up(&self, ticket: u64, range: &Range<u64>, alone: bool) -> bool {
        self.entries.borrow().iter().any(|other| {
            other.ticket < ticket
                && (alone || other.alone)
                && other.range.start < range.end
                && range.start < other.range.end
        })
    }
}

/// A write's place among the others, until it is dropped.
pub(super) struct Turn<'a> {
    overlaps: &'a Overlaps,
    ticket: u64,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut entries = self.overlaps.entries.borrow_mut();
        if let Some(at) = entries.iter().position(|it| it.ticket == self.ticket) {
            entries.swap_remove(at);
        }
        drop(entries);
        self.overlaps.left.notify();
    }
}

#[cfg(test)]
mod tests {
    use std::pin::{Pin, pin};
    use std::task::{Context, Poll, Waker};

    use super::*;

    fn poll<F: Future>(future: Pin<&mut F>) -> Option<F::Output> {
        match future.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        }
    }

    #[test]
    fn writes_that_change_whole_blocks_never_wait_for_each_other() {
        let overlaps = Overlaps::default();
        let _first = poll(pin!(overlaps.enter(0..8, false))).expect("at once");
        let _second = poll(pin!(overlaps.enter(0..8, false))).expect("at once");
    }

    #[test]
    fn a_write_to_a_part_waits_for_all_that_touch_its_block_and_for_no_other() {
        let overlaps = Overlaps::default();
        let whole = poll(pin!(overlaps.enter(0..8, false))).expect("at once");
        let _elsewhere = poll(pin!(overlaps.enter(8..16, true))).expect("at once");
        let mut part = pin!(overlaps.enter(4..8, true));
        assert!(poll(part.as_mut()).is_none());
        drop(whole);
        assert!(poll(part.as_mut()).is_some());
    }

    #[test]
    fn who_came_first_goes_first_and_who_gives_up_holds_up_nobody() {
        let overlaps = Overlaps::default();
        let first = poll(pin!(overlaps.enter(0..8, true))).expect("at once");
        let mut third = Box::pin(overlaps.enter(0..8, false));
        {
            let mut second = pin!(overlaps.enter(0..8, true));
            assert!(poll(second.as_mut()).is_none());
            assert!(poll(third.as_mut()).is_none());
            drop(first);
            assert!(poll(third.as_mut()).is_none(), "the second comes before it");
        }
        assert!(poll(third.as_mut()).is_some(), "the second has given up");
        drop(third);
        let _last = poll(pin!(overlaps.enter(0..8, false))).expect("nobody is left");
    }
}
