//! Guest buffers of several chains between bytes of the device's own, as one run for the kernel:
//! what a frame with a header of ours in front of it is moved by. Not the guest's view: where a
//! chain begins and ends is the device's to remember.

use std::collections::VecDeque;

use libc::iovec;
use vudev_executor::IoBuffers;

use super::GuestBuffers;

/// `HEAD` bytes of ours, guest buffers, and `TAIL` bytes of ours, in this order.
pub struct Framed<const HEAD: usize, const TAIL: usize> {
    head: Box<[u8; HEAD]>,
    guest: VecDeque<GuestBuffers>,
    tail: Box<[u8; TAIL]>,
    /// All of the above, rearranged with each change.
    iovecs: Vec<iovec>,
}

impl<const HEAD: usize, const TAIL: usize> Framed<HEAD, TAIL> {
    /// Zeros, and no guest buffers.
    pub fn new() -> Self {
        let mut this = Self {
            head: Box::new([0; HEAD]),
            guest: VecDeque::new(),
            tail: Box::new([0; TAIL]),
            iovecs: Vec::new(),
        };
        this.arrange();
        this
    }

    /// Our bytes in front.
    pub fn head(&self) -> &[u8; HEAD] {
        &self.head
    }

    /// Puts these bytes in front.
    pub fn set_head(&mut self, bytes: [u8; HEAD]) {
        self.edit(|head, _| *head = bytes);
    }

    /// These bytes in front of these buffers, and nothing else.
    pub fn set(&mut self, head: [u8; HEAD], buffers: GuestBuffers) {
        self.edit(|ours, guest| {
            *ours = head;
            guest.clear();
            guest.push_back(buffers);
        });
    }

    /// The guest's buffers, in order.
    pub fn guest(&self) -> &VecDeque<GuestBuffers> {
        &self.guest
    }

    /// Adds buffers behind those that are there.
    pub fn push_back(&mut self, buffers: GuestBuffers) {
        // Not all of `arrange`: a window of fifty buffers is edited for every frame.
        self.guest.push_back(buffers);
        let tail = (TAIL > 0).then(|| self.iovecs.pop()).flatten();
        if let Some(buffers) = self.guest.back() {
            self.iovecs.extend_from_slice(buffers.iovecs());
        }
        self.iovecs.extend(tail);
    }

    /// Takes the first buffers out.
    pub fn pop_front(&mut self) -> Option<GuestBuffers> {
        let buffers = self.guest.pop_front()?;
        let before = usize::from(HEAD > 0);
        self.iovecs.drain(before..before + buffers.iovecs().len());
        Some(buffers)
    }

    /// Adds buffers in front of those that are there.
    pub fn push_front(&mut self, buffers: GuestBuffers) {
        self.guest.push_front(buffers);
        let before = usize::from(HEAD > 0);
        if let Some(buffers) = self.guest.front() {
            let pieces = buffers.iovecs().iter().copied();
            self.iovecs.splice(before..before, pieces);
        }
    }

    /// Changes the guest's buffers.
    pub fn edit_guest<R>(&mut self, change: impl FnOnce(&mut VecDeque<GuestBuffers>) -> R) -> R {
        self.edit(|_, guest| change(guest))
    }

    /// How many pieces of memory there are: an operation takes at most 1024.
    pub fn pieces(&self) -> usize {
        self.iovecs.len()
    }

    fn edit<R>(
        &mut self,
        change: impl FnOnce(&mut [u8; HEAD], &mut VecDeque<GuestBuffers>) -> R,
    ) -> R {
        // First, so that none points at memory that is gone, even if `change` panics.
        self.iovecs.clear();
        let result = change(&mut self.head, &mut self.guest);
        self.arrange();
        result
    }

    fn arrange(&mut self) {
        self.iovecs.clear();
        let ours = |bytes: &mut [u8]| iovec {
            iov_base: bytes.as_mut_ptr().cast(),
            iov_len: bytes.len(),
        };
        if HEAD > 0 {
            self.iovecs.push(ours(&mut self.head[..]));
        }
        for buffers in &self.guest {
            self.iovecs.extend_from_slice(buffers.iovecs());
        }
        if TAIL > 0 {
            self.iovecs.push(ours(&mut self.tail[..]));
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
// `self`; every `&mut` borrow of head or guest is in `edit`, which arranges the iovecs anew after
// it, or in a function that adds or takes out just the iovecs of the buffers that come or go. Those
// of the guest's buffers are valid as long as these, by their own contract, wherever they
// are moved to, and they stay in `self` until the next `edit`.
unsafe impl<const HEAD: usize, const TAIL: usize> IoBuffers for Framed<HEAD, TAIL> {
    fn iovecs(&self) -> &[iovec] {
        &self.iovecs
    }
}
