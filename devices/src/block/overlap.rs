//! Keeps writes to parts of one aligned block apart. Such a write reads the block, changes its part
//! and writes the whole: any other write to that block in between would be undone. Reads need
//! nothing: what such a write puts back beside its own part is what was there.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::ops::Range;
use std::task::{Context, Poll, Waker};

/// The writes of one disk that are under way or wait for others.
#[derive(Default)]
pub(super) struct Overlaps {
    /// In the order they came, and so by their tickets.
    entries: RefCell<Vec<Entry>>,
    next: Cell<u64>,
}

struct Entry {
    ticket: u64,
    range: Range<u64>,
    alone: bool,
    /// Who waits for those before it.
    waiter: Option<Waker>,
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
            range,
            alone,
            waiter: None,
        });
        poll_fn(|cx| turn.poll(cx)).await;
        turn
    }

    /// One of those that wait for nobody any more, now that this range is left. Thousands may wait
    /// for the same block, so nobody else is woken.
    fn freed(&self, range: &Range<u64>) -> Option<Waker> {
        let mut entries = self.entries.borrow_mut();
        let waits = |it: &Entry| it.waiter.is_some() && overlap(&it.range, range);
        let at = (0..entries.len()).find(|&at| waits(&entries[at]) && !is_held_up(&entries, at))?;
        entries[at].waiter.take()
    }
}

fn is_held_up(entries: &[Entry], at: usize) -> bool {
    let this = &entries[at];
    entries[..at]
        .iter()
        .any(|other| (this.alone || other.alone) && overlap(&this.range, &other.range))
}

fn overlap(one: &Range<u64>, other: &Range<u64>) -> bool {
    one.start < other.end && other.start < one.end
}

fn place_of(entries: &[Entry], ticket: u64) -> Option<usize> {
    entries.binary_search_by_key(&ticket, |it| it.ticket).ok()
}

/// A write's place among the others, until it is dropped.
pub(super) struct Turn<'a> {
    overlaps: &'a Overlaps,
    ticket: u64,
}

impl Turn<'_> {
    fn poll(&self, cx: &Context<'_>) -> Poll<()> {
        let mut entries = self.overlaps.entries.borrow_mut();
        match place_of(&entries, self.ticket) {
            Some(at) if is_held_up(&entries, at) => {
                entries[at].waiter = Some(cx.waker().clone());
                Poll::Pending
            }
            _ => Poll::Ready(()),
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let left = {
            let mut entries = self.overlaps.entries.borrow_mut();
            place_of(&entries, self.ticket).map(|at| entries.remove(at))
        };
        if let Some(Entry { range, .. }) = left {
            while let Some(waker) = self.overlaps.freed(&range) {
                waker.wake();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::{Pin, pin};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

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

    #[test]
    fn a_write_that_is_done_wakes_those_only_whose_turn_it_is() {
        const WRITES: usize = 4000;
        let overlaps = Overlaps::default();
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(woken.clone());
        let mut cx = Context::from_waker(&waker);
        let mut turn = poll(pin!(overlaps.enter(0..8, true))).expect("at once");
        let mut waiting: Vec<_> = (0..WRITES)
            .map(|_| Box::pin(overlaps.enter(4..8, true)))
            .collect();
        for write in &mut waiting {
            assert!(write.as_mut().poll(&mut cx).is_pending());
        }
        for (done, mut next) in waiting.into_iter().enumerate() {
            drop(turn);
            assert_eq!(woken.0.load(Ordering::Relaxed), done + 1);
            turn = poll(next.as_mut()).expect("its turn");
        }
    }
}
