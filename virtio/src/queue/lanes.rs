//! The loop of a request/response device: a fixed number of lanes, each with a request under way
//! or none. Not a general join: a lane's future is set anew in the same box for every request, and
//! its waker is made once, so that a request allocates nothing.

use std::future::{Future, poll_fn};
use std::mem;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::task::AtomicWaker;

use super::QueueError;
use super::shared::Shared;
use crate::chain::Chain;

/// Serves until a stop or an error, then drains. See [`super::Queue::serve`].
pub(super) async fn serve<H: AsyncFn(&mut Chain) -> u32>(
    queue: &Rc<Shared>,
    depth: usize,
    handler: &H,
) -> Result<(), QueueError> {
    let depth = depth.clamp(1, queue.size.into());
    let mut lanes = Lanes::new(depth, |chain| request(handler, chain));
    let mut end = None;
    poll_fn(|cx| {
        let waits = lanes.busy > 0;
        if waits {
            lanes.ready.parent.register(cx.waker());
            lanes.poll_woken(queue);
        }
        while end.is_none()
            && let Some(lane) = lanes.free()
        {
            match queue.poll_next(cx) {
                Poll::Ready(Ok(Some(chain))) => lanes.start(lane, chain, queue),
                Poll::Ready(Ok(None)) => end = Some(Ok(())),
                Poll::Ready(Err(error)) => end = Some(Err(error)),
                Poll::Pending => break,
            }
        }
        if !waits && lanes.busy > 0 {
            // Of those that began just now one may have been woken already.
            lanes.ready.parent.register(cx.waker());
            if lanes.ready.is_any() {
                cx.waker().wake_by_ref();
            }
        }
        match &mut end {
            Some(result) if lanes.busy == 0 => Poll::Ready(mem::replace(result, Ok(()))),
            _ => Poll::Pending,
        }
    })
    .await
}

/// One request: the handler's, with the chain that it works on.
async fn request<H: AsyncFn(&mut Chain) -> u32>(handler: &H, mut chain: Chain) -> (Chain, u32) {
    let written = handler(&mut chain).await;
    (chain, written)
}

struct Lanes<F, M> {
    make: M,
    futures: Box<[Pin<Box<Option<F>>>]>,
    wakers: Box<[Waker]>,
    /// Lanes without a request.
    idle: Vec<usize>,
    busy: usize,
    ready: Arc<Ready>,
}

impl<F: Future<Output = (Chain, u32)>, M: Fn(Chain) -> F> Lanes<F, M> {
    fn new(depth: usize, make: M) -> Self {
        let words = depth.div_ceil(u64::BITS as usize);
        let ready = Arc::new(Ready {
            words: (0..words).map(|_| AtomicU64::new(0)).collect(),
            parent: AtomicWaker::new(),
        });
        let waker = |lane| {
            Waker::from(Arc::new(LaneWaker {
                lane,
                ready: ready.clone(),
            }))
        };
        Self {
            make,
            futures: (0..depth).map(|_| Box::pin(None)).collect(),
            wakers: (0..depth).map(waker).collect(),
            idle: (0..depth).rev().collect(),
            busy: 0,
            ready,
        }
    }

    /// A lane to start the next request in.
    fn free(&self) -> Option<usize> {
        self.idle.last().copied()
    }

    /// Starts a request in the lane that `free` gave, and polls it for the first time.
    fn start(&mut self, lane: usize, chain: Chain, queue: &Rc<Shared>) {
        let popped = self.idle.pop();
        debug_assert_eq!(popped, Some(lane));
        self.busy += 1;
        self.futures[lane].set(Some((self.make)(chain)));
        self.poll(lane, queue);
    }

    /// Polls the lanes whose wakers fired before now: one that wakes itself waits for the next
    /// round, like everyone else.
    fn poll_woken(&mut self, queue: &Rc<Shared>) {
        for word in 0..self.ready.words.len() {
            let mut bits = self.ready.words[word].swap(0, Ordering::AcqRel);
            while bits != 0 {
                let bit = bits.trailing_zeros() as usize;
                bits &= bits - 1;
                self.poll(word * u64::BITS as usize + bit, queue);
            }
        }
    }

    fn poll(&mut self, lane: usize, queue: &Rc<Shared>) {
        let mut slot = self.futures[lane].as_mut();
        // A waker may fire after its request is over.
        let Some(future) = slot.as_mut().as_pin_mut() else {
            return;
        };
        let mut cx = Context::from_waker(&self.wakers[lane]);
        if let Poll::Ready((chain, written)) = future.poll(&mut cx) {
            slot.set(None);
            self.busy -= 1;
            self.idle.push(lane);
            queue.complete(chain, written);
        }
    }
}

/// Which lanes' wakers have fired. Atomic because a waker may be sent to another thread, though
/// ours never are.
struct Ready {
    words: Box<[AtomicU64]>,
    parent: AtomicWaker,
}

impl Ready {
    fn is_any(&self) -> bool {
        let mut words = self.words.iter();
        words.any(|word| word.load(Ordering::Acquire) != 0)
    }
}

struct LaneWaker {
    lane: usize,
    ready: Arc<Ready>,
}

impl Wake for LaneWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let (word, bit) = (
            self.lane / u64::BITS as usize,
            self.lane % u64::BITS as usize,
        );
        self.ready.words[word].fetch_or(1 << bit, Ordering::AcqRel);
        self.ready.parent.wake();
    }
}
