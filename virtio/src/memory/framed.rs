//! Guest buffers of several chains between bytes of the device's own, as one run for the kernel:
//! what a frame with a header of ours in front of it is moved by. Not the guest's view: where a
//! chain begins and ends is the device's to remember.

use std::collections::VecDeque;
use std::ptr;

use libc::iovec;
use vudev_executor::IoBuffers;

use super::GuestBuffers;

/// `HEAD` bytes of ours, guest buffers, and `TAIL` bytes of ours, in this order.
pub struct Framed<const HEAD: usize, const TAIL: usize> {
    head: Box<[u8; HEAD]>,
    guest: VecDeque<GuestBuffers>,
    tail: Box<[u8; TAIL]>,
    /// So many of the guest's first bytes are left out, if there are as many.
    skip: usize,
    /// So many are.
    skipped: usize,
    /// The guest's bytes that are not left out.
    room: usize,
    /// All of the above. What lies together is one piece, for the kernel likes few: a driver cuts
    /// its buffers from larger pages.
    iovecs: Vec<iovec>,
}

/// Where the guest's iovecs begin, behind those of so many bytes of ours.
const fn behind(head: usize) -> usize {
    if head > 0 { 1 } else { 0 }
}

impl<const HEAD: usize, const TAIL: usize> Framed<HEAD, TAIL> {
    /// Zeros, and no guest buffers.
    pub fn new() -> Self {
        Self::skipping(0)
    }

    /// Zeros, and no guest buffers. Of those that come the first `skip` bytes are left out: what
    /// belongs there is written when it is known.
    pub fn skipping(skip: usize) -> Self {
        let mut this = Self {
            head: Box::new([0; HEAD]),
            guest: VecDeque::new(),
            tail: Box::new([0; TAIL]),
            skip,
            skipped: 0,
            room: 0,
            iovecs: Vec::new(),
        };
        this.clear();
        this
    }

    /// Our bytes in front.
    pub fn head(&self) -> &[u8; HEAD] {
        &self.head
    }

    /// These bytes in front of these buffers, and nothing else.
    pub fn set(&mut self, head: [u8; HEAD], buffers: GuestBuffers) {
        *self.head = head;
        self.clear();
        self.push_back(buffers);
    }

    /// The guest's buffers, in order, with what is left out of them.
    pub fn guest(&self) -> &VecDeque<GuestBuffers> {
        &self.guest
    }

    /// How many bytes of the guest's there are, without those that are left out.
    pub fn room(&self) -> usize {
        self.room
    }

    /// How many pieces of memory there are: an operation takes at most 1024.
    pub fn pieces(&self) -> usize {
        self.iovecs.len()
    }

    /// Adds buffers behind those that are there.
    pub fn push_back(&mut self, buffers: GuestBuffers) {
        self.room += buffers.len();
        let tail = if TAIL > 0 { self.iovecs.pop() } else { None };
        for piece in buffers.iovecs() {
            match self.iovecs[behind(HEAD)..].last_mut() {
                Some(last)
                    if ptr::addr_eq(
                        last.iov_base.wrapping_byte_add(last.iov_len),
                        piece.iov_base,
                    ) =>
                {
                    last.iov_len += piece.iov_len;
                }
                _ => self.iovecs.push(*piece),
            }
        }
        if let Some(tail) = tail {
            self.iovecs.push(tail);
        }
        self.guest.push_back(buffers);
        if self.skipped < self.skip {
            self.cut(0);
        }
    }

    /// Takes the first buffers out, with what was left out of them.
    #[inline]
    pub fn pop_front(&mut self) -> Option<GuestBuffers> {
        let buffers = self.guest.pop_front()?;
        let bytes = buffers.len();
        let skipped = self.skipped.min(bytes);
        self.skipped -= skipped;
        self.cut(bytes - skipped);
        Some(buffers)
    }

    /// Takes all buffers out.
    pub fn clear(&mut self) {
        self.iovecs.clear();
        while let Some(buffers) = self.guest.pop_front() {
            drop(buffers);
        }
        (self.skipped, self.room) = (0, 0);
        let ours = |bytes: &mut [u8]| iovec {
            iov_base: bytes.as_mut_ptr().cast(),
            iov_len: bytes.len(),
        };
        if HEAD > 0 {
            self.iovecs.push(ours(&mut self.head[..]));
        }
        if TAIL > 0 {
            self.iovecs.push(ours(&mut self.tail[..]));
        }
    }

    /// Takes so many bytes, which are there, off the front of the guest's iovecs, and then those
    /// that are to be left out.
    #[inline]
    fn cut(&mut self, bytes: usize) {
        let more = (self.skip - self.skipped).min(self.room - bytes);
        self.skipped += more;
        let mut left = bytes + more;
        self.room -= left;
        let mut gone = 0;
        for piece in &mut self.iovecs[behind(HEAD)..] {
            if left < piece.iov_len {
                piece.iov_base = piece.iov_base.wrapping_byte_add(left);
                piece.iov_len -= left;
                break;
            }
            left -= piece.iov_len;
            gone += 1;
        }
        if gone > 0 {
            self.iovecs.drain(behind(HEAD)..behind(HEAD) + gone);
        }
    }
}

impl<const HEAD: usize, const TAIL: usize> Default for Framed<HEAD, TAIL> {
    fn default() -> Self {
        Self::new()
    }
}

#[expect(unsafe_code, reason = "promises the kernel valid iovecs")]
// SAFETY: head and tail are on the heap and owned, and no reference to them outlives a borrow of
// `self`; after every `&mut` borrow of one `clear` points at both anew. A buffer's iovecs come in
// when it does, and its bytes are cut off before it goes, in order, since the run is as long as all
// buffers but for what was cut off (`room`). So each byte of the run lies in a buffer that is in
// `guest`, wherever that is moved to, and is valid by the buffer's own contract; two that lie
// together are as valid in one iovec as in two.
unsafe impl<const HEAD: usize, const TAIL: usize> IoBuffers for Framed<HEAD, TAIL> {
    fn iovecs(&self) -> &[iovec] {
        &self.iovecs
    }
}
