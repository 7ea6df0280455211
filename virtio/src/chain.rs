//! A chain of descriptors (virtio 1.3, 2.7.5), walked once from foreign memory into checked
//! buffers. Not the ring: which chain comes next is the queue's affair.
//!
//! What a walk refuses, it refuses as a whole: there is no half of a chain. That costs the guest
//! its queue, since nobody can say what it meant.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::rc::Rc;

use crate::memory::{BufferList, Descriptor, GuestBuffers, GuestMemory, MemoryError, RingView};
use crate::spec::{DESCRIPTOR_BYTES, descriptor_flag};

/// The longest chain in an indirect table, where the queue is smaller. The specification draws the
/// line at the queue size (2.7.5.3.1), but Linux's driver does not: a guest whose disk says
/// `seg_max` 254 sends 256 descriptors through a queue of 128 entries. 1024 is `UIO_MAXIOV`, what
/// one `readv` takes. In the queue's own table the queue size holds by itself.
const INDIRECT_MAX: u16 = 1024;

/// How many pieces of memory a chain may be in, for each descriptor that its table may have: a
/// buffer lies in one region or over the edge of two. A front-end that cuts memory into hundreds
/// of tiny regions would otherwise make every descriptor hundreds of iovecs, and every chain
/// megabytes.
const PIECES_PER_DESCRIPTOR: usize = 2;

/// A request of the guest's: what the device may read, then what it may write.
///
/// Completed or put back, by value; there is no third way. One that is dropped is counted and
/// warned of, for the guest then waits in vain.
///
/// What it has stands in [`Sides`], which stay where they are: a chain changes hands often, and a
/// pointer is what it costs. The queue gives the same ones out again.
#[must_use = "a chain is completed or put back: Queue::complete, Queue::put_back"]
pub struct Chain(Box<Sides>);

/// What a chain offers a device.
pub struct Sides {
    /// What the guest wrote for the device.
    pub readable: GuestBuffers,
    /// Where the guest awaits the device's answer.
    pub writable: GuestBuffers,
    head: u16,
    /// The free-running index in the available ring that it was taken from.
    position: u16,
    /// Bytes that were writable when it was taken: the most that can have been written.
    writable_bytes: u32,
    /// The count of the queue it belongs to; `None` of no chain.
    ledger: Option<Rc<Ledger>>,
}

/// A chain that is the device's no more.
pub(crate) struct Settled {
    pub(crate) head: u16,
    pub(crate) position: u16,
    pub(crate) writable_bytes: u32,
}

/// Why a chain was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// A head or `next` outside its table.
    #[error("descriptor {index} of a table of {len}")]
    IndexOutOfTable {
        /// The index.
        index: u16,
        /// The table's entries.
        len: u16,
    },
    /// More descriptors than there can be without going in circles.
    #[error("a chain of more than {limit} descriptors")]
    TooLong {
        /// The most there may be.
        limit: u16,
    },
    /// A buffer without bytes.
    #[error("descriptor {index} has no bytes")]
    ZeroLength {
        /// The descriptor.
        index: u16,
    },
    /// Bytes to read after bytes to write (2.7.4.2).
    #[error("descriptor {index} is readable and comes after a writable one")]
    ReadableAfterWritable {
        /// The descriptor.
        index: u16,
    },
    /// 2^32 bytes or more together (2.7.5.2).
    #[error("a chain of 2^32 bytes or more")]
    TooManyBytes,
    /// Buffers that span too many regions of memory.
    #[error("a chain in more than {limit} pieces of memory")]
    TooManyPieces {
        /// The most there may be.
        limit: usize,
    },
    /// An indirect descriptor that nobody negotiated.
    #[error("an indirect descriptor without VIRTIO_F_INDIRECT_DESC")]
    IndirectNotNegotiated,
    /// An indirect descriptor in an indirect table (2.7.5.3.1).
    #[error("an indirect descriptor in an indirect table")]
    IndirectNested,
    /// A chain that goes on after an indirect descriptor (2.7.5.3.1).
    #[error("an indirect descriptor with a next one")]
    IndirectWithNext,
    /// An indirect table that is not a whole number of descriptors, at least one.
    #[error("an indirect table of {bytes} bytes")]
    IndirectLength {
        /// Its bytes.
        bytes: u32,
    },
    /// A buffer or an indirect table outside memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

impl Chain {
    /// The head's index in the descriptor table: what identifies the chain in a log.
    pub fn head(&self) -> u16 {
        self.0.head
    }

    /// Where it stood in the driver's order, modulo 2^16. A chain that was put back has the same
    /// place when it is taken again, which tells it from another driver's.
    pub fn position(&self) -> u16 {
        self.0.position
    }

    /// Ends the chain, for the queue that completes or un-takes it. Nothing of its buffers is kept.
    #[inline]
    pub(crate) fn settle(self) -> Settled {
        let mut sides = self.0;
        let settled = Settled {
            head: sides.head,
            position: sides.position,
            writable_bytes: sides.writable_bytes,
        };
        sides.readable.vacate();
        sides.writable.vacate();
        if let Some(ledger) = sides.ledger.take() {
            ledger.returned(sides);
        }
        settled
    }

    /// Whether it was taken from the queue of this account.
    #[inline]
    pub(crate) fn is_of(&self, ledger: &Rc<Ledger>) -> bool {
        let own = self.0.ledger.as_ref();
        own.is_some_and(|own| Rc::ptr_eq(own, ledger))
    }
}

impl Deref for Chain {
    type Target = Sides;

    #[inline]
    fn deref(&self) -> &Sides {
        &self.0
    }
}

impl DerefMut for Chain {
    #[inline]
    fn deref_mut(&mut self) -> &mut Sides {
        &mut self.0
    }
}

impl Sides {
    fn none() -> Box<Self> {
        Box::new(Self {
            readable: GuestBuffers::default(),
            writable: GuestBuffers::default(),
            head: 0,
            position: 0,
            writable_bytes: 0,
            ledger: None,
        })
    }
}

impl Drop for Sides {
    #[inline]
    fn drop(&mut self) {
        if let Some(ledger) = self.ledger.take() {
            ledger.chain_dropped(self.head);
        }
    }
}

impl fmt::Debug for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Sides {
            readable,
            writable,
            head,
            position,
            writable_bytes: _,
            ledger: _,
        } = &*self.0;
        write!(
            f,
            "Chain(head {head} at {position}, reads {readable:?}, writes {writable:?})"
        )
    }
}

/// How many chains of one queue are out, and how many will never come back; and what chains that
/// came back stood in.
#[derive(Default)]
pub(crate) struct Ledger {
    queue: u16,
    held: Cell<u16>,
    dropped: Cell<u16>,
    #[expect(clippy::vec_box, reason = "what is given out is the box")]
    spare: RefCell<Vec<Box<Sides>>>,
}

/// How many spare [`Sides`] a queue keeps: the depth that a busy device reaches. Of 64 bytes, and
/// with the lists of two buffers, of half a KiB each at most: 1.2 MB in all.
const SPARE_MAX: usize = 1024;

impl Ledger {
    pub(crate) fn new(queue: u16) -> Rc<Self> {
        Rc::new(Self {
            queue,
            ..Self::default()
        })
    }

    /// Chains that the device holds.
    pub(crate) fn held(&self) -> u16 {
        self.held.get()
    }

    /// Chains that the guest has not got back, and some of them never will.
    pub(crate) fn outstanding(&self) -> u16 {
        self.held.get().saturating_add(self.dropped.get())
    }

    /// Chains that the device lost.
    pub(crate) fn dropped(&self) -> u16 {
        self.dropped.get()
    }

    #[inline]
    fn returned(&self, sides: Box<Sides>) {
        self.one_less();
        let mut spare = self.spare.borrow_mut();
        if spare.len() < SPARE_MAX {
            spare.push(sides);
        }
    }

    #[inline]
    pub(crate) fn one_less(&self) {
        debug_assert!(self.held.get() > 0, "a chain is settled once");
        self.held.set(self.held.get().saturating_sub(1));
    }

    #[inline]
    pub(crate) fn taken(&self) {
        self.held.set(self.held.get() + 1);
    }

    #[cold]
    pub(crate) fn chain_dropped(&self, head: u16) {
        self.one_less();
        let before = self.dropped.get();
        self.dropped.set(before.saturating_add(1));
        // The first says enough; a device task that is cancelled drops all it has.
        if before == 0 {
            log::warn!(
                "queue {}: chain {head} dropped, neither completed nor put back",
                self.queue
            );
        }
    }
}

/// Takes the chain that begins at `head`.
#[inline]
pub(crate) fn take(
    ring: &RingView,
    memory: &Rc<GuestMemory>,
    indirect: bool,
    head: u16,
    position: u16,
    ledger: &Rc<Ledger>,
) -> Result<Chain, ChainError> {
    let spare = ledger.spare.borrow_mut().pop();
    let mut sides = spare.unwrap_or_else(Sides::none);
    let Sides {
        readable, writable, ..
    } = &mut *sides;
    walk(ring, memory, indirect, head, readable, writable)?;
    readable.lie_in(memory);
    writable.lie_in(memory);
    // All bytes together are as many as 32 bits can say.
    sides.writable_bytes = u32::try_from(sides.writable.len()).unwrap_or(u32::MAX);
    (sides.head, sides.position) = (head, position);
    ledger.taken();
    sides.ledger = Some(ledger.clone());
    Ok(Chain(sides))
}

/// Lists the buffers of the chain that begins at `head`. Each descriptor is copied once, and the
/// copy checked.
#[inline]
pub(crate) fn walk(
    ring: &RingView,
    memory: &GuestMemory,
    indirect: bool,
    head: u16,
    readable: &mut impl BufferList,
    writable: &mut impl BufferList,
) -> Result<(), ChainError> {
    let mut walk = Walk {
        memory,
        pieces_max: PIECES_PER_DESCRIPTOR * usize::from(ring.size().max(INDIRECT_MAX)),
        bytes: 0,
        in_pieces: false,
        readable,
        writable,
    };
    let table = ring.table();
    let fetch = |index| Ok(table.descriptor(index));
    if let Some(descriptor) = walk.table(ring.size(), ring.size(), head, fetch)? {
        if !indirect {
            return Err(ChainError::IndirectNotNegotiated);
        }
        walk.indirect_table(ring.size(), descriptor)?;
    }
    match walk.in_pieces {
        true => walk.check_pieces(),
        false => Ok(()),
    }
}

/// A chain on its way.
struct Walk<'a, R, W> {
    memory: &'a GuestMemory,
    pieces_max: usize,
    bytes: u32,
    /// Whether a buffer lies in more than one region. Without one there are no more pieces than
    /// descriptors, which are not too many.
    in_pieces: bool,
    readable: &'a mut R,
    writable: &'a mut W,
}

impl<R: BufferList, W: BufferList> Walk<'_, R, W> {
    /// Follows the chain within one table of `len` entries. Gives the indirect descriptor that it
    /// ends with, if it does: one may follow direct ones (2.7.5.3.2).
    #[inline]
    fn table(
        &mut self,
        len: u16,
        limit: u16,
        head: u16,
        fetch: impl Fn(u16) -> Result<Descriptor, MemoryError>,
    ) -> Result<Option<Descriptor>, ChainError> {
        let mut index = head;
        // A chain as long as its table visits every entry; a longer one goes in circles.
        for _ in 0..limit {
            if index >= len {
                return Err(ChainError::IndexOutOfTable { index, len });
            }
            let descriptor = fetch(index)?;
            let goes_on = descriptor.flags & descriptor_flag::NEXT != 0;
            if descriptor.flags & descriptor_flag::INDIRECT != 0 {
                return if goes_on {
                    Err(ChainError::IndirectWithNext)
                } else {
                    Ok(Some(descriptor))
                };
            }
            self.buffer(index, &descriptor)?;
            if !goes_on {
                return Ok(None);
            }
            index = descriptor.next;
        }
        Err(ChainError::TooLong { limit })
    }

    /// Follows the chain in an indirect table; it begins at the first entry (2.7.5.3).
    fn indirect_table(
        &mut self,
        queue_size: u16,
        descriptor: Descriptor,
    ) -> Result<(), ChainError> {
        let Descriptor {
            address,
            len: bytes,
            flags: _,
            next: _,
        } = descriptor;
        let whole = bytes as usize;
        if whole == 0 || !whole.is_multiple_of(DESCRIPTOR_BYTES) {
            return Err(ChainError::IndirectLength { bytes });
        }
        let limit = queue_size.max(INDIRECT_MAX);
        let len = u16::try_from(whole / DESCRIPTOR_BYTES)
            .ok()
            .filter(|&len| len <= limit)
            .ok_or(ChainError::TooLong { limit })?;
        let memory = self.memory;
        let nested = match memory.descriptors(address, len) {
            Some(table) => self.table(len, len, 0, |index| Ok(table.descriptor(index)))?,
            None => self.cut_table(address, len)?,
        };
        match nested {
            Some(_) => Err(ChainError::IndirectNested),
            None => Ok(()),
        }
    }

    /// [`Walk::table`] of one that lies over the edges of regions, or not at a word's.
    #[cold]
    #[inline(never)]
    fn cut_table(&mut self, address: u64, len: u16) -> Result<Option<Descriptor>, ChainError> {
        let memory = self.memory;
        memory.check_range(address, u64::from(len) * DESCRIPTOR_BYTES as u64)?;
        self.table(len, len, 0, |index| {
            let mut entry = [0; DESCRIPTOR_BYTES];
            let at = usize::from(index) * DESCRIPTOR_BYTES;
            memory.read(address + at as u64, &mut entry)?;
            Ok(Descriptor::parse(entry))
        })
    }

    // A call costs as much as half of it.
    #[inline(always)]
    fn buffer(&mut self, index: u16, descriptor: &Descriptor) -> Result<(), ChainError> {
        let &Descriptor {
            address,
            len,
            flags,
            next: _,
        } = descriptor;
        if len == 0 {
            return Err(ChainError::ZeroLength { index });
        }
        self.bytes = self
            .bytes
            .checked_add(len)
            .ok_or(ChainError::TooManyBytes)?;
        let in_one = if flags & descriptor_flag::WRITE != 0 {
            push(self.memory, self.writable, address, len)
        } else if self.writable.is_empty() {
            push(self.memory, self.readable, address, len)
        } else {
            return Err(ChainError::ReadableAfterWritable { index });
        };
        if in_one? {
            return Ok(());
        }
        self.in_pieces = true;
        self.check_pieces()
    }

    #[inline]
    fn check_pieces(&self) -> Result<(), ChainError> {
        let limit = self.pieces_max;
        if self.readable.pieces() + self.writable.pieces() > limit {
            return Err(ChainError::TooManyPieces { limit });
        }
        Ok(())
    }
}

/// Adds a range to a list; whether it lies in one region.
#[inline(always)]
fn push(
    memory: &GuestMemory,
    list: &mut impl BufferList,
    address: u64,
    len: u32,
) -> Result<bool, MemoryError> {
    if list.push_whole(memory, address, len) {
        return Ok(true);
    }
    list.push_pieces(memory, address, len)?;
    Ok(false)
}
