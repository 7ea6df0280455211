//! A few aligned buffers for O_DIRECT, lent to requests that are not aligned, or whose memory
//! is not. Not for those that are: they go straight to guest memory.

use std::cell::{Cell, RefCell};
use std::ops::Range;

use vudev_executor::{Bytes, Notify};

/// How many bytes one buffer holds; longer requests go through it piece by piece. Two blocks of the
/// greatest alignment at least, so that the first and the last block of a piece have room.
pub(super) const BOUNCE_SIZE: usize = 128 * 1024;

/// How many buffers there are at most. Each costs [`BOUNCE_SIZE`] of memory once it was needed, so
/// this bounds what a guest can make us hold; further requests wait for one.
const BOUNCE_BUFFERS: usize = 16;

/// The buffers of one disk.
pub(super) struct Pool {
    alignment: usize,
    idle: RefCell<Vec<Bytes>>,
    lent: Cell<usize>,
    returned: Notify,
}

impl Pool {
    /// A pool whose buffers begin at multiples of `alignment` (a power of two); none is made yet.
    pub(super) fn new(alignment: u32) -> Self {
        Self {
            alignment: alignment as usize,
            idle: RefCell::new(Vec::with_capacity(BOUNCE_BUFFERS)),
            lent: Cell::new(0),
            returned: Notify::new(),
        }
    }

    /// Lends a buffer, as soon as one is free.
    pub(super) async fn lend(&self) -> Lent<'_> {
        while self.lent.get() >= BOUNCE_BUFFERS {
            self.returned.notified().await;
        }
        self.lent.set(self.lent.get() + 1);
        let idle = self.idle.borrow_mut().pop();
        let bytes = Some(idle.unwrap_or_else(|| self.make()));
        Lent { pool: self, bytes }
    }

    fn make(&self) -> Bytes {
        Bytes::zeroed(BOUNCE_SIZE + self.alignment)
    }
}

/// A lent buffer, which goes back to its pool when dropped.
pub(super) struct Lent<'a> {
    pool: &'a Pool,
    /// `None` while the kernel has it, and for good if the operation was dropped.
    bytes: Option<Bytes>,
}

impl Lent<'_> {
    /// Takes the buffer for an operation on `part` of its [`BOUNCE_SIZE`] aligned bytes.
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
        self.pool.lent.set(self.pool.lent.get() - 1);
        self.pool.idle.borrow_mut().extend(self.bytes.take());
        self.pool.returned.notify();
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

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
        let pool = Pool::new(4096);
        let mut lent = at_once(pool.lend()).unwrap();
        let bytes = lent.take(0..8192);
        assert_eq!(bytes.as_slice().len(), 8192);
        assert_eq!(bytes.as_slice().as_ptr().addr() % 4096, 0);
        lent.keep(bytes);
        let bytes = lent.take(4096..BOUNCE_SIZE);
        assert_eq!(bytes.as_slice().as_ptr().addr() % 4096, 0);
    }

    #[test]
    fn a_request_waits_when_all_buffers_are_lent_and_a_dropped_operation_frees_one() {
        let pool = Pool::new(512);
        let mut lent: Vec<_> = (0..BOUNCE_BUFFERS)
            .map(|_| at_once(pool.lend()).unwrap())
            .collect();
        assert!(at_once(pool.lend()).is_none());
        drop(lent[0].take(0..512));
        lent.remove(0);
        assert!(at_once(pool.lend()).is_some());
    }
}
