//! Pieces of guest memory as one run of bytes: what a chain offers a device to read, or to write.
//! Not the bytes themselves: they are copied on demand, or moved by the kernel through the iovecs.

use std::cell::RefCell;
use std::fmt;
use std::mem;
use std::ptr;
use std::rc::Rc;

use libc::iovec;
use vudev_executor::IoBuffers;

use super::{GuestMemory, MemoryError};

/// How many spare iovec vectors a memory keeps: the depth that a busy device reaches, two a chain.
/// More than these are freed.
const POOL_VECTORS_MAX: usize = 1024;

/// A vector that grew beyond this many iovecs is freed, not kept, so that one guest with giant
/// chains does not hold memory for ever. A Linux block driver sends at most 128 or so.
const POOL_IOVECS_MAX: usize = 256;

/// The most pieces that buffers are joined to ([`GuestBuffers::append`]): such vectors are kept.
const PIECES_MAX: usize = POOL_IOVECS_MAX / 2;

/// The most bytes of buffers: a chain has fewer than 2^32 (2.7.5.2).
const LEN_MAX: usize = u32::MAX as usize;

/// Buffers in guest memory, consumed from the front. They keep their memory mapped, and can be
/// handed to the executor's files and sockets.
pub struct GuestBuffers {
    memory: Rc<GuestMemory>,
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
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no byte is left.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The memory that these lie in.
    pub fn memory(&self) -> &Rc<GuestMemory> {
        &self.memory
    }

    /// Copies from the front, and moves past it.
    ///
    /// # Errors
    ///
    /// When fewer bytes are left than `into` has; nothing is consumed then.
    pub fn read(&mut self, into: &mut [u8]) -> Result<(), ShortBuffers> {
        self.want(into.len())?;
        let mut rest = into;
        while !rest.is_empty() {
            let (host, count) = self.front(rest.len());
            let (part, after) = rest.split_at_mut(count);
            self.slice(host, count).copy_to(part);
            self.skip(count);
            rest = after;
        }
        Ok(())
    }

    /// Reads the next `N` bytes.
    ///
    /// # Errors
    ///
    /// As for [`GuestBuffers::read`].
    pub fn read_array<const N: usize>(&mut self) -> Result<[u8; N], ShortBuffers> {
        let mut bytes = [0; N];
        self.read(&mut bytes)?;
        Ok(bytes)
    }

    /// Copies from the front without moving past it, as much as there is; how much that was.
    pub fn peek(&self, into: &mut [u8]) -> usize {
        let mut done = 0;
        for piece in self.iovecs() {
            let count = piece.iov_len.min(into.len() - done);
            if count == 0 {
                break;
            }
            self.slice(piece.iov_base.addr(), count)
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
    pub fn write(&mut self, from: &[u8]) -> Result<(), ShortBuffers> {
        self.want(from.len())?;
        let mut rest = from;
        while !rest.is_empty() {
            let (host, count) = self.front(rest.len());
            let (part, after) = rest.split_at(count);
            self.slice(host, count).copy_from(part);
            self.skip(count);
            rest = after;
        }
        Ok(())
    }

    /// Splits in two: `self` keeps the first `at` bytes, the rest is returned.
    ///
    /// # Errors
    ///
    /// When there are fewer than `at` bytes; nothing changes then.
    pub fn split_off(&mut self, at: usize) -> Result<Self, ShortBuffers> {
        self.want(at)?;
        let mut tail = Self::empty(&self.memory);
        let mut index = self.first;
        let mut left = at;
        while left > 0 && left >= self.iovecs[index].iov_len {
            left -= self.iovecs[index].iov_len;
            index += 1;
        }
        tail.iovecs = self.memory.pool.vector();
        tail.iovecs.extend_from_slice(&self.iovecs[index..]);
        tail.len = self.len - at;
        if left > 0 {
            let front = &mut tail.iovecs[0];
            front.iov_base = front.iov_base.wrapping_byte_add(left);
            front.iov_len -= left;
            self.iovecs[index].iov_len = left;
            index += 1;
        }
        self.iovecs.truncate(index);
        self.len = at;
        Ok(tail)
    }

    /// Splits off the last byte, if there is one: where a request's status goes.
    pub fn split_last(&mut self) -> Option<LastByte> {
        let last = self.iovecs.get_mut(self.first..)?.last_mut()?;
        last.iov_len -= 1;
        let host = last.iov_base.addr() + last.iov_len;
        if last.iov_len == 0 {
            self.iovecs.pop();
        }
        self.len -= 1;
        Some(LastByte {
            memory: self.memory.clone(),
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
        self.skip(count);
        Ok(())
    }

    /// Keeps at most the first `len` bytes.
    pub fn truncate(&mut self, len: usize) {
        if len < self.len {
            let tail = self.split_off(len);
            debug_assert!(tail.is_ok(), "{len} is within {}", self.len);
        }
    }

    /// Takes all of it, and leaves nothing: to hand the buffers to an operation and put them back.
    pub fn take(&mut self) -> Self {
        let rest = Self::empty(&self.memory);
        mem::replace(self, rest)
    }

    /// Adds `more` at the end, if both lie in the same memory and are not too many pieces together
    /// for a vector that is kept; else it is given back.
    ///
    /// # Errors
    ///
    /// `more`, as it was.
    pub fn append(&mut self, more: Self) -> Result<(), Self> {
        let pieces = self.iovecs().len() + more.iovecs().len();
        let length = self.len.checked_add(more.len).filter(|&it| it <= LEN_MAX);
        let one = Rc::ptr_eq(&self.memory, &more.memory) && pieces <= PIECES_MAX;
        let Some(length) = length.filter(|_| one) else {
            return Err(more);
        };
        if self.iovecs.capacity() == 0 {
            self.iovecs = self.memory.pool.vector();
        }
        self.iovecs.extend_from_slice(more.iovecs());
        self.len = length;
        Ok(())
    }

    /// No bytes yet, of `memory`. Many a chain has nothing to read, or nothing to write: a vector
    /// is lent to what has bytes.
    #[inline]
    pub(crate) fn empty(memory: &Rc<GuestMemory>) -> Self {
        Self {
            memory: memory.clone(),
            iovecs: Vec::new(),
            first: 0,
            len: 0,
        }
    }

    /// How many pieces of memory were added.
    #[inline]
    pub(crate) fn pieces(&self) -> usize {
        self.iovecs.len()
    }

    /// Adds a range of guest memory at the end; the whole of it, or nothing and an error.
    #[inline]
    pub(crate) fn push(&mut self, address: u64, len: u32) -> Result<(), MemoryError> {
        let Self {
            memory,
            iovecs,
            first: _,
            len: had,
        } = self;
        let count = len as usize;
        let total = had.checked_add(count).filter(|&it| it <= LEN_MAX);
        let len = u64::from(len);
        let total = total.ok_or(MemoryError::OutOfRange { address, len })?;
        if iovecs.capacity() == 0 {
            *iovecs = memory.pool.vector();
        }
        match memory.in_one(address, len) {
            Some((host, offset)) => push_piece(iovecs, host, offset, count),
            None => push_pieces(memory, iovecs, address, len)?,
        }
        *had = total;
        Ok(())
    }

    fn want(&self, wanted: usize) -> Result<(), ShortBuffers> {
        let available = self.len;
        if wanted > available {
            Err(ShortBuffers { wanted, available })
        } else {
            Ok(())
        }
    }

    /// The first bytes that lie together: at most `most`, which must not be more than are left.
    fn front(&self, most: usize) -> (usize, usize) {
        let front = &self.iovecs[self.first];
        (front.iov_base.addr(), front.iov_len.min(most))
    }

    /// What is copied, here or there: nothing else in this file touches the bytes.
    fn slice(&self, host: usize, len: usize) -> vm_memory::VolatileSlice<'_, super::DirtyLog> {
        #[cfg(feature = "testing")]
        crate::testing::copies::count(len);
        self.memory
            .host_slice(host, len)
            .expect("iovecs lie in the memory they were made from")
    }

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

/// Adds the pieces of a range that no region has whole.
#[cold]
fn push_pieces(
    memory: &GuestMemory,
    iovecs: &mut Vec<iovec>,
    address: u64,
    len: u64,
) -> Result<(), MemoryError> {
    // A range that ends outside must leave no pieces here.
    memory.check_range(address, len)?;
    memory.pieces(address, len, |region, offset, count| {
        push_piece(iovecs, region.host().wrapping_add(offset), offset, count);
    })
}

impl Drop for GuestBuffers {
    fn drop(&mut self) {
        if self.iovecs.capacity() > 0 {
            self.memory.pool.give_back(mem::take(&mut self.iovecs));
        }
    }
}

impl fmt::Debug for GuestBuffers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "GuestBuffers({} bytes in {} pieces)",
            self.len,
            self.iovecs().len()
        )
    }
}

#[expect(unsafe_code, reason = "promises the kernel valid iovecs")]
// SAFETY: the iovecs stand in a heap vector that only `&mut self` changes, so moving `self` moves
// nothing they rely on. Each was made by `push` from a checked range of a region, and only
// ever made shorter from either end; `memory` keeps every region mapped, readable and writable.
unsafe impl IoBuffers for GuestBuffers {
    fn iovecs(&self) -> &[iovec] {
        &self.iovecs[self.first..]
    }
}

/// Spare vectors, so that a request allocates nothing once the device has warmed up.
#[derive(Default)]
pub(super) struct Pool(RefCell<Vec<Vec<iovec>>>);

impl Pool {
    #[inline]
    fn vector(&self) -> Vec<iovec> {
        self.0.borrow_mut().pop().unwrap_or_default()
    }

    fn give_back(&self, mut vector: Vec<iovec>) {
        vector.clear();
        let mut spare = self.0.borrow_mut();
        let fits = (1..=POOL_IOVECS_MAX).contains(&vector.capacity());
        if fits && spare.len() < POOL_VECTORS_MAX {
            spare.push(vector);
        }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pool({} spare)", self.0.borrow().len())
    }
}
