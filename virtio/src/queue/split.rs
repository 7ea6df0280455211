//! The discipline of a split ring's indices (virtio 1.3, 2.7): what is available, what is used, who
//! wants to be told. Not waiting, and not telling: kicks and calls are the queue's.

use std::mem::replace;
use std::rc::Rc;
use std::sync::atomic::{Ordering, fence};

use super::{QueueError, RingAddresses, Taken};
use crate::chain::{self, Chain, Ledger};
use crate::memory::{GuestMemory, RingView, Run, Unread};
use crate::spec::{feature, ring_flag};

/// How many used chains are worth a call before the turn's end: fewer are mostly done sooner than
/// anybody wakes up, and a driver that refills its ring without end gets one for so many at most.
const EARLY_MIN: u16 = 8;

/// One split ring, from the device's side.
pub(super) struct SplitRing {
    view: RingView,
    memory: Rc<GuestMemory>,
    addresses: RingAddresses,
    event_idx: bool,
    indirect: bool,
    ledger: Rc<Ledger>,
    /// The available entry that is taken next.
    next_available: u16,
    /// The driver's available index when we last looked: entries before it need no new look.
    seen_available: u16,
    /// The used entry that is written next.
    next_used: u16,
    /// `next_used` when the driver was last considered for a call.
    considered: u16,
    /// Whether `considered` stems from ourselves, and not from the ring's last owner, who may have
    /// left without a call that was due.
    considered_before: bool,
    kicks: Kicks,
}

/// Whether the driver was asked to kick.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kicks {
    /// At start nobody knows what the ring's last owner left there.
    Unknown,
    /// Asked for, when it makes the entry at `next_available` available.
    Wanted(u16),
    /// Asked not to.
    Unwanted,
}

impl SplitRing {
    pub(super) fn new(
        memory: Rc<GuestMemory>,
        addresses: RingAddresses,
        size: u16,
        features: u64,
        next_available: u16,
        ledger: Rc<Ledger>,
    ) -> Result<Self, QueueError> {
        let event_idx = features & feature::EVENT_IDX != 0;
        let view = RingView::new(&memory, &addresses, size, event_idx)?;
        let next_used = view.used_index();
        Ok(Self {
            view,
            memory,
            addresses,
            event_idx,
            indirect: features & feature::INDIRECT_DESC != 0,
            ledger,
            next_available,
            seen_available: next_available,
            next_used,
            considered: next_used,
            considered_before: false,
            kicks: Kicks::Unknown,
        })
    }

    pub(super) fn next_available(&self) -> u16 {
        self.next_available
    }

    #[inline]
    pub(super) fn memory_lost(&self) -> bool {
        self.memory.is_lost()
    }

    /// Goes on in other memory, at the same guest addresses and indices.
    pub(super) fn set_memory(&mut self, memory: Rc<GuestMemory>) -> Result<(), QueueError> {
        self.view = RingView::new(&memory, &self.addresses, self.view.size(), self.event_idx)?;
        self.memory = memory;
        // What we asked for and saw stood in a ring, but perhaps not in this memory's.
        self.seen_available = self.next_available;
        self.kicks = Kicks::Unknown;
        Ok(())
    }

    /// Takes the next chain, if the driver has made one available, and asks for no kicks then.
    #[inline]
    pub(super) fn take(&mut self) -> Result<Option<Chain>, QueueError> {
        if !self.has_next()? {
            return Ok(None);
        }
        let (position, head) = self.next();
        let ledger = &self.ledger;
        let taken = chain::take(
            &self.view,
            &self.memory,
            self.indirect,
            head,
            position,
            ledger,
        );
        // What zeros in place of a lost page say is nobody's word.
        if self.memory.is_lost() {
            drop(taken.map(Chain::settle));
            return Err(QueueError::MemoryLost);
        }
        let taken = taken.map_err(|source| QueueError::chain(head, source))?;
        self.is_taken(position);
        Ok(Some(taken))
    }

    /// As [`SplitRing::take`], into a run. One that does not fit there is completed empty.
    #[inline]
    pub(super) fn take_into(&mut self, run: &mut Run) -> Result<Taken, QueueError> {
        if !self.has_next()? {
            return Ok(Taken::None);
        }
        if !run.takes(&self.memory, &self.ledger) {
            return Ok(Taken::Elsewhere);
        }
        let (position, head) = self.next();
        let (mut unread, mut list) = (Unread::default(), run.extend());
        let (view, memory) = (&self.view, &self.memory);
        let walked = chain::walk(view, memory, self.indirect, head, &mut unread, &mut list);
        if self.memory.is_lost() {
            return Err(QueueError::MemoryLost);
        }
        walked.map_err(|source| QueueError::chain(head, source))?;
        let fits = list.finish(head, position, &self.memory, &self.ledger);
        self.is_taken(position);
        if fits {
            self.ledger.taken();
            return Ok(Taken::Chain);
        }
        self.complete(head, 0);
        Ok(Taken::Unfit)
    }

    /// Where the next chain stands, and its head.
    #[inline]
    fn next(&self) -> (u16, u16) {
        let position = self.next_available;
        (position, self.view.available_head(position))
    }

    #[inline]
    fn is_taken(&mut self, position: u16) {
        self.next_available = position.wrapping_add(1);
        self.spare_kicks();
    }

    /// Whether the driver has made a chain available.
    // A call costs as much as half of it.
    #[inline(always)]
    pub(super) fn has_next(&mut self) -> Result<bool, QueueError> {
        match self.look() {
            Ok(true) => Ok(true),
            Ok(false) if !self.memory.is_lost() => Ok(false),
            Err(error) if !self.memory.is_lost() => Err(error),
            _ => Err(QueueError::MemoryLost),
        }
    }

    /// Whether an entry can be taken. Asks the driver's index only when the last look's entries
    /// are used up.
    #[inline]
    fn look(&mut self) -> Result<bool, QueueError> {
        Ok(self.seen_available != self.next_available || self.look_anew()?)
    }

    fn look_anew(&mut self) -> Result<bool, QueueError> {
        let available = self.view.available_index();
        let ready = available.wrapping_sub(self.next_available);
        // No more chains can be out than there are entries to publish them in, so this also finds
        // an index that jumped. What is taken then makes the one less and the other more.
        let size = self.view.size();
        if u32::from(ready) + u32::from(self.ledger.outstanding()) > u32::from(size) {
            let outstanding = self.ledger.outstanding();
            return Err(QueueError::TooManyAvailable {
                ready,
                outstanding,
                size,
            });
        }
        self.seen_available = available;
        Ok(ready != 0)
    }

    /// Whether the driver has made an entry available that was not taken.
    pub(super) fn has_news(&self) -> bool {
        self.view.available_index() != self.next_available
    }

    /// Asks the driver to kick for the next entry. True when one came meanwhile: then there may
    /// be no kick, and the ring must be looked at again.
    pub(super) fn want_kicks(&mut self) -> bool {
        let wanted = Kicks::Wanted(self.next_available);
        if self.kicks != wanted {
            if self.event_idx {
                self.view.set_available_event(self.next_available);
            } else {
                self.view.set_used_flags(0);
            }
            self.kicks = wanted;
            // The driver writes its index, then reads our wish; we write our wish, then read its
            // index. With a full barrier on both sides one of us sees the other (2.7.13.4.1).
            fence(Ordering::SeqCst);
        }
        self.has_news()
    }

    /// Asks the driver not to kick while we take entries anyway.
    #[inline]
    fn spare_kicks(&mut self) {
        if self.kicks == Kicks::Unwanted {
            return;
        }
        // With event indices there is nothing to say: the wish names an entry, and is over once
        // that entry was made available (2.7.10.1).
        if !self.event_idx {
            self.view.set_used_flags(ring_flag::NO_NOTIFY);
        }
        self.kicks = Kicks::Unwanted;
    }

    /// Publishes a chain as used.
    pub(super) fn complete(&mut self, head: u16, written: u32) {
        self.stage(head, written);
        self.publish();
    }

    /// Writes a chain's entry, which the driver sees once it is published.
    #[inline]
    pub(super) fn stage(&mut self, head: u16, written: u32) {
        self.view.set_used_entry(self.next_used, head, written);
        self.next_used = self.next_used.wrapping_add(1);
    }

    /// Shows the driver all that was staged.
    pub(super) fn publish(&mut self) {
        self.view.set_used_index(self.next_used);
    }

    /// Un-takes the chain from `position` if it is the newest taken.
    pub(super) fn put_back(&mut self, position: u16) -> bool {
        let newest = position.wrapping_add(1) == self.next_available;
        if newest {
            self.next_available = position;
            self.seen_available = position;
            // The wish for a kick named a later entry, whose kick still comes when it is due.
        }
        newest
    }

    /// Leaves the ring as a successor wants to find it: a driver that was not asked to kick would
    /// never start a ring that waits for its first kick.
    pub(super) fn leave(&mut self) {
        if !self.memory.is_lost() {
            self.want_kicks();
        }
    }

    /// Whether as much was used since the driver was last considered as is still to be taken.
    #[inline]
    pub(super) fn is_half_used(&self) -> bool {
        let used = self.next_used.wrapping_sub(self.considered);
        let left = self.seen_available.wrapping_sub(self.next_available);
        used >= EARLY_MIN && left > 0 && used >= left
    }

    /// Whether the driver wants a call for what was used since it was last considered.
    pub(super) fn wants_call(&mut self) -> bool {
        let (old, new) = (self.considered, self.next_used);
        if old == new {
            return false;
        }
        self.considered = new;
        // Our used index is written before the driver's wish is read, as in `want_kicks`.
        fence(Ordering::SeqCst);
        if !self.event_idx {
            return self.view.available_flags() & ring_flag::NO_INTERRUPT == 0;
        }
        // 2.7.7.2, with the wrapping arithmetic of `vring_need_event`: whether `used_event` lies
        // among the entries from `old` up to `new`.
        let behind = new.wrapping_sub(self.view.used_event()).wrapping_sub(1);
        !replace(&mut self.considered_before, true) || behind < new.wrapping_sub(old)
    }
}
