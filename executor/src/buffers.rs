//! Memory that the kernel reads and writes.

use std::ops::Range;
use std::ptr;

use libc::iovec;

use crate::registered::Part;

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

    /// How many bytes they have together, which is what a turn is charged for them
    /// ([`File::try_read_at`]). Who knows it without a look at each piece says so.
    ///
    /// [`File::try_read_at`]: crate::File::try_read_at
    fn bytes(&self) -> usize {
        self.iovecs().iter().map(|piece| piece.iov_len).sum()
    }

    /// Whether they are one piece of the memory that the ring has registered. What the ring does
    /// not find there it refuses (EFAULT).
    fn registered(&self) -> bool {
        false
    }
}

/// A buffer on the heap, or a part of the ring's registered memory. Small, since it is moved into
/// every operation and back.
pub struct Bytes(Memory);

enum Memory {
    Heap(Box<Heap>),
    Registered(Part),
}

struct Heap {
    bytes: Box<[u8]>,
    /// The range of them that operations use.
    piece: [iovec; 1],
}

impl Bytes {
    /// `len` zero bytes.
    pub fn zeroed(len: usize) -> Self {
        Self::from(vec![0; len])
    }

    pub(crate) fn registered(part: Part) -> Self {
        let mut this = Self(Memory::Registered(part));
        this.set_range(0..this.capacity());
        this
    }

    /// The bytes that operations use: all of them, or the range last set.
    pub fn as_slice(&self) -> &[u8] {
        &self.all()[self.range()]
    }

    /// The bytes that operations use.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        let range = self.range();
        let all = match &mut self.0 {
            Memory::Heap(heap) => &mut heap.bytes,
            Memory::Registered(part) => part.as_mut_slice(),
        };
        &mut all[range]
    }

    /// Restricts operations to `range` of the whole buffer.
    ///
    /// # Panics
    ///
    /// If `range` lies outside.
    pub fn set_range(&mut self, range: Range<usize>) {
        assert!(range.start <= range.end && range.end <= self.capacity());
        match &mut self.0 {
            Memory::Heap(heap) => {
                let slice = &mut heap.bytes[range];
                heap.piece[0] = iovec {
                    iov_base: slice.as_mut_ptr().cast(),
                    iov_len: slice.len(),
                };
            }
            Memory::Registered(part) => part.point(&range),
        }
    }

    /// How many bytes the whole buffer has.
    pub fn capacity(&self) -> usize {
        self.all().len()
    }

    /// The whole buffer; a copy of registered memory.
    pub fn into_vec(self) -> Vec<u8> {
        match self.0 {
            Memory::Heap(heap) => heap.bytes.into_vec(),
            Memory::Registered(part) => part.as_slice().to_vec(),
        }
    }

    fn all(&self) -> &[u8] {
        match &self.0 {
            Memory::Heap(heap) => &heap.bytes,
            Memory::Registered(part) => part.as_slice(),
        }
    }

    /// What the piece says.
    fn range(&self) -> Range<usize> {
        let iovec { iov_base, iov_len } = self.iovecs()[0];
        let start = iov_base.addr() - self.all().as_ptr().addr();
        start..start + iov_len
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        let nothing = iovec {
            iov_base: ptr::null_mut(),
            iov_len: 0,
        };
        let mut this = Self(Memory::Heap(Box::new(Heap {
            bytes: bytes.into_boxed_slice(),
            piece: [nothing],
        })));
        this.set_range(0..this.capacity());
        this
    }
}

// SAFETY: bytes and piece are on the heap and owned, or borrowed of a region on the heap that is
// kept; a `&mut` to them needs `&mut self`, which nobody has while an operation owns the value.
#[expect(unsafe_code, reason = "heap allocations that never move")]
unsafe impl IoBuffers for Bytes {
    fn iovecs(&self) -> &[iovec] {
        match &self.0 {
            Memory::Heap(heap) => &heap.piece,
            Memory::Registered(part) => part.piece(),
        }
    }

    fn registered(&self) -> bool {
        matches!(self.0, Memory::Registered(_))
    }
}
