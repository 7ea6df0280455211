//! Operations in flight, each in a slot of one table: who waits for it, or what keeps its memory.
//! Not how they are submitted and cancelled, which is the driver's.

use std::mem;
use std::task::{Context, Poll, Waker};

use crate::completion::Completion;
use crate::tasks::Tasks;

/// The memory of an operation whose future is gone.
pub(crate) trait Abandoned {
    /// Ends the operation as its future would have: a descriptor that still arrives is closed.
    fn finish(self: Box<Self>, result: i32);
}

/// Names a slot and one use of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    slot: u32,
    /// Tells this use of the slot from earlier ones.
    use_count: u32,
}

impl Key {
    pub(crate) fn user_data(self) -> u64 {
        u64::from(self.slot) | u64::from(self.use_count) << 32
    }

    /// Whose completion it is, be there such a slot or not.
    #[expect(clippy::cast_possible_truncation, reason = "two halves")]
    pub(crate) fn of(user_data: u64) -> Self {
        Self {
            slot: user_data as u32,
            use_count: (user_data >> 32) as u32,
        }
    }
}

struct Slot {
    use_count: u32,
    /// See [`crate::operation::Operation::is_of_disk`].
    of_disk: bool,
    state: State,
}

pub(crate) enum State {
    /// Nobody's; with the slot that became free before it.
    Free(u32),
    Waiting(Waker),
    Done(i32),
    Watching(Watch),
    Abandoned(Box<dyn Abandoned>),
    /// The kernel's for good: what it may write to is never freed.
    Leaked,
}

pub(crate) struct Watch {
    pending: bool,
    ended: Option<i32>,
    waker: Option<Waker>,
}

impl State {
    fn waiter(self) -> Option<Waker> {
        match self {
            Self::Waiting(waker) => Some(waker),
            _ => None,
        }
    }

    pub(crate) fn watching(waker: Waker) -> Self {
        Self::Watching(Watch {
            pending: false,
            ended: None,
            waker: Some(waker),
        })
    }
}

impl Slot {
    fn expects_completion(&self) -> bool {
        match &self.state {
            State::Waiting(_) | State::Abandoned(_) | State::Leaked => true,
            State::Watching(watch) => watch.ended.is_none(),
            State::Free(_) | State::Done(_) => false,
        }
    }
}

/// Who is to hear of a completion, by foreign code.
pub(crate) enum Told {
    Waiter(Waker),
    /// The waker goes back to the watch: its task waits there again and again.
    Watcher(Waker, Key),
    /// Nobody is left but the memory; its slot is free.
    Memory(Box<dyn Abandoned>, i32),
}

/// All slots, free and taken. The one that became free last is taken first: it is in the cache.
pub(crate) struct Slots {
    slots: Vec<Slot>,
    /// The first free one; there is none when it is as many as there are.
    free: u32,
    taken: u32,
    /// Those that the kernel has yet to answer for.
    in_flight: usize,
    /// Those of them that a disk works on.
    of_disk: u32,
}

impl Slots {
    pub(crate) fn with_capacity(slots: usize) -> Self {
        Self {
            slots: Vec::with_capacity(slots),
            free: 0,
            taken: 0,
            in_flight: 0,
            of_disk: 0,
        }
    }

    pub(crate) fn taken(&self) -> usize {
        self.taken as usize
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight
    }

    pub(crate) fn awaits_disk(&self) -> bool {
        self.of_disk > 0
    }

    /// What the slot that is taken next will be called.
    pub(crate) fn next_key(&self) -> Key {
        let slot = self.slots.get(self.free as usize);
        Key {
            slot: self.free,
            use_count: slot.map_or(0, |slot| slot.use_count),
        }
    }

    /// Takes the slot of [`Slots::next_key`]; `state` says of what.
    // Always, so that the state is made in its place (below).
    #[inline(always)]
    pub(crate) fn take(&mut self, state: impl FnOnce() -> State, of_disk: bool) {
        if self.free as usize == self.slots.len() {
            self.grow();
        }
        let slot = &mut self.slots[self.free as usize];
        let State::Free(next) = slot.state else {
            unreachable!("slot {} is not free", self.free);
        };
        self.free = next;
        self.taken += 1;
        self.in_flight += 1;
        self.of_disk += u32::from(of_disk);
        slot.of_disk = of_disk;
        // What is free has nothing to drop. Nothing can fail between the state and its place, so
        // that it is made there: to copy what was written a moment before in other pieces has to
        // wait for them.
        mem::forget(mem::replace(&mut slot.state, state()));
    }

    #[cold]
    fn grow(&mut self) {
        self.slots.push(Slot {
            use_count: 0,
            of_disk: false,
            state: State::Free(self.free + 1),
        });
    }

    /// Frees a slot.
    fn free(&mut self, key: Key) -> State {
        let next = State::Free(self.free);
        let slot = self.get(key);
        slot.use_count = slot.use_count.wrapping_add(1);
        let state = mem::replace(&mut slot.state, next);
        self.free = key.slot;
        self.taken -= 1;
        state
    }

    /// The slot in this use of it; `None` when that is over.
    fn find(&mut self, key: Key) -> Option<&mut Slot> {
        let slot = self.slots.get_mut(key.slot as usize)?;
        (slot.use_count == key.use_count).then_some(slot)
    }

    #[inline]
    fn get(&mut self, key: Key) -> &mut Slot {
        self.find(key)
            .unwrap_or_else(|| panic!("{key:?} was freed"))
    }

    /// The result of a one-shot operation, whose slot is free then.
    #[inline]
    pub(crate) fn poll(&mut self, key: Key, cx: &Context<'_>) -> Poll<i32> {
        let next = self.free;
        let slot = self.get(key);
        if let State::Done(result) = slot.state {
            slot.use_count = slot.use_count.wrapping_add(1);
            // What is done has nothing to drop.
            mem::forget(mem::replace(&mut slot.state, State::Free(next)));
            self.free = key.slot;
            self.taken -= 1;
            return Poll::Ready(result);
        }
        match &mut slot.state {
            State::Waiting(waker) => waker.clone_from(cx.waker()),
            State::Leaked => (),
            State::Free(_) | State::Done(_) | State::Watching(_) | State::Abandoned(_) => {
                unreachable!("{key:?} is no one-shot")
            }
        }
        Poll::Pending
    }

    /// Whether a watched slot was signalled since the last call; `Err` with the kernel's result
    /// once it has ended the watch, and the slot is free.
    #[inline]
    pub(crate) fn poll_watch(&mut self, key: Key, cx: &Context<'_>) -> Poll<Result<(), i32>> {
        let State::Watching(watch) = &mut self.get(key).state else {
            unreachable!("{key:?} is no watch");
        };
        if mem::take(&mut watch.pending) {
            return Poll::Ready(Ok(()));
        }
        if let Some(result) = watch.ended {
            self.free(key);
            return Poll::Ready(Err(result));
        }
        match &mut watch.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    /// Whether a one-shot operation has yet to end.
    pub(crate) fn is_waiting(&mut self, key: Key) -> bool {
        matches!(self.get(key).state, State::Waiting(_))
    }

    /// Whoever waited for it is gone: what it ended with, and the slot is free then, if it has.
    pub(crate) fn give_up(&mut self, key: Key) -> Option<i32> {
        let result = match &self.get(key).state {
            State::Done(result) => *result,
            State::Watching(watch) => watch.ended?,
            State::Waiting(_) | State::Leaked => return None,
            State::Free(_) | State::Abandoned(_) => unreachable!("{key:?} abandoned twice"),
        };
        self.free(key);
        Some(result)
    }

    /// Keeps what nobody waits for until the kernel has let go; who waited, to be dropped.
    pub(crate) fn keep(&mut self, key: Key, data: Box<dyn Abandoned>) -> State {
        mem::replace(&mut self.get(key).state, State::Abandoned(data))
    }

    /// Frees none of the memory that the kernel may still write to.
    pub(crate) fn leak(&mut self) {
        for slot in &mut self.slots {
            if matches!(slot.state, State::Abandoned(_)) {
                mem::forget(mem::replace(&mut slot.state, State::Leaked));
            }
        }
    }

    /// Those that the kernel has yet to answer for.
    pub(crate) fn expecting(&self) -> impl Iterator<Item = Key> {
        let slots = (0..).zip(&self.slots);
        slots
            .filter(|(_, slot)| slot.expects_completion())
            .map(|(index, slot)| Key {
                slot: index,
                use_count: slot.use_count,
            })
    }

    /// Takes a completion in, and wakes who waits for it; who is to be told otherwise. Of `tasks`
    /// only, since those run no foreign code.
    #[inline]
    pub(crate) fn complete(&mut self, completion: &Completion, tasks: &Tasks) -> Option<Told> {
        let key = Key::of(completion.user_data);
        // None: of a cancel, or of a slot that was leaked.
        let slot = self.slots.get_mut(key.slot as usize)?;
        if slot.use_count != key.use_count {
            return None;
        }
        if !completion.more {
            self.in_flight -= 1;
            self.of_disk -= u32::from(slot.of_disk);
        }
        if let State::Waiting(waker) = &slot.state {
            let is_told = tasks.wake_by_ref(waker);
            let waited = mem::replace(&mut slot.state, State::Done(completion.result));
            if is_told {
                // A task's waker has nothing to drop.
                mem::forget(waited);
                return None;
            }
            return waited.waiter().map(Told::Waiter);
        }
        if let State::Watching(watch) = &mut slot.state {
            let waker = watch.complete(completion, tasks);
            return waker.map(|waker| Told::Watcher(waker, key));
        }
        if completion.more || matches!(slot.state, State::Leaked) {
            return None;
        }
        match self.free(key) {
            State::Abandoned(data) => Some(Told::Memory(data, completion.result)),
            _ => unreachable!("a one-shot operation completed twice"),
        }
    }

    /// Gives a watch its waker back; the waker if it has another one, or is no more.
    pub(crate) fn put_back(&mut self, key: Key, waker: Waker) -> Option<Waker> {
        match self.find(key).map(|slot| &mut slot.state) {
            Some(State::Watching(watch)) if watch.waker.is_none() => watch.waker.replace(waker),
            _ => Some(waker),
        }
    }
}

impl Watch {
    #[inline]
    fn complete(&mut self, completion: &Completion, tasks: &Tasks) -> Option<Waker> {
        // Who was woken for the last signal has yet to look.
        let told = self.pending;
        self.pending |= completion.result >= 0;
        if !completion.more {
            self.ended = Some(completion.result);
        }
        let waker = self.waker.as_ref()?;
        if told || tasks.wake_by_ref(waker) {
            return None;
        }
        self.waker.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(key: Key, result: i32) -> Completion {
        Completion {
            user_data: key.user_data(),
            result,
            more: false,
        }
    }

    #[test]
    fn a_completion_for_an_earlier_use_of_a_slot_or_for_none_is_nobodys() {
        let (mut slots, tasks) = (Slots::with_capacity(1), Tasks::new());
        let waiting = || State::Waiting(tasks.root_waker());
        let cx = &mut Context::from_waker(Waker::noop());
        let first = slots.next_key();
        slots.take(waiting, true);
        assert!(slots.complete(&answer(first, 1), &tasks).is_none() && tasks.is_ready());
        assert_eq!(
            (slots.in_flight(), slots.awaits_disk(), slots.taken()),
            (0, false, 1)
        );
        assert_eq!(slots.poll(first, cx), Poll::Ready(1));
        let second = slots.next_key();
        slots.take(waiting, false);
        assert_eq!(
            (second.slot, slots.taken()),
            (first.slot, 1),
            "it is used again"
        );
        let beyond = Key { slot: 9, ..second };
        for late in [first, beyond, Key::of(crate::ring::NO_SLOT)] {
            assert!(slots.complete(&answer(late, 2), &tasks).is_none());
        }
        assert_eq!(slots.poll(second, cx), Poll::Pending);
        assert_eq!(slots.in_flight(), 1);
        slots.complete(&answer(second, 3), &tasks);
        assert_eq!(slots.poll(second, cx), Poll::Ready(3));
    }
}
