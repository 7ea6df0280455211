//! Guest buffers with bytes of the device's own, as one run for the kernel: what a frame with a
//! header of ours is moved by. Out of one chain's ([`Headed`]), or into those of several
//! ([`Framed`]). Not the guest's view: where a chain begins and ends is the device's to remember.

use std::collections::VecDeque;
use std::mem;
use std::ptr;

use libc::iovec;
use vudev_executor::IoBuffers;

use super::GuestBuffers;
use crate::chain::Chain;

/// What has guest buffers, and keeps them as they are while nobody else has it: a chain, or buffers
/// by themselves. Not for others to implement, since the kernel is promised that; so it has no name
/// outside.
pub trait Holder: 'static {
    /// What goes out of the guest.
    fn readable(&self) -> &GuestBuffers;

    /// What comes into it.
    fn writable(&self) -> &GuestBuffers;
}

impl Holder for Chain {
    #[inline]
    fn readable(&self) -> &GuestBuffers {
        &self.readable
    }

    #[inline]
    fn writable(&self) -> &GuestBuffers {
        &self.writable
    }
}

impl Holder for GuestBuffers {
    fn readable(&self) -> &GuestBuffers {
        self
    }

    fn writable(&self) -> &GuestBuffers {
        self
    }
}

/// `HEAD` bytes of ours, and behind them what is readable of a chain: the buffers of a `write`. The
/// chain is held until it is taken out, to be completed. `Held` is a [`Chain`], or [`GuestBuffers`]
/// by themselves.
pub struct Headed<const HEAD: usize, Held = Chain> {
    head: Box<[u8; HEAD]>,
    guest: Option<Held>,
    /// Those of both.
    iovecs: Vec<iovec>,
}

impl<const HEAD: usize, Held: Holder> Headed<HEAD, Held> {
    /// Zeros, and no chain.
    pub fn new() -> Self {
        let mut head = Box::new([0; HEAD]);
        let iovecs = vec![iovec_of(&mut head[..])];
        Self {
            head,
            guest: None,
            iovecs,
        }
    }

    /// These bytes in front of this chain, in the place of what was here: take out a chain first,
    /// or it is dropped.
    #[inline]
    pub fn set(&mut self, head: [u8; HEAD], guest: Held) {
        self.iovecs.clear();
        *self.head = head;
        self.iovecs.push(iovec_of(&mut self.head[..]));
        self.iovecs.extend_from_slice(guest.readable().iovecs());
        self.guest = Some(guest);
    }

    /// Takes the chain out.
    #[inline]
    pub fn take(&mut self) -> Option<Held> {
        self.iovecs.truncate(1);
        self.guest.take()
    }
}

impl<const HEAD: usize, Held: Holder> Default for Headed<HEAD, Held> {
    fn default() -> Self {
        Self::new()
    }
}

#[expect(unsafe_code, reason = "promises the kernel valid iovecs")]
// SAFETY: the head is on the heap and owned, and no reference to it outlives `new` and `set`, which
// point at it anew. The other iovecs are those of `guest`, which only `set` and `take` change, both
// with them; they are valid by the contract of its buffers, which nobody can change in here,
// wherever it is moved to.
unsafe impl<const HEAD: usize, Held: Holder> IoBuffers for Headed<HEAD, Held> {
    #[inline]
    fn iovecs(&self) -> &[iovec] {
        &self.iovecs
    }

    #[inline]
    fn bytes(&self) -> usize {
        HEAD + self.guest.as_ref().map_or(0, |it| it.readable().len())
    }
}

fn iovec_of(bytes: &mut [u8]) -> iovec {
    iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    }
}

/// `HEAD` bytes of ours, what is writable of several chains, and `TAIL` bytes of ours, in this
/// order: the buffers of a `read`. The chains are held until they are taken out, to be completed or
/// put back. `Held` is a [`Chain`], or [`GuestBuffers`] by themselves.
pub struct Framed<const HEAD: usize, const TAIL: usize, Held = Chain> {
    head: Box<[u8; HEAD]>,
    guest: VecDeque<Held>,
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

/// How many iovecs so many bytes of ours are.
const fn pieces_of(bytes: usize) -> usize {
    if bytes > 0 { 1 } else { 0 }
}

impl<const HEAD: usize, const TAIL: usize, Held: Holder> Framed<HEAD, TAIL, Held> {
    /// Zeros, and no chains.
    pub fn new() -> Self {
        Self::skipping(0)
    }

    /// Zeros, and no chains. Of those that come the first `skip` bytes are left out: what belongs
    /// there is written when it is known.
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
        this.take_all();
        this
    }

    /// Our bytes in front.
    pub fn head(&self) -> &[u8; HEAD] {
        &self.head
    }

    /// What is writable of the chains, in order, with what is left out.
    #[inline]
    pub fn guest(&self) -> impl Iterator<Item = &GuestBuffers> {
        self.guest.iter().map(Held::writable)
    }

    /// How many chains there are.
    #[inline]
    pub fn len(&self) -> usize {
        self.guest.len()
    }

    /// Whether there are none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.guest.is_empty()
    }

    /// How many bytes of the guest's there are, without those that are left out, and without ours.
    #[inline]
    pub fn room(&self) -> usize {
        self.room
    }

    /// How many pieces of memory there are, with ours: an operation moves at most 1024.
    #[inline]
    pub fn pieces(&self) -> usize {
        self.iovecs.len()
    }

    /// Adds a chain behind those that are there.
    pub fn push_back(&mut self, held: Held) {
        let buffers = held.writable();
        self.room += buffers.len();
        for &piece in buffers.iovecs() {
            let end = self.iovecs.len() - pieces_of(TAIL);
            if end > pieces_of(HEAD)
                && let Some(last) = self.iovecs.get_mut(end - 1)
                && ptr::addr_eq(
                    last.iov_base.wrapping_byte_add(last.iov_len),
                    piece.iov_base,
                )
            {
                last.iov_len += piece.iov_len;
                continue;
            }
            self.iovecs.insert(end, piece);
        }
        self.guest.push_back(held);
        if self.skipped < self.skip {
            self.cut(0);
        }
    }

    /// Takes out the first chains, as many as have so many bytes together, what is left out of them
    /// counted too; all, if they have fewer. Those that nobody asks of the iterator are dropped.
    #[inline]
    pub fn take_for(&mut self, bytes: usize) -> Front<'_, Held> {
        let first = self.guest.front().map_or(0, |it| it.writable().len());
        let (count, length) = match first >= bytes && bytes > 0 {
            true => (1, first),
            false => self.count_for(bytes),
        };
        let skipped = self.skipped.min(length);
        self.skipped -= skipped;
        self.cut(length - skipped);
        let guest = &mut self.guest;
        Front { guest, count }
    }

    /// How many chains have so many bytes, and how many bytes these have.
    fn count_for(&self, bytes: usize) -> (usize, usize) {
        let (mut count, mut length) = (0, 0);
        for held in &self.guest {
            if length >= bytes {
                break;
            }
            count += 1;
            length += held.writable().len();
        }
        (count, length)
    }

    /// Takes all out, in order.
    pub fn take_all(&mut self) -> VecDeque<Held> {
        self.iovecs.clear();
        (self.skipped, self.room) = (0, 0);
        if HEAD > 0 {
            self.iovecs.push(iovec_of(&mut self.head[..]));
        }
        if TAIL > 0 {
            self.iovecs.push(iovec_of(&mut self.tail[..]));
        }
        mem::take(&mut self.guest)
    }

    /// Takes so many bytes, which are there, off the front of the guest's iovecs, and then those
    /// that are to be left out. They are not there if a [`Front`] was forgotten before it gave all
    /// chains out: nothing is known of the iovecs then.
    #[inline]
    fn cut(&mut self, bytes: usize) {
        assert!(bytes <= self.room, "a front of chains was forgotten");
        let more = (self.skip - self.skipped).min(self.room - bytes);
        self.skipped += more;
        let left = bytes + more;
        self.room -= left;
        match self.iovecs.get_mut(pieces_of(HEAD)) {
            Some(front) if left < front.iov_len => {
                front.iov_base = front.iov_base.wrapping_byte_add(left);
                front.iov_len -= left;
            }
            _ => self.cut_pieces(left),
        }
    }

    /// [`Framed::cut`] of at least the first piece.
    #[inline(never)]
    fn cut_pieces(&mut self, bytes: usize) {
        let mut left = bytes;
        let mut gone = 0;
        for piece in &mut self.iovecs[pieces_of(HEAD)..] {
            if left < piece.iov_len {
                piece.iov_base = piece.iov_base.wrapping_byte_add(left);
                piece.iov_len -= left;
                break;
            }
            left -= piece.iov_len;
            gone += 1;
        }
        self.iovecs.drain(pieces_of(HEAD)..pieces_of(HEAD) + gone);
    }
}

/// The first chains of a [`Framed`], on their way out: those that nobody asks for are dropped.
#[must_use = "chains that nobody asks for are dropped, and their guest waits in vain"]
pub struct Front<'f, Held> {
    guest: &'f mut VecDeque<Held>,
    count: usize,
}

impl<Held> Iterator for Front<'_, Held> {
    type Item = Held;

    #[inline]
    fn next(&mut self) -> Option<Held> {
        self.count = self.count.checked_sub(1)?;
        self.guest.pop_front()
    }

    #[inline]
    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.count, Some(self.count))
    }
}

impl<Held> ExactSizeIterator for Front<'_, Held> {}

impl<Held> Drop for Front<'_, Held> {
    #[inline]
    fn drop(&mut self) {
        self.for_each(drop);
    }
}

impl<const HEAD: usize, const TAIL: usize, Held: Holder> Default for Framed<HEAD, TAIL, Held> {
    fn default() -> Self {
        Self::new()
    }
}

#[expect(unsafe_code, reason = "promises the kernel valid iovecs")]
// SAFETY: head and tail are on the heap and owned, and no reference to them outlives a borrow of
// `self`; after every `&mut` borrow of one `take_all` points at both anew. A chain's iovecs come in
// when it does, and its bytes are cut off before it goes, in order, since the run is as long as all
// buffers but for what was cut off (`room`). So each byte of the run lies in a buffer that is in
// `guest`, wherever that is moved to, and is valid by the buffer's own contract; two that lie
// together are as valid in one iovec as in two.
unsafe impl<const HEAD: usize, const TAIL: usize, Held: Holder> IoBuffers
    for Framed<HEAD, TAIL, Held>
{
    #[inline]
    fn iovecs(&self) -> &[iovec] {
        &self.iovecs
    }

    #[inline]
    fn bytes(&self) -> usize {
        HEAD + self.room + TAIL
    }
}
