//! Counters of a loop: tests assert counts, because times are noisy.

/// What a loop has done since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// `io_uring_enter` calls.
    pub enters: u64,
    /// Of these, those that may have slept.
    pub sleeps: u64,
    /// Times that the loop polled before it would have slept.
    pub polls: u64,
    /// Of these, those that found something to do.
    pub finds: u64,
    /// Operations submitted.
    pub operations: u64,
    /// Operations completed for good (a multishot poll counts once).
    pub completions: u64,
    /// Reads and writes tried at once, by a system call and not through the ring.
    pub at_once: u64,
    /// Signals given through [`crate::Call`].
    pub calls: u64,
    /// Times that completions had not fitted into their queue and were flushed.
    pub overflows: u64,
    /// Operations the kernel has yet to answer for.
    pub in_flight: u64,
}
