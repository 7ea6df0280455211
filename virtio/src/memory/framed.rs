//! Guest buffers with bytes of the device's own, as one run for the kernel: what a frame with a
//! header of ours is moved by. Out of one chain's ([`Headed`]), or into those of several
//! ([`Framed`]).

use libc::iovec;
use vudev_executor::IoBuffers;

use super::run::Run;
use super::{GuestBuffers, ShortBuffers};
use crate::chain::Chain;

/// What has guest buffers to be read, and keeps them as they are while nobody else has it: a chain,
/// or buffers by themselves. Not for others to implement, since the kernel is promised that; so it
/// has no name outside.
pub trait Holder: 'static {
    /// What goes out of the guest.
    fn readable(&self) -> &GuestBuffers;
}

impl Holder for Chain {
    #[inline]
    fn readable(&self) -> &GuestBuffers {
        &self.readable
    }
}

impl Holder for GuestBuffers {
    fn readable(&self) -> &GuestBuffers {
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
/// order: the buffers of a `read`. The queue puts its chains in ([`Queue::take_into`]), and takes
/// them out to be completed or put back ([`Queue::complete_first`], [`Queue::put_back_all`]). What
/// is readable of them nobody sees. Chains that are dropped with this are counted and warned of, as
/// each by itself would be.
///
/// [`Queue::take_into`]: crate::Queue::take_into
/// [`Queue::complete_first`]: crate::Queue::complete_first
/// [`Queue::put_back_all`]: crate::Queue::put_back_all
pub struct Framed<const HEAD: usize, const TAIL: usize> {
    head: Box<[u8; HEAD]>,
    run: Run,
    #[expect(dead_code, reason = "the kernel writes there")]
    tail: Box<[u8; TAIL]>,
}

impl<const HEAD: usize, const TAIL: usize> Framed<HEAD, TAIL> {
    /// Zeros, and no chains.
    pub fn new() -> Self {
        Self::skipping(0)
    }

    /// Zeros, and no chains. Of the first of those that come `skip` bytes are left out: what
    /// belongs there is written when it is known ([`Framed::write_front`]). A chain with fewer
    /// bytes does not come in.
    pub fn skipping(skip: usize) -> Self {
        let (mut head, mut tail) = (Box::new([0; HEAD]), Box::new([0; TAIL]));
        let own = |bytes: &mut [u8]| (!bytes.is_empty()).then(|| iovec_of(bytes));
        let run = Run::between(own(&mut head[..]), own(&mut tail[..]), skip);
        Self { head, run, tail }
    }

    /// Our bytes in front.
    pub fn head(&self) -> &[u8; HEAD] {
        &self.head
    }

    /// How many chains there are.
    #[inline]
    pub fn chains(&self) -> usize {
        self.run.len()
    }

    /// How many bytes of the guest's there are, without those that are left out, and without ours.
    #[inline]
    pub fn room(&self) -> usize {
        self.run.room()
    }

    /// How many pieces of memory there are, with ours: an operation moves at most 1024.
    #[inline]
    pub fn pieces(&self) -> usize {
        self.run.iovecs().len()
    }

    /// How many of the first chains have so many bytes, what is left out of them counted too; all,
    /// if they have fewer.
    #[inline]
    pub fn chains_for(&self, bytes: usize) -> usize {
        self.run.chains_for(bytes)
    }

    /// Copies to the bytes that are left out.
    ///
    /// # Errors
    ///
    /// When there are fewer, as where there is no chain; nothing is written then.
    #[inline]
    pub fn write_front<const N: usize>(&self, from: &[u8; N]) -> Result<(), ShortBuffers> {
        self.run.write_front(from)
    }

    /// Copies from the guest's first bytes, with those that are left out, as much as there is; how
    /// much that was.
    pub fn peek(&self, into: &mut [u8]) -> usize {
        self.run.peek(into)
    }

    #[inline]
    pub(crate) fn run(&mut self) -> &mut Run {
        &mut self.run
    }
}

impl<const HEAD: usize, const TAIL: usize> Default for Framed<HEAD, TAIL> {
    fn default() -> Self {
        Self::new()
    }
}

#[expect(unsafe_code, reason = "promises the kernel valid iovecs")]
// SAFETY: head and tail are on the heap and owned, and nobody borrows them mutably after `skipping`
// has pointed at them. The other iovecs stand in a vector that only `&mut self` changes. Each byte
// of them lies in a range of a region that was checked when a chain was walked, and was cut off
// when that chain went, since the run is as long as all its chains but for what is left out; as
// long as there is one, `Run` holds the memory that all of them lie in, which keeps every region
// mapped, readable and writable.
unsafe impl<const HEAD: usize, const TAIL: usize> IoBuffers for Framed<HEAD, TAIL> {
    #[inline]
    fn iovecs(&self) -> &[iovec] {
        self.run.iovecs()
    }

    #[inline]
    fn bytes(&self) -> usize {
        HEAD + self.run.room() + TAIL
    }
}
