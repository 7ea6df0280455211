//! The device's end of a split virtqueue (2.7) in memory that is mapped page by page. Every value
//! of the driver's is read once and bounded. Without indirect descriptors and event indices: a
//! message a turn is not worth them.

use std::sync::atomic::{Ordering, fence};

use super::common::QueueRegisters;
use super::dma::{Dma, DmaError};

/// Bytes of a descriptor, a used entry, an available entry, and of what stands before the entries.
const DESCRIPTOR: usize = 16;
const USED_ENTRY: usize = 8;
const AVAILABLE_ENTRY: u64 = 2;
const BEFORE: u64 = 4;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const NO_INTERRUPT: u16 = 1;

/// What a driver does wrong: the device needs a reset then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// A part of the ring is not aligned (2.7), or its end wraps.
    #[error("the {part} of a queue at {address:#x}: misaligned, or its end wraps")]
    Place {
        /// Which part.
        part: &'static str,
        /// Where.
        address: u64,
    },
    /// The available index says more chains than the ring can hold.
    #[error("{ready} chains available in a queue of {size}")]
    TooManyAvailable {
        /// Chains between our index and the driver's.
        ready: u16,
        /// The queue's size.
        size: u16,
    },
    /// A head or `next` outside the table.
    #[error("descriptor {index} of a table of {size}")]
    IndexOutOfTable {
        /// The index.
        index: u16,
        /// The table's entries.
        size: u16,
    },
    /// More descriptors than there are.
    #[error("a chain that goes in circles")]
    Circular,
    /// A descriptor that is writable where the device reads, or the other way round, or indirect.
    #[error("a descriptor with flags {flags:#x} in this queue")]
    Flags {
        /// Its flags.
        flags: u16,
    },
    /// The chain has more bytes than any message.
    #[error("a message of more than {limit} bytes")]
    TooLong {
        /// The most there may be.
        limit: usize,
    },
    /// Not in memory.
    #[error(transparent)]
    Dma(#[from] DmaError),
}

/// A queue that runs.
#[derive(Debug)]
pub struct Ring {
    registers: QueueRegisters,
    next_available: u16,
    next_used: u16,
}

/// A chain that was taken, to be completed.
#[derive(Debug, Default)]
#[must_use = "a chain that is taken is completed"]
pub struct Chain {
    head: u16,
    /// (address, bytes), without empty ones.
    pieces: Vec<(u64, u32)>,
    /// The sum of all.
    bytes: u64,
}

impl Chain {
    /// Bytes of all its descriptors.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Ring {
    /// A queue as the driver described it, from its first entry on.
    ///
    /// # Errors
    ///
    /// When a part of it cannot be where the driver says. Whether there is memory is found out by
    /// each access: with an IOMMU it may come later, and go.
    pub fn new(registers: &QueueRegisters) -> Result<Self, RingError> {
        let size = u64::from(registers.size);
        let parts = [
            (
                "descriptor table",
                registers.descriptors,
                16,
                size * DESCRIPTOR as u64,
            ),
            (
                "available ring",
                registers.available,
                2,
                BEFORE + size * AVAILABLE_ENTRY,
            ),
            (
                "used ring",
                registers.used,
                4,
                BEFORE + size * USED_ENTRY as u64,
            ),
        ];
        for (part, address, align, bytes) in parts {
            if address % align != 0 || address.checked_add(bytes).is_none() {
                return Err(RingError::Place { part, address });
            }
        }
        Ok(Self {
            registers: *registers,
            next_available: 0,
            next_used: 0,
        })
    }

    /// Takes the next chain into `chain`, whose vector is used again; false if there is none.
    /// `writable`: whether the device is to write to it.
    ///
    /// # Errors
    ///
    /// When the driver broke the rules.
    pub fn take(
        &mut self,
        dma: &Dma,
        writable: bool,
        chain: &mut Chain,
    ) -> Result<bool, RingError> {
        let QueueRegisters {
            size, available, ..
        } = self.registers;
        // What was written before the index is seen after it.
        let index = dma.load_u16(available + 2, Ordering::Acquire)?;
        let ready = index.wrapping_sub(self.next_available);
        if ready == 0 {
            return Ok(false);
        }
        if ready > size {
            return Err(RingError::TooManyAvailable { ready, size });
        }
        let entry = u64::from(self.next_available % size) * AVAILABLE_ENTRY;
        let head = dma.load_u16(available + BEFORE + entry, Ordering::Relaxed)?;
        self.walk(dma, writable, head, chain)?;
        self.next_available = self.next_available.wrapping_add(1);
        Ok(true)
    }

    fn walk(
        &self,
        dma: &Dma,
        writable: bool,
        head: u16,
        chain: &mut Chain,
    ) -> Result<(), RingError> {
        chain.head = head;
        chain.pieces.clear();
        chain.bytes = 0;
        let size = self.registers.size;
        let mut index = head;
        // A chain as long as its table visits every entry; a longer one goes in circles.
        for _ in 0..size {
            if index >= size {
                return Err(RingError::IndexOutOfTable { index, size });
            }
            let address = self.registers.descriptors + u64::from(index) * DESCRIPTOR as u64;
            let mut bytes = [0; DESCRIPTOR];
            dma.read(address, &mut bytes)?;
            let (address, len, flags, next) = descriptor(bytes);
            if flags & !(NEXT | WRITE) != 0 || (flags & WRITE != 0) != writable {
                return Err(RingError::Flags { flags });
            }
            if len > 0 {
                chain.pieces.push((address, len));
                // At most 256 of 32 bits.
                chain.bytes += u64::from(len);
            }
            if flags & NEXT == 0 {
                return Ok(());
            }
            index = next;
        }
        Err(RingError::Circular)
    }

    /// Copies a whole chain out, if it has at most `limit` bytes.
    ///
    /// # Errors
    ///
    /// When it has more, or is not in memory.
    pub fn read(
        dma: &Dma,
        chain: &Chain,
        limit: usize,
        into: &mut Vec<u8>,
    ) -> Result<(), RingError> {
        into.clear();
        if chain.bytes > limit as u64 {
            return Err(RingError::TooLong { limit });
        }
        for &(address, len) in &chain.pieces {
            let start = into.len();
            into.resize(start + len as usize, 0);
            dma.read(address, &mut into[start..])?;
        }
        Ok(())
    }

    /// Copies `bytes` to the front of a chain, which has room for them.
    ///
    /// # Errors
    ///
    /// When it has not, or is not in memory.
    pub fn write(dma: &Dma, chain: &Chain, bytes: &[u8]) -> Result<(), RingError> {
        let limit = usize::try_from(chain.bytes).unwrap_or(usize::MAX);
        let mut rest = bytes;
        for &(address, len) in &chain.pieces {
            let (piece, after) = rest.split_at(rest.len().min(len as usize));
            dma.write(address, piece)?;
            rest = after;
        }
        match rest {
            [] => Ok(()),
            [..] => Err(RingError::TooLong { limit }),
        }
    }

    /// Gives a chain back with `written` bytes; whether the driver wants to be told.
    ///
    /// # Errors
    ///
    /// When the used ring is not in memory.
    pub fn complete(&mut self, dma: &Dma, chain: &Chain, written: u32) -> Result<bool, RingError> {
        let QueueRegisters {
            size,
            available,
            used,
            ..
        } = self.registers;
        let entry = u64::from(self.next_used % size) * USED_ENTRY as u64;
        let mut bytes = [0; USED_ENTRY];
        bytes[..4].copy_from_slice(&u32::from(chain.head).to_le_bytes());
        bytes[4..].copy_from_slice(&written.to_le_bytes());
        dma.write(used + BEFORE + entry, &bytes)?;
        self.next_used = self.next_used.wrapping_add(1);
        // The entry is seen once the index is.
        dma.store_u16(used + 2, self.next_used, Ordering::Release)?;
        // Our index is written before the driver's wish is read (2.7.13.4.1).
        fence(Ordering::SeqCst);
        let flags = dma.load_u16(available, Ordering::Relaxed)?;
        Ok(flags & NO_INTERRUPT == 0)
    }
}

/// le64 addr, le32 len, le16 flags, le16 next.
fn descriptor(bytes: [u8; DESCRIPTOR]) -> (u64, u32, u16, u16) {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = bytes;
    (
        u64::from_le_bytes([a, b, c, d, e, f, g, h]),
        u32::from_le_bytes([i, j, k, l]),
        u16::from_le_bytes([m, n]),
        u16::from_le_bytes([o, p]),
    )
}
