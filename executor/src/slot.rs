//! One operation in flight: who waits for it, or what keeps its memory. Not the table of them,
//! which is the driver's.

use std::task::{Context, Waker};

use slab::Slab;

use crate::completion::Completion;
use crate::ring::NO_SLOT;

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
    pub(crate) use_count: u32,
}

impl Key {
    pub(crate) fn new(slot: usize, use_count: u32) -> Self {
        let slot = u32::try_from(slot).expect("SLOTS_MAX is smaller");
        Self { slot, use_count }
    }

    pub(crate) fn user_data(self) -> u64 {
        u64::from(self.slot) | u64::from(self.use_count) << 32
    }

    pub(crate) fn index(self) -> usize {
        self.slot as usize
    }
}

pub(crate) struct Slot {
    pub(crate) use_count: u32,
    pub(crate) state: State,
    /// See [`crate::operation::Operation::is_of_disk`].
    pub(crate) of_disk: bool,
}

pub(crate) enum State {
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

/// Whoever is to be woken.
pub(crate) struct Woken {
    pub(crate) waker: Waker,
    /// The watch that the waker goes back to: its task waits there again and again.
    pub(crate) watch: Option<Key>,
}

impl From<Waker> for Woken {
    fn from(waker: Waker) -> Self {
        Self { waker, watch: None }
    }
}

/// The slot a completion is for; none for a cancel, or for a slot that was leaked.
pub(crate) fn slot_of<'a>(
    slots: &'a mut Slab<Slot>,
    completion: &Completion,
) -> Option<(usize, &'a mut Slot)> {
    if completion.user_data == NO_SLOT {
        return None;
    }
    let index = usize::try_from(completion.user_data & u64::from(u32::MAX)).ok()?;
    let slot = slots.get_mut(index)?;
    (u64::from(slot.use_count) == completion.user_data >> 32).then_some((index, slot))
}

impl Slot {
    pub(crate) fn expects_completion(&self) -> bool {
        match &self.state {
            State::Waiting(_) | State::Abandoned(_) => true,
            State::Watching(watch) => watch.ended.is_none(),
            State::Done(_) => false,
        }
    }

    /// Takes a completion in; `true` when the slot is to be freed.
    pub(crate) fn complete(
        &mut self,
        completion: &Completion,
        index: usize,
        woken: &mut Vec<Woken>,
    ) -> bool {
        match &mut self.state {
            State::Waiting(waker) => {
                woken.extend(waker.take().map(Woken::from));
                self.state = State::Done(completion.result);
                false
            }
            State::Watching(watch) => {
                // Who was woken for the last signal has yet to look.
                let told = watch.pending;
                watch.pending |= completion.result >= 0;
                if !completion.more {
                    watch.ended = Some(completion.result);
                }
                if !told && let Some(waker) = watch.waker.take() {
                    let watch = Some(Key::new(index, self.use_count));
                    woken.push(Woken { waker, watch });
                }
                false
            }
            State::Abandoned(_) => !completion.more,
            State::Done(_) => unreachable!("a one-shot operation completed twice"),
        }
    }
}

pub(crate) fn store(slot: &mut Option<Waker>, cx: &Context<'_>) {
    match slot {
        Some(waker) => waker.clone_from(cx.waker()),
        None => *slot = Some(cx.waker().clone()),
    }
}
