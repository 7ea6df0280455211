//! The ranges of a DISCARD or WRITE_ZEROES request, from a copy of what the guest wrote. All of
//! them are checked before anything is done with the first.

use std::ops::Range;

use super::request::{Limits, SECTOR_SIZE, Status};

/// How many bytes describe one range: sector, number of sectors, flags (virtio 1.3, 5.2.6).
pub(super) const RANGE_SIZE: usize = 16;

/// How many ranges one DISCARD may have. Linux puts ranges of several requests into one.
pub(super) const DISCARD_RANGES_MAX: usize = 16;

/// How many ranges one WRITE_ZEROES may have: Linux sends one.
pub(super) const ZEROES_RANGES_MAX: usize = 1;

/// The longest range to discard, in sectors (1 GiB). Freeing that many blocks of a file takes a
/// while, and a stop waits for it.
pub(super) const DISCARD_SECTORS_MAX: u32 = 1 << 21;

/// The longest range to make zero, in sectors (16 MiB): where the file system cannot, so many
/// bytes are written.
pub(super) const ZEROES_SECTORS_MAX: u32 = 1 << 15;

/// What a guest wrote as the ranges of a request, no longer than the longest lawful list.
pub(super) type Bytes = [u8; RANGE_SIZE * DISCARD_RANGES_MAX];

/// What is done with ranges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Their contents are no longer needed.
    Discard,
    /// They are to be zero.
    WriteZeroes,
}

/// One range, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    /// Where in the file.
    pub(super) offset: u64,
    /// How long.
    pub(super) length: u64,
    /// Whether its space may be given back.
    pub(super) unmap: bool,
}

/// VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP: virtio 1.3, 5.2.6.
const FLAG_UNMAP: u32 = 1;

impl Purpose {
    /// How many bytes of ranges a request can have.
    pub(super) fn bytes_max(self) -> usize {
        RANGE_SIZE
            * match self {
                Self::Discard => DISCARD_RANGES_MAX,
                Self::WriteZeroes => ZEROES_RANGES_MAX,
            }
    }

    /// The ranges in `bytes`, or what their sender is told.
    pub(super) fn extents<'a>(
        self,
        bytes: &'a [u8],
        limits: &Limits,
    ) -> Result<impl Iterator<Item = Extent> + use<'a>, Status> {
        let (ranges, rest) = bytes.as_chunks::<RANGE_SIZE>();
        if ranges.is_empty() || !rest.is_empty() || bytes.len() > self.bytes_max() {
            return Err(Status::IoError);
        }
        let raw = ranges.iter().map(Raw::parse);
        // A flag that nobody knows makes it a request that nobody knows (5.2.6.2), wherever it is.
        if raw.clone().any(|raw| raw.flags & !self.flags() != 0) {
            return Err(Status::Unsupported);
        }
        for raw in raw.clone() {
            self.place(raw, limits)?;
        }
        Ok(raw.map(|raw| Extent {
            offset: raw.sector * SECTOR_SIZE,
            length: u64::from(raw.sectors) * SECTOR_SIZE,
            unmap: raw.flags & FLAG_UNMAP != 0,
        }))
    }

    /// The flags that a range may have.
    fn flags(self) -> u32 {
        match self {
            Self::Discard => 0,
            Self::WriteZeroes => FLAG_UNMAP,
        }
    }

    fn place(self, raw: Raw, limits: &Limits) -> Result<Range<u64>, Status> {
        let longest = match self {
            Self::Discard => DISCARD_SECTORS_MAX,
            Self::WriteZeroes => ZEROES_SECTORS_MAX,
        };
        if raw.sectors > longest {
            return Err(Status::IoError);
        }
        limits.place(raw.sector, u64::from(raw.sectors) * SECTOR_SIZE)
    }
}

/// A range as the guest wrote it.
#[derive(Clone, Copy)]
struct Raw {
    sector: u64,
    sectors: u32,
    flags: u32,
}

impl Raw {
    fn parse(bytes: &[u8; RANGE_SIZE]) -> Self {
        let [a, b, c, d, e, f, g, h, n0, n1, n2, n3, f0, f1, f2, f3] = *bytes;
        Self {
            sector: u64::from_le_bytes([a, b, c, d, e, f, g, h]),
            sectors: u32::from_le_bytes([n0, n1, n2, n3]),
            flags: u32::from_le_bytes([f0, f1, f2, f3]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        capacity: 1 << 40,
        read_only: false,
        flush: true,
        discard: true,
        write_zeroes: true,
    };

    fn bytes(ranges: &[(u64, u32, u32)]) -> Vec<u8> {
        let bytes = |&(sector, sectors, flags): &(u64, u32, u32)| {
            let mut bytes = sector.to_le_bytes().to_vec();
            bytes.extend(sectors.to_le_bytes());
            bytes.extend(flags.to_le_bytes());
            bytes
        };
        ranges.iter().flat_map(bytes).collect()
    }

    fn extents(purpose: Purpose, ranges: &[(u64, u32, u32)]) -> Result<Vec<Extent>, Status> {
        Ok(purpose.extents(&bytes(ranges), &LIMITS)?.collect())
    }

    #[test]
    fn ranges_are_placed_in_bytes_and_keep_their_flag() {
        let extent = |offset, length, unmap| Extent {
            offset,
            length,
            unmap,
        };
        assert_eq!(
            extents(Purpose::Discard, &[(1, 2, 0), (8, 0, 0)]),
            Ok(vec![extent(512, 1024, false), extent(4096, 0, false)])
        );
        assert_eq!(
            extents(Purpose::WriteZeroes, &[(1, 2, 1)]),
            Ok(vec![extent(512, 1024, true)])
        );
    }

    #[test]
    fn an_unknown_flag_is_unsupported_even_where_the_range_is_wrong_too() {
        for flags in [1, 2, 1 << 31] {
            let ranges = [(u64::MAX, 1, 0), (0, 1, flags)];
            assert_eq!(extents(Purpose::Discard, &ranges), Err(Status::Unsupported));
        }
        assert_eq!(
            extents(Purpose::WriteZeroes, &[(0, 1, 2)]),
            Err(Status::Unsupported)
        );
    }

    #[test]
    fn one_range_beyond_the_end_or_too_long_refuses_all() {
        let end = LIMITS.capacity / SECTOR_SIZE;
        for wrong in [
            (end, 1, 0),
            (end - 1, 2, 0),
            (u64::MAX, 1, 0),
            (u64::MAX / SECTOR_SIZE, 1, 0),
            (0, DISCARD_SECTORS_MAX + 1, 0),
        ] {
            let ranges = [(0, 1, 0), wrong];
            assert_eq!(
                extents(Purpose::Discard, &ranges),
                Err(Status::IoError),
                "{wrong:?}"
            );
        }
        assert!(extents(Purpose::Discard, &[(0, DISCARD_SECTORS_MAX, 0)]).is_ok());
        assert!(extents(Purpose::WriteZeroes, &[(0, ZEROES_SECTORS_MAX, 0)]).is_ok());
        let longer = [(0, ZEROES_SECTORS_MAX + 1, 0)];
        assert_eq!(extents(Purpose::WriteZeroes, &longer), Err(Status::IoError));
    }

    #[test]
    fn no_range_part_of_one_or_too_many_is_an_error() {
        let of = |length: usize, purpose: Purpose| {
            purpose
                .extents(&vec![0; length], &LIMITS)
                .map(Iterator::count)
        };
        for length in [0, 15, 17, RANGE_SIZE * DISCARD_RANGES_MAX + RANGE_SIZE] {
            assert_eq!(of(length, Purpose::Discard), Err(Status::IoError));
        }
        assert_eq!(of(256, Purpose::Discard), Ok(16));
        assert_eq!(of(32, Purpose::WriteZeroes), Err(Status::IoError));
    }
}
