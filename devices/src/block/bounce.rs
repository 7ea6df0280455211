//! A few aligned buffers for O_DIRECT, lent to requests that are not aligned, or whose memory
//! is not, or cannot be pinned. Not for others: they go straight to guest memory.
//!
//! What fits comes from the ring's registered memory, whose pages the kernel need not pin anew for
//! each operation. While that is lent, and where there is none, there are buffers on the heap.

use std::cell::{Cell, RefCell};
use std::ops::Range;

use vudev_executor::{Bytes, Handle, Notify, Registered};

/// How many bytes one buffer holds; longer requests go through it piece by piece. Two blocks of the
/// greatest alignment at least, so that the first and the last block of a piece have room.
pub(super) const BOUNCE_SIZE: usize = 128 * 1024;

/// How many there are on the heap at most. Each costs [`BOUNCE_SIZE`] of memory once it was needed,
/// so this bounds what a guest can make us hold; further requests wait for one.
const BOUNCE_BUFFERS: usize = 16;

/// The buffers of one disk.
pub(super) struct Pool {
    alignment: usize,
    registered: Option<Registered>,
    /// Those of the heap.
    idle: RefCell<Vec<Bytes>>,
    lent: Cell<usize>,
    returned: Notify,
}

impl Pool {
    /// A pool whose buffers begin at multiples of `alignment` (a power of two). Those on the heap
    /// are made when they are needed.
    pub(super) fn new(alignment: u32, registered: Option<Registered>) -> Self {
        Self {
            alignment: alignment as usize,
            registered,
            idle: RefCell::new(Vec::with_capacity(BOUNCE_BUFFERS)),
            lent: Cell::new(0),
            returned: Notify::new(),
        }
    }

    /// Lends a buffer for `length` bytes (at most [`BOUNCE_SIZE`]), as soon as one is free.
    pub(super) async fn lend(&self, length: usize) -> Lent<'_> {
        loop {
            let registered = self.registered.as_ref();
            if let Some(bytes) = registered.and_then(|memory| memory.lend(length)) {
                return Lent::new(self, bytes, false);
            }
            if self.lent.get() < BOUNCE_BUFFERS {
                self.lent.set(self.lent.get() + 1);
                let idle = self.idle.borrow_mut().pop();
                return Lent::new(self, idle.unwrap_or_else(|| self.make()), true);
            }
            self.returned.notified().await;
        }
    }

    fn make(&self) -> Bytes {
        Bytes::zeroed(BOUNCE_SIZE + self.alignment)
    }
}

/// The ring's registered memory, for buffers that begin at multiples of `alignment`; none is taken
/// where no part of it does. Where it cannot be had the disk works without, and says so.
pub(super) fn registered(handle: &Handle, alignment: u32) -> Option<Registered> {
    if alignment as usize > Registered::ALIGNMENT {
        return None;
    }
    let memory = handle.registered();
    let without = |error: &_| {
        log::info!(
            "requests that cannot go straight to a guest's memory cost more, as the kernel \
             registers no buffers ({error}): see the limit of locked memory (ulimit -l)"
        );
    };
    memory.inspect_err(without).ok()
}

/// A lent buffer, which goes back to its pool when dropped.
pub(super) struct Lent<'a> {
    pool: &'a Pool,
    /// `None` while the kernel has it, and for good if the operation was dropped: what is
    /// registered comes back by itself then.
    bytes: Option<Bytes>,
    on_heap: bool,
}

impl<'a> Lent<'a> {
    fn new(pool: &'a Pool, bytes: Bytes, on_heap: bool) -> Self {
        let bytes = Some(bytes);
        Self {
            pool,
            bytes,
            on_heap,
        }
    }

    /// Takes the buffer for an operation on `part` of the aligned bytes that were asked for.
    pub(super) fn take(&mut self, part: Range<usize>) -> Bytes {
        assert!(
            part.end <= BOUNCE_SIZE,
            "a piece is no longer than a buffer"
        );
        let mut bytes = self.bytes.take().unwrap_or_else(|| self.pool.make());
        bytes.set_range(0..bytes.capacity());
        let start = bytes.as_slice().as_ptr().align_offset(self.pool.alignment);
        bytes.set_range(start + part.start..start + part.end);
        bytes
    }

    /// Keeps the buffer when the operation gave it back.
    pub(super) fn keep(&mut self, bytes: Bytes) {
        self.bytes = Some(bytes);
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        let bytes = self.bytes.take();
        if self.on_heap {
            self.pool.lent.set(self.pool.lent.get() - 1);
            self.pool.idle.borrow_mut().extend(bytes);
        } else {
            drop(bytes);
        }
        self.pool.returned.notify();
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use vudev_executor::{Executor, Faults, IoBuffers};

    use super::*;

    /// What `future` yields without waiting.
    fn at_once<F: Future>(future: F) -> Option<F::Output> {
        match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        }
    }

    #[test]
    fn a_lent_buffer_is_aligned_and_as_long_as_asked() {
        let pool = Pool::new(4096, None);
        let mut lent = at_once(pool.lend(BOUNCE_SIZE)).unwrap();
        let bytes = lent.take(0..8192);
        assert_eq!(bytes.as_slice().len(), 8192);
        assert_eq!(bytes.as_slice().as_ptr().addr() % 4096, 0);
        lent.keep(bytes);
        let bytes = lent.take(4096..BOUNCE_SIZE);
        assert_eq!(bytes.as_slice().as_ptr().addr() % 4096, 0);
    }

    #[test]
    fn a_request_waits_when_all_buffers_are_lent_and_a_dropped_operation_frees_one() {
        let pool = Pool::new(512, None);
        let mut lent: Vec<_> = (0..BOUNCE_BUFFERS)
            .map(|_| at_once(pool.lend(512)).unwrap())
            .collect();
        assert!(at_once(pool.lend(512)).is_none());
        drop(lent[0].take(0..512));
        lent.remove(0);
        assert!(at_once(pool.lend(512)).is_some());
    }

    #[test]
    fn registered_memory_is_lent_first_then_the_heap_and_one_of_either_ends_a_wait() {
        let executor = Executor::simulated(0, Faults::default());
        // Blocks as great as this begin where no registered part does.
        assert!(registered(executor.handle(), 8192).is_none());
        let memory = registered(executor.handle(), 4096);
        assert!(memory.is_some());
        let pool = Pool::new(4096, memory);
        let is_registered = |lent: &mut Lent<'_>| {
            let bytes = lent.take(0..512);
            let registered = bytes.registered();
            lent.keep(bytes);
            registered
        };
        let mut large = at_once(pool.lend(BOUNCE_SIZE)).unwrap();
        assert!(is_registered(&mut large));
        let mut heap: Vec<_> = (0..BOUNCE_BUFFERS)
            .map(|_| at_once(pool.lend(512)).unwrap())
            .collect();
        assert!(!heap.iter_mut().any(is_registered));
        let mut waiting = pin!(pool.lend(512));
        let mut poll = || {
            waiting
                .as_mut()
                .poll(&mut Context::from_waker(Waker::noop()))
        };
        assert!(poll().is_pending());
        // Its operation was dropped: what it has comes back with the operation.
        drop(large.take(0..512));
        drop(large);
        let Poll::Ready(mut lent) = poll() else {
            panic!("nobody has told it");
        };
        assert!(is_registered(&mut lent));
    }
}
