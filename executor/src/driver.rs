//! What is in flight: submitted, cancelled, abandoned, drained; and who keeps its memory alive.
//!
//! A slot goes Waiting → Done → free when its future lives, Waiting → Abandoned → free when the
//! future was dropped first: an abandoned slot owns whatever the kernel may still touch, until the
//! last completion. A slot that polls for ever (`Watching`) keeps one pending bit and no list of
//! completions, so that whoever signals without end costs no memory.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::mem;
use std::os::fd::RawFd;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use crate::at_once::BYTES_PER_TURN;
use crate::completion::{Backend, outcome};
use crate::idle::Idle;
use crate::operation::Operation;
use crate::registered::Registered;
use crate::slot::{Abandoned, Key, Slots, State, Told};
use crate::stats::Stats;
use crate::tasks::Tasks;
use crate::timer::Timers;
use crate::watchdog::Watchdog;

/// How long dropping an executor waits for operations that do not let themselves be cancelled (a
/// disk that hangs). After that their memory is leaked: freeing it would not be safe.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);
/// One wait of the drain.
const DRAIN_STEP: Duration = Duration::from_millis(100);

/// Work put off to the end of a turn, so that a turn does it once: telling the guest, above all.
pub trait TurnEnd {
    /// Called once for every [`crate::Handle::at_turn_end`], before the loop submits or sleeps.
    fn turn_end(self: Rc<Self>);
}

/// The back-end, the operations in flight on it, and the timers.
pub(crate) struct Driver {
    inner: RefCell<Inner>,
    pub(crate) tasks: Tasks,
    pub(crate) timers: RefCell<Timers>,
    turn_end: RefCell<Vec<Rc<dyn TurnEnd>>>,
    pub(crate) idle: Idle,
    watchdog: RefCell<Option<Watchdog>>,
    calls: Cell<u64>,
    /// Bytes that this turn may still move at once.
    at_once_left: Cell<usize>,
}

struct Inner {
    backend: Backend,
    registered: Option<Registered>,
    slots: Slots,
    operations: usize,
    slots_max: usize,
    /// Tasks that found every slot taken, each at most once, the first to come first.
    starved: VecDeque<Waker>,
    /// The same of those that may use the reserve.
    starved_reserved: VecDeque<Waker>,
    /// Cancels that the submission queue had no room for.
    uncancelled: VecDeque<u64>,
    /// Whether any of these was woken since the last turn, who has yet to come for the slot.
    relieved: bool,
    stats: Stats,
    closed: bool,
}

impl Driver {
    pub(crate) fn new(backend: Backend, operations: u32, reserved: u32) -> Rc<Self> {
        let operations = operations as usize;
        let slots_max = operations + reserved as usize;
        let inner = Inner {
            backend,
            registered: None,
            slots: Slots::with_capacity(slots_max),
            operations,
            slots_max,
            starved: VecDeque::new(),
            starved_reserved: VecDeque::new(),
            uncancelled: VecDeque::new(),
            relieved: false,
            stats: Stats::default(),
            closed: false,
        };
        Rc::new(Self {
            inner: RefCell::new(inner),
            tasks: Tasks::new(),
            timers: RefCell::default(),
            turn_end: RefCell::default(),
            idle: Idle::default(),
            watchdog: RefCell::default(),
            calls: Cell::new(0),
            at_once_left: Cell::new(BYTES_PER_TURN),
        })
    }

    pub(crate) fn enable(&self) -> io::Result<()> {
        self.inner.borrow().backend.enable()
    }

    /// The ring's registered memory; made and registered when it is asked for first.
    pub(crate) fn registered(&self) -> io::Result<Registered> {
        let inner = &mut *self.inner.borrow_mut();
        if let Some(memory) = &inner.registered {
            return Ok(memory.clone());
        }
        let memory = Registered::new();
        inner.backend.register(&memory)?;
        Ok(inner.registered.insert(memory).clone())
    }

    pub(crate) fn now(&self) -> std::time::Instant {
        self.inner.borrow().backend.now()
    }

    pub(crate) fn random(&self) -> u64 {
        self.inner.borrow_mut().backend.random()
    }

    pub(crate) fn thread_sleeps(&self) -> u64 {
        self.inner.borrow().backend.thread_sleeps()
    }

    pub(crate) fn stats(&self) -> Stats {
        let inner = self.inner.borrow();
        let in_flight = inner.slots.in_flight() as u64;
        Stats {
            calls: self.calls.get(),
            polls: self.idle.polls.get(),
            finds: self.idle.finds.get(),
            in_flight,
            completions: inner.stats.operations - in_flight,
            ..inner.stats
        }
    }

    /// Runs a call under the watchdog; see [`crate::watchdog`].
    #[inline]
    pub(crate) fn call<T>(&self, call: impl FnOnce() -> T) -> T {
        self.calls.set(self.calls.get() + 1);
        match self.watchdog.borrow().as_ref() {
            Some(watchdog) => watchdog.guard(call),
            None => call(),
        }
    }

    /// Queues `operation` under a slot of its own; `Pending` while every slot is taken.
    ///
    /// # Safety
    ///
    /// What `operation` points at must be owned by the value later given to [`Driver::abandon`],
    /// or outlive the slot.
    #[expect(unsafe_code, reason = "passes the ring's contract on")]
    pub(crate) unsafe fn submit(
        &self,
        cx: &Context<'_>,
        operation: &Operation,
        reserve: bool,
    ) -> Poll<io::Result<Key>> {
        let inner = &mut *self.inner.borrow_mut();
        // SAFETY: the caller's contract.
        unsafe { inner.submit(cx, operation, State::Waiting, reserve) }
    }

    /// Carries out a read or a write of at most `length` bytes now, without the ring. As if it
    /// would wait (EAGAIN) when it is longer than what this turn may still move.
    ///
    /// # Safety
    ///
    /// What `operation` points at must be valid now.
    // So that an operation which is known is not made, to be looked at again.
    #[inline(always)]
    #[expect(unsafe_code, reason = "passes the contract on")]
    pub(crate) unsafe fn at_once(
        &self,
        operation: &Operation,
        length: usize,
        wait: bool,
    ) -> io::Result<u32> {
        let left = self.at_once_left.get();
        if length > left {
            return Err(io::Error::from_raw_os_error(libc::EAGAIN));
        }
        let inner = &mut *self.inner.borrow_mut();
        inner.stats.at_once += 1;
        // SAFETY: the caller's contract.
        let moved = outcome(unsafe { inner.backend.at_once(operation, wait) })?;
        self.at_once_left.set(left.saturating_sub(moved as usize));
        Ok(moved)
    }

    /// Watches `fd` until the slot is abandoned.
    pub(crate) fn watch(&self, cx: &Context<'_>, fd: RawFd, events: u32) -> Poll<io::Result<Key>> {
        let operation = Operation::Poll {
            fd,
            events,
            multishot: true,
        };
        let inner = &mut *self.inner.borrow_mut();
        // SAFETY: a poll points at nothing.
        #[expect(unsafe_code, reason = "an operation without pointers")]
        unsafe {
            inner.submit(cx, &operation, State::watching, true)
        }
    }

    /// The result of a one-shot slot, which is free after that.
    #[inline]
    pub(crate) fn poll(&self, key: Key, cx: &Context<'_>) -> Poll<i32> {
        let (result, relieved) = {
            let inner = &mut *self.inner.borrow_mut();
            let result = ready!(inner.slots.poll(key, cx));
            (result, inner.relieved(0))
        };
        wake(relieved);
        Poll::Ready(result)
    }

    /// Whether a watched slot was signalled since the last call; `Err` with the kernel's result
    /// once it has ended the watch, and the slot is free.
    #[inline]
    pub(crate) fn poll_watch(&self, key: Key, cx: &Context<'_>) -> Poll<Result<(), i32>> {
        let (result, relieved) = {
            let inner = &mut *self.inner.borrow_mut();
            let result = ready!(inner.slots.poll_watch(key, cx));
            if result.is_ok() {
                return Poll::Ready(result);
            }
            (result, inner.relieved(0))
        };
        wake(relieved);
        Poll::Ready(result)
    }

    /// Asks the kernel to end an operation whose future lives on.
    pub(crate) fn cancel(&self, key: Key) {
        let inner = &mut *self.inner.borrow_mut();
        if inner.slots.is_waiting(key) {
            inner.cancel(key);
        }
    }

    /// Takes over what a future dropped early owned: ends it now, or cancels and keeps it.
    pub(crate) fn abandon(&self, key: Key, data: Box<dyn Abandoned>) {
        let (result, relieved) = {
            let Ok(mut inner) = self.inner.try_borrow_mut() else {
                // The kernel may have it: better kept for ever than freed.
                mem::forget(data);
                panic!("an operation was dropped by a waker's own clone or drop");
            };
            let Some(result) = inner.slots.give_up(key) else {
                let waited = inner.keep(key, data);
                drop(inner);
                drop(waited);
                return;
            };
            (result, inner.relieved(0))
        };
        // Foreign code, so no borrow is held here.
        wake(relieved);
        data.finish(result);
    }

    /// Has `work` called when this turn's tasks have run.
    pub(crate) fn at_turn_end(&self, work: Rc<dyn TurnEnd>) {
        self.turn_end.borrow_mut().push(work);
    }

    #[inline]
    pub(crate) fn end_turn(&self) {
        if !self.turn_end.borrow().is_empty() {
            self.do_put_off();
        }
    }

    fn do_put_off(&self) {
        // Work may ask for more work: that belongs to this turn too, since nothing else runs.
        while !self.turn_end.borrow().is_empty() {
            let mut due = self.turn_end.take();
            due.drain(..).for_each(<dyn TurnEnd>::turn_end);
            let mut kept = self.turn_end.borrow_mut();
            if kept.is_empty() {
                *kept = due;
                return;
            }
        }
    }

    /// Makes the watchdog over blocking calls, unless it is there.
    pub(crate) fn guard_calls(&self) -> io::Result<()> {
        let mut watchdog = self.watchdog.borrow_mut();
        if watchdog.is_none() {
            *watchdog = Some(Watchdog::new()?);
        }
        Ok(())
    }

    /// Whether a turn would have something to do without waiting. Looks at memory only.
    pub(crate) fn is_due(&self) -> bool {
        let inner = &mut *self.inner.borrow_mut();
        inner.relieved || inner.backend.is_due()
    }

    /// Whether a disk works for us.
    pub(crate) fn awaits_disk(&self) -> bool {
        self.inner.borrow().slots.awaits_disk()
    }

    /// Lets a moment pass between two looks.
    pub(crate) fn pause(&self) {
        self.inner.borrow_mut().backend.pause();
    }

    /// Submits, waits at most `wait`, and wakes whoever's operation completed.
    #[inline]
    pub(crate) fn turn(&self, wait: Option<Duration>) -> io::Result<()> {
        self.at_once_left.set(BYTES_PER_TURN);
        let mut inner = self.inner.borrow_mut();
        if inner.is_left_starved() {
            // Who was woken for a slot may have left it to others.
            drop(inner);
            self.relieve(usize::MAX);
            inner = self.inner.borrow_mut();
        }
        inner.enter(wait)?;
        while let Some(told) = inner.reap(&self.tasks)? {
            // Wakers and destructors run foreign code, so no borrow is held then.
            drop(inner);
            self.tell(told);
            inner = self.inner.borrow_mut();
        }
        inner.relieved = false;
        Ok(())
    }

    fn tell(&self, told: Told) {
        match told {
            Told::Waiter(waker) => waker.wake(),
            Told::Watcher(waker, watch) => {
                waker.wake_by_ref();
                let late = self.inner.borrow_mut().slots.put_back(watch, waker);
                drop(late);
            }
            Told::Memory(data, result) => {
                self.relieve(1);
                data.finish(result);
            }
        }
    }

    /// Wakes as many who wait for a slot as there are slots for them, `most` at most: were all of
    /// them woken for each slot, what a full ring costs would grow with the square of who waits.
    fn relieve(&self, most: usize) {
        for woken in 0..most {
            let waker = self.inner.borrow_mut().relieved(woken);
            if waker.is_none() {
                return;
            }
            wake(waker);
        }
    }

    /// Cancels and awaits what is in flight: closing the ring would not wait for it. Afterwards
    /// every submission is refused.
    pub(crate) fn close(&self) {
        {
            let inner = &mut *self.inner.borrow_mut();
            inner.closed = true;
            let waiting = inner.slots.expecting().map(Key::user_data);
            inner.uncancelled.extend(waiting);
        }
        let end = self.now() + DRAIN_LIMIT;
        while self.inner.borrow().slots.in_flight() > 0 && self.now() < end {
            if self.turn(Some(DRAIN_STEP)).is_err() {
                break;
            }
        }
        let inner = &mut *self.inner.borrow_mut();
        if inner.slots.in_flight() > 0 {
            // The kernel may still write: leaking is safe, freeing is not. Futures that live leak
            // their own part through `abandon`.
            inner.slots.leak();
        }
        inner.starved.clear();
        inner.starved_reserved.clear();
    }

    /// Lets go of whoever waits for a turn that will not come: they hold this driver in turn.
    pub(crate) fn forget_waiters(&self) {
        let (work, timers) = (self.turn_end.take(), self.timers.take());
        let watched = self.idle.forget();
        // Destructors run foreign code, so no borrow is held here.
        drop((work, timers, watched));
    }
}

impl Inner {
    #[expect(unsafe_code, reason = "passes the ring's contract on")]
    #[inline]
    unsafe fn submit(
        &mut self,
        cx: &Context<'_>,
        operation: &Operation,
        state: impl FnOnce(Waker) -> State,
        reserve: bool,
    ) -> Poll<io::Result<Key>> {
        if self.closed {
            return Poll::Ready(Err(io::Error::from_raw_os_error(libc::ECANCELED)));
        }
        let limit = if reserve {
            self.slots_max
        } else {
            self.operations
        };
        if self.slots.taken() >= limit {
            return self.starve(cx, reserve);
        }
        // Foreign code, so it comes before the kernel knows of anything.
        let waker = cx.waker().clone();
        let key = self.slots.next_key();
        // SAFETY: the caller's contract.
        if !unsafe { self.backend.push(key.user_data(), operation) } {
            return self.starve(cx, reserve);
        }
        self.slots.take(|| state(waker), operation.is_of_disk());
        self.stats.operations += 1;
        Poll::Ready(Ok(key))
    }

    fn starve(&mut self, cx: &Context<'_>, reserve: bool) -> Poll<io::Result<Key>> {
        let starved = match reserve {
            true => &mut self.starved_reserved,
            false => &mut self.starved,
        };
        if !starved.iter().any(|waker| waker.will_wake(cx.waker())) {
            starved.push_back(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Whether somebody waits for a slot, and nobody was woken for one.
    fn is_left_starved(&self) -> bool {
        self.is_starved() && !self.relieved
    }

    fn is_starved(&self) -> bool {
        !self.starved.is_empty() || !self.starved_reserved.is_empty()
    }

    /// Who is to be woken when `spoken_for` of the free slots are others' already.
    #[inline]
    fn relieved(&mut self, spoken_for: usize) -> Option<Waker> {
        if self.is_starved() {
            self.relieve_one(spoken_for)
        } else {
            None
        }
    }

    fn relieve_one(&mut self, spoken_for: usize) -> Option<Waker> {
        let taken = self.slots.taken() + spoken_for;
        let mut waker = None;
        if taken < self.slots_max {
            waker = self.starved_reserved.pop_front();
        }
        if taken < self.operations {
            waker = waker.or_else(|| self.starved.pop_front());
        }
        self.relieved |= waker.is_some();
        waker
    }

    /// Who waited for it, to be dropped without a borrow.
    fn keep(&mut self, key: Key, data: Box<dyn Abandoned>) -> Option<State> {
        if self.closed {
            // Draining has given up on it.
            mem::forget(data);
            return None;
        }
        let waited = self.slots.keep(key, data);
        self.cancel(key);
        Some(waited)
    }

    fn cancel(&mut self, key: Key) {
        if !self.backend.cancel(key.user_data()) {
            self.uncancelled.push_back(key.user_data());
        }
    }

    fn retry_cancels(&mut self) {
        while let Some(&user_data) = self.uncancelled.front() {
            if !self.backend.cancel(user_data) {
                return;
            }
            self.uncancelled.pop_front();
        }
    }

    /// Submits and waits, unless there is nothing to do and no time to wait.
    #[inline]
    fn enter(&mut self, wait: Option<Duration>) -> io::Result<()> {
        if !self.uncancelled.is_empty() {
            self.retry_cancels();
        }
        // Somebody was woken outside of reaping, by a slot that came free: no time to sleep.
        let wait = if self.relieved {
            Some(Duration::ZERO)
        } else {
            wait
        };
        let waits = wait != Some(Duration::ZERO);
        if waits || self.backend.wants_enter() {
            self.stats.enters += 1;
            self.stats.sleeps += u64::from(waits);
            self.backend.enter(wait)?;
        }
        Ok(())
    }

    /// Takes completions in, those that had not fitted included, up to one that somebody is to be
    /// told of by foreign code.
    #[inline]
    fn reap(&mut self, tasks: &Tasks) -> io::Result<Option<Told>> {
        loop {
            while let Some(completion) = self.backend.next_completion() {
                let told = self.slots.complete(&completion, tasks);
                if told.is_some() {
                    return Ok(told);
                }
            }
            if !self.backend.overflown() {
                return Ok(None);
            }
            self.stats.overflows += 1;
            self.stats.enters += 1;
            self.backend.enter(Some(Duration::ZERO))?;
        }
    }
}

/// Wakers run foreign code, so no borrow is held here.
#[inline]
fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}
