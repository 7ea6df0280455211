//! Guest memory: regions of a front-end's files, mapped, and the ways to bytes in them. Not a
//! description of memory: how a wire says where regions lie is the transport's affair.
//!
//! Nothing here hands out a reference into guest memory, for the guest writes there as it likes.
//! Bytes are copied in and out volatile, or named by iovecs that only the kernel follows.

mod buffers;
mod framed;
mod guard;
mod list;
mod region;
mod ring_view;
mod run;
mod words;

use std::cell::Cell;
use std::ptr;
use std::rc::Rc;

use rustix::io::Errno;
use vm_memory::VolatileSlice;

pub use self::buffers::{GuestBuffers, LastByte, ShortBuffers};
pub use self::framed::{Framed, Headed};
pub use self::guard::install_sigbus_guard;
pub(crate) use self::list::{BufferList, Unread};
pub use self::region::{Region, RegionLayout};
pub(crate) use self::ring_view::{Descriptor, RingView};
pub(crate) use self::run::Run;

use self::buffers::Pool;
use self::region::DirtyLog;

/// The most regions of one memory table: the 509 slots that the kernel's vhost offers and VMMs
/// count on, rounded up.
pub const REGIONS_MAX: usize = 512;

/// A guest's memory at one moment: immutable, so that a new table takes the place of the old one
/// between two chains, and what is in flight keeps the old one.
#[derive(Debug)]
pub struct GuestMemory {
    /// By guest address, without overlaps.
    regions: Vec<Region>,
    /// (where mapped, which region), in the order of the first.
    by_host: Vec<(usize, usize)>,
    /// The region found last: most lookups hit it again.
    recent: Cell<Span>,
    pool: Pool,
}

/// A region as lookups want it, without a way through pointers.
#[derive(Clone, Copy, Debug)]
struct Span {
    /// Its guest address.
    start: u64,
    /// Its bytes: none of no region.
    size: u64,
    /// Where it is mapped.
    host: *mut u8,
    /// Which one it is.
    index: usize,
}

impl Span {
    const NONE: Self = Self {
        start: 0,
        size: 0,
        host: ptr::null_mut(),
        index: 0,
    };

    /// How far behind its beginning `address` is, if that is one of its own.
    #[inline]
    fn offset_of(&self, address: u64) -> Option<u64> {
        let offset = address.wrapping_sub(self.start);
        (offset < self.size).then_some(offset)
    }

    /// Where a range is mapped, if it has bytes and they are all in here; and how far behind the
    /// beginning.
    #[inline]
    fn part(&self, address: u64, len: u64) -> Option<(*mut u8, usize)> {
        let offset = self.offset_of(address)?;
        if len.wrapping_sub(1) >= self.size - offset {
            return None;
        }
        // Within a region offsets fit `usize`, since all of it is mapped.
        let offset = usize::try_from(offset).ok()?;
        Some((self.host.wrapping_add(offset), offset))
    }
}

/// Why memory was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemoryError {
    /// A region without bytes.
    #[error("the region at guest address {guest_address:#x} is empty")]
    EmptyRegion {
        /// Where it was to lie.
        guest_address: u64,
    },
    /// A region whose end cannot be said.
    #[error("a region's end overflows: {0:x?}")]
    RegionOverflow(RegionLayout),
    /// A pipe, socket, directory or device where memory was due.
    #[error("guest memory must be a regular file or memfd")]
    NotAFile,
    /// Memory whose page faults another process answers when it likes.
    #[error("guest memory must not lie on FUSE")]
    Fuse,
    /// The file ends before the region does.
    #[error("the file of a region has {actual} bytes, and the region ends at {needed}")]
    FileTooShort {
        /// Where the region ends in the file.
        needed: u64,
        /// The file's size.
        actual: u64,
    },
    /// The window through which a device shows another guest's memory ends before the region does.
    #[error(
        "memory up to {needed:#x} of the shared memory of the VVU device, which shows {actual:#x}: \
         its side on the host must be given all memory of the guest"
    )]
    BeyondWindow {
        /// Where the region ends in the window.
        needed: u64,
        /// The window's size.
        actual: u64,
    },
    /// The kernel refused.
    #[error("{call} of guest memory: {errno}")]
    System {
        /// The system call.
        call: &'static str,
        /// Its error.
        errno: Errno,
    },
    /// The table of the SIGBUS guard is full.
    #[error("too many mappings of guest memory in this process")]
    TooManyMappings,
    /// A table longer than [`REGIONS_MAX`].
    #[error("{0} memory regions, and {REGIONS_MAX} is the most")]
    TooManyRegions(usize),
    /// Two regions share a guest address.
    #[error("two regions overlap at guest address {at:#x}")]
    GuestOverlap {
        /// The first shared address.
        at: u64,
    },
    /// Two regions share a front-end address.
    #[error("two regions overlap at user address {at:#x}")]
    UserOverlap {
        /// The first shared address.
        at: u64,
    },
    /// A ring that is not aligned as the specification asks (2.7).
    #[error("guest address {address:#x} is not aligned to {align} where it is mapped")]
    Misaligned {
        /// Where the ring begins.
        address: u64,
        /// What it must be a multiple of.
        align: usize,
    },
    /// Not every byte of a range is memory.
    #[error("{len} bytes at guest address {address:#x} are not all in memory")]
    OutOfRange {
        /// Where the range begins.
        address: u64,
        /// Its bytes.
        len: u64,
    },
}

impl MemoryError {
    fn system(call: &'static str) -> impl FnOnce(Errno) -> Self {
        move |errno| Self::System { call, errno }
    }
}

impl GuestMemory {
    /// The memory made of `regions`, in any order.
    ///
    /// # Errors
    ///
    /// When there are too many, or two overlap in guest or in front-end addresses.
    pub fn new(mut regions: Vec<Region>) -> Result<Self, MemoryError> {
        if regions.len() > REGIONS_MAX {
            return Err(MemoryError::TooManyRegions(regions.len()));
        }
        regions.sort_by_key(|region| region.layout().user_address);
        for pair in regions.windows(2) {
            let at = pair[1].layout().user_address;
            if pair[0].user_end() > at {
                return Err(MemoryError::UserOverlap { at });
            }
        }
        regions.sort_by_key(|region| region.layout().guest_address);
        for pair in regions.windows(2) {
            let at = pair[1].layout().guest_address;
            if pair[0].guest_end() > at {
                return Err(MemoryError::GuestOverlap { at });
            }
        }
        let host = |(index, region): (usize, &Region)| (region.host().addr(), index);
        let mut by_host: Vec<_> = regions.iter().enumerate().map(host).collect();
        by_host.sort_unstable();
        Ok(Self {
            regions,
            by_host,
            recent: Cell::new(Span::NONE),
            pool: Pool::default(),
        })
    }

    /// The regions, by guest address.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// The guest address of a front-end's address; `None` outside.
    pub fn guest_address(&self, user_address: u64) -> Option<u64> {
        self.regions.iter().find_map(|region| {
            let layout = region.layout();
            let offset = user_address.checked_sub(layout.user_address)?;
            (offset < layout.size).then(|| layout.guest_address + offset)
        })
    }

    /// Whether a file shrank under us: see [`install_sigbus_guard`]. Known only once an access of
    /// this process ran into it.
    #[inline]
    pub fn is_lost(&self) -> bool {
        guard::any_lost() && self.regions.iter().any(Region::is_lost)
    }

    /// Whether the kernel can pin these pages, as O_DIRECT asks for. True of files; memory behind
    /// a PCI bar is not pinnable.
    pub fn pinnable(&self) -> bool {
        self.regions.iter().all(Region::pinnable)
    }

    /// The buffers at `ranges` of (guest address, bytes), in this order.
    ///
    /// # Errors
    ///
    /// When a byte of them is not in memory, or they have 2^32 bytes or more together.
    pub fn buffers(self: &Rc<Self>, ranges: &[(u64, u32)]) -> Result<GuestBuffers, MemoryError> {
        let mut buffers = GuestBuffers::default();
        for &(address, len) in ranges {
            let outside = MemoryError::OutOfRange {
                address,
                len: len.into(),
            };
            u32::try_from(buffers.len())
                .ok()
                .and_then(|before| before.checked_add(len))
                .ok_or(outside)?;
            let list = buffers.list(self);
            if !list.push_whole(self, address, len) {
                list.push_pieces(self, address, len.into())?;
            }
        }
        buffers.lie_in(self);
        Ok(buffers)
    }

    /// Copies from guest memory.
    ///
    /// # Errors
    ///
    /// When a byte of the range is not in memory; `into` is then worth nothing.
    pub fn read(&self, address: u64, into: &mut [u8]) -> Result<(), MemoryError> {
        let mut done = 0;
        self.pieces(address, into.len() as u64, |region, offset, len| {
            let slice = region
                .slice(offset, len)
                .expect("a piece lies in its region");
            slice.copy_to(&mut into[done..done + len]);
            done += len;
        })
    }

    /// Copies to guest memory.
    ///
    /// # Errors
    ///
    /// When a byte of the range is not in memory; what lies before it is then written.
    pub fn write(&self, address: u64, from: &[u8]) -> Result<(), MemoryError> {
        let mut done = 0;
        self.pieces(address, from.len() as u64, |region, offset, len| {
            let slice = region
                .slice(offset, len)
                .expect("a piece lies in its region");
            slice.copy_from(&from[done..done + len]);
            done += len;
        })
    }

    /// Whether the whole range is memory; it may span regions that touch.
    pub(crate) fn check_range(&self, address: u64, len: u64) -> Result<(), MemoryError> {
        self.pieces(address, len, |_, _, _| {})
    }

    /// Where a range is mapped, if it has bytes and one region has it whole, as nearly every range
    /// of a sane guest; and how far behind the region's beginning.
    #[inline]
    fn in_one(&self, address: u64, len: u64) -> Option<(*mut u8, usize)> {
        let recent = self.recent.get().part(address, len);
        recent.or_else(|| self.find_one(address, len))
    }

    #[cold]
    #[inline(never)]
    fn find_one(&self, address: u64, len: u64) -> Option<(*mut u8, usize)> {
        self.span_at(address)?.part(address, len)
    }

    /// Calls `each` with the pieces of a range, split at the edges of regions, and fails once it
    /// comes to a byte that no region has.
    fn pieces(
        &self,
        address: u64,
        len: u64,
        mut each: impl FnMut(&Region, usize, usize),
    ) -> Result<(), MemoryError> {
        let outside = MemoryError::OutOfRange { address, len };
        let end = address.checked_add(len).ok_or(outside)?;
        let mut at = address;
        while at < end {
            let region = self.region_at(at).ok_or(outside)?;
            let offset = at - region.layout().guest_address;
            let count = (end - at).min(region.layout().size - offset);
            // Within a region offsets fit `usize`, since all of it is mapped.
            let (Ok(offset), Ok(bytes)) = (usize::try_from(offset), usize::try_from(count)) else {
                return Err(outside);
            };
            each(region, offset, bytes);
            at += count;
        }
        Ok(())
    }

    fn region_at(&self, address: u64) -> Option<&Region> {
        self.span_at(address).map(|span| &self.regions[span.index])
    }

    #[inline]
    fn span_at(&self, address: u64) -> Option<Span> {
        let recent = self.recent.get();
        if recent.offset_of(address).is_some() {
            return Some(recent);
        }
        self.find(address)
    }

    #[cold]
    fn find(&self, address: u64) -> Option<Span> {
        let after = self
            .regions
            .partition_point(|region| region.layout().guest_address <= address);
        let index = after.checked_sub(1)?;
        let span = self.span(index);
        span.offset_of(address)?;
        self.recent.set(span);
        Some(span)
    }

    fn span(&self, index: usize) -> Span {
        let region = &self.regions[index];
        Span {
            start: region.layout().guest_address,
            size: region.layout().size,
            host: region.host(),
            index,
        }
    }

    /// The bytes behind an iovec of ours.
    #[inline]
    fn host_slice(&self, host: usize, len: usize) -> Option<VolatileSlice<'_, DirtyLog>> {
        let recent = self.recent.get();
        let offset = host.wrapping_sub(recent.host.addr());
        if (offset as u64) < recent.size {
            return self.regions[recent.index].slice(offset, len);
        }
        self.other_host_slice(host, len)
    }

    #[cold]
    #[inline(never)]
    fn other_host_slice(&self, host: usize, len: usize) -> Option<VolatileSlice<'_, DirtyLog>> {
        let after = self.by_host.partition_point(|&(start, _)| start <= host);
        let &(start, index) = self.by_host.get(after.checked_sub(1)?)?;
        self.regions[index].slice(host - start, len)
    }
}
