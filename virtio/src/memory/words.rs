//! Single words of guest memory that both sides read and write at the same time, as the indices of
//! rings are: whole, or not at all. Not a ring: [`super::RingView`] is one, found once and for all;
//! here every access finds its word anew, for those who cannot keep one.

use std::sync::atomic::Ordering;

use vm_memory::Bytes as _;

use super::{GuestMemory, MemoryError};

impl GuestMemory {
    /// Reads a 16-bit word, little-endian, in one access.
    ///
    /// # Errors
    ///
    /// When it is not in memory, not in one region, or not aligned there.
    pub fn load_u16(&self, address: u64, order: Ordering) -> Result<u16, MemoryError> {
        self.word(address, |slice| slice.load(0, order))
            .map(u16::from_le)
    }

    /// Writes a 16-bit word, little-endian, in one access.
    ///
    /// # Errors
    ///
    /// As for [`GuestMemory::load_u16`].
    pub fn store_u16(&self, address: u64, value: u16, order: Ordering) -> Result<(), MemoryError> {
        self.word(address, |slice| slice.store(value.to_le(), 0, order))
    }

    fn word<T, E>(
        &self,
        address: u64,
        access: impl FnOnce(vm_memory::VolatileSlice<'_, super::DirtyLog>) -> Result<T, E>,
    ) -> Result<T, MemoryError> {
        let len = 2;
        let outside = MemoryError::OutOfRange { address, len };
        let region = self.region_at(address).ok_or(outside)?;
        let offset = address - region.layout().guest_address;
        let offset = usize::try_from(offset).map_err(|_| outside)?;
        let slice = region.slice(offset, 2).ok_or(outside)?;
        access(slice).map_err(|_| MemoryError::Misaligned { address, align: 2 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Region, RegionLayout};

    #[test]
    fn a_word_is_whole_aligned_and_in_memory() {
        let file = rustix::fs::memfd_create("words", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&file, 4096).unwrap();
        let layout = RegionLayout {
            guest_address: 0x1000,
            user_address: 0,
            size: 4096,
            offset: 0,
        };
        let region = Region::map(layout, file).unwrap();
        let memory = GuestMemory::new(vec![region]).unwrap();
        memory.store_u16(0x1ffe, 0x1234, Ordering::Release).unwrap();
        assert_eq!(memory.load_u16(0x1ffe, Ordering::Acquire), Ok(0x1234));
        let mut bytes = [0; 2];
        memory.read(0x1ffe, &mut bytes).unwrap();
        assert_eq!(bytes, [0x34, 0x12]);
        for (address, misaligned) in [(0x1001, true), (0x1fff, false), (0xffe, false)] {
            let error = memory.load_u16(address, Ordering::Relaxed).unwrap_err();
            assert_eq!(matches!(error, MemoryError::Misaligned { .. }), misaligned);
        }
    }
}
