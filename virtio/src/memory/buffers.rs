//! Pieces of guest memory as one run of bytes: what a chain offers a device to read, or to write.
//! Not the bytes themselves: they are copied on demand, or moved by the kernel through the iovecs.

use std::cell::RefCell;
use std::fmt;
use std::mem;
use std::ptr;
use std::rc::Rc;

use libc::iovec;
use vm_memory::VolatileSlice;
use vudev_executor::IoBuffers;

use super::region::DirtyLog;
use super::{GuestMemory, MemoryError};

/// How many spare lists of pieces a memory keeps: the depth that a busy device reaches, two a
/// chain. More than these are freed.
const POOL_LISTS_MAX: usize = 1024;

/// A list that grew beyond this many iovecs is freed, not kept, so that one guest with giant
/// chains does not hold memory for ever. A Linux block driver sends at most 128 or so.
const POOL_IOVECS_MAX: usize = 256;

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
    /// Many a chain has nothing to read, or nothing to write: a list is lent to what has bytes.
    lent: Option<Lent>,
}

/// What a memory lends to buffers in it.
struct Lent {
    pieces: Box<Pieces>,
    memory: Rc<GuestMemory>,
}

/// A list of pieces.
#[derive(Default)]
struct Pieces {
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
        self.lent.as_ref().map_or(0, |lent| lent.pieces.len)
    }

    /// Whether no byte is left.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The memory that these lie in. Buffers that never had bytes lie in none.
    pub fn memory(&self) -> Option<&Rc<GuestMemory>> {
        self.lent.as_ref().map(|lent| &lent.memory)
    }

    /// Copies from the front, and moves past it.
    ///
    /// # Errors
    ///
    /// When fewer bytes are left than `into` has; nothing is consumed then.
    #[inline]
    pub fn read(&mut self, into: &mut [u8]) -> Result<(), ShortBuffers> {
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
        let Some(lent) = &self.lent else {
            return 0;
        };
        let mut done = 0;
        for piece in lent.pieces.left() {
            let count = piece.iov_len.min(into.len() - done);
            if count == 0 {
                break;
            }
            lent.memory
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
        let Some(Lent { pieces, memory }) = &mut self.lent else {
            return Ok(Self::default());
        };
        let mut index = pieces.first;
        let mut left = at;
        while left > 0 && left >= pieces.iovecs[index].iov_len {
            left -= pieces.iovecs[index].iov_len;
            index += 1;
        }
        let mut tail = Lent::of(memory);
        tail.pieces
            .iovecs
            .extend_from_slice(&pieces.iovecs[index..]);
        tail.pieces.len = pieces.len - at;
        if left > 0 {
            let front = &mut tail.pieces.iovecs[0];
            front.iov_base = front.iov_base.wrapping_byte_add(left);
            front.iov_len -= left;
            pieces.iovecs[index].iov_len = left;
            index += 1;
        }
        pieces.iovecs.truncate(index);
        pieces.len = at;
        Ok(Self { lent: Some(tail) })
    }

    /// Splits off the last byte, if there is one: where a request's status goes.
    #[inline]
    pub fn split_last(&mut self) -> Option<LastByte> {
        let Lent { pieces, memory } = self.lent.as_mut()?;
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
    pub fn advance(&mut self, count: usize) -> Result<(), ShortBuffers> {
        self.want(count)?;
        if let Some(lent) = &mut self.lent {
            lent.pieces.skip(count);
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
        match (&mut self.lent, &more.lent) {
            (_, None) => Ok(()),
            (None, Some(_)) => {
                *self = more;
                Ok(())
            }
            (Some(lent), Some(other)) if Rc::ptr_eq(&lent.memory, &other.memory) => {
                lent.pieces.iovecs.extend_from_slice(other.pieces.left());
                lent.pieces.len = length;
                Ok(())
            }
            (Some(_), Some(_)) => Err(more),
        }
    }

    /// How many pieces of memory were added.
    pub(crate) fn pieces(&self) -> usize {
        self.lent
            .as_ref()
            .map_or(0, |lent| lent.pieces.iovecs.len())
    }

    /// Adds a range of `memory`, which is the same every time, at the end: the whole of it, or
    /// nothing and an error. Whether it lies in one region. The caller has made sure that there are
    /// fewer than 2^32 bytes together.
    #[inline]
    pub(crate) fn push(
        &mut self,
        memory: &Rc<GuestMemory>,
        address: u64,
        len: u32,
    ) -> Result<bool, MemoryError> {
        let Some((host, offset)) = memory.in_one(address, len.into()) else {
            self.push_pieces(memory, address, len.into())?;
            return Ok(false);
        };
        let pieces = self.pieces_of(memory);
        push_piece(&mut pieces.iovecs, host, offset, len as usize);
        pieces.len += len as usize;
        Ok(true)
    }

    /// Adds the pieces of a range that no region has whole.
    #[cold]
    #[inline(never)]
    fn push_pieces(
        &mut self,
        memory: &Rc<GuestMemory>,
        address: u64,
        len: u64,
    ) -> Result<(), MemoryError> {
        // A range that ends outside must leave no pieces here.
        memory.check_range(address, len)?;
        let pieces = self.pieces_of(memory);
        memory.pieces(address, len, |region, offset, count| {
            let host = region.host().wrapping_add(offset);
            push_piece(&mut pieces.iovecs, host, offset, count);
            pieces.len += count;
        })
    }

    #[inline]
    fn pieces_of(&mut self, memory: &Rc<GuestMemory>) -> &mut Pieces {
        let lent = self.lent.get_or_insert_with(|| Lent::of(memory));
        debug_assert!(Rc::ptr_eq(&lent.memory, memory), "pieces of one memory");
        &mut lent.pieces
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

    /// Moves past the first `count` bytes, and shows `each` those that lie together.
    #[inline]
    fn consume(
        &mut self,
        count: usize,
        mut each: impl FnMut(VolatileSlice<'_, DirtyLog>),
    ) -> Result<(), ShortBuffers> {
        self.want(count)?;
        let Some(Lent { pieces, memory }) = &mut self.lent else {
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

impl Lent {
    #[inline]
    fn of(memory: &Rc<GuestMemory>) -> Self {
        Self {
            pieces: memory.pool.lend(),
            memory: memory.clone(),
        }
    }

    /// Not inlined, so that the drop of what was never lent anything costs a look.
    #[inline(never)]
    fn give_back(self) {
        let Self { pieces, memory } = self;
        memory.pool.give_back(pieces);
    }
}

impl Pieces {
    /// Those that are not used up.
    #[inline]
    fn left(&self) -> &[iovec] {
        &self.iovecs[self.first..]
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
    fn bytes(&self, host: usize, len: usize) -> VolatileSlice<'_, DirtyLog> {
        #[cfg(feature = "testing")]
        crate::testing::copies::count(len);
        self.host_slice(host, len)
            .expect("iovecs lie in the memory they were made from")
    }
}

/// Adds the piece that is mapped at `host`, `offset` behind the beginning of its region. Where it
/// goes on where the last one ended, in the same region, the two become one: how a driver frames
/// its bytes has no meaning (2.7.4.2), and the kernel likes few iovecs.
#[inline]
fn push_piece(iovecs: &mut Vec<iovec>, host: *mut u8, offset: usize, count: usize) {
    if offset > 0
        && let Some(last) = iovecs.last_mut()
        && ptr::addr_eq(last.iov_base.wrapping_byte_add(last.iov_len), host)
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
        if let Some(lent) = self.lent.take() {
            lent.give_back();
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
// nothing they rely on. Each was made by `push` from a checked range of a region of `memory`, and
// only ever made shorter from either end; `memory` keeps every region mapped, readable and
// writable, and the list goes back to it, and is empty then.
unsafe impl IoBuffers for GuestBuffers {
    #[inline]
    fn iovecs(&self) -> &[iovec] {
        self.lent.as_ref().map_or(&[], |lent| lent.pieces.left())
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
    fn give_back(&self, mut pieces: Box<Pieces>) {
        pieces.iovecs.clear();
        (pieces.first, pieces.len) = (0, 0);
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
