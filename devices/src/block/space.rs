//! The configuration space that a guest sees of a disk, and the features that say which of its
//! fields mean something (virtio 1.3, 5.2.3 and 5.2.4).

use super::config::BlockConfig;
use super::ranges::{
    DISCARD_RANGES_MAX, DISCARD_SECTORS_MAX, ZEROES_RANGES_MAX, ZEROES_SECTORS_MAX,
};
use super::request::SECTOR_SIZE;

/// How many bytes of configuration space there are: the fields up to and including those of
/// WRITE_ZEROES, which is as far as front-ends ask without negotiating more (virtio 1.3, 5.2.4).
pub(super) const CONFIG_SIZE: usize = 60;

/// Where the one byte is that a driver may write: the cache mode.
pub(super) const WRITEBACK_AT: usize = 32;

/// VIRTIO_BLK_F_*: virtio 1.3, 5.2.3.
const F_SIZE_MAX: u64 = 1 << 1;
const F_SEG_MAX: u64 = 1 << 2;
const F_RO: u64 = 1 << 5;
const F_BLK_SIZE: u64 = 1 << 6;
pub(super) const F_FLUSH: u64 = 1 << 9;
const F_TOPOLOGY: u64 = 1 << 10;
pub(super) const F_CONFIG_WCE: u64 = 1 << 11;
const F_MQ: u64 = 1 << 12;
pub(super) const F_DISCARD: u64 = 1 << 13;
pub(super) const F_WRITE_ZEROES: u64 = 1 << 14;

/// The longest segment that a driver should send. Nothing here depends on it; without the field
/// some firmware believes that a segment is a page.
const SEGMENT_SIZE_MAX: u32 = 4 << 20;

impl BlockConfig {
    /// The features of its own that this disk offers.
    pub(super) fn features(&self) -> u64 {
        let always = F_SIZE_MAX | F_SEG_MAX | F_BLK_SIZE | F_TOPOLOGY | F_FLUSH;
        let queues = if self.queues > 1 { F_MQ } else { 0 };
        let access = if self.read_only {
            F_RO
        } else {
            F_CONFIG_WCE | F_WRITE_ZEROES
        };
        let space = if self.discards() { F_DISCARD } else { 0 };
        always | queues | access | space
    }

    /// Whether the guest can give space back.
    fn discards(&self) -> bool {
        self.sparse && !self.read_only
    }

    /// The configuration space; what is not offered is zero.
    pub(super) fn space(&self, capacity: u64, writeback: bool) -> [u8; CONFIG_SIZE] {
        // A chain is as long as its queue at most; two of it are header and status.
        let seg_max = u32::from(self.queue_size.saturating_sub(2));
        let blocks = self.physical_block_size / self.block_size;
        let least = u16::try_from(blocks).unwrap_or(u16::MAX);
        // Both are powers of two.
        let exponent = u8::try_from(blocks.trailing_zeros()).unwrap_or_default();
        let mut space = [0; CONFIG_SIZE];
        let mut put = |at: usize, bytes: &[u8]| space[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &(capacity / SECTOR_SIZE).to_le_bytes());
        put(8, &SEGMENT_SIZE_MAX.to_le_bytes());
        put(12, &seg_max.to_le_bytes());
        put(20, &self.block_size.to_le_bytes());
        // Topology: physical block, offset of the first, least and best transfer (none is best).
        put(24, &[exponent, 0]);
        put(26, &least.to_le_bytes());
        put(WRITEBACK_AT, &[u8::from(writeback)]);
        put(34, &self.queues.to_le_bytes());
        if self.discards() {
            let alignment = u64::from(self.physical_block_size) / SECTOR_SIZE;
            put(36, &DISCARD_SECTORS_MAX.to_le_bytes());
            put(40, &count(DISCARD_RANGES_MAX).to_le_bytes());
            put(44, &u32::try_from(alignment).unwrap_or(1).to_le_bytes());
        }
        if !self.read_only {
            put(48, &ZEROES_SECTORS_MAX.to_le_bytes());
            put(52, &count(ZEROES_RANGES_MAX).to_le_bytes());
            put(56, &[u8::from(self.sparse)]);
        }
        space
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> BlockConfig {
        BlockConfig {
            physical_block_size: 4096,
            ..BlockConfig::default()
        }
    }

    fn u32_at(space: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(space[at..at + 4].try_into().unwrap())
    }

    #[test]
    fn each_field_is_where_the_specification_has_it() {
        let space = config().space(19 * 512, true);
        assert_eq!(space[..8], 19u64.to_le_bytes());
        assert_eq!(u32_at(&space, 8), 4 << 20);
        assert_eq!(u32_at(&space, 12), 254);
        assert_eq!(u32_at(&space, 20), 512);
        assert_eq!(space[24..32], [3, 0, 8, 0, 0, 0, 0, 0]);
        assert_eq!(space[32..34], [1, 0]);
        assert_eq!(space[34..36], 16u16.to_le_bytes());
        let rest = [36, 40, 44, 48, 52].map(|at| u32_at(&space, at));
        assert_eq!(rest, [1 << 21, 16, 8, 1 << 15, 1]);
        assert_eq!(space[56..], [1, 0, 0, 0]);
        // Cylinders and the like: nobody has them any more.
        assert_eq!(space[16..20], [0; 4]);
    }

    #[test]
    fn what_is_not_offered_is_zero() {
        let kept = BlockConfig {
            sparse: false,
            ..config()
        };
        let space = kept.space(512, false);
        assert_eq!(space[36..48], [0; 12]);
        assert_eq!((u32_at(&space, 48), space[56]), (1 << 15, 0));
        let read_only = BlockConfig {
            read_only: true,
            ..config()
        };
        assert_eq!(read_only.space(512, false)[36..], [0; 24]);
    }

    #[test]
    fn features_follow_the_description() {
        let always = F_SIZE_MAX | F_SEG_MAX | F_BLK_SIZE | F_TOPOLOGY | F_FLUSH;
        let writes = F_CONFIG_WCE | F_WRITE_ZEROES;
        let all = always | F_MQ | writes | F_DISCARD;
        assert_eq!(config().features(), all);
        let single = BlockConfig {
            read_only: true,
            queues: 1,
            ..config()
        };
        assert_eq!(single.features(), always | F_RO);
        let kept = BlockConfig {
            sparse: false,
            ..config()
        };
        assert_eq!(kept.features(), all & !F_DISCARD);
    }
}
