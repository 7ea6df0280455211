//! The shared memory of BAR 4: the driver VM's memory as the device VM sees it. Either it is a file
//! that was known from the start, which the VMM of the device VM maps itself; or what SET_MEM_TABLE
//! brings, which is reached by trapped accesses of a few bytes, for a BAR's file cannot change.

use std::cell::RefCell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::sync::atomic::Ordering;

use rustix::io::Errno;
use vudev_virtio::{GuestMemory, MemoryError, Region, RegionLayout};

use crate::vfio_user::RegionInfo;
use crate::vhost_user::{MemoryRegion, TableError, flatten};

/// BARs are mapped by pages.
const PAGE: u64 = 4096;

/// Bytes of the greatest BAR, which leaves 64-bit addresses for others beside it.
const BYTES_MAX: u64 = 1 << 62;

/// Where the driver VM's memory comes from.
pub enum SharedMemory {
    /// The file that it lies in, as a whole: `memory-backend-file` with `share=on`.
    RamFile(OwnedFd),
    /// SET_MEM_TABLE, as long as it has at most this many bytes.
    Trapped {
        /// The BAR's size: a power of two, at least a page.
        bytes: u64,
    },
}

/// Memory that cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum SharedMemoryError {
    /// The table itself.
    #[error(transparent)]
    Table(#[from] TableError),
    /// The RAM file is empty, or none.
    #[error("the RAM file: {0}")]
    RamFile(#[source] MemoryError),
    /// A size that a BAR cannot have.
    #[error("{0} bytes of shared memory: a power of two from 4096 to 2^62 is needed")]
    Size(u64),
    /// A region in another file than the BAR's.
    #[error(
        "SET_MEM_TABLE: memory that does not lie in the RAM file: give the driver VM \
         memory-backend-file with this file and share=on, and no other memory that is shared"
    )]
    OtherFile,
    /// More than the BAR has.
    #[error("SET_MEM_TABLE: memory of {needed} bytes, and the shared memory has {available}")]
    TooLarge {
        /// Bytes of all regions.
        needed: u64,
        /// Bytes there are.
        available: u64,
    },
    /// Not memory.
    #[error("SET_MEM_TABLE: {0}")]
    Memory(#[from] MemoryError),
    /// The kernel refused.
    #[error("fstat of memory: {0}")]
    Stat(#[from] Errno),
}

/// The BAR.
pub(super) struct Window {
    bytes: u64,
    source: Source,
}

enum Source {
    File {
        file: OwnedFd,
        size: u64,
        inode: (u64, u64),
        memory: Rc<GuestMemory>,
    },
    Table(RefCell<Option<Rc<GuestMemory>>>),
}

impl Window {
    pub(super) fn new(shared: SharedMemory) -> Result<Self, SharedMemoryError> {
        match shared {
            SharedMemory::Trapped { bytes } => {
                if !bytes.is_power_of_two() || !(PAGE..=BYTES_MAX).contains(&bytes) {
                    return Err(SharedMemoryError::Size(bytes));
                }
                let source = Source::Table(RefCell::new(None));
                Ok(Self { bytes, source })
            }
            SharedMemory::RamFile(file) => {
                let stat = rustix::fs::fstat(&file)?;
                let size = u64::try_from(stat.st_size).unwrap_or(0);
                let memory = mapped(
                    &[(0, 0, size)],
                    vec![file.try_clone().map_err(|error| errno(&error))?],
                )
                .map_err(SharedMemoryError::RamFile)?;
                let bytes = size.checked_next_power_of_two().unwrap_or(0).max(PAGE);
                if bytes > BYTES_MAX {
                    return Err(SharedMemoryError::Size(size));
                }
                let source = Source::File {
                    file,
                    size,
                    inode: (stat.st_dev, stat.st_ino),
                    memory,
                };
                Ok(Self { bytes, source })
            }
        }
    }

    /// The BAR's size.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn region(&self) -> RegionInfo {
        let mapped = match self.source {
            Source::File { size, .. } if size >= PAGE => Some(0..size - size % PAGE),
            Source::File { .. } | Source::Table(_) => None,
        };
        let size = self.bytes;
        RegionInfo { size, mapped }
    }

    pub(super) fn file(&self) -> Option<BorrowedFd<'_>> {
        match &self.source {
            Source::File { file, .. } => Some(file.as_fd()),
            Source::Table(_) => None,
        }
    }

    /// Shows the memory of a table from now on; gives the table that says where it is.
    pub(super) fn set_table(
        &self,
        regions: Vec<MemoryRegion>,
        files: Vec<OwnedFd>,
    ) -> Result<Vec<MemoryRegion>, SharedMemoryError> {
        let needed: u128 = regions.iter().map(|region| u128::from(region.size)).sum();
        let (needed, available) = (u64::try_from(needed).unwrap_or(u64::MAX), self.bytes);
        if needed > available {
            return Err(SharedMemoryError::TooLarge { needed, available });
        }
        match &self.source {
            Source::File { size, inode, .. } => {
                for file in files {
                    let stat = rustix::fs::fstat(&file)?;
                    if (stat.st_dev, stat.st_ino) != *inode {
                        return Err(SharedMemoryError::OtherFile);
                    }
                }
                let flat = flatten(regions)?;
                let needed = flat.iter().map(|region| region.size).sum();
                let available = *size;
                if needed > available {
                    return Err(SharedMemoryError::TooLarge { needed, available });
                }
                Ok(flat)
            }
            Source::Table(memory) => {
                let mut at = 0;
                let mut places = Vec::with_capacity(regions.len());
                for region in &regions {
                    places.push((at, region.offset, region.size));
                    at += region.size;
                }
                // The old one goes first: it may be as large as the new.
                memory.take();
                memory.replace(Some(mapped(&places, files)?));
                Ok(regions)
            }
        }
    }

    /// Shows nothing any more, where it can be helped.
    pub(super) fn clear(&self) {
        match &self.source {
            Source::Table(memory) => drop(memory.take()),
            Source::File { .. } => {}
        }
    }

    fn memory(&self) -> Option<Rc<GuestMemory>> {
        match &self.source {
            Source::File { memory, .. } => Some(memory.clone()),
            Source::Table(memory) => memory.borrow().clone(),
        }
    }

    /// A trapped read; where nothing is, it reads ones, as on any bus.
    pub(super) fn read(&self, offset: u64, into: &mut [u8]) {
        let memory = self.memory();
        let read = memory.as_ref().is_some_and(|memory| match into {
            [_, _] if offset.is_multiple_of(2) => {
                match memory.load_u16(offset, Ordering::Acquire) {
                    Ok(word) => {
                        into.copy_from_slice(&word.to_le_bytes());
                        true
                    }
                    Err(_) => false,
                }
            }
            _ => memory.read(offset, into).is_ok(),
        });
        if !read {
            into.fill(0xff);
        }
    }

    /// A trapped write; where nothing is, it does nothing.
    pub(super) fn write(&self, offset: u64, data: &[u8]) {
        let Some(memory) = self.memory() else { return };
        let _ = match *data {
            [a, b] if offset.is_multiple_of(2) => {
                memory.store_u16(offset, u16::from_le_bytes([a, b]), Ordering::Release)
            }
            _ => memory.write(offset, data),
        };
    }
}

/// Files as one memory: of each (where, offset in the file, bytes).
fn mapped(places: &[(u64, u64, u64)], files: Vec<OwnedFd>) -> Result<Rc<GuestMemory>, MemoryError> {
    let regions = places.iter().zip(files).map(|(&(at, offset, size), file)| {
        let layout = RegionLayout {
            guest_address: at,
            user_address: at,
            size,
            offset,
        };
        Region::map(layout, file)
    });
    Ok(Rc::new(GuestMemory::new(
        regions.collect::<Result<_, _>>()?,
    )?))
}

fn errno(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}
