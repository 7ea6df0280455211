//! What both ends of a queue share: the ring, the eventfds, and the state of running, stopping
//! and being retired. Not the ring's rules: those are in `split`.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use vudev_executor::{Call, Handle, Kick, Latch, Notify, Sleep, TurnEnd, Watched};

use super::split::SplitRing;
use super::{QueueError, QueueParts, Taken};
use crate::chain::{Chain, Ledger, Settled};
use crate::memory::{GuestMemory, Run};
use crate::spec::QUEUE_SIZE_MAX;

/// How many chains a queue gives out in one turn: enough that the turn's own cost is spread thin,
/// few enough that a guest which never lets its ring run dry leaves the other tasks their turn.
pub(super) const CHAINS_PER_TURN: u16 = 128;

/// What a call in the middle of a turn costs of that: the driver may run in it, on this processor,
/// and the other tasks wait meanwhile.
const CALL_COST: u16 = CHAINS_PER_TURN / 8;

/// How often a queue without a kick is looked at. A front-end that gives none asks for polling; a
/// millisecond is the longest a console's user does not notice, and costs a thousandth of a CPU.
const POLL_INTERVAL: Duration = Duration::from_millis(1);

pub(super) struct Shared {
    pub(super) index: u16,
    pub(super) size: u16,
    pub(super) features: u64,
    pub(super) handle: Handle,
    pub(super) ledger: Rc<Ledger>,
    pub(super) stop: Latch,
    /// Notified when chains that wait for the world are to be let go of.
    pub(super) recalled: Notify,
    ring: RefCell<SplitRing>,
    kick: RefCell<Option<Kick>>,
    call: RefCell<Option<Call>>,
    error: RefCell<Option<Call>>,
    /// The timer of a queue without a kick.
    nap: RefCell<Option<Sleep>>,
    /// Whether the executor looks at the ring, so that the driver need not kick.
    watched: Cell<bool>,
    /// Whoever waits in `poll_next`.
    waiter: RefCell<Option<Waker>>,
    retired: Cell<bool>,
    /// Whether the device's end is gone.
    left: Cell<bool>,
    /// Chains that may still be given out in this turn.
    budget: Cell<u16>,
    /// Whether this queue's work at the turn's end is booked already.
    turn_booked: Cell<bool>,
    /// Whether the driver was called, or would have been with a descriptor.
    has_called: Cell<bool>,
}

impl Shared {
    pub(super) fn new(handle: &Handle, parts: QueueParts) -> Result<Rc<Self>, QueueError> {
        let QueueParts {
            index,
            size,
            rings,
            next_available,
            features,
            memory,
            kick,
            call,
            error,
        } = parts;
        if !size.is_power_of_two() || size > QUEUE_SIZE_MAX {
            return Err(QueueError::Size(size));
        }
        let ledger = Ledger::new(index);
        let ring = SplitRing::new(
            memory,
            rings,
            size,
            features,
            next_available,
            ledger.clone(),
        )?;
        Ok(Rc::new(Self {
            index,
            size,
            features,
            handle: handle.clone(),
            ledger,
            stop: Latch::new(),
            recalled: Notify::new(),
            ring: RefCell::new(ring),
            kick: RefCell::new(kick),
            call: RefCell::new(call),
            error: RefCell::new(error),
            nap: RefCell::default(),
            watched: Cell::new(false),
            waiter: RefCell::default(),
            retired: Cell::new(false),
            left: Cell::new(false),
            budget: Cell::new(CHAINS_PER_TURN),
            turn_booked: Cell::new(false),
            has_called: Cell::new(false),
        }))
    }

    pub(super) fn next_available(&self) -> u16 {
        self.ring.borrow().next_available()
    }

    pub(super) fn is_retired(&self) -> bool {
        self.retired.get()
    }

    /// The next chain; `None` once stop was said. A retired queue waits for that.
    #[inline]
    pub(super) fn poll_next(
        self: &Rc<Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Chain>, QueueError>> {
        self.poll_until(cx, || self.try_take())
    }

    /// As [`Shared::poll_next`], but the chain stays where it is.
    pub(super) fn poll_available(
        self: &Rc<Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<bool, QueueError>> {
        let found = self.poll_until(cx, || {
            let has_next = self.ring.borrow_mut().has_next();
            has_next
                .map(|has_next| has_next.then_some(()))
                .map_err(|error| self.fail(error))
        });
        found.map_ok(|found| found.is_some())
    }

    /// What an `attempt` at the ring gives; `None` once stop was said.
    #[inline]
    fn poll_until<T>(
        self: &Rc<Self>,
        cx: &mut Context<'_>,
        attempt: impl Fn() -> Result<Option<T>, QueueError>,
    ) -> Poll<Result<Option<T>, QueueError>> {
        loop {
            // Either may come in the call below.
            if self.stop.is_set() {
                return Poll::Ready(Ok(None));
            }
            if self.retired.get() {
                self.wait_here(cx);
                return Poll::Pending;
            }
            if self.budget.get() == 0 {
                // The turn's end renews it.
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            match attempt() {
                Ok(Some(found)) => return Poll::Ready(Ok(Some(found))),
                Ok(None) => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
            if self.calls_before_it_waits() {
                continue;
            }
            match self.poll_news(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Whether the driver was called for what is done, now that there is nothing left to take, and
    /// may have given something meanwhile: one on the same processor runs in that call. Not if
    /// others have something to do, whose turn it is then; a queue that has ended meanwhile does
    /// not wait, for its end wakes only who waits already.
    #[inline]
    fn calls_before_it_waits(self: &Rc<Self>) -> bool {
        if !self.call_if_wanted() {
            return false;
        }
        let budget = self.budget.get().saturating_sub(CALL_COST);
        self.budget.set(budget);
        // Whose end renews it.
        self.book_turn();
        self.is_over() || !self.handle.is_due()
    }

    /// Waits for what makes another look at the ring worth it.
    #[inline(never)]
    fn poll_news(self: &Rc<Self>, cx: &mut Context<'_>) -> Poll<Result<(), QueueError>> {
        // In this turn and, while it polls, after it the loop finds what comes; before it sleeps
        // the driver is asked to kick.
        if !self.watched.replace(true) {
            self.handle.watch(self.clone());
        }
        match self.poll_kick(cx) {
            // A kick for nothing is as cheap as a look; a storm of them is one a turn.
            Poll::Ready(Ok(())) => {
                self.spend();
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(self.fail(error))),
            Poll::Pending => {
                self.wait_here(cx);
                Poll::Pending
            }
        }
    }

    /// The next chain if one is available and the turn's budget is not spent. An error retires
    /// the queue.
    #[inline]
    pub(super) fn try_take(self: &Rc<Self>) -> Result<Option<Chain>, QueueError> {
        if self.retired.get() || self.budget.get() == 0 {
            return Ok(None);
        }
        let taken = self.ring.borrow_mut().take();
        match taken {
            Ok(Some(chain)) => {
                self.has_taken();
                Ok(Some(chain))
            }
            Ok(None) => Ok(None),
            Err(error) => Err(self.fail(error)),
        }
    }

    /// [`Shared::try_take`] into a run.
    #[inline]
    pub(super) fn take_into(self: &Rc<Self>, run: &mut Run) -> Result<Taken, QueueError> {
        if self.retired.get() || self.budget.get() == 0 {
            return Ok(Taken::None);
        }
        let taken = self.ring.borrow_mut().take_into(run);
        match taken {
            Ok(Taken::Chain) => self.has_taken(),
            // Nobody holds it: what was recalled are others.
            Ok(Taken::Unfit) => self.spend(),
            Ok(Taken::None | Taken::Elsewhere) => {}
            Err(error) => return Err(self.fail(error)),
        }
        taken
    }

    #[inline]
    fn has_taken(self: &Rc<Self>) {
        if self.ledger.held() == 1 {
            // What was recalled before it was not this one.
            self.recalled.forget();
        }
        self.spend();
    }

    #[inline]
    pub(super) fn complete(self: &Rc<Self>, chain: Chain, written: u32) {
        let Some(settled) = self.settle(chain) else {
            return;
        };
        let mut ring = self.ring.borrow_mut();
        // Zeros that stand in for a lost page are not a ring.
        if !ring.memory_lost() {
            // 2.7.8.2: the driver may believe it, so it never exceeds what could be written.
            ring.complete(settled.head, written.min(settled.writable_bytes));
            self.book_turn();
            // A driver that wakes up on another processor does so while the rest is worked at.
            if self.handle.is_ahead() && ring.is_half_used() {
                drop(ring);
                self.call_if_wanted();
            }
        }
    }

    /// The first chains of a run, with so many bytes filled: the driver sees all of them or none.
    #[inline]
    pub(super) fn complete_first(self: &Rc<Self>, run: &mut Run, count: usize, bytes: usize) {
        if !run.is_of(&self.ledger) {
            return self.not_ours();
        }
        let mut ring = self.ring.borrow_mut();
        let lost = ring.memory_lost();
        let mut left = u32::try_from(bytes).unwrap_or(u32::MAX);
        run.shift(count, |link| {
            self.ledger.one_less();
            let written = left.min(link.bytes);
            left -= written;
            if !lost {
                ring.stage(link.head, written);
            }
        });
        if !lost {
            ring.publish();
            self.book_turn();
        }
    }

    pub(super) fn put_back(self: &Rc<Self>, chain: Chain) {
        let Some(settled) = self.settle(chain) else {
            return;
        };
        if !self.is_put_back(settled.head, settled.position) {
            // A bug of the device's.
            log::error!(
                "queue {}: chain {} put back out of order, completed empty",
                self.index,
                settled.head
            );
        }
    }

    /// [`Shared::put_back`] of all chains of a run.
    pub(super) fn put_back_all(self: &Rc<Self>, run: &mut Run) {
        if !run.is_of(&self.ledger) {
            return self.not_ours();
        }
        run.take_back(|link| {
            self.ledger.one_less();
            self.is_put_back(link.head, link.position);
        });
    }

    /// Un-takes a chain if it is the newest one. Else the index cannot go back, for a later chain
    /// is out or used: the guest gets its buffer empty instead of never.
    fn is_put_back(self: &Rc<Self>, head: u16, position: u16) -> bool {
        let mut ring = self.ring.borrow_mut();
        if ring.put_back(position) || ring.memory_lost() {
            return true;
        }
        ring.complete(head, 0);
        self.book_turn();
        false
    }

    /// Ends the chain's account with this queue. `None`, and it is lost, if it is another's.
    #[inline]
    fn settle(&self, chain: Chain) -> Option<Settled> {
        if chain.is_of(&self.ledger) {
            return Some(chain.settle());
        }
        self.not_ours();
        None
    }

    #[cold]
    fn not_ours(&self) {
        debug_assert!(false, "a chain goes back to the queue that it came from");
        log::error!("queue {}: a chain of another queue", self.index);
    }

    pub(super) fn set_memory(&self, memory: Rc<GuestMemory>) -> Result<(), QueueError> {
        let swapped = self.ring.borrow_mut().set_memory(memory);
        match swapped {
            Ok(()) => {
                // The ring is looked at again, in case a kick was for entries of this memory.
                self.wake();
                self.recalled.notify();
                Ok(())
            }
            Err(error) => Err(self.fail(error)),
        }
    }

    pub(super) fn set_kick(&self, kick: Option<Kick>) {
        self.kick.replace(kick);
        self.nap.take();
        self.wake();
    }

    pub(super) fn set_call(self: &Rc<Self>, call: Option<Call>) {
        let here = call.is_some();
        self.call.replace(call);
        // A call may have gone to the descriptor before after its owner last looked there, as QEMU
        // does when a guest masks an interrupt and unmasks it; with event indices the driver gets
        // no other. One too many is lawful (2.7.7.1).
        if here && self.has_called.get() && !self.retired.get() {
            self.signal_call();
        }
    }

    pub(super) fn set_error(&self, error: Option<Call>) {
        self.error.replace(error);
    }

    pub(super) fn say_stop(&self) {
        self.stop.set();
        self.wake();
    }

    /// Reports once and signals the error eventfd; from now on nothing is taken.
    pub(super) fn retire(&self, cause: &QueueError) {
        if self.retired.replace(true) {
            return;
        }
        log::warn!("queue {} retired: {cause}", self.index);
        if let Some(error) = &*self.error.borrow()
            && let Err(failed) = error.signal()
        {
            log::warn!("queue {}: error eventfd: {failed}", self.index);
        }
        self.wake();
    }

    /// The device has left its end.
    pub(super) fn leave(&self) {
        self.left.set(true);
        self.ring.borrow_mut().leave();
    }

    /// Whether nothing is taken any more. Nobody looks at the ring then, lest its memory be kept.
    fn is_over(&self) -> bool {
        self.stop.is_set() || self.retired.get() || self.left.get()
    }

    fn fail(&self, cause: QueueError) -> QueueError {
        self.retire(&cause);
        cause
    }

    fn poll_kick(&self, cx: &mut Context<'_>) -> Poll<Result<(), QueueError>> {
        if let Some(kick) = &mut *self.kick.borrow_mut() {
            return kick.poll_wait(cx).map_err(QueueError::Kick);
        }
        let mut nap = self.nap.borrow_mut();
        let sleep = nap.get_or_insert_with(|| self.handle.sleep(POLL_INTERVAL));
        let over = Pin::new(sleep).poll(cx);
        if over.is_ready() {
            *nap = None;
        }
        over.map(Ok)
    }

    fn wait_here(&self, cx: &Context<'_>) {
        match &mut *self.waiter.borrow_mut() {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
    }

    fn wake(&self) {
        let waiter = self.waiter.take();
        if let Some(waker) = waiter {
            waker.wake();
        }
    }

    #[inline]
    fn spend(self: &Rc<Self>) {
        self.budget.set(self.budget.get().saturating_sub(1));
        self.book_turn();
    }

    #[inline]
    fn book_turn(self: &Rc<Self>) {
        if !self.turn_booked.replace(true) {
            self.handle.at_turn_end(self.clone());
        }
    }

    /// For what was used since the driver was last considered; whether it was called.
    fn call_if_wanted(&self) -> bool {
        let wanted = {
            let mut ring = self.ring.borrow_mut();
            !ring.memory_lost() && ring.wants_call()
        };
        let calls = wanted && !self.retired.get();
        if calls {
            self.signal_call();
        }
        calls
    }

    fn signal_call(&self) {
        self.has_called.set(true);
        let signalled = self.call.borrow().as_ref().map(Call::signal);
        if let Some(Err(error)) = signalled {
            self.retire(&QueueError::Call(error));
        }
    }
}

impl Watched for Shared {
    fn look(&self) -> bool {
        let over = self.is_over();
        let news = over || self.ring.borrow().has_news();
        if news {
            self.watched.set(false);
            self.wake();
        }
        news
    }

    fn ask(&self) -> bool {
        self.watched.set(false);
        // A queue that takes nothing any more asks for nothing.
        let news = !self.is_over() && self.ring.borrow_mut().want_kicks();
        if news {
            self.wake();
        }
        news
    }
}

impl TurnEnd for Shared {
    /// One call for all that was used in the turn and is not told yet, if the driver wants it.
    fn turn_end(self: Rc<Self>) {
        self.turn_booked.set(false);
        self.budget.set(CHAINS_PER_TURN);
        self.call_if_wanted();
    }
}
