//! A virtqueue from the device's side: chains come out, completed chains go back. Not a ring
//! layout: nothing outside of here says "available index" but GET_VRING_BASE, which must.
//!
//! A [`Queue`] is the device's end, a [`QueueControl`] the framework's. What a guest does wrong
//! retires its queue: reported once, the error eventfd signalled, and [`Queue::next`] then waits
//! for the stop, so that nobody spins on a broken ring.

mod lanes;
mod shared;
mod split;

use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::Poll;

use vudev_executor::{Call, Handle, Kick};

use self::shared::Shared;
use crate::chain::{Chain, ChainError};
use crate::memory::{Framed, GuestMemory, MemoryError};

/// Where the parts of a split ring lie, in guest addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingAddresses {
    /// The descriptor table.
    pub descriptors: u64,
    /// The available ring, "driver area".
    pub available: u64,
    /// The used ring, "device area".
    pub used: u64,
}

/// All that it takes to start a queue.
pub struct QueueParts {
    /// Which of the device's queues this is.
    pub index: u16,
    /// Entries: a power of two, at most [`crate::spec::QUEUE_SIZE_MAX`].
    pub size: u16,
    /// Where the ring lies.
    pub rings: RingAddresses,
    /// The available index to go on from.
    pub next_available: u16,
    /// What the driver negotiated.
    pub features: u64,
    /// The guest's memory.
    pub memory: Rc<GuestMemory>,
    /// Signalled by the guest; without one the ring is polled by a timer.
    pub kick: Option<Kick>,
    /// Signals the guest; without one it polls.
    pub call: Option<Call>,
    /// Signalled when the queue is retired.
    pub error: Option<Call>,
}

/// A part of a ring that is not in memory, or not aligned there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the {part} at {address:#x}: {source}")]
pub struct RingError {
    /// Which part.
    pub part: &'static str,
    /// Its guest address.
    pub address: u64,
    /// What is wrong with it.
    pub source: MemoryError,
}

/// Why a queue cannot start, or does not go on. Two words: a chain comes as this or that.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// Not a power of two, or too great.
    #[error("a queue of {0} entries")]
    Size(u16),
    /// A part of the ring is not where it must be.
    #[error(transparent)]
    Ring(#[from] Box<RingError>),
    /// The available index says more chains than the ring can hold.
    #[error("{ready} chains available and {outstanding} out, in a queue of {size}")]
    TooManyAvailable {
        /// Chains between our index and the driver's.
        ready: u16,
        /// Chains that the device has.
        outstanding: u16,
        /// The queue's size.
        size: u16,
    },
    /// A chain that breaks the rules.
    #[error("the chain at descriptor {head}: {source}")]
    Chain {
        /// Its head.
        head: u16,
        /// What is wrong with it.
        source: Box<ChainError>,
    },
    /// A file behind guest memory shrank.
    #[error("guest memory was lost: its file shrank")]
    MemoryLost,
    /// The kick descriptor cannot be watched.
    #[error("kick: {0}")]
    Kick(#[source] io::Error),
    /// The call descriptor cannot be signalled; its owner may have filled it.
    #[error("call: {0}")]
    Call(#[source] io::Error),
}

impl QueueError {
    #[cold]
    fn chain(head: u16, source: ChainError) -> Self {
        let source = Box::new(source);
        Self::Chain { head, source }
    }
}

/// What [`Queue::take_into`] has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// There is no chain now, or this turn's share is used up.
    None,
    /// A chain is the frame's last.
    Chain,
    /// A chain was completed empty: it has fewer bytes than the frame leaves out of a first one, or
    /// is in more pieces than an operation moves with the others.
    Unfit,
    /// There is a chain, and it lies in other memory than those of the frame, or they are of
    /// another queue: they are to be put back first.
    Elsewhere,
}

/// The device's end of a queue.
#[must_use = "a queue that nobody serves stalls its guest"]
pub struct Queue {
    shared: Rc<Shared>,
}

impl Queue {
    /// Starts a queue. A driver's entries that are available already are taken without a kick.
    ///
    /// # Errors
    ///
    /// When the size is not lawful, or a part of the ring does not lie in memory as it must.
    pub fn start(handle: &Handle, parts: QueueParts) -> Result<(Self, QueueControl), QueueError> {
        let shared = Shared::new(handle, parts)?;
        let control = QueueControl {
            shared: shared.clone(),
        };
        Ok((Self { shared }, control))
    }

    /// Which of the device's queues this is.
    pub fn index(&self) -> u16 {
        self.shared.index
    }

    /// Entries of the ring.
    pub fn size(&self) -> u16 {
        self.shared.size
    }

    /// What the driver negotiated.
    pub fn features(&self) -> u64 {
        self.shared.features
    }

    /// The executor that the queue lives on.
    pub fn handle(&self) -> &Handle {
        &self.shared.handle
    }

    /// The next chain, in the driver's order; `None` once a stop was asked for. A device that
    /// takes chain after chain without waiting for anything gives up the turn now and then here.
    ///
    /// # Errors
    ///
    /// Once, when the guest breaks the queue. Called again, it waits for the stop.
    pub async fn next(&mut self) -> Result<Option<Chain>, QueueError> {
        poll_fn(|cx| self.shared.poll_next(cx)).await
    }

    /// Waits, with chains in hand, until there is a next one, which is not taken; false once a stop
    /// was asked for, and when the memory under the queue was replaced, as [`Queue::until_recall`]
    /// says.
    ///
    /// # Errors
    ///
    /// As for [`Queue::next`].
    pub async fn available_until_recall(&mut self) -> Result<bool, QueueError> {
        let mut recalled = pin!(self.shared.recalled.notified());
        poll_fn(|cx| match self.shared.poll_available(cx) {
            Poll::Pending => recalled.as_mut().poll(cx).map(|()| Ok(false)),
            ready => ready,
        })
        .await
    }

    /// The next chain, if there is one now and this turn's share is not used up; `None` says
    /// nothing about a stop. Once it gave a chain, no kicks are asked for until there is a wait in
    /// [`Queue::next`] or [`Queue::available_until_recall`], or this is dropped; and a kick ends no
    /// other wait. A device that only tries is never woken.
    ///
    /// # Errors
    ///
    /// As for [`Queue::next`]; called again, it gives `None`.
    #[inline]
    pub fn try_next(&mut self) -> Result<Option<Chain>, QueueError> {
        self.shared.try_take()
    }

    /// Gives a chain back to the guest, `written` bytes of its writable part filled, counted from
    /// its first byte without a gap. A count beyond the writable part is taken for all of it. In
    /// any order. The guest is told, if it wants to be, when nothing is left to take
    /// ([`Queue::next`]) or at the turn's end; and in this call, where it is waited for
    /// ([`Handle::is_ahead`]) and half of what it gave is done.
    #[inline]
    pub fn complete(&self, chain: Chain, written: u32) {
        self.shared.complete(chain, written);
    }

    /// [`Queue::try_next`] into `frame`, behind the chains that it has.
    ///
    /// # Errors
    ///
    /// As for [`Queue::try_next`].
    #[inline]
    pub fn take_into<const HEAD: usize, const TAIL: usize>(
        &mut self,
        frame: &mut Framed<HEAD, TAIL>,
    ) -> Result<Taken, QueueError> {
        self.shared.take_into(frame.run())
    }

    /// [`Queue::complete`] of the first `count` chains of `frame`, into which the kernel has
    /// written `bytes` bytes, those that it was to leave out counted too: each is full but for the
    /// last. The driver sees all of them or none, for a frame makes sense only as a whole.
    #[inline]
    pub fn complete_first<const HEAD: usize, const TAIL: usize>(
        &self,
        frame: &mut Framed<HEAD, TAIL>,
        count: usize,
        bytes: usize,
    ) {
        self.shared.complete_first(frame.run(), count, bytes);
    }

    /// [`Queue::put_back`] of all chains of `frame`. What this is too late for, because a later
    /// chain was completed, comes back empty.
    pub fn put_back_all<const HEAD: usize, const TAIL: usize>(
        &self,
        frame: &mut Framed<HEAD, TAIL>,
    ) {
        self.shared.put_back_all(frame.run());
    }

    /// Un-takes a chain, as if it had never been taken: the newest first. For buffers that wait
    /// for data which has not come when the queue stops. One that is not the newest is logged and
    /// completed with no byte written.
    pub fn put_back(&self, chain: Chain) {
        self.shared.put_back(chain);
    }

    /// Whether a stop was asked for.
    pub fn is_stopping(&self) -> bool {
        self.shared.stop.is_set()
    }

    /// `future`'s output, or `None` (and `future` dropped) when a stop is asked for first. For
    /// waits that the world may never end, while no chain is held.
    pub async fn until_stop<F: Future>(&self, future: F) -> Option<F::Output> {
        let mut future = pin!(future);
        let mut stopped = self.shared.stop.wait();
        poll_fn(|cx| {
            // The future first: what is there already is not lost to a stop.
            if let Poll::Ready(output) = future.as_mut().poll(cx) {
                return Poll::Ready(Some(output));
            }
            Pin::new(&mut stopped).poll(cx).map(|()| None)
        })
        .await
    }

    /// As [`Queue::until_stop`], for waits with chains in hand: `None` as well when the memory
    /// under the queue was replaced. Then every chain is to be put back, or completed, within
    /// moments: the front-end waits until nobody uses the old memory. They can be taken again at
    /// once. A recall is told once, in this wait or the next: who waits again with the same chains
    /// in hand is not told of it again. One from before the first of them is forgotten.
    pub async fn until_recall<F: Future>(&self, future: F) -> Option<F::Output> {
        let mut future = pin!(future);
        let mut stopped = self.shared.stop.wait();
        let mut recalled = pin!(self.shared.recalled.notified());
        poll_fn(|cx| {
            if let Poll::Ready(output) = future.as_mut().poll(cx) {
                return Poll::Ready(Some(output));
            }
            if Pin::new(&mut stopped).poll(cx).is_ready() || recalled.as_mut().poll(cx).is_ready() {
                return Poll::Ready(None);
            }
            Poll::Pending
        })
        .await
    }

    /// All that a request/response device needs: `handler` for every chain, at most `depth` at
    /// once, each completed with the byte count that its handler returns, as soon as it does.
    /// Drains before it returns. Allocates when it starts, and not for a request. `depth` is at
    /// least 1 and at most the ring's size.
    ///
    /// A stop does not interrupt a handler: one that may wait without end wraps that wait in its
    /// own time limit ([`Handle::timeout`]) and answers the request with an error. Nor is a handler
    /// told of a recall ([`Queue::until_recall`]): a front-end that replaces the guest's memory
    /// waits for those that use it, and after 30 seconds every queue that holds a chain is given
    /// up.
    ///
    /// # Errors
    ///
    /// When the guest broke the queue; what was in flight then is completed all the same.
    pub async fn serve(
        self,
        depth: usize,
        handler: impl AsyncFn(&mut Chain) -> u32,
    ) -> Result<(), QueueError> {
        lanes::serve(&self.shared, depth, &handler).await
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.shared.leave();
    }
}

/// The framework's end of a queue: starting, stopping, and what changes while it runs.
#[derive(Clone)]
pub struct QueueControl {
    shared: Rc<Shared>,
}

impl QueueControl {
    /// Asks the device to stop: [`Queue::next`] gives `None` from now on. It has stopped when its
    /// task returns.
    pub fn stop(&self) {
        self.shared.say_stop();
    }

    /// The available index that a successor goes on from. True once the device has stopped.
    pub fn next_available(&self) -> u16 {
        self.shared.next_available()
    }

    /// Chains that the device holds now.
    pub fn in_flight(&self) -> usize {
        self.shared.ledger.held().into()
    }

    /// Chains that the device lost: dropped, neither completed nor put back.
    pub fn dropped(&self) -> usize {
        self.shared.ledger.dropped().into()
    }

    /// Whether the queue was given up.
    pub fn is_retired(&self) -> bool {
        self.shared.is_retired()
    }

    /// The eventfd to call the guest with. One that comes late gets the calls it missed.
    pub fn set_call(&self, call: Option<Call>) {
        self.shared.set_call(call);
    }

    /// The eventfd to report a retirement with.
    pub fn set_error(&self, error: Option<Call>) {
        self.shared.set_error(error);
    }

    /// The eventfd to wait on; `None` polls.
    pub fn set_kick(&self, kick: Option<Kick>) {
        self.shared.set_kick(kick);
    }

    /// Goes on in other memory from the next chain on. Chains that are out keep the old one.
    ///
    /// # Errors
    ///
    /// When the ring does not lie in the new memory; the queue is retired then.
    pub fn set_memory(&self, memory: Rc<GuestMemory>) -> Result<(), QueueError> {
        self.shared.set_memory(memory)
    }

    /// Gives the queue up: reported once, with its cause, and the error eventfd signalled. What
    /// the queue finds out by itself needs no word from outside.
    pub fn retire(&self, cause: &QueueError) {
        self.shared.retire(cause);
    }
}
