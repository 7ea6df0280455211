//! The driver's end of the two virtqueues of a virtio-vhost-user function, each with buffers of one
//! size. Split rings without suppression (virtio 1.3, 2.7): messages are few. Not what a message
//! is.
//!
//! Nothing is read back that the function could have changed but the used ring: each entry once,
//! and checked. Indices, and which buffers the function has, are kept here.

use std::rc::Rc;
use std::sync::atomic::Ordering::{Acquire, Release, SeqCst};
use std::sync::atomic::fence;

use vudev_virtio::{GuestMemory, MemoryError, RingAddresses};

use super::error::FunctionError;

/// Where the function sees the area for rings and buffers, and we as well.
pub const DMA_ADDRESS: u64 = 0x10_0000;

/// Its bytes: 20 pages, since a virtual IOMMU may be told of every single one.
pub const DMA_SIZE: u64 = TRANSMIT.buffers + QUEUE_SIZE as u64 * TRANSMIT.buffer_size as u64;

/// Entries of a queue. The front-end waits for most of its messages to be answered.
pub(super) const QUEUE_SIZE: u16 = 16;

/// Where a queue and its buffers lie in the DMA area.
#[derive(Clone, Copy)]
pub(super) struct Place {
    index: u16,
    ring: u64,
    buffers: u64,
    buffer_size: u32,
    /// Whether the function writes the buffers.
    writable: bool,
}

/// `rxq`: messages of the front-end. A buffer holds the largest that is read
/// ([`crate::message::PAYLOAD_SIZE_MAX`] and a header), and a little more.
pub(super) const RECEIVE: Place = Place {
    index: 0,
    ring: 0,
    buffers: 0x1000,
    buffer_size: 0x1100,
    writable: true,
};

/// `txq`: answers, and requests of ours. The largest has 280 bytes.
pub(super) const TRANSMIT: Place = Place {
    index: 1,
    ring: RING_SIZE as u64,
    buffers: 0x1000 + QUEUE_SIZE as u64 * RECEIVE.buffer_size as u64,
    buffer_size: 0x200,
    writable: false,
};

/// Offsets of the parts behind the descriptor table (2.7: aligned to 2 and 4).
const DESCRIPTOR_SIZE: u64 = 16;
/// All parts together, and room between.
const RING_SIZE: usize = 0x800;
const AVAILABLE: u64 = QUEUE_SIZE as u64 * DESCRIPTOR_SIZE;
const USED: u64 = AVAILABLE + 0x80;
/// `flags` and `idx` before the entries of both rings.
const INDEX: u64 = 2;
const ENTRIES: u64 = 4;
/// `VIRTQ_DESC_F_WRITE`.
const WRITABLE: u16 = 2;

/// A buffer that came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Used {
    pub(super) buffer: Buffer,
    pub(super) length: u32,
}

/// One of a queue's buffers. Below its size by construction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Buffer(u16);

/// A queue.
pub(super) struct Ring {
    memory: Rc<GuestMemory>,
    place: Place,
    size: u16,
    /// How many bytes of each buffer the function has; `None`: it is ours.
    lent: [Option<u32>; QUEUE_SIZE as usize],
    /// What we have published, and how far we have followed the function.
    available: u16,
    used: u16,
}

impl Ring {
    /// An empty ring of `size` entries, a power of two and at most [`QUEUE_SIZE`].
    pub(super) fn new(
        memory: &Rc<GuestMemory>,
        place: Place,
        size: u16,
    ) -> Result<Self, FunctionError> {
        debug_assert!(size.is_power_of_two() && size <= QUEUE_SIZE);
        let ring = Self {
            memory: memory.clone(),
            place,
            size,
            lent: [None; QUEUE_SIZE as usize],
            available: 0,
            used: 0,
        };
        // What a session before us left there.
        ring.write(0, &[0; RING_SIZE]).map_err(FunctionError::Dma)?;
        Ok(ring)
    }

    /// Where its parts lie, for the function.
    pub(super) fn addresses(&self) -> RingAddresses {
        let ring = DMA_ADDRESS + self.place.ring;
        RingAddresses {
            descriptors: ring,
            available: ring + AVAILABLE,
            used: ring + USED,
        }
    }

    /// Buffers that are ours.
    pub(super) fn free(&self) -> impl Iterator<Item = Buffer> + '_ {
        (0..self.size)
            .filter(|buffer| self.lent[usize::from(*buffer)].is_none())
            .map(Buffer)
    }

    /// Lends a buffer to the function: all of it to write into, or `bytes` to read.
    pub(super) fn lend(&mut self, buffer: Buffer, bytes: &[u8]) -> Result<(), FunctionError> {
        let Place {
            buffer_size,
            writable,
            ..
        } = self.place;
        let length = if writable {
            buffer_size
        } else {
            let length = u32::try_from(bytes.len()).expect("messages of ours are short");
            assert!(length <= buffer_size, "messages of ours are short");
            length
        };
        let address = self.buffer_address(buffer);
        let mut descriptor = [0; 16];
        descriptor[..8].copy_from_slice(&address.to_le_bytes());
        descriptor[8..12].copy_from_slice(&length.to_le_bytes());
        let flags = if writable { WRITABLE } else { 0 };
        descriptor[12..14].copy_from_slice(&flags.to_le_bytes());
        let slot = u64::from(self.available % self.size);
        let available = self.available.wrapping_add(1);
        let publish = || -> Result<(), MemoryError> {
            self.memory.write(address, bytes)?;
            self.write(u64::from(buffer.0) * DESCRIPTOR_SIZE, &descriptor)?;
            self.write(AVAILABLE + ENTRIES + slot * 2, &buffer.0.to_le_bytes())?;
            // The entry, and all that it leads to, before the index that shows it.
            self.memory
                .store_u16(self.ring_address(AVAILABLE + INDEX), available, Release)?;
            // And the index before the register by which the function is told.
            fence(SeqCst);
            Ok(())
        };
        publish().map_err(FunctionError::Dma)?;
        self.available = available;
        self.lent[usize::from(buffer.0)] = Some(length);
        Ok(())
    }

    /// Whether a buffer has come back.
    pub(super) fn has_used(&self) -> Result<bool, FunctionError> {
        Ok(self.used_index()? != self.used)
    }

    /// The next buffer that came back; it is ours again.
    pub(super) fn take_used(&mut self) -> Result<Option<Used>, FunctionError> {
        let queue = self.place.index;
        let ready = self.used_index()?.wrapping_sub(self.used);
        if ready == 0 {
            return Ok(None);
        }
        let outstanding = self.available.wrapping_sub(self.used);
        if ready > outstanding {
            return Err(FunctionError::TooManyUsed {
                queue,
                used: ready,
                outstanding,
            });
        }
        let slot = u64::from(self.used % self.size);
        let mut entry = [0; 8];
        self.memory
            .read(self.ring_address(USED + ENTRIES + slot * 8), &mut entry)
            .map_err(FunctionError::Dma)?;
        let [i0, i1, i2, i3, l0, l1, l2, l3] = entry;
        let buffer = u32::from_le_bytes([i0, i1, i2, i3]);
        let length = u32::from_le_bytes([l0, l1, l2, l3]);

        let unknown = FunctionError::UnknownBuffer { queue, buffer };
        let Some(place) = usize::try_from(buffer)
            .ok()
            .and_then(|buffer| self.lent.get_mut(buffer))
        else {
            return Err(unknown);
        };
        let room = place.take().ok_or(unknown)?;
        if self.place.writable && length > room {
            return Err(FunctionError::UsedLength {
                queue,
                length,
                room,
            });
        }
        self.used = self.used.wrapping_add(1);
        let buffer = Buffer(u16::try_from(buffer).expect("it is one of ours"));
        Ok(Some(Used { buffer, length }))
    }

    /// What the function wrote into a buffer.
    pub(super) fn contents(&self, used: Used) -> Result<Vec<u8>, FunctionError> {
        let room = self.place.buffer_size;
        let length = usize::try_from(used.length.min(room)).expect("a buffer's size");
        let mut bytes = vec![0; length];
        self.memory
            .read(self.buffer_address(used.buffer), &mut bytes)
            .map_err(FunctionError::Dma)?;
        Ok(bytes)
    }

    fn used_index(&self) -> Result<u16, FunctionError> {
        self.memory
            .load_u16(self.ring_address(USED + INDEX), Acquire)
            .map_err(FunctionError::Dma)
    }

    fn buffer_address(&self, Buffer(number): Buffer) -> u64 {
        let offset = u64::from(number) * u64::from(self.place.buffer_size);
        DMA_ADDRESS + self.place.buffers + offset
    }

    fn ring_address(&self, at: u64) -> u64 {
        DMA_ADDRESS + self.place.ring + at
    }

    fn write(&self, at: u64, from: &[u8]) -> Result<(), MemoryError> {
        self.memory.write(self.ring_address(at), from)
    }
}
