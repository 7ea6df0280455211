//! Counts the bytes that a thread has copied between buffers of guests and its own memory, which is
//! what devices do with headers. What the kernel moves by iovecs is not among them, nor are rings.

use std::cell::Cell;

thread_local! {
    static COPIED: Cell<u64> = const { Cell::new(0) };
}

/// How many bytes this thread has copied.
pub fn copied() -> u64 {
    COPIED.get()
}

pub(crate) fn count(bytes: usize) {
    COPIED.set(COPIED.get() + bytes as u64);
}
