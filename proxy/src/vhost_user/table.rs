//! SET_MEM_TABLE, and how its regions lie in the shared memory. The field has three rules for that:
//! a region is behind all before it (virtio-vhost-user's specification), behind their sizes and
//! offsets in their files and at its own (QEMU's device, DPDK), or at its offset alone (crosvm's
//! driver). With offsets that are all zero the first two say the same, so a table that is
//! forwarded has them so, and regions that lie back to back.

use std::mem::size_of;

/// Regions that one message may carry (spec: "no more than 8 regions").
const REGIONS_MAX: usize = 8;

/// Bytes before the regions: their number, and padding.
const TABLE_HEADER: usize = 8;

/// One region, as SET_MEM_TABLE describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryRegion {
    /// Where the guest has it.
    pub guest_address: u64,
    /// How many bytes.
    pub size: u64,
    /// Where the front-end has it.
    pub user_address: u64,
    /// Where its file has it.
    pub offset: u64,
}

const REGION: usize = size_of::<[u64; 4]>();

/// A table that cannot be shown through the shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// Not the size that its number of regions calls for.
    #[error("SET_MEM_TABLE: {bytes} bytes with {descriptors} descriptors")]
    Shape {
        /// Bytes of the payload.
        bytes: usize,
        /// Descriptors that came along.
        descriptors: usize,
    },
    /// Empty, or its end wraps.
    #[error("SET_MEM_TABLE: a region is empty or its end wraps: {0:x?}")]
    Region(MemoryRegion),
    /// Two regions are the same memory.
    #[error("SET_MEM_TABLE: two regions overlap in their file at {offset:#x}")]
    Overlap {
        /// Where.
        offset: u64,
    },
    /// Holes in the file that no region can be made to cover.
    #[error(
        "SET_MEM_TABLE: the file has parts at {offset:#x} that are no memory of the guest and \
         cannot be shown as such: leave the RAM file away, which is slow but takes any memory"
    )]
    Holes {
        /// Where the region begins that cannot be reached.
        offset: u64,
    },
}

/// Reads the payload.
///
/// # Errors
///
/// When it is not as long as its regions, there are not as many descriptors, or an end wraps.
pub fn parse(payload: &[u8], descriptors: usize) -> Result<Vec<MemoryRegion>, TableError> {
    let bytes = payload.len();
    let shape = TableError::Shape { bytes, descriptors };
    let Some((header, rest)) = payload.split_first_chunk::<TABLE_HEADER>() else {
        return Err(shape);
    };
    let [a, b, c, d, ..] = *header;
    let count = usize::try_from(u32::from_ne_bytes([a, b, c, d])).unwrap_or(usize::MAX);
    let exact = rest.len().is_multiple_of(REGION) && count == rest.len() / REGION;
    if !exact || count != descriptors || !(1..=REGIONS_MAX).contains(&count) {
        return Err(shape);
    }
    rest.chunks_exact(REGION).map(region).collect()
}

/// `{ guest_address, size, user_address, offset: u64 }`.
fn region(bytes: &[u8]) -> Result<MemoryRegion, TableError> {
    let field = |at: usize| {
        let mut long = [0; 8];
        long.copy_from_slice(&bytes[8 * at..8 * at + 8]);
        u64::from_ne_bytes(long)
    };
    let region = MemoryRegion {
        guest_address: field(0),
        size: field(1),
        user_address: field(2),
        offset: field(3),
    };
    let starts = [region.guest_address, region.user_address, region.offset];
    let wraps = starts.map(|start| start.checked_add(region.size).is_none());
    match region.size == 0 || wraps.contains(&true) {
        true => Err(TableError::Region(region)),
        false => Ok(region),
    }
}

/// The payload that says `regions`, each at the start of a file of its own.
pub fn encode(regions: &[MemoryRegion], into: &mut Vec<u8>) {
    let count = u32::try_from(regions.len()).expect("a table is short");
    into.extend(count.to_ne_bytes());
    into.extend([0; 4]);
    for region in regions {
        let offset = 0;
        let fields = [
            region.guest_address,
            region.size,
            region.user_address,
            offset,
        ];
        into.extend(fields.iter().flat_map(|field| field.to_ne_bytes()));
    }
}

/// Regions of one file so arranged that each lies in the file where it lies behind all before it:
/// sorted, and made longer over the holes of the file between them and before the first. What a
/// region covers more than it did is no memory of the guest, which is not to use it.
///
/// # Errors
///
/// When they overlap in the file, or cannot be made longer without overlapping elsewhere.
pub fn flatten(mut regions: Vec<MemoryRegion>) -> Result<Vec<MemoryRegion>, TableError> {
    regions.sort_by_key(|region| region.offset);
    let mut flat: Vec<MemoryRegion> = Vec::with_capacity(regions.len());
    for region in regions {
        let offset = region.offset;
        let Some(last) = flat.last_mut() else {
            flat.push(from_start(region)?);
            continue;
        };
        let Some(hole) = offset.checked_sub(last.offset + last.size) else {
            return Err(TableError::Overlap { offset });
        };
        if shift(last) == shift(&region) {
            last.size += hole + region.size;
        } else {
            last.size += hole;
            flat.push(region);
        }
    }
    check_apart(&flat, |region| region.guest_address)?;
    check_apart(&flat, |region| region.user_address)?;
    Ok(flat)
}

/// The first region made longer down to the file's start.
fn from_start(region: MemoryRegion) -> Result<MemoryRegion, TableError> {
    let offset = region.offset;
    let addresses = region
        .guest_address
        .checked_sub(offset)
        .zip(region.user_address.checked_sub(offset));
    let (guest_address, user_address) = addresses.ok_or(TableError::Holes { offset })?;
    Ok(MemoryRegion {
        guest_address,
        user_address,
        size: region.size + offset,
        offset: 0,
    })
}

/// How far guest and front-end addresses are from the file's: regions that agree are one.
fn shift(region: &MemoryRegion) -> (u64, u64) {
    let MemoryRegion {
        guest_address,
        user_address,
        offset,
        size: _,
    } = region;
    (
        guest_address.wrapping_sub(*offset),
        user_address.wrapping_sub(*offset),
    )
}

fn check_apart(
    regions: &[MemoryRegion],
    address: impl Fn(&MemoryRegion) -> u64,
) -> Result<(), TableError> {
    let mut sorted = regions.to_vec();
    sorted.sort_by_key(&address);
    for (index, region) in sorted.iter().enumerate() {
        let end = address(region).checked_add(region.size);
        let next = sorted.get(index + 1);
        let clear = match (end, next) {
            (None, _) => false,
            (Some(end), Some(next)) => end <= address(next),
            (Some(_), None) => true,
        };
        if !clear {
            let offset = region.offset;
            return Err(TableError::Holes { offset });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn at(guest_address: u64, size: u64, user_address: u64, offset: u64) -> MemoryRegion {
        MemoryRegion {
            guest_address,
            size,
            user_address,
            offset,
        }
    }

    #[test]
    fn three_gib_in_two_regions_stay_as_they_are() {
        let user = 0x7f00_0000_0000;
        let low = at(0, 2 * GIB, user, 0);
        let high = at(4 * GIB, GIB, user + 2 * GIB, 2 * GIB);
        let flat = flatten(vec![high, low]).unwrap();
        assert_eq!(flat, [low, high]);
        let mut payload = Vec::new();
        encode(&flat, &mut payload);
        let parsed = parse(&payload, 2).unwrap();
        // Now behind one another, each at the start of its own.
        assert_eq!(parsed, [low, at(4 * GIB, GIB, user + 2 * GIB, 0)]);
    }

    #[test]
    fn holes_below_and_between_are_covered_and_equals_become_one() {
        let user = 0x7f00_0000_0000;
        let low = at(0x1000, 0x9f000, user + 0x1000, 0x1000);
        let middle = at(0xc0000, GIB, user + 0xc0000, 0xc0000);
        let offset = GIB + 0xd0000;
        let high = at(4 * GIB, GIB, user + offset, offset);
        let flat = flatten(vec![low, middle, high]).unwrap();
        assert_eq!(flat, [at(0, offset, user, 0), high]);
    }

    #[test]
    fn what_cannot_lie_back_to_back_is_refused() {
        let below = at(0, 0x1000, 0x10_0000, 0x1000);
        assert_eq!(
            flatten(vec![below]),
            Err(TableError::Holes { offset: 0x1000 })
        );
        let twice = vec![at(0, 0x1000, 0, 0), at(0x1000, 0x1000, 0x1000, 0xfff)];
        assert_eq!(flatten(twice), Err(TableError::Overlap { offset: 0xfff }));
        // The hole after the first is covered by what the guest has elsewhere.
        let crossed = vec![at(0, 0x1000, 0, 0), at(0x1000, 0x1000, 0x9000, 0x2000)];
        assert_eq!(flatten(crossed), Err(TableError::Holes { offset: 0 }));
        let wrapping = vec![
            at(u64::MAX - 0x1000, 0x1000, 0, 0),
            at(0, 0x1000, 0x9000, 0x3000),
        ];
        assert_eq!(flatten(wrapping), Err(TableError::Holes { offset: 0 }));
    }

    #[test]
    fn a_table_is_as_long_as_its_regions_and_has_their_descriptors() {
        let mut payload = Vec::new();
        encode(&[at(0, 1, 0, 0), at(1, 1, 1, 0)], &mut payload);
        assert!(parse(&payload, 2).is_ok());
        assert!(parse(&payload, 1).is_err());
        assert!(parse(&payload[..71], 2).is_err());
        assert!(parse(&[], 0).is_err());
        assert!(parse(&[0; 8], 0).is_err());
        payload[0] = 3;
        assert!(parse(&payload, 3).is_err());
        for wrong in [at(0, 0, 0, 0), at(u64::MAX, 1, 0, 0), at(0, 2, 0, u64::MAX)] {
            let mut payload = vec![1, 0, 0, 0, 0, 0, 0, 0];
            let fields = [
                wrong.guest_address,
                wrong.size,
                wrong.user_address,
                wrong.offset,
            ];
            payload.extend(fields.iter().flat_map(|field| field.to_ne_bytes()));
            assert_eq!(parse(&payload, 1), Err(TableError::Region(wrong)));
        }
    }

    /// Whatever a front-end sends: what comes out lies back to back from the file's start on, and
    /// every byte of a region that came in is where it was.
    #[test]
    fn a_flat_table_keeps_every_byte_where_the_file_has_it() {
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = |below: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) % below
        };
        let mut flattened = 0;
        for _ in 0..20_000 {
            let regions: Vec<_> = (0..1 + random(4))
                .map(|_| {
                    let (guest, user) = (random(4) * 40, random(2) * 1000);
                    let (offset, size) = (random(60), 1 + random(20));
                    at(guest + offset, size, user + offset, offset)
                })
                .collect();
            let Ok(flat) = flatten(regions.clone()) else {
                continue;
            };
            flattened += 1;
            let mut end = 0;
            for region in &flat {
                assert_eq!(region.offset, end);
                end += region.size;
            }
            for region in regions {
                let inside = |flat: &&MemoryRegion| {
                    flat.offset <= region.offset
                        && region.offset + region.size <= flat.offset + flat.size
                };
                let flat = flat.iter().find(inside).unwrap();
                assert_eq!(shift(flat), shift(&region));
            }
        }
        assert!(flattened > 1000, "{flattened}");
    }
}
