//! The device VM's memory as the function may use it: the ranges that DMA_MAP gave, and the files
//! they lie in. With an IOMMU in the device VM a range is a page, and there are hundreds; each
//! file is mapped once, whole, however many ranges lie in it.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::rc::{Rc, Weak};
use std::sync::atomic::Ordering;

use rustix::io::Errno;
use vudev_virtio::{GuestMemory, MemoryError, Region, RegionLayout};

use crate::vfio_user::{DmaMap, DmaUnmap, MapError};

/// How many ranges there may be: the protocol's own default, `max_dma_maps`.
const RANGES_MAX: usize = 65_535;

/// How many mappings of files. A VM has one for each of its memory backends, and one more for each
/// time that a file has grown while a range of before lasts.
const FILES_MAX: usize = 64;

/// An access that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DmaError {
    /// No range has all of it, or none that allows it.
    #[error("{len} bytes at DMA address {address:#x} are not all mapped for this")]
    NotMapped {
        /// The first byte.
        address: u64,
        /// How many.
        len: usize,
    },
    /// A range without a file: QEMU gives one for memory that is shared.
    #[error("DMA address {0:#x} has no file behind it: give the device VM its memory share=on")]
    NoFile(u64),
    /// Not what memory can do.
    #[error("at a DMA address: {0}")]
    Memory(#[from] MemoryError),
    /// The file shrank.
    #[error("the device VM's memory was lost: its file shrank")]
    Lost,
}

/// All ranges.
#[derive(Default)]
pub struct Dma {
    /// By first address, without overlaps.
    ranges: BTreeMap<u64, Range>,
    /// A file that no range lies in any more is not mapped any more.
    files: Vec<Weak<File>>,
}

struct Range {
    last: u64,
    readable: bool,
    writable: bool,
    file: Option<Place>,
}

/// Where a range begins in its file.
struct Place {
    file: Rc<File>,
    offset: u64,
}

/// A whole file, as memory whose addresses are offsets.
struct File {
    /// Device and inode.
    key: (u64, u64),
    size: u64,
    memory: Rc<GuestMemory>,
}

/// What an access is for.
#[derive(Clone, Copy)]
enum Purpose {
    Read,
    Write,
}

impl Dma {
    /// Adds a range.
    ///
    /// # Errors
    ///
    /// When it overlaps one that is there, when there are too many, for a file that is no memory,
    /// or ends before the range does.
    pub fn map(&mut self, map: DmaMap) -> Result<(), MapError> {
        let DmaMap {
            readable,
            writable,
            address,
            size,
            offset,
            file,
        } = map;
        // The codec has seen to it that neither sum wraps, and that there is a byte.
        let last = address + (size - 1);
        let before = self.ranges.range(..=last).next_back();
        if before.is_some_and(|(_, range)| range.last >= address) {
            return Err(MapError::Overlap);
        }
        if self.ranges.len() >= RANGES_MAX {
            return Err(MapError::Ranges(RANGES_MAX));
        }
        let file = match file {
            Some(file) => Some(Place {
                file: self.file(file, offset + size)?,
                offset,
            }),
            None => None,
        };
        let range = Range {
            last,
            readable,
            writable,
            file,
        };
        self.ranges.insert(address, range);
        Ok(())
    }

    /// The mapping of a file up to `end`: the one that is there, if it is long enough.
    fn file(&mut self, file: OwnedFd, end: u64) -> Result<Rc<File>, MapError> {
        let stat = rustix::fs::fstat(&file)?;
        let key = (stat.st_dev, stat.st_ino);
        let mut there = self.files.iter().filter_map(Weak::upgrade);
        if let Some(there) = there.find(|there| there.key == key && there.size >= end) {
            return Ok(there);
        }
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        if size < end {
            return Err(MapError::Short { size, end });
        }
        self.forget_unused();
        if self.files.len() >= FILES_MAX {
            return Err(MapError::Files(FILES_MAX));
        }
        let layout = RegionLayout {
            guest_address: 0,
            user_address: 0,
            size,
            offset: 0,
        };
        let memory = GuestMemory::new(vec![Region::map(layout, file)?])?;
        let file = Rc::new(File {
            key,
            size,
            memory: Rc::new(memory),
        });
        self.files.push(Rc::downgrade(&file));
        Ok(file)
    }

    fn forget_unused(&mut self) {
        self.files.retain(|file| file.strong_count() > 0);
    }

    /// Takes away all ranges within these addresses; there may be none.
    ///
    /// # Errors
    ///
    /// EINVAL, and nothing changes, when a range is only partly within.
    pub fn unmap(&mut self, unmap: &DmaUnmap) -> Result<(), Errno> {
        let &DmaUnmap { first, last, .. } = unmap;
        let starts_before = self.ranges.range(..first).next_back();
        let ends_behind = self.ranges.range(..=last).next_back();
        if starts_before.is_some_and(|(_, range)| range.last >= first)
            || ends_behind.is_some_and(|(_, range)| range.last > last)
        {
            return Err(Errno::INVAL);
        }
        // One after the other, for only these are looked at, however many there are beside them.
        while let Some((&address, _)) = self.ranges.range(first..=last).next() {
            self.ranges.remove(&address);
        }
        self.forget_unused();
        Ok(())
    }

    /// Takes away everything.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// How many files are mapped.
    pub fn files(&self) -> usize {
        let mapped = |file: &&Weak<File>| file.strong_count() > 0;
        self.files.iter().filter(mapped).count()
    }

    /// Copies from memory.
    ///
    /// # Errors
    ///
    /// When not all of it is mapped readable; `into` is worth nothing then.
    pub fn read(&self, address: u64, into: &mut [u8]) -> Result<(), DmaError> {
        let mut done = 0;
        self.pieces(address, into.len(), Purpose::Read, |memory, offset, len| {
            memory.read(offset, &mut into[done..done + len])?;
            done += len;
            Ok(())
        })
    }

    /// Copies to memory.
    ///
    /// # Errors
    ///
    /// When not all of it is mapped writable; nothing is written then.
    pub fn write(&self, address: u64, from: &[u8]) -> Result<(), DmaError> {
        self.pieces(address, from.len(), Purpose::Write, |_, _, _| Ok(()))?;
        let mut done = 0;
        self.pieces(
            address,
            from.len(),
            Purpose::Write,
            |memory, offset, len| {
                memory.write(offset, &from[done..done + len])?;
                done += len;
                Ok(())
            },
        )
    }

    /// Reads a 16-bit word in one access.
    ///
    /// # Errors
    ///
    /// When it is not mapped readable, or not aligned.
    pub fn load_u16(&self, address: u64, order: Ordering) -> Result<u16, DmaError> {
        let mut value = None;
        let outside = DmaError::NotMapped { address, len: 2 };
        self.pieces(address, 2, Purpose::Read, |memory, offset, len| {
            // A word over the edge of two ranges is none.
            if len < 2 {
                return Err(outside);
            }
            value = Some(memory.load_u16(offset, order)?);
            Ok(())
        })?;
        value.ok_or(outside)
    }

    /// Writes a 16-bit word in one access.
    ///
    /// # Errors
    ///
    /// When it is not mapped writable, or not aligned.
    pub fn store_u16(&self, address: u64, value: u16, order: Ordering) -> Result<(), DmaError> {
        let outside = DmaError::NotMapped { address, len: 2 };
        self.pieces(address, 2, Purpose::Write, |memory, offset, len| {
            if len < 2 {
                return Err(outside);
            }
            Ok(memory.store_u16(offset, value, order)?)
        })
    }

    /// Calls `each` with the pieces of a range and where they are in their files.
    fn pieces(
        &self,
        address: u64,
        len: usize,
        purpose: Purpose,
        mut each: impl FnMut(&GuestMemory, u64, usize) -> Result<(), DmaError>,
    ) -> Result<(), DmaError> {
        let outside = DmaError::NotMapped { address, len };
        let mut left = len as u64;
        let mut at = address;
        while left > 0 {
            let (&first, range) = self.ranges.range(..=at).next_back().ok_or(outside)?;
            let allowed = match purpose {
                Purpose::Read => range.readable,
                Purpose::Write => range.writable,
            };
            if range.last < at || !allowed {
                return Err(outside);
            }
            let Place { file, offset } = range.file.as_ref().ok_or(DmaError::NoFile(at))?;
            // From 0 for the last byte: the range may be all there is.
            let behind = range.last - at;
            let count = if behind < left { behind + 1 } else { left };
            let bytes = usize::try_from(count).map_err(|_| outside)?;
            each(&file.memory, offset + (at - first), bytes)?;
            if file.memory.is_lost() {
                return Err(DmaError::Lost);
            }
            left -= count;
            if left > 0 {
                at = at.checked_add(count).ok_or(outside)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

    use super::*;

    fn file(size: u64) -> OwnedFd {
        let file = memfd_create("dma", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, size).unwrap();
        file
    }

    fn map(file: Option<&OwnedFd>, address: u64, size: u64, offset: u64) -> DmaMap {
        DmaMap {
            readable: true,
            writable: true,
            address,
            size,
            offset,
            file: file.map(|file| file.try_clone().unwrap()),
        }
    }

    fn unmap(first: u64, last: u64) -> DmaUnmap {
        let echo = [0; 24];
        DmaUnmap { first, last, echo }
    }

    #[test]
    fn pages_in_any_order_of_one_file_are_one_mapping_and_one_memory() {
        let mut dma = Dma::default();
        let backing = file(512 << 12);
        for page in 0..512_u64 {
            let offset = (511 - page) << 12;
            dma.map(map(Some(&backing), page << 12, 4096, offset))
                .unwrap();
        }
        assert_eq!(dma.files(), 1);
        let bytes: Vec<u8> = (0..=u8::MAX).cycle().take(3 * 4096).collect();
        dma.write(0x10ffe, &bytes).unwrap();
        let mut again = vec![0; bytes.len()];
        dma.read(0x10ffe, &mut again).unwrap();
        assert_eq!(again, bytes);
        // The second page of these lies before the first in the file.
        let mut raw = [0; 2];
        let at = ((511 - 0x11) << 12) as u64;
        rustix::io::pread(&backing, &mut raw, at).unwrap();
        assert_eq!(raw, bytes[2..4]);
        dma.unmap(&unmap(0, 0x10fff)).unwrap();
        assert!(dma.read(0x10ffe, &mut again).is_err());
        dma.read(0x11000, &mut again).unwrap();
        dma.unmap(&unmap(0, u64::MAX)).unwrap();
        assert_eq!(dma.files(), 0);
    }

    #[test]
    fn an_overlap_exists_and_a_part_is_not_taken_away() {
        let mut dma = Dma::default();
        dma.map(map(None, 0x1000, 0x2000, 0)).unwrap();
        for (address, size) in [(0x1000, 0x2000), (0, 0x1001), (0x2fff, 1), (0, u64::MAX)] {
            let overlap = dma.map(map(None, address, size, 0));
            assert_eq!(overlap, Err(MapError::Overlap), "{address:#x}");
        }
        for (first, last) in [(0x1001, 0x2fff), (0x1000, 0x2ffe), (0x1800, 0x1801)] {
            assert_eq!(dma.unmap(&unmap(first, last)), Err(Errno::INVAL));
        }
        dma.map(map(None, 0, 0x1000, 0)).unwrap();
        dma.map(map(None, 0x3000, u64::MAX - 0x2fff, 0)).unwrap();
        assert_eq!(dma.unmap(&unmap(0x1000, u64::MAX)), Ok(()));
        assert_eq!(dma.unmap(&unmap(0x1000, u64::MAX)), Ok(()));
        assert_eq!(dma.map(map(None, 0xfff, 1, 0)), Err(MapError::Overlap));
    }

    #[test]
    fn what_is_not_mapped_or_not_allowed_or_has_no_file_is_refused() {
        let mut dma = Dma::default();
        let backing = file(0x2000);
        let mut one = map(Some(&backing), 0x1000, 0x1000, 0x1000);
        one.writable = false;
        dma.map(one).unwrap();
        dma.map(map(None, 0x2000, 0x1000, 0)).unwrap();
        dma.map(map(Some(&backing), u64::MAX - 0xfff, 0x1000, 0))
            .unwrap();
        let mut bytes = [0; 16];
        assert!(matches!(
            dma.read(0xff8, &mut bytes),
            Err(DmaError::NotMapped { .. })
        ));
        assert_eq!(dma.read(0x1ff8, &mut bytes), Err(DmaError::NoFile(0x2000)));
        assert!(matches!(
            dma.write(0x1000, &bytes),
            Err(DmaError::NotMapped { .. })
        ));
        assert!(matches!(
            dma.store_u16(0x1000, 1, Ordering::Relaxed),
            Err(DmaError::NotMapped { .. })
        ));
        assert!(matches!(
            dma.load_u16(0x1001, Ordering::Relaxed),
            Err(DmaError::Memory(_))
        ));
        dma.write(u64::MAX - 15, &bytes).unwrap();
        assert!(dma.write(u64::MAX - 14, &bytes).is_err());
        dma.read(0, &mut []).unwrap();
    }

    #[test]
    fn a_file_that_is_too_short_or_none_is_refused_and_one_that_grew_is_mapped_anew() {
        let mut dma = Dma::default();
        let backing = file(0x1000);
        let beyond = map(Some(&backing), 0, 0x1000, 1);
        let (size, end) = (0x1000, 0x1001);
        assert_eq!(dma.map(beyond), Err(MapError::Short { size, end }));
        dma.map(map(Some(&backing), 0, 0x1000, 0)).unwrap();
        ftruncate(&backing, 0x2000).unwrap();
        dma.map(map(Some(&backing), 0x1000, 0x1000, 0x1000))
            .unwrap();
        dma.write(0xffe, &[1, 2, 3, 4]).unwrap();
        let (pipe, _other) = rustix::pipe::pipe().unwrap();
        let no_memory = dma.map(map(Some(&pipe), 0x9000, 1, 0)).unwrap_err();
        assert_eq!(no_memory.errno(), Errno::INVAL, "{no_memory}");
    }

    #[test]
    fn a_file_that_grows_and_grows_is_not_mapped_without_end() {
        let mut dma = Dma::default();
        let backing = file(0x1000);
        let mut grow_and_map = |page: u64| {
            let at = page << 12;
            ftruncate(&backing, at + 0x1000).unwrap();
            dma.map(map(Some(&backing), at, 0x1000, at))
        };
        for page in 0..64 {
            assert_eq!(grow_and_map(page), Ok(()));
        }
        assert_eq!(grow_and_map(64), Err(MapError::Files(64)));
        assert_eq!(dma.files(), 64);
        dma.unmap(&unmap(0, 0xfff)).unwrap();
        dma.map(map(Some(&backing), 0x80_0000, 0x1000, 64 << 12))
            .unwrap();
        assert_eq!(dma.files(), 64);
    }

    #[test]
    fn a_word_over_the_edge_of_two_ranges_is_none_and_no_byte_beside_a_range_is_reached() {
        let mut dma = Dma::default();
        let backing = file(0x1000);
        // Bytes 0 and 0x100 of the file, side by side.
        dma.map(map(Some(&backing), 0x10, 1, 0)).unwrap();
        dma.map(map(Some(&backing), 0x11, 1, 0x100)).unwrap();
        let refused = |error: DmaError| matches!(error, DmaError::NotMapped { len: 2, .. });
        assert!(refused(dma.load_u16(0x10, Ordering::Relaxed).unwrap_err()));
        let stored = dma.store_u16(0x10, 0xffff, Ordering::Relaxed);
        assert!(refused(stored.unwrap_err()));
        let mut bytes = [0; 0x200];
        rustix::io::pread(&backing, &mut bytes, 0).unwrap();
        assert_eq!(bytes, [0; 0x200]);
    }

    #[test]
    fn a_file_that_shrinks_is_lost_memory_and_not_our_end() {
        vudev_virtio::install_sigbus_guard().unwrap();
        let mut dma = Dma::default();
        let backing = file(0x2000);
        dma.map(map(Some(&backing), 0, 0x2000, 0)).unwrap();
        ftruncate(&backing, 0x1000).unwrap();
        assert_eq!(dma.load_u16(0x1800, Ordering::Relaxed), Err(DmaError::Lost));
    }
}
