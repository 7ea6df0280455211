//! What a disk or a stream of the tests holds and what it sums up to, the same for whoever writes
//! it inside of a guest and whoever looks at it outside. Cheap under emulation: words, not bytes.

/// Bytes in a sector.
pub const SECTOR: usize = 512;

/// Odd, and its bits are spread: the golden ratio of 2^64.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

/// Fills a sector with what its place and a stamp give. Stamp 0 gives zeros.
pub fn fill(sector: u64, stamp: u32, into: &mut [u8]) {
    if stamp == 0 {
        return into.fill(0);
    }
    let mut word = (sector << 32 | u64::from(stamp)).wrapping_mul(SPREAD);
    for bytes in into.chunks_exact_mut(8) {
        word = word.wrapping_add(SPREAD);
        bytes.copy_from_slice(&word.to_le_bytes());
    }
}

/// A checksum that is told everything in order, in multiples of 8 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum(u64);

impl Sum {
    /// Takes in more.
    pub fn add(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        assert!(rest.is_empty(), "whole words are summed");
        for word in words {
            let mixed = (self.0 ^ u64::from_le_bytes(*word)).wrapping_mul(SPREAD);
            self.0 = mixed ^ mixed >> 29;
        }
    }

    /// The sum of all so far.
    pub fn value(self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sum_tells_places_stamps_and_order_apart() {
        let sum = |sectors: &[(u64, u32)]| {
            let mut sum = Sum::default();
            for &(sector, stamp) in sectors {
                let mut bytes = [0xff; SECTOR];
                fill(sector, stamp, &mut bytes);
                sum.add(&bytes);
            }
            sum.value()
        };
        let sums = [
            sum(&[(1, 1), (2, 1)]),
            sum(&[(2, 1), (1, 1)]),
            sum(&[(1, 2), (2, 1)]),
            sum(&[(1, 0), (2, 0)]),
        ];
        for (at, one) in sums.iter().enumerate() {
            assert!(!sums[at + 1..].contains(one), "{at}");
        }
        assert_eq!(sum(&[(1, 0)]), sum(&[(9, 0)]));
    }
}
