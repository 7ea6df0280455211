//! Guest memory as the driver sees it: regions in memfds, shared with the back-end, and a bump
//! allocator of guest addresses. It is not a guest's memory manager: nothing is ever freed.

use std::{
    cell::RefCell,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    ptr::NonNull,
    sync::atomic::{AtomicU16, Ordering},
};

use rustix::{
    fs::{MemfdFlags, SealFlags},
    mm::{MapFlags, ProtFlags},
};

use crate::Error;

/// Where the first region lies: not at 0, so that a zero address is nonsense.
const FIRST_GUEST_ADDRESS: u64 = 0x4000_0000;
/// How far regions lie apart that have no address of their own.
const REGION_DISTANCE: u64 = 0x1_0000_0000;
/// User addresses are guest addresses plus this and a bit more in each region, so that a back-end
/// that takes one for the other fails at once.
const USER_DISTANCE: u64 = 0x7000_0000_0000;

/// A region as `SET_MEM_TABLE` and `ADD_MEM_REG` describe it. What is sent need not be true.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionLayout {
    /// First address as descriptors tell it.
    pub guest_address: u64,
    /// First address as `SET_VRING_ADDR` tells it.
    pub user_address: u64,
    /// Length in bytes.
    pub size: u64,
    /// Where the region begins in its file.
    pub offset: u64,
}

/// Memory that is shared with the back-end. Addresses are guest addresses.
#[derive(Debug, Default)]
pub struct GuestMemory {
    regions: RefCell<Vec<Region>>,
}

#[derive(Debug)]
struct Region {
    layout: RegionLayout,
    file: OwnedFd,
    mapping: Mapping,
    allocated: u64,
}

impl GuestMemory {
    /// Memory without a region.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a region of `size` bytes far from the others; its number.
    pub fn add_region(&self, size: u64) -> Result<usize, Error> {
        let ends = |region: &Region| region.layout.guest_address + region.layout.size;
        let last = self.regions.borrow().iter().map(ends).max();
        let address = last.map_or(FIRST_GUEST_ADDRESS, |end| {
            (end / REGION_DISTANCE + 1) * REGION_DISTANCE + FIRST_GUEST_ADDRESS
        });
        self.add_region_at(address, size)
    }

    /// Adds a region of `size` bytes at a guest address; its number.
    pub fn add_region_at(&self, guest_address: u64, size: u64) -> Result<usize, Error> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = rustix::fs::memfd_create("guest", flags).map_err(Error::system("memfd"))?;
        rustix::fs::ftruncate(&file, size).map_err(Error::system("ftruncate"))?;
        let mapping = Mapping::new(&file, size)?;
        let mut regions = self.regions.borrow_mut();
        let user_address = guest_address + USER_DISTANCE + regions.len() as u64 * (16 << 20);
        let layout = RegionLayout {
            guest_address,
            user_address,
            size,
            offset: 0,
        };
        regions.push(Region {
            layout,
            file,
            mapping,
            allocated: 0,
        });
        Ok(regions.len() - 1)
    }

    /// Takes the last region away and returns its layout; the caller no longer uses its addresses.
    pub fn remove_last_region(&self) -> Option<RegionLayout> {
        self.regions.borrow_mut().pop().map(|region| region.layout)
    }

    /// Forbids to shrink or grow any region's file, as careful front-ends do.
    pub fn seal(&self) -> Result<(), Error> {
        let seals = SealFlags::SHRINK | SealFlags::GROW;
        for region in self.regions.borrow().iter() {
            rustix::fs::fcntl_add_seals(&region.file, seals).map_err(Error::system("seal"))?;
        }
        Ok(())
    }

    /// Number of regions.
    pub fn region_count(&self) -> usize {
        self.regions.borrow().len()
    }

    /// Gives a region's layout and file to a function, for a message that tells them.
    ///
    /// # Panics
    /// If there is no such region.
    pub fn with_region<T>(
        &self,
        number: usize,
        tell: impl FnOnce(&RegionLayout, BorrowedFd<'_>) -> T,
    ) -> T {
        let regions = self.regions.borrow();
        tell(&regions[number].layout, regions[number].file.as_fd())
    }

    /// Gives all layouts and files to a function, for `SET_MEM_TABLE`.
    pub fn with_regions<T>(&self, tell: impl FnOnce(&[(RegionLayout, BorrowedFd<'_>)]) -> T) -> T {
        let regions = self.regions.borrow();
        let table: Vec<_> = regions
            .iter()
            .map(|one| (one.layout, one.file.as_fd()))
            .collect();
        tell(&table)
    }

    /// Shrinks a region's file under everyone who maps it: whoever touches what is gone gets
    /// SIGBUS, we too.
    pub fn shrink(&self, number: usize, size: u64) -> Result<(), Error> {
        self.with_region(number, |_, file| rustix::fs::ftruncate(file, size))
            .map_err(Error::system("ftruncate"))
    }

    /// Reserves `length` bytes in the first region that has them. `align` is a power of two.
    pub fn allocate(&self, length: u64, align: u64) -> Result<u64, Error> {
        let count = self.region_count();
        let mut found =
            (0..count).filter_map(|number| self.allocate_in(number, length, align).ok());
        found.next().ok_or(Error::NoRoom { length, align })
    }

    /// Reserves `length` bytes in one region.
    pub fn allocate_in(&self, number: usize, length: u64, align: u64) -> Result<u64, Error> {
        let full = || Error::NoRoom { length, align };
        let mut regions = self.regions.borrow_mut();
        let region = regions.get_mut(number).ok_or_else(full)?;
        let start = region
            .allocated
            .checked_next_multiple_of(align.max(1))
            .ok_or_else(full)?;
        let end = start.checked_add(length).ok_or_else(full)?;
        if end > region.layout.size {
            return Err(full());
        }
        region.allocated = end;
        Ok(region.layout.guest_address + start)
    }

    /// The user address of a guest address.
    pub fn user_address(&self, address: u64) -> Result<u64, Error> {
        let regions = self.regions.borrow();
        let (region, within) = find(&regions, address, 1)?;
        Ok(region.layout.user_address + within as u64)
    }

    /// Copies bytes out of guest memory, over region edges where regions are adjacent.
    pub fn read(&self, mut address: u64, mut into: &mut [u8]) -> Result<(), Error> {
        let regions = self.regions.borrow();
        while !into.is_empty() {
            let (region, within) = find(&regions, address, 1)?;
            let length = into.len().min(region.mapping.size - within);
            let (now, later) = into.split_at_mut(length);
            region.mapping.read(within, now);
            into = later;
            address += length as u64;
        }
        Ok(())
    }

    /// Copies bytes into guest memory, over region edges where regions are adjacent.
    pub fn write(&self, mut address: u64, mut from: &[u8]) -> Result<(), Error> {
        let regions = self.regions.borrow();
        while !from.is_empty() {
            let (region, within) = find(&regions, address, 1)?;
            let (now, later) = from.split_at(from.len().min(region.mapping.size - within));
            region.mapping.write(within, now);
            from = later;
            address += now.len() as u64;
        }
        Ok(())
    }

    /// Loads a `u16` of a ring; what the other side wrote before it is seen after it.
    pub fn load(&self, address: u64) -> Result<u16, Error> {
        let regions = self.regions.borrow();
        let (region, within) = find(&regions, address, 2)?;
        Ok(u16::from_le(
            region.mapping.atomic(within)?.load(Ordering::Acquire),
        ))
    }

    /// Stores a `u16` of a ring; what we wrote before it is seen by whoever sees it.
    pub fn store(&self, address: u64, value: u16) -> Result<(), Error> {
        let regions = self.regions.borrow();
        let (region, within) = find(&regions, address, 2)?;
        region
            .mapping
            .atomic(within)?
            .store(value.to_le(), Ordering::Release);
        Ok(())
    }
}

/// The region of an address and the position in it; `length` bytes from there on are inside.
fn find(regions: &[Region], address: u64, length: u64) -> Result<(&Region, usize), Error> {
    let inside = |region: &&Region| {
        let within = address.checked_sub(region.layout.guest_address);
        within.is_some_and(|at| at < region.layout.size && length <= region.layout.size - at)
    };
    let found = regions
        .iter()
        .find(inside)
        .ok_or(Error::NotMemory { address, length })?;
    let within = usize::try_from(address - found.layout.guest_address)
        .map_err(|_| Error::NotMemory { address, length })?;
    Ok((found, within))
}

/// A shared mapping. Both processes write to it, so it is never a slice here.
#[derive(Debug)]
struct Mapping {
    start: NonNull<u8>,
    size: usize,
}

impl Mapping {
    fn new(file: &OwnedFd, size: u64) -> Result<Self, Error> {
        let size = usize::try_from(size).map_err(|_| Error::Misuse("a region above 4 GiB"))?;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        #[expect(unsafe_code, reason = "guest memory is a shared mapping")]
        // SAFETY: the kernel chooses the place, so nothing is replaced; the file has this size.
        let start = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                size,
                access,
                MapFlags::SHARED,
                file,
                0,
            )
        };
        let start = start.map_err(Error::system("mmap"))?;
        let start = NonNull::new(start.cast()).ok_or(Error::Misuse("a mapping at address 0"))?;
        Ok(Self { start, size })
    }

    fn read(&self, within: usize, into: &mut [u8]) {
        assert!(
            within <= self.size && into.len() <= self.size - within,
            "caller checked"
        );
        #[expect(unsafe_code, reason = "guest memory is a shared mapping")]
        // SAFETY: the range was just checked and `into` is ours. The other process may write at the
        // same time; the bytes are then any mixture, which is what a driver sees on real hardware.
        unsafe {
            std::ptr::copy_nonoverlapping(
                self.start.add(within).as_ptr(),
                into.as_mut_ptr(),
                into.len(),
            );
        }
    }

    fn write(&self, within: usize, from: &[u8]) {
        assert!(
            within <= self.size && from.len() <= self.size - within,
            "caller checked"
        );
        #[expect(unsafe_code, reason = "guest memory is a shared mapping")]
        // SAFETY: as in `read`; no reference into the mapping exists that this could invalidate.
        unsafe {
            std::ptr::copy_nonoverlapping(
                from.as_ptr(),
                self.start.add(within).as_ptr(),
                from.len(),
            );
        }
    }

    fn atomic(&self, within: usize) -> Result<&AtomicU16, Error> {
        if !within.is_multiple_of(2) {
            return Err(Error::Misuse("a ring index at an odd address"));
        }
        assert!(self.size >= 2 && within <= self.size - 2, "caller checked");
        #[expect(unsafe_code, reason = "ring indices are shared atomics")]
        // SAFETY: in bounds by the assertion, aligned by the check (mappings begin at a page),
        // alive as long as `self`, which the reference borrows.
        let atomic = unsafe { AtomicU16::from_ptr(self.start.add(within).as_ptr().cast()) };
        Ok(atomic)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        #[expect(unsafe_code, reason = "guest memory is a shared mapping")]
        // SAFETY: exactly the range that `new` mapped; references into it borrow `self`.
        let unmapped = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.size) };
        debug_assert!(unmapped.is_ok(), "{unmapped:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_over_the_edge_of_adjacent_regions_reads_back() {
        let memory = GuestMemory::new();
        memory.add_region_at(0x10000, 0x1000).unwrap();
        memory.add_region_at(0x11000, 0x1000).unwrap();
        memory.write(0x10ffe, b"edge").unwrap();
        let mut back = [0; 4];
        memory.read(0x10ffe, &mut back).unwrap();
        assert_eq!(&back, b"edge");
        assert!(memory.write(0x11ffe, b"edge").is_err());
    }

    #[test]
    fn allocations_do_not_overlap_and_end_with_the_region() {
        let memory = GuestMemory::new();
        memory.add_region(0x1000).unwrap();
        let first = memory.allocate(3, 1).unwrap();
        let second = memory.allocate(16, 16).unwrap();
        assert!(second >= first + 3 && second.is_multiple_of(16));
        assert!(memory.allocate(0x1000, 1).is_err());
        memory.add_region(0x1000).unwrap();
        assert!(
            memory.allocate(0x1000, 1).is_ok(),
            "the next region has room"
        );
    }

    #[test]
    fn user_addresses_are_never_guest_addresses() {
        let memory = GuestMemory::new();
        memory.add_region(0x1000).unwrap();
        let address = memory.allocate(8, 8).unwrap();
        assert_ne!(memory.user_address(address).unwrap(), address);
        assert!(memory.user_address(3).is_err());
    }

    #[test]
    fn a_sealed_file_cannot_shrink() {
        let memory = GuestMemory::new();
        memory.add_region(0x2000).unwrap();
        memory.seal().unwrap();
        assert!(memory.shrink(0, 0x1000).is_err());
    }
}
