//! Registers that are mapped: volatile accesses, each within its window and aligned. Not what they
//! mean.

use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::{self, NonNull};

use rustix::mm::{MapFlags, ProtFlags};

use super::function::Width;

/// A mapped range of registers; unmapped when dropped.
#[derive(Debug)]
pub(super) struct Mmio {
    /// The mapping, whole pages.
    mapping: NonNull<u8>,
    mapped: usize,
    /// Where in it the registers begin, and how many bytes they are.
    lead: usize,
    len: usize,
}

impl Mmio {
    /// Maps `len` bytes at `offset` of `fd`.
    #[expect(unsafe_code, reason = "registers are mapped here")]
    pub(super) fn map(fd: BorrowedFd<'_>, offset: u64, len: u64) -> io::Result<Self> {
        let wrapping = || io::Error::from(io::ErrorKind::InvalidInput);
        let page = rustix::param::page_size() as u64;
        let end = offset.checked_add(len).ok_or_else(wrapping)?;
        let first_page = offset - offset % page;
        let end = end.checked_next_multiple_of(page).ok_or_else(wrapping)?;
        let number = |bytes: u64| usize::try_from(bytes).map_err(|_| wrapping());
        let (mapped, lead) = (number(end - first_page)?, number(offset - first_page)?);
        let len = number(len)?;
        let (access, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        // SAFETY: a fresh mapping at an address of the kernel's choice aliases nothing of ours.
        let base =
            unsafe { rustix::mm::mmap(ptr::null_mut(), mapped, access, flags, fd, first_page) }?;
        let mapping = NonNull::new(base.cast()).ok_or_else(wrapping)?;
        Ok(Self {
            mapping,
            mapped,
            lead,
            len,
        })
    }

    /// Reads a register.
    ///
    /// # Panics
    ///
    /// If it is not within the range, or not aligned: both were checked where the function named
    /// it.
    #[expect(unsafe_code, reason = "a register is read in its own width, once")]
    pub(super) fn read(&self, at: u64, width: Width) -> u32 {
        let register = self.register(at, width);
        // SAFETY: `register` checked bounds and alignment, and the mapping lives as long as `self`.
        // Device registers may change at any time, which a volatile access allows for.
        unsafe {
            match width {
                Width::Byte => u32::from(register.read_volatile()),
                Width::Word => u32::from(u16::from_le(register.cast::<u16>().read_volatile())),
                Width::Double => u32::from_le(register.cast::<u32>().read_volatile()),
            }
        }
    }

    /// Writes a register; of the value only what fits its width.
    ///
    /// # Panics
    ///
    /// As [`Mmio::read`].
    #[expect(unsafe_code, reason = "a register is written in its own width, once")]
    pub(super) fn write(&self, at: u64, width: Width, value: u32) {
        let register = self.register(at, width);
        let [low, high, ..] = value.to_le_bytes();
        // SAFETY: as in `read`.
        unsafe {
            match width {
                Width::Byte => register.write_volatile(low),
                Width::Word => {
                    let word = u16::from_le_bytes([low, high]);
                    register.cast::<u16>().write_volatile(word.to_le());
                }
                Width::Double => register.cast::<u32>().write_volatile(value.to_le()),
            }
        }
    }

    fn register(&self, at: u64, width: Width) -> *mut u8 {
        let bytes = width as usize;
        let at = usize::try_from(at).expect("a register of the window");
        let inside = at.checked_add(bytes).is_some_and(|end| end <= self.len);
        assert!(inside, "a register of the window");
        let register = self.mapping.as_ptr().wrapping_add(self.lead + at);
        assert!(register.addr().is_multiple_of(bytes), "an aligned register");
        register
    }
}

impl Drop for Mmio {
    #[expect(unsafe_code, reason = "the mapping of registers ends here")]
    fn drop(&mut self) {
        // SAFETY: mapped by `map`, and pointers into it do not leave this file.
        let _ = unsafe { rustix::mm::munmap(self.mapping.as_ptr().cast(), self.mapped) };
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsFd, OwnedFd};
    use std::os::unix::fs::FileExt;

    use super::*;

    fn file() -> std::fs::File {
        let file: OwnedFd =
            rustix::fs::memfd_create("bar", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let file = std::fs::File::from(file);
        file.set_len(0x3000).unwrap();
        file
    }

    #[test]
    fn a_register_is_accessed_in_its_own_width_where_its_window_begins() {
        let file = file();
        let registers = Mmio::map(file.as_fd(), 0x1ffc, 8).unwrap();
        registers.write(0, Width::Double, 0x1234_5678);
        registers.write(4, Width::Word, 0xaaaa_9abc);
        registers.write(7, Width::Byte, 0xffff_ffde);
        let mut bytes = [0; 10];
        file.read_exact_at(&mut bytes, 0x1ffb).unwrap();
        let expected = [0, 0x78, 0x56, 0x34, 0x12, 0xbc, 0x9a, 0, 0xde, 0];
        assert_eq!(bytes, expected, "and nothing beside it");
        assert_eq!(registers.read(0, Width::Double), 0x1234_5678);
        assert_eq!(registers.read(2, Width::Word), 0x1234);
        assert_eq!(registers.read(5, Width::Byte), 0x9a);
    }

    #[test]
    fn no_register_outside_the_window_or_across_its_alignment_is_accessed() {
        let file = file();
        let registers = Mmio::map(file.as_fd(), 0x1000, 8).unwrap();
        for (at, width) in [
            (8, Width::Byte),
            (7, Width::Word),
            (6, Width::Double),
            (u64::MAX, Width::Byte),
            (1, Width::Word),
            (2, Width::Double),
        ] {
            let refused = std::panic::catch_unwind(|| registers.read(at, width));
            assert!(refused.is_err(), "{width:?} at {at}");
            let refused = std::panic::catch_unwind(|| registers.write(at, width, 0));
            assert!(refused.is_err(), "{width:?} at {at}");
        }
        assert!(Mmio::map(file.as_fd(), u64::MAX - 4, 8).is_err());
        assert!(Mmio::map(file.as_fd(), u64::MAX - 8000, 8).is_err());
    }
}
