//! Memory that is registered with the ring before it is enabled, and lent in parts: its pages are
//! pinned once, and not for every operation. Not for memory that somebody else may take away.

use std::cell::{Cell, UnsafeCell};
use std::ops::Range;
use std::ptr;
use std::rc::Rc;
use std::slice;

use libc::iovec;

use crate::buffers::Bytes;

/// Bytes of a page, the least that is lent: parts begin at multiples of it.
const PAGE: usize = 4096;
/// How many there are: a bit each in [`Region::free`].
const PAGES: u32 = u32::BITS;

#[derive(Clone)]
#[repr(align(4096))]
struct Page(#[expect(dead_code, reason = "read as bytes of the whole")] [u8; PAGE]);

/// A ring's registered memory. Clones share it.
#[derive(Clone)]
pub struct Registered(Rc<Region>);

struct Region {
    /// Each is its borrower's alone.
    pages: Box<[UnsafeCell<Page>]>,
    /// A part's description is at the place of its first page, and its borrower's alone too.
    pieces: Box<[UnsafeCell<[iovec; 1]>]>,
    /// Pages that nobody has borrowed.
    free: Cell<u32>,
}

impl Registered {
    /// Where parts begin: at multiples of so many bytes.
    pub const ALIGNMENT: usize = PAGE;

    pub(crate) fn new() -> Self {
        let page = Page([0; PAGE]);
        Self(Rc::new(Region {
            pages: (0..PAGES).map(|_| UnsafeCell::new(page.clone())).collect(),
            pieces: (0..PAGES).map(|_| UnsafeCell::new([nothing()])).collect(),
            free: Cell::new(u32::MAX),
        }))
    }

    /// Lends at least `len` bytes in one piece, until the buffer is dropped, or the operation that
    /// has it and was dropped is over. `None` if `len` is 0, and where there are no such left: all
    /// share 32 pages, so who asks has another buffer for that case.
    pub fn lend(&self, len: usize) -> Option<Bytes> {
        let pages = u32::try_from(len.div_ceil(PAGE)).ok()?;
        let free = self.0.free.get();
        let first = run(free, pages)?;
        self.0.free.set(free & !mask(first, pages));
        Some(Bytes::registered(Part {
            region: Rc::clone(&self.0),
            first,
            pages,
        }))
    }

    /// All of it.
    pub(crate) fn whole(&self) -> iovec {
        iovec {
            iov_base: self.0.start().cast(),
            iov_len: PAGE * PAGES as usize,
        }
    }
}

impl Region {
    fn start(&self) -> *mut u8 {
        self.pages.as_ptr().cast::<u8>().cast_mut()
    }
}

/// Where the first `pages` free ones in a row are.
fn run(free: u32, pages: u32) -> Option<u32> {
    let last = PAGES.checked_sub(pages)?;
    (0..=last).find(|&first| pages > 0 && free & mask(first, pages) == mask(first, pages))
}

/// `pages` bits from `first` on; there are so many.
fn mask(first: u32, pages: u32) -> u32 {
    (u32::MAX >> (PAGES - pages)) << first
}

fn nothing() -> iovec {
    iovec {
        iov_base: ptr::null_mut(),
        iov_len: 0,
    }
}

/// A borrowed part: given back when dropped.
pub(crate) struct Part {
    region: Rc<Region>,
    first: u32,
    pages: u32,
}

impl Part {
    pub(crate) fn len(&self) -> usize {
        self.pages as usize * PAGE
    }

    fn start(&self) -> *mut u8 {
        // In bounds: `run` has found it.
        self.region.start().wrapping_add(self.first as usize * PAGE)
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        // SAFETY: these pages are this part's alone, as its bits in `free` are clear, and live as
        // long as the region that it holds; they are initialised.
        #[expect(unsafe_code, reason = "parts of one allocation that do not overlap")]
        unsafe {
            slice::from_raw_parts(self.start(), self.len())
        }
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as in `as_slice`; and `self` is borrowed as nobody else's.
        #[expect(unsafe_code, reason = "parts of one allocation that do not overlap")]
        unsafe {
            slice::from_raw_parts_mut(self.start(), self.len())
        }
    }

    /// Describes `range`, which lies inside, for [`Part::piece`].
    pub(crate) fn point(&mut self, range: &Range<usize>) {
        let piece = iovec {
            iov_base: self.start().wrapping_add(range.start).cast(),
            iov_len: range.len(),
        };
        // SAFETY: the place is this part's alone, as its first page is.
        #[expect(unsafe_code, reason = "parts of one allocation that do not overlap")]
        unsafe {
            *self.region.pieces[self.first as usize].get() = [piece];
        }
    }

    /// What was described last.
    pub(crate) fn piece(&self) -> &[iovec; 1] {
        // SAFETY: as in `point`; it is changed with `self` borrowed as nobody else's only.
        #[expect(unsafe_code, reason = "parts of one allocation that do not overlap")]
        unsafe {
            &*self.region.pieces[self.first as usize].get()
        }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let free = &self.region.free;
        free.set(free.get() | mask(self.first, self.pages));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_aligned_do_not_overlap_and_come_back() {
        let memory = Registered::new();
        let mut lent: Vec<_> = (0..8)
            .map(|_| memory.lend(PAGE * 4 - 100).unwrap())
            .collect();
        assert!(memory.lend(1).is_none());
        for (number, bytes) in (0_u8..).zip(&mut lent) {
            assert_eq!(bytes.capacity(), PAGE * 4);
            assert_eq!(bytes.as_slice().as_ptr().addr() % Registered::ALIGNMENT, 0);
            bytes.as_mut_slice().fill(number);
        }
        for (number, bytes) in (0_u8..).zip(&lent) {
            assert!(bytes.as_slice().iter().all(|&byte| byte == number));
        }
        // What comes back is lent again, in one piece only.
        drop((lent.remove(5), lent.remove(3), lent.remove(1)));
        assert!(memory.lend(PAGE * 5).is_none());
        assert!(memory.lend(PAGE * 4).is_some());
        drop(lent);
        assert_eq!(memory.lend(PAGE * 32).unwrap().capacity(), PAGE * 32);
        assert!(memory.lend(PAGE * 32 + 1).is_none());
        assert!(memory.lend(0).is_none());
        assert!(memory.lend(usize::MAX).is_none());
    }

    #[test]
    fn a_part_outlives_who_has_lent_it() {
        let memory = Registered::new();
        let mut bytes = memory.lend(PAGE).unwrap();
        drop(memory);
        bytes.as_mut_slice().fill(7);
        bytes.set_range(8..16);
        assert_eq!(bytes.into_vec(), [7; PAGE]);
    }
}
