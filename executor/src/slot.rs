//! Operations in flight, each in a slot of one table: who waits for it, or what keeps its memory.
//! Not when they are submitted or freed, which is the driver's.

use std::mem;
use std::task::{Context, Waker};

use crate::completion::Completion;

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

pub(crate) struct Slot {
    use_count: u32,
    /// See [`crate::operation::Operation::is_of_disk`].
    pub(crate) of_disk: bool,
    pub(crate) state: State,
}

pub(crate) enum State {
    /// Nobody's; with the slot that became free before it.
    Free(u32),
    Waiting(Option<Waker>),
    Done(i32),
    Watching(Watch),
    Abandoned(Box<dyn Abandoned>),
}

#[derive(Default)]
pub(crate) struct Watch {
    pub(crate) pending: bool,
    pub(crate) ended: Option<i32>,
    pub(crate) waker: Option<Waker>,
}

/// Who is to hear of a completion.
pub(crate) enum Told {
    Waiter(Waker),
    /// The waker goes back to the watch: its task waits there again and again.
    Watcher(Waker, Key),
    /// Nobody is left but the memory; its slot is free.
    Memory(Box<dyn Abandoned>, i32),
}

impl Slot {
    pub(crate) fn expects_completion(&self) -> bool {
        match &self.state {
            State::Waiting(_) | State::Abandoned(_) => true,
            State::Watching(watch) => watch.ended.is_none(),
            State::Free(_) | State::Done(_) => false,
        }
    }
}

/// All slots, free and taken. The one that became free last is taken first: it is in the cache.
pub(crate) struct Slots {
    slots: Vec<Slot>,
    /// The first free one; there is none when it is as many as there are.
    free: u32,
    taken: usize,
}

impl Slots {
    pub(crate) fn with_capacity(slots: usize) -> Self {
        Self {
            slots: Vec::with_capacity(slots),
            free: 0,
            taken: 0,
        }
    }

    /// How many are taken.
    pub(crate) fn taken(&self) -> usize {
        self.taken
    }

    /// What the slot that is taken next will be called.
    pub(crate) fn next_key(&self) -> Key {
        let slot = self.slots.get(self.free as usize);
        Key {
            slot: self.free,
            use_count: slot.map_or(0, |slot| slot.use_count),
        }
    }

    /// Takes the slot of [`Slots::next_key`].
    pub(crate) fn take(&mut self, state: State, of_disk: bool) {
        self.taken += 1;
        match self.slots.get_mut(self.free as usize) {
            Some(slot) => {
                let State::Free(next) = mem::replace(&mut slot.state, state) else {
                    unreachable!("slot {} is not free", self.free);
                };
                slot.of_disk = of_disk;
                self.free = next;
            }
            None => {
                self.slots.push(Slot {
                    use_count: 0,
                    of_disk,
                    state,
                });
                self.free += 1;
            }
        }
    }

    /// Frees the slot; what was in it.
    pub(crate) fn free(&mut self, key: Key) -> State {
        let next = State::Free(self.free);
        let slot = self.get_mut(key).expect("freed once");
        slot.use_count = slot.use_count.wrapping_add(1);
        let state = mem::replace(&mut slot.state, next);
        self.free = key.slot;
        self.taken -= 1;
        state
    }

    /// The slot in this use of it; `None` when that is over.
    pub(crate) fn get_mut(&mut self, key: Key) -> Option<&mut Slot> {
        let slot = self.slots.get_mut(key.slot as usize)?;
        (slot.use_count == key.use_count).then_some(slot)
    }

    /// What was abandoned and has not ended.
    pub(crate) fn abandoned_mut(&mut self) -> impl Iterator<Item = &mut State> {
        let states = self.slots.iter_mut().map(|slot| &mut slot.state);
        states.filter(|state| matches!(state, State::Abandoned(_)))
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

    /// Takes a completion in; who is to be told, if anybody is.
    pub(crate) fn complete(&mut self, key: Key, completion: &Completion) -> Option<Told> {
        let slot = self.get_mut(key)?;
        match &mut slot.state {
            State::Waiting(waker) => {
                let waker = waker.take();
                slot.state = State::Done(completion.result);
                waker.map(Told::Waiter)
            }
            State::Watching(watch) => {
                // Who was woken for the last signal has yet to look.
                let told = watch.pending;
                watch.pending |= completion.result >= 0;
                if !completion.more {
                    watch.ended = Some(completion.result);
                }
                let waker = if told { None } else { watch.waker.take() };
                waker.map(|waker| Told::Watcher(waker, key))
            }
            State::Abandoned(_) if completion.more => None,
            State::Abandoned(_) => match self.free(key) {
                State::Abandoned(data) => Some(Told::Memory(data, completion.result)),
                _ => None,
            },
            State::Free(_) | State::Done(_) => {
                unreachable!("a one-shot operation completed twice")
            }
        }
    }
}

pub(crate) fn store(slot: &mut Option<Waker>, cx: &Context<'_>) {
    match slot {
        Some(waker) => waker.clone_from(cx.waker()),
        None => *slot = Some(cx.waker().clone()),
    }
}
