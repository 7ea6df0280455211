//! Numbers that look random and come again with the same seed (xorshift). Not for secrets.

#![allow(dead_code, reason = "each user uses its part")]

/// A sequence; the seed is not 0.
#[derive(Clone, Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    /// The next number.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below a limit. The low bits are the weakest, so they are left out.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 8) % limit
    }
}
