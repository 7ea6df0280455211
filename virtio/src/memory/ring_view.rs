//! The three parts of a split ring (virtio 1.3, 2.7) as words in shared memory: found once a memory
//! table, bounds-checked once, then read and written atomically. Not the discipline of indices:
//! that is the queue's.

use std::marker::PhantomData;
use std::rc::Rc;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use super::{GuestMemory, MemoryError, Region};
use crate::queue::{QueueError, RingAddresses, RingError};
use crate::spec::DESCRIPTOR_BYTES;

/// One descriptor (2.7.5), copied out of guest memory once; never read again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Descriptor {
    pub(crate) address: u64,
    pub(crate) len: u32,
    pub(crate) flags: u16,
    pub(crate) next: u16,
}

impl Descriptor {
    /// From the table's bytes.
    pub(crate) fn parse(bytes: [u8; DESCRIPTOR_BYTES]) -> Self {
        let (words, _) = bytes.as_chunks();
        let word = |at: usize| u64::from_ne_bytes(words[at]);
        Self::from_words(word(0), word(1))
    }

    /// From the table's layout: le64 addr, le32 len, le16 flags, le16 next.
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "takes words apart")]
    fn from_words(first: u64, second: u64) -> Self {
        let second = u64::from_le(second);
        Self {
            address: u64::from_le(first),
            len: second as u32,
            flags: (second >> 32) as u16,
            next: (second >> 48) as u16,
        }
    }
}

/// Descriptors in shared memory, one after the other: a ring's own, or an indirect table.
pub(crate) struct DescriptorTable<'a> {
    base: *mut u8,
    len: u16,
    /// Who keeps it mapped.
    _memory: PhantomData<&'a GuestMemory>,
}

impl DescriptorTable<'_> {
    /// Copies one of them, each word of it once.
    #[inline]
    pub(crate) fn descriptor(&self, index: u16) -> Descriptor {
        assert!(index < self.len, "the walk checks what a guest names");
        let offset = usize::from(index) * DESCRIPTOR_BYTES;
        let word = |offset| u64_at(self.base, offset).load(Ordering::Relaxed);
        Descriptor::from_words(word(offset), word(offset + 8))
    }
}

/// A split ring in guest memory. Every access is in bounds by construction: indices are taken
/// modulo the queue size, a power of two.
#[derive(Debug)]
pub(crate) struct RingView {
    /// `size - 1`.
    mask: u16,
    descriptors: *mut u8,
    available: *mut u8,
    used: *mut u8,
    /// Keeps what the pointers point at mapped.
    _regions: [Region; 3],
}

/// `flags` and `idx` stand before the entries of both rings (2.7.6, 2.7.8).
const RING_HEADER_BYTES: usize = 4;
const AVAILABLE_ENTRY_BYTES: usize = 2;
const USED_ENTRY_BYTES: usize = 8;

impl RingView {
    /// Finds the ring of `size` entries, a power of two. `event_idx`: the rings end with an event
    /// field each.
    pub(crate) fn new(
        memory: &Rc<GuestMemory>,
        addresses: &RingAddresses,
        size: u16,
        event_idx: bool,
    ) -> Result<Self, QueueError> {
        debug_assert!(size.is_power_of_two(), "checked by Queue::start");
        let entries = usize::from(size);
        let event = if event_idx { 2 } else { 0 };
        let find = |part, address, entry_bytes: usize, around: usize, align| {
            locate(memory, address, entries * entry_bytes + around, align).map_err(|source| {
                Box::new(RingError {
                    part,
                    address,
                    source,
                })
            })
        };
        let around = RING_HEADER_BYTES + event;
        let (descriptors, first) = find(
            "descriptor table",
            addresses.descriptors,
            DESCRIPTOR_BYTES,
            0,
            16,
        )?;
        let (available, second) = find(
            "available ring",
            addresses.available,
            AVAILABLE_ENTRY_BYTES,
            around,
            2,
        )?;
        let (used, third) = find("used ring", addresses.used, USED_ENTRY_BYTES, around, 4)?;
        let _regions = [first, second, third];
        Ok(Self {
            mask: size - 1,
            descriptors,
            available,
            used,
            _regions,
        })
    }

    /// The queue's size.
    pub(crate) fn size(&self) -> u16 {
        // A mask of 32767 is that of the greatest size, 32768, so this cannot wrap.
        self.mask + 1
    }

    /// The ring's own descriptors.
    #[inline]
    pub(crate) fn table(&self) -> DescriptorTable<'_> {
        DescriptorTable {
            base: self.descriptors,
            len: self.size(),
            _memory: PhantomData,
        }
    }

    /// What the driver last published: reads of entries before this index see what it wrote.
    #[inline]
    pub(crate) fn available_index(&self) -> u16 {
        u16::from_le(u16_at(self.available, 2).load(Ordering::Acquire))
    }

    /// The head that the driver put at free-running index `at`.
    #[inline]
    pub(crate) fn available_head(&self, at: u16) -> u16 {
        let slot = usize::from(at & self.mask);
        let offset = RING_HEADER_BYTES + slot * AVAILABLE_ENTRY_BYTES;
        u16::from_le(u16_at(self.available, offset).load(Ordering::Relaxed))
    }

    /// The driver's flags: [`crate::spec::ring_flag::NO_INTERRUPT`].
    pub(crate) fn available_flags(&self) -> u16 {
        u16::from_le(u16_at(self.available, 0).load(Ordering::Relaxed))
    }

    /// `used_event`, behind the available ring. Only with `VIRTIO_F_EVENT_IDX`.
    pub(crate) fn used_event(&self) -> u16 {
        let offset = RING_HEADER_BYTES + usize::from(self.size()) * AVAILABLE_ENTRY_BYTES;
        u16::from_le(u16_at(self.available, offset).load(Ordering::Relaxed))
    }

    /// How far the ring's last owner came.
    pub(crate) fn used_index(&self) -> u16 {
        u16::from_le(u16_at(self.used, 2).load(Ordering::Relaxed))
    }

    /// Writes the used entry at free-running index `at`; not yet the driver's to see.
    #[inline]
    pub(crate) fn set_used_entry(&self, at: u16, head: u16, written: u32) {
        let slot = usize::from(at & self.mask);
        let offset = RING_HEADER_BYTES + slot * USED_ENTRY_BYTES;
        u32_at(self.used, offset).store(u32::from(head).to_le(), Ordering::Relaxed);
        u32_at(self.used, offset + 4).store(written.to_le(), Ordering::Relaxed);
    }

    /// Publishes the used entries before `index`, and every byte written for them.
    #[inline]
    pub(crate) fn set_used_index(&self, index: u16) {
        u16_at(self.used, 2).store(index.to_le(), Ordering::Release);
    }

    /// The device's flags: [`crate::spec::ring_flag::NO_NOTIFY`].
    pub(crate) fn set_used_flags(&self, flags: u16) {
        u16_at(self.used, 0).store(flags.to_le(), Ordering::Relaxed);
    }

    /// `avail_event`, behind the used ring. Only with `VIRTIO_F_EVENT_IDX`.
    pub(crate) fn set_available_event(&self, index: u16) {
        let offset = RING_HEADER_BYTES + usize::from(self.size()) * USED_ENTRY_BYTES;
        u16_at(self.used, offset).store(index.to_le(), Ordering::Relaxed);
    }
}

impl GuestMemory {
    /// The `len` descriptors at `address`; `None` where they are no words in one region, and have
    /// to be copied byte by byte.
    #[inline]
    pub(crate) fn descriptors(&self, address: u64, len: u16) -> Option<DescriptorTable<'_>> {
        let bytes = u64::from(len) * DESCRIPTOR_BYTES as u64;
        let (base, _) = self.in_one(address, bytes)?;
        base.addr()
            .is_multiple_of(size_of::<u64>())
            .then_some(DescriptorTable {
                base,
                len,
                _memory: PhantomData,
            })
    }
}

/// The bytes at a guest address, which must lie together: a ring is one object to us. Its
/// alignment is looked at where it is mapped, for that is what an atomic access needs.
fn locate(
    memory: &Rc<GuestMemory>,
    address: u64,
    len: usize,
    align: usize,
) -> Result<(*mut u8, Region), MemoryError> {
    let outside = MemoryError::OutOfRange {
        address,
        len: len as u64,
    };
    let region = memory.region_at(address).ok_or(outside)?;
    let offset = address - region.layout().guest_address;
    let offset = usize::try_from(offset).map_err(|_| outside)?;
    region.slice(offset, len).ok_or(outside)?;
    let host = region.host().wrapping_add(offset);
    if host.addr() % align != 0 {
        return Err(MemoryError::Misaligned { address, align });
    }
    Ok((host, region.clone()))
}

#[expect(unsafe_code, reason = "words in memory shared with the guest")]
#[inline]
fn u16_at<'a>(base: *mut u8, offset: usize) -> &'a AtomicU16 {
    // SAFETY: callers pass a part of a `RingView` and an even offset within it; `locate` checked
    // the part's bounds and alignment, and the view keeps its region mapped. The guest and we both
    // access these words atomically.
    unsafe { AtomicU16::from_ptr(base.add(offset).cast()) }
}

#[expect(unsafe_code, reason = "words in memory shared with the guest")]
#[inline]
fn u32_at<'a>(base: *mut u8, offset: usize) -> &'a AtomicU32 {
    // SAFETY: as for `u16_at`, with the used ring aligned to 4 and offsets that are multiples of 4.
    unsafe { AtomicU32::from_ptr(base.add(offset).cast()) }
}

#[expect(unsafe_code, reason = "words in memory shared with the guest")]
#[inline]
fn u64_at<'a>(base: *mut u8, offset: usize) -> &'a AtomicU64 {
    // SAFETY: callers pass the base of a `DescriptorTable` and an offset in it that is a multiple
    // of 8. The table is aligned to that, and in the bounds of a region: `locate` has checked a
    // ring's, `descriptors` an indirect one. The table borrows who keeps the region mapped. The
    // guest and we both access these words atomically.
    unsafe { AtomicU64::from_ptr(base.add(offset).cast()) }
}
