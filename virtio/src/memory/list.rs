//! Lists of the pieces of memory that a chain's buffers are, while it is walked. Not what becomes
//! of them: that is [`super::GuestBuffers`]'s, or a run's.

use std::ptr;

use libc::iovec;

use super::{GuestMemory, MemoryError};

/// Where the buffers of one side of a chain are listed as it is walked.
pub(crate) trait BufferList {
    /// Whether the chain has none here.
    fn is_empty(&self) -> bool;

    /// How many pieces of memory those of the chain are.
    fn pieces(&self) -> usize;

    /// Adds a range of `memory`, which has bytes, if they lie in one region; whether they do. It is
    /// one piece more then, at most. The caller has made sure that there are fewer than 2^32 bytes
    /// together.
    fn push_whole(&mut self, memory: &GuestMemory, address: u64, len: u32) -> bool;

    /// As [`BufferList::push_whole`], wherever the range lies. After an error there may be a part
    /// of it here: the chain is refused, and its list given up.
    fn push_pieces(
        &mut self,
        memory: &GuestMemory,
        address: u64,
        len: u32,
    ) -> Result<(), MemoryError>;
}

/// Whether the piece that is mapped at `host`, `offset` behind the beginning of its region, goes on
/// where the last one ended, in the same region: the two become one then. How a driver frames its
/// bytes has no meaning (2.7.4.2), and the kernel likes few iovecs.
#[inline]
pub(super) fn extends(last: &iovec, host: *mut u8, offset: usize) -> bool {
    offset > 0 && ptr::addr_eq(last.iov_base.wrapping_byte_add(last.iov_len), host)
}

/// The readable buffers of a chain of which only the writable ones are of use: they are checked as
/// all are.
#[derive(Default)]
pub(crate) struct Unread {
    pieces: usize,
}

impl BufferList for Unread {
    fn is_empty(&self) -> bool {
        self.pieces == 0
    }

    fn pieces(&self) -> usize {
        self.pieces
    }

    fn push_whole(&mut self, memory: &GuestMemory, address: u64, len: u32) -> bool {
        let is_whole = memory.in_one(address, len.into()).is_some();
        self.pieces += usize::from(is_whole);
        is_whole
    }

    fn push_pieces(
        &mut self,
        memory: &GuestMemory,
        address: u64,
        len: u32,
    ) -> Result<(), MemoryError> {
        memory.pieces(address, len.into(), |_, _, _| self.pieces += 1)
    }
}
