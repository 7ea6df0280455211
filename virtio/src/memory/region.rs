//! One region of guest memory: a shared mapping of a front-end's file, checked before it is made,
//! or of a bar through which a device shows another guest's memory.
//! Not where addresses are looked up: that is [`super::GuestMemory`].

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr;
use std::rc::Rc;

use rustix::fs::{FileType, FsWord, StatFs};
use rustix::mm::{MapFlags, ProtFlags};
use vm_memory::{MmapRegion, VolatileMemory, VolatileSlice};

use super::MemoryError;
use super::guard::Watched;

/// What every write to guest memory by this process is marked in. Nothing yet: dirty logging
/// changes this one line, and marks by hand what the kernel writes through the ring.
pub(super) type DirtyLog = ();

/// `FUSE_SUPER_MAGIC` of `linux/magic.h`: a page fault there waits for a process of the
/// front-end's choice, for as long as it likes.
const FUSE: FsWord = 0x6573_5546;

/// `HUGETLBFS_MAGIC`: mapped, unmapped and replaced in pages of its own size only.
const HUGETLBFS: FsWord = 0x9584_58f6_u32 as FsWord;

/// Where a region lies: in the guest, in the front-end, in its file. In bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionLayout {
    /// Guest physical address of the first byte.
    pub guest_address: u64,
    /// The front-end's own virtual address of it: ring addresses come as these.
    pub user_address: u64,
    /// How many bytes; not necessarily whole pages.
    pub size: u64,
    /// Where in the file the region begins; not necessarily at a page.
    pub offset: u64,
}

impl RegionLayout {
    /// The layout's ends must not wrap, nor lie beyond what a file can have.
    fn check(&self) -> Result<(), MemoryError> {
        let Self {
            guest_address,
            user_address,
            size,
            offset,
        } = *self;
        if size == 0 {
            return Err(MemoryError::EmptyRegion { guest_address });
        }
        // A last address of u64::MAX would need an end that u64 cannot say.
        let ends = [guest_address, user_address, offset].map(|start| start.checked_add(size));
        match ends {
            [Some(_), Some(_), Some(file_end)] if i64::try_from(file_end).is_ok() => Ok(()),
            _ => Err(MemoryError::RegionOverflow(*self)),
        }
    }
}

/// A mapped region. Clones share the mapping; it goes with the last of them, so a new memory
/// table never pulls pages from under an operation in flight.
#[derive(Clone, Debug)]
pub struct Region(Rc<Mapping>);

impl Region {
    /// Maps the region of `fd` that `layout` names; `fd` is closed, for the mapping needs it no
    /// more and a front-end may have hundreds.
    ///
    /// # Errors
    ///
    /// When the layout is empty or wraps, when `fd` is not a regular file (a memfd is one), lies
    /// on FUSE or is shorter than `offset + size`, and when the kernel refuses to map it.
    pub fn map(layout: RegionLayout, fd: OwnedFd) -> Result<Self, MemoryError> {
        layout.check()?;
        let page_bytes = check_file(&layout, &fd)?;
        let place = Place {
            fd: fd.as_fd(),
            offset: layout.offset,
            page_bytes,
            pinnable: true,
        };
        let mapping = Mapping::new(layout, &place)?;
        drop(fd);
        Ok(Self(Rc::new(mapping)))
    }

    /// Maps the region from a bar of a device of ours, at `offset` of `fd`; what the layout says of
    /// an offset is the front-end's, and means nothing here. Whoever calls this has made sure that
    /// the bar has `size` bytes there. Its pages cannot be pinned: the kernel's own copies reach
    /// them, O_DIRECT gives EFAULT.
    ///
    /// # Errors
    ///
    /// When the layout is empty or wraps, and when the kernel refuses to map it.
    pub fn map_bar(
        layout: RegionLayout,
        fd: BorrowedFd<'_>,
        offset: u64,
    ) -> Result<Self, MemoryError> {
        layout.check()?;
        RegionLayout { offset, ..layout }.check()?;
        let place = Place {
            fd,
            offset,
            page_bytes: rustix::param::page_size(),
            pinnable: false,
        };
        Ok(Self(Rc::new(Mapping::new(layout, &place)?)))
    }

    /// Whether the kernel can pin its pages.
    pub(super) fn pinnable(&self) -> bool {
        self.0.pinnable
    }

    /// Where the region lies.
    pub fn layout(&self) -> RegionLayout {
        self.0.layout
    }

    /// Whether the file shrank and an access found it out.
    pub(super) fn is_lost(&self) -> bool {
        self.0.watched.is_lost()
    }

    /// The first guest address behind the region.
    pub(super) fn guest_end(&self) -> u64 {
        self.0.layout.guest_address + self.0.layout.size
    }

    /// The first front-end address behind the region.
    pub(super) fn user_end(&self) -> u64 {
        self.0.layout.user_address + self.0.layout.size
    }

    /// Where the region's first byte is mapped.
    pub(super) fn host(&self) -> *mut u8 {
        self.0.volume.as_ptr().wrapping_add(self.0.lead)
    }

    /// Bytes of the region, for copies only; `None` outside.
    #[inline]
    pub(super) fn slice(&self, offset: usize, len: usize) -> Option<VolatileSlice<'_, DirtyLog>> {
        if offset.checked_add(len)? > self.0.len {
            return None;
        }
        self.0.volume.get_slice(self.0.lead + offset, len).ok()
    }
}

/// The file must be able to back the region. Gives the size of the pages it is mapped in.
fn check_file(layout: &RegionLayout, fd: &OwnedFd) -> Result<usize, MemoryError> {
    let stat = rustix::fs::fstat(fd).map_err(MemoryError::system("fstat"))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(MemoryError::NotAFile);
    }
    let (needed, actual) = (
        layout.offset + layout.size,
        u64::try_from(stat.st_size).unwrap_or(0),
    );
    if actual < needed {
        return Err(MemoryError::FileTooShort { needed, actual });
    }
    let system = rustix::fs::fstatfs(fd).map_err(MemoryError::system("fstatfs"))?;
    page_bytes(layout, &system)
}

/// The page size of a file system, unless it is one that memory must not lie on.
fn page_bytes(layout: &RegionLayout, system: &StatFs) -> Result<usize, MemoryError> {
    match system.f_type {
        FUSE => Err(MemoryError::Fuse),
        HUGETLBFS => usize::try_from(system.f_bsize)
            .ok()
            .filter(|bytes| bytes.is_power_of_two())
            .ok_or(MemoryError::RegionOverflow(*layout)),
        _ => Ok(rustix::param::page_size()),
    }
}

/// What a region is mapped from.
struct Place<'a> {
    fd: BorrowedFd<'a>,
    offset: u64,
    /// The size of its pages.
    page_bytes: usize,
    pinnable: bool,
}

#[derive(Debug)]
struct Mapping {
    layout: RegionLayout,
    pinnable: bool,
    /// Bytes from the mapping's first page to the region's first byte.
    lead: usize,
    len: usize,
    /// The whole mapping, lead included. Unmapped by our own `Drop`, as it does not own it.
    volume: MmapRegion<DirtyLog>,
    watched: Watched,
}

impl Mapping {
    #[expect(unsafe_code, reason = "the mapping of guest memory is made here")]
    fn new(layout: RegionLayout, place: &Place<'_>) -> Result<Self, MemoryError> {
        let overflow = MemoryError::RegionOverflow(layout);
        let &Place {
            fd,
            offset,
            page_bytes,
            pinnable,
        } = place;
        let page = page_bytes as u64;
        let first_page = offset - offset % page;
        let mapped = (offset + layout.size).next_multiple_of(page) - first_page;
        let (Ok(len), Ok(mapped), Ok(lead)) = (
            usize::try_from(layout.size),
            usize::try_from(mapped),
            usize::try_from(offset - first_page),
        ) else {
            return Err(overflow);
        };
        // Without PROT_EXEC: a device's policy never allows executable mappings. NORESERVE: the
        // front-end has accounted for its memory already.
        let (access, flags) = (
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::SHARED | MapFlags::NORESERVE,
        );
        // SAFETY: a fresh mapping at an address of the kernel's choice aliases nothing of ours.
        let base =
            unsafe { rustix::mm::mmap(ptr::null_mut(), mapped, access, flags, fd, first_page) }
                .map_err(MemoryError::system("mmap"))?;
        let start = base as usize;
        let watched = Watched::new(start, start + mapped, page_bytes);
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: `base` is page-aligned and `mapped` bytes long, and stays mapped until `Drop`.
        let volume = unsafe { MmapRegion::build_raw(base.cast(), mapped, prot, libc::MAP_SHARED) };
        match (volume, watched) {
            (Ok(volume), Some(watched)) => Ok(Self {
                layout,
                pinnable,
                lead,
                len,
                volume,
                watched,
            }),
            (volume, _) => {
                // SAFETY: made above, and nobody else knows of it.
                let _ = unsafe { rustix::mm::munmap(base, mapped) };
                Err(match volume {
                    Ok(_) => MemoryError::TooManyMappings,
                    Err(_) => overflow,
                })
            }
        }
    }
}

impl Drop for Mapping {
    #[expect(unsafe_code, reason = "the mapping of guest memory ends here")]
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, and nobody can hold a pointer into it: iovecs, ring views and
        // slices all keep a `Region`. `watched` still names the range, but no access faults in
        // it any more; it goes right after this.
        let _ = unsafe { rustix::mm::munmap(self.volume.as_ptr().cast(), self.volume.size()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mounting FUSE takes rights and a helper that a test has not, so its answer is made up.
    #[test]
    fn memory_on_fuse_is_refused_and_huge_pages_keep_their_size() {
        let layout = RegionLayout {
            guest_address: 0,
            user_address: 0,
            size: 1,
            offset: 0,
        };
        let mut system = rustix::fs::statfs("/").unwrap();
        assert_eq!(page_bytes(&layout, &system), Ok(rustix::param::page_size()));
        system.f_type = FUSE;
        assert_eq!(page_bytes(&layout, &system), Err(MemoryError::Fuse));
        system.f_type = HUGETLBFS;
        system.f_bsize = 2 << 20;
        assert_eq!(page_bytes(&layout, &system), Ok(2 << 20));
        system.f_bsize = 0;
        assert!(page_bytes(&layout, &system).is_err());
    }
}
