//! Memory that the kernel reads and writes.

use std::ops::Range;
use std::ptr;

use libc::iovec;

/// Memory for vectored operations.
///
/// # Safety
///
/// The slice, and the memory that its elements describe, must stay valid for reads and writes by
/// the kernel for as long as `self` lives, wherever `self` is moved to: on the heap or in a mapping
/// that `self` keeps, never in `self`. No reference to that memory may be live while the kernel has
/// it, which a value owned by the operation guarantees.
#[expect(unsafe_code, reason = "the contract that makes file operations sound")]
pub unsafe trait IoBuffers: 'static {
    /// The pieces, in order.
    fn iovecs(&self) -> &[iovec];
}

/// A buffer on the heap.
pub struct Bytes {
    bytes: Box<[u8]>,
    range: Range<usize>,
    piece: Box<[iovec; 1]>,
}

impl Bytes {
    /// `len` zero bytes.
    pub fn zeroed(len: usize) -> Self {
        Self::from(vec![0; len])
    }

    /// The bytes that operations use: all of them, or the range last set.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[self.range.clone()]
    }

    /// The bytes that operations use.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.bytes[self.range.clone()]
    }

    /// Restricts operations to `range` of the whole buffer.
    ///
    /// # Panics
    ///
    /// If `range` lies outside.
    pub fn set_range(&mut self, range: Range<usize>) {
        assert!(range.start <= range.end && range.end <= self.bytes.len());
        self.range = range;
        self.point();
    }

    /// How many bytes the whole buffer has.
    pub fn capacity(&self) -> usize {
        self.bytes.len()
    }

    /// The whole buffer.
    pub fn into_vec(self) -> Vec<u8> {
        self.bytes.into_vec()
    }

    fn point(&mut self) {
        let slice = &mut self.bytes[self.range.clone()];
        self.piece[0] = iovec {
            iov_base: slice.as_mut_ptr().cast(),
            iov_len: slice.len(),
        };
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        let mut this = Self {
            range: 0..bytes.len(),
            bytes: bytes.into_boxed_slice(),
            piece: Box::new([iovec {
                iov_base: ptr::null_mut(),
                iov_len: 0,
            }]),
        };
        this.point();
        this
    }
}

// SAFETY: bytes and piece are on the heap and owned; a `&mut` to them needs `&mut self`, which
// nobody has while an operation owns the value. The pointer is made anew after every such borrow.
#[expect(unsafe_code, reason = "two heap allocations that never move")]
unsafe impl IoBuffers for Bytes {
    fn iovecs(&self) -> &[iovec] {
        &self.piece[..]
    }
}
