//! Pieces of guest memory as one run of bytes: what a chain offers a device to read, or to write.
//! Not the bytes themselves: they are copied on demand, or moved by the kernel through the iovecs.

use std::cell::RefCell;
use std::fmt;
use std::mem;
use std::rc::Rc;

use libc::iovec;
use vm_memory::VolatileSlice;
use vudev_executor::IoBuffers;

use super::list::{BufferList, extends};
use super::region::DirtyLog;
use super::{GuestMemory, MemoryError};

/// How many spare lists of pieces a memory keeps, of those that were split off, taken out of their
/// chain, or too large to stay there: the depth that a busy device reaches. More are freed.
const POOL_LISTS_MAX: usize = 1024;

/// A list that grew beyond this many iovecs is freed, not kept, so that one guest with giant
/// chains does not hold memory for ever. A Linux block driver sends at most 128 or so.
const POOL_IOVECS_MAX: usize = 256;

/// A list with room for so many iovecs (half a KiB) stays where the chain stood, for the next one
/// there; a larger one goes back to its memory.
const KEPT_IOVECS_MAX: usize = 32;

/// The most pieces that buffers are joined to ([`GuestBuffers::append`]): such lists are kept.
const PIECES_MAX: usize = POOL_IOVECS_MAX / 2;

/// The most bytes of buffers: a chain has fewer than 2^32 (2.7.5.2).
const LEN_MAX: usize = u32::MAX as usize;

/// Buffers in guest memory, consumed from the front. They keep their memory mapped, and can be
/// handed to the executor's files and sockets.
///
/// Two words, for chains and buffers change hands often: what there is to say of the pieces stays
/// where it is.
#[derive(Default)]
pub struct GuestBuffers {
    /// Lent by a memory to what may have bytes. Where a chain stood it stays, empty, for the next
    /// one there.
    pieces: Option<Box<Pieces>>,
    /// What the pieces lie in; `None` of none. With a memory there is a list.
    memory: Option<Rc<GuestMemory>>,
}

/// A list of pieces.
#[derive(Default)]
pub(super) struct Pieces {
    iovecs: Vec<iovec>,
    /// Iovecs before this one are used up.
    first: usize,
    /// Bytes left: at most [`LEN_MAX`].
    len: usize,
}

/// A byte of guest memory, split off by [`GuestBuffers::split_last`].
#[derive(Debug)]
pub struct LastByte {
    memory: Rc<GuestMemory>,
    host: usize,
}

impl LastByte {
    /// Writes it.
    #[inline]
    pub fn write(self, byte: u8) {
        let slice = self.memory.host_slice(self.host, 1);
        slice
            .expect("it lies in the memory it was made from")
            .copy_from(&[byte]);
    }
}

/// A device asked for more bytes than the guest gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{wanted} bytes wanted of buffers with {available}")]
pub struct ShortBuffers {
    /// Bytes asked for.
    pub wanted: usize,
    /// Bytes there were.
    pub available: usize,
}

impl GuestBuffers {
    /// Bytes left.
    #[inline]
    pub fn len(&self) -> usize {
        self.pieces.as_ref().map_or(0, |pieces| pieces.len)
    }

    /// Whether no byte is left.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The memory that these lie in. Buffers that never had bytes lie in none.
    pub fn memory(&self) -> Option<&Rc<GuestMemory>> {
        self.memory.as_ref()
    }

    /// Copies from the front, and moves past it.
    ///
    /// # Errors
    ///
    /// When fewer bytes are left than `into` has; nothing is consumed then.
    #[inline]
    pub fn read(&mut self, into: &mut [u8]) -> Result<(), ShortBuffers> {
        if let Some(bytes) = self.front(into.len()) {
            bytes.copy_to(into);
            return Ok(());
        }
        let mut rest = into;
        self.consume(rest.len(), |bytes| {
            let (part, after) = mem::take(&mut rest).split_at_mut(bytes.len());
            bytes.copy_to(part);
            rest = after;
        })
    }

    /// Reads the next `N` bytes.
    ///
    /// # Errors
    ///
    /// As for [`GuestBuffers::read`].
    #[inline]
    pub fn read_array<const N: usize>(&mut self) -> Result<[u8; N], ShortBuffers> {
        let mut bytes = [0; N];
        self.read(&mut bytes)?;
        Ok(bytes)
    }

    /// Copies from the front without moving past it, as much as there is; how much that was.
    pub fn peek(&self, into: &mut [u8]) -> usize {
        let (Some(pieces), Some(memory)) = (&self.pieces, &self.memory) else {
            return 0;
        };
        let mut done = 0;
        for piece in pieces.left() {
            let count = piece.iov_len.min(into.len() - done);
            if count == 0 {
                break;
            }
            memory
                .bytes(piece.iov_base.addr(), count)
                .copy_to(&mut into[done..done + count]);
            done += count;
        }
        done
    }

    /// Copies to the front, and moves past it.
    ///
    /// # Errors
    ///
    /// When fewer bytes are left than `from` has; nothing is written then.
    #[inline]
    pub fn write(&mut self, from: &[u8]) -> Result<(), ShortBuffers> {
        if let Some(bytes) = self.front(from.len()) {
            bytes.copy_from(from);
            return Ok(());
        }
        let mut rest = from;
        self.consume(rest.len(), |bytes| {
            let (part, after) = rest.split_at(bytes.len());
            bytes.copy_from(part);
            rest = after;
        })
    }

    /// Splits in two: `self` keeps the first `at` bytes, the rest is returned.
    ///
    /// # Errors
    ///
    /// When there are fewer than `at` bytes; nothing changes then.
    pub fn split_off(&mut self, at: usize) -> Result<Self, ShortBuffers> {
        self.want(at)?;
        let (Some(pieces), Some(memory)) = (&mut self.pieces, &self.memory) else {
            return Ok(Self::default());
        };
        let mut index = pieces.first;
        let mut left = at;
        while left > 0 && left >= pieces.iovecs[index].iov_len {
            left -= pieces.iovecs[index].iov_len;
            index += 1;
        }
        let mut tail = memory.pool.lend();
        tail.iovecs.extend_from_slice(&pieces.iovecs[index..]);
        tail.len = pieces.len - at;
        if left > 0 {
            let front = &mut tail.iovecs[0];
            front.iov_base = front.iov_base.wrapping_byte_add(left);
            front.iov_len -= left;
            pieces.iovecs[index].iov_len = left;
            index += 1;
        }
        pieces.iovecs.truncate(index);
        pieces.len = at;
        Ok(Self {
            pieces: Some(tail),
            memory: Some(memory.clone()),
        })
    }

    /// Splits off the last byte, if there is one: where a request's status goes.
    #[inline]
    pub fn split_last(&mut self) -> Option<LastByte> {
        let (pieces, memory) = (self.pieces.as_mut()?, self.memory.as_ref()?);
        let last = pieces.iovecs.get_mut(pieces.first..)?.last_mut()?;
        last.iov_len -= 1;
        let host = last.iov_base.addr() + last.iov_len;
        if last.iov_len == 0 {
            pieces.iovecs.pop();
        }
        pieces.len -= 1;
        Some(LastByte {
            memory: memory.clone(),
            host,
        })
    }

    /// Moves past the first `count` bytes.
    ///
    /// # Errors
    ///
    /// When there are fewer; nothing changes then.
    #[inline]
    pub fn advance(&mut self, count: usize) -> Result<(), ShortBuffers> {
        self.want(count)?;
        if let Some(pieces) = &mut self.pieces {
            pieces.skip(count);
        }
        Ok(())
    }

    /// Keeps at most the first `len` bytes.
    pub fn truncate(&mut self, len: usize) {
        if len < self.len() {
            let tail = self.split_off(len);
            debug_assert!(tail.is_ok(), "{len} is within {}", self.len());
        }
    }

    /// Takes all of it, and leaves nothing: to hand the buffers to an operation and put them back.
    #[inline]
    pub fn take(&mut self) -> Self {
        mem::take(self)
    }

    /// Adds `more` at the end, if both lie in the same memory and are not too many pieces together
    /// for a list that is kept; else it is given back.
    ///
    /// # Errors
    ///
    /// `more`, as it was.
    pub fn append(&mut self, more: Self) -> Result<(), Self> {
        let pieces = self.iovecs().len() + more.iovecs().len();
        let length = self.len().checked_add(more.len());
        let Some(length) = length.filter(|&it| it <= LEN_MAX && pieces <= PIECES_MAX) else {
            return Err(more);
        };
        match (&self.memory, &more.memory) {
            (_, None) => Ok(()),
            (None, Some(_)) => {
                *self = more;
                Ok(())
            }
            (Some(memory), Some(other)) if Rc::ptr_eq(memory, other) => {
                let pieces = self.list(other);
                // Else a list that is added to as it is used up would grow for ever.
                pieces.iovecs.drain(..mem::take(&mut pieces.first));
                pieces.iovecs.extend_from_slice(more.iovecs());
                pieces.len = length;
                Ok(())
            }
            (Some(_), Some(_)) => Err(more),
        }
    }

    /// The list to add pieces of `memory` to, and of no other: then [`GuestBuffers::lie_in`] it.
    #[inline]
    pub(super) fn list(&mut self, memory: &GuestMemory) -> &mut Pieces {
        self.pieces.get_or_insert_with(|| memory.pool.lend())
    }

    /// Says what the pieces lie in, if there are any.
    #[inline]
    pub(crate) fn lie_in(&mut self, memory: &Rc<GuestMemory>) {
        debug_assert!(
            self.memory
                .as_ref()
                .is_none_or(|own| Rc::ptr_eq(own, memory)),
            "pieces of one memory"
        );
        if self.memory.is_none() && !self.is_empty() {
            self.memory = Some(memory.clone());
        }
    }

    /// Empties this side of what nobody uses any more. Its list stays for the next to stand here,
    /// unless it is large.
    #[inline]
    pub(crate) fn vacate(&mut self) {
        // What lies in no memory has no bytes, and a list that is empty if there is one.
        let Some(memory) = self.memory.take() else {
            return;
        };
        match &mut self.pieces {
            Some(pieces) if pieces.iovecs.capacity() <= KEPT_IOVECS_MAX => pieces.clear(),
            large => memory.take_back(large),
        }
    }

    #[inline]
    fn want(&self, wanted: usize) -> Result<(), ShortBuffers> {
        let available = self.len();
        if wanted > available {
            Err(ShortBuffers { wanted, available })
        } else {
            Ok(())
        }
    }

    /// Moves past the first `count` bytes, if the first piece has as many, as nearly always for a
    /// header.
    #[inline]
    fn front(&mut self, count: usize) -> Option<VolatileSlice<'_, DirtyLog>> {
        let (pieces, memory) = (self.pieces.as_mut()?, self.memory.as_ref()?);
        let front = pieces.iovecs.get_mut(pieces.first)?;
        if count > front.iov_len {
            return None;
        }
        let bytes = memory.bytes(front.iov_base.addr(), count);
        front.iov_base = front.iov_base.wrapping_byte_add(count);
        front.iov_len -= count;
        pieces.first += usize::from(front.iov_len == 0);
        pieces.len -= count;
        Some(bytes)
    }

    /// Moves past the first `count` bytes, and shows `each` those that lie together.
    #[inline(never)]
    fn consume(
        &mut self,
        count: usize,
        mut each: impl FnMut(VolatileSlice<'_, DirtyLog>),
    ) -> Result<(), ShortBuffers> {
        self.want(count)?;
        let (Some(pieces), Some(memory)) = (&mut self.pieces, &self.memory) else {
            return Ok(());
        };
        let mut left = count;
        while left > 0 {
            let front = pieces.iovecs[pieces.first];
            let part = front.iov_len.min(left);
            each(memory.bytes(front.iov_base.addr(), part));
            pieces.skip(part);
            left -= part;
        }
        Ok(())
    }
}

impl BufferList for GuestBuffers {
    #[inline]
    fn is_empty(&self) -> bool {
        self.is_empty()
    }

    fn pieces(&self) -> usize {
        self.pieces.as_ref().map_or(0, |pieces| pieces.iovecs.len())
    }

    #[inline(always)]
    fn push_whole(&mut self, memory: &GuestMemory, address: u64, len: u32) -> bool {
        self.list(memory).push_whole(memory, address, len)
    }

    fn push_pieces(
        &mut self,
        memory: &GuestMemory,
        address: u64,
        len: u32,
    ) -> Result<(), MemoryError> {
        self.list(memory).push_pieces(memory, address, len.into())
    }
}

impl Pieces {
    /// [`BufferList::push_whole`].
    // A call costs as much as half of it.
    #[inline(always)]
    pub(super) fn push_whole(&mut self, memory: &GuestMemory, address: u64, len: u32) -> bool {
        let Some((host, offset)) = memory.in_one(address, len.into()) else {
            return false;
        };
        push_piece(&mut self.iovecs, host, offset, len as usize);
        self.len += len as usize;
        true
    }

    /// [`BufferList::push_pieces`].
    #[cold]
    #[inline(never)]
    pub(super) fn push_pieces(
        &mut self,
        memory: &GuestMemory,
        address: u64,
        len: u64,
    ) -> Result<(), MemoryError> {
        // A range that ends outside must leave no pieces here.
        memory.check_range(address, len)?;
        memory.pieces(address, len, |region, offset, count| {
            let host = region.host().wrapping_add(offset);
            push_piece(&mut self.iovecs, host, offset, count);
            self.len += count;
        })
    }

    /// Those that are not used up.
    #[inline]
    fn left(&self) -> &[iovec] {
        &self.iovecs[self.first..]
    }

    #[inline]
    fn clear(&mut self) {
        self.iovecs.clear();
        (self.first, self.len) = (0, 0);
    }

    /// Moves past the first `count` bytes, which must be there.
    #[inline]
    fn skip(&mut self, count: usize) {
        self.len -= count;
        let mut left = count;
        while left > 0 {
            let front = &mut self.iovecs[self.first];
            if left < front.iov_len {
                front.iov_base = front.iov_base.wrapping_byte_add(left);
                front.iov_len -= left;
                return;
            }
            left -= front.iov_len;
            self.first += 1;
        }
    }
}

impl GuestMemory {
    /// What is copied, here or there: nothing else in this file touches the bytes.
    #[inline]
    pub(super) fn bytes(&self, host: usize, len: usize) -> VolatileSlice<'_, DirtyLog> {
        #[cfg(feature = "testing")]
        crate::testing::copies::count(len);
        self.host_slice(host, len)
            .expect("iovecs lie in the memory they were made from")
    }

    /// A list that this memory may have lent comes back.
    #[inline(never)]
    fn take_back(&self, pieces: &mut Option<Box<Pieces>>) {
        if let Some(pieces) = pieces.take() {
            self.pool.take_back(pieces);
        }
    }
}

/// Adds the piece that is mapped at `host`, `offset` behind the beginning of its region.
#[inline]
fn push_piece(iovecs: &mut Vec<iovec>, host: *mut u8, offset: usize, count: usize) {
    if let Some(last) = iovecs.last_mut()
        && extends(last, host, offset)
    {
        last.iov_len += count;
        return;
    }
    iovecs.push(iovec {
        iov_base: host.cast(),
        iov_len: count,
    });
}

impl Drop for GuestBuffers {
    #[inline]
    fn drop(&mut self) {
        if let Some(memory) = self.memory.take() {
            memory.take_back(&mut self.pieces);
        }
    }
}

impl fmt::Debug for GuestBuffers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "GuestBuffers({} bytes in {} pieces)",
            self.len(),
            self.iovecs().len()
        )
    }
}

#[expect(unsafe_code, reason = "promises the kernel valid iovecs")]
// SAFETY: the iovecs stand in a heap vector that only `&mut self` changes, so moving `self` moves
// nothing they rely on. Each was made by `Pieces` from a checked range of a region of `memory`, and
// only ever made shorter from either end; `memory` keeps every region mapped, readable and
// writable, and the list goes back to it, and is empty then.
unsafe impl IoBuffers for GuestBuffers {
    #[inline]
    fn iovecs(&self) -> &[iovec] {
        self.pieces.as_ref().map_or(&[], |pieces| pieces.left())
    }

    #[inline]
    fn bytes(&self) -> usize {
        self.len()
    }
}

/// Spare lists, so that a request allocates nothing once the device has warmed up.
#[derive(Default)]
#[expect(clippy::vec_box, reason = "what is lent is the box")]
pub(super) struct Pool(RefCell<Vec<Box<Pieces>>>);

impl Pool {
    #[inline]
    fn lend(&self) -> Box<Pieces> {
        self.0.borrow_mut().pop().unwrap_or_default()
    }

    #[inline]
    fn take_back(&self, mut pieces: Box<Pieces>) {
        pieces.clear();
        let mut spare = self.0.borrow_mut();
        if pieces.iovecs.capacity() <= POOL_IOVECS_MAX && spare.len() < POOL_LISTS_MAX {
            spare.push(pieces);
        }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pool({} spare)", self.0.borrow().len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{GUEST_BASE, Guest};

    fn scattered(memory: &Rc<GuestMemory>, count: u64) -> GuestBuffers {
        let ranges: Vec<_> = (0..count).map(|it| (GUEST_BASE + 2 * it, 1)).collect();
        memory.buffers(&ranges).unwrap()
    }

    #[test]
    fn no_large_list_stays_where_a_chain_stood() {
        let memory = Guest::new(1 << 16).memory();
        for count in [20, 200] {
            let mut side = scattered(&memory, count);
            side.vacate();
            assert!(side.is_empty() && side.memory().is_none());
            assert_eq!(side.pieces.is_some(), count == 20);
        }
    }

    #[test]
    fn a_list_that_is_added_to_as_it_is_used_up_does_not_grow() {
        let memory = Guest::new(1 << 16).memory();
        let mut buffers = scattered(&memory, 3);
        for _ in 0..1000 {
            buffers.append(scattered(&memory, 3)).unwrap();
            buffers.advance(3).unwrap();
        }
        assert_eq!(buffers.len(), 3);
        let pieces = buffers.pieces.as_ref().unwrap();
        assert!(
            pieces.iovecs.capacity() <= 2 * 6,
            "{}",
            pieces.iovecs.capacity()
        );
    }
}
