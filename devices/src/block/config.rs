//! What a disk is: its description as the operator gives it, what can be wrong with that, and the
//! configuration space a guest sees of it. Not how requests are carried out.

use std::io;
use std::os::fd::AsFd;

use rustix::fs::{AtFlags, SeekFrom, StatxFlags};
use serde::{Deserialize, Serialize};

use super::request::{ID_SIZE, Limits, SECTOR_SIZE};

/// How many bytes of configuration space there are: the fields up to and including those of
/// WRITE_ZEROES, which is as far as front-ends ask without negotiating more (virtio 1.3, 5.2.4).
pub(super) const CONFIG_SIZE: usize = 60;

/// VIRTIO_BLK_F_*: virtio 1.3, 5.2.3.
pub(super) const F_SEG_MAX: u64 = 1 << 2;
pub(super) const F_RO: u64 = 1 << 5;
pub(super) const F_BLK_SIZE: u64 = 1 << 6;
pub(super) const F_FLUSH: u64 = 1 << 9;
pub(super) const F_MQ: u64 = 1 << 12;

/// The least logical block size: a sector.
const BLOCK_SIZE_MIN: u32 = 512;

/// The greatest logical block size: Linux guests take no greater one.
const BLOCK_SIZE_MAX: u32 = 65_536;

/// The greatest queue: a chain is no longer than its queue, and no `readv` takes more than 1,024
/// buffers (UIO_MAXIOV).
const QUEUE_SIZE_MAX: u16 = 1024;

/// A chain has a header and a status besides its data.
const QUEUE_SIZE_MIN: u16 = 4;

/// The most queues: as many as front-ends can name (a vhost-user ring index has 8 bits).
const QUEUES_MAX: u16 = 256;

/// Requests of one queue worked on at once. Beyond this a queue waits: devices that profit from
/// more have more queues.
const DEPTH_MAX: u16 = 128;

/// Ring slots a disk asks for at most; when they are all taken, a request waits for one.
const OPERATIONS_MAX: u32 = 1024;

/// A disk's description. Plain data: it goes from the operator's options to the device process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BlockConfig {
    /// Whether writes are refused.
    pub read_only: bool,
    /// The logical block size that the guest is told, in bytes: a power of two from 512 on.
    pub block_size: u32,
    /// The disk's length in bytes. What does not fill a sector (or, with `direct`, an aligned
    /// block) at the end is not part of the disk.
    pub capacity: u64,
    /// Whether the file was opened with O_DIRECT.
    pub direct: bool,
    /// What O_DIRECT wants buffers, offsets and lengths to be multiples of, in bytes
    /// ([`measure`] tells); without meaning if not `direct`.
    pub direct_alignment: u32,
    /// What GET_ID answers: at most 20 bytes; none is an empty name.
    pub id: Option<String>,
    /// How many request queues there are: 1 to 256.
    pub queues: u16,
    /// The greatest size of a queue: a power of two from 4 to 1,024.
    pub queue_size: u16,
}

impl Default for BlockConfig {
    fn default() -> Self {
        Self {
            read_only: false,
            block_size: 512,
            capacity: 0,
            direct: false,
            direct_alignment: 512,
            id: None,
            // As many as a guest has processors, for QEMU's default of one queue each.
            queues: 16,
            queue_size: 256,
        }
    }
}

/// Why a disk cannot be as described.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BlockError {
    /// The block size is one that no guest takes.
    #[error("block size {0} is not a power of two from 512 to 65536")]
    BlockSize(u32),
    /// O_DIRECT cannot read or write single blocks.
    #[error("block size {block_size} is less than the {alignment} bytes that direct access needs")]
    DirectAlignment {
        /// The block size asked for.
        block_size: u32,
        /// What the file needs.
        alignment: u32,
    },
    /// The name is too long for GET_ID.
    #[error("id has {0} bytes, more than 20")]
    Id(usize),
    /// There are no queues, or more than can be named.
    #[error("{0} queues are not from 1 to 256")]
    Queues(u16),
    /// The queue size is not lawful.
    #[error("queue size {0} is not a power of two from 4 to 1024")]
    QueueSize(u16),
}

impl BlockConfig {
    /// Whether a disk can be like this.
    pub fn check(&self) -> Result<(), BlockError> {
        let Self {
            block_size,
            direct_alignment,
            queues,
            queue_size,
            ..
        } = *self;
        let sizes = BLOCK_SIZE_MIN..=BLOCK_SIZE_MAX;
        if !block_size.is_power_of_two() || !sizes.contains(&block_size) {
            return Err(BlockError::BlockSize(block_size));
        }
        let aligned = direct_alignment.is_power_of_two() && direct_alignment <= block_size;
        if self.direct && !aligned {
            return Err(BlockError::DirectAlignment {
                block_size,
                alignment: direct_alignment,
            });
        }
        match &self.id {
            Some(id) if id.len() > ID_SIZE => return Err(BlockError::Id(id.len())),
            Some(_) | None => {}
        }
        if !(1..=QUEUES_MAX).contains(&queues) {
            return Err(BlockError::Queues(queues));
        }
        let sizes = QUEUE_SIZE_MIN..=QUEUE_SIZE_MAX;
        if !queue_size.is_power_of_two() || !sizes.contains(&queue_size) {
            return Err(BlockError::QueueSize(queue_size));
        }
        Ok(())
    }

    /// The features of its own that this disk offers.
    pub(super) fn features(&self) -> u64 {
        let access = if self.read_only { F_RO } else { F_FLUSH };
        let queues = if self.queues > 1 { F_MQ } else { 0 };
        F_SEG_MAX | F_BLK_SIZE | access | queues
    }

    /// What requests are held to.
    pub(super) fn limits(&self) -> Limits {
        let granularity = u64::from(self.alignment()).max(SECTOR_SIZE);
        Limits {
            capacity: self.capacity - self.capacity % granularity,
            granularity,
            read_only: self.read_only,
        }
    }

    /// What the file wants addresses, offsets and lengths to be multiples of; 1 = nothing.
    pub(super) fn alignment(&self) -> u32 {
        if self.direct {
            self.direct_alignment
        } else {
            1
        }
    }

    /// How many requests of one queue are worked on at once.
    pub(super) fn depth(&self) -> usize {
        usize::from(self.queue_size.min(DEPTH_MAX))
    }

    /// How many operations are in flight at most: one for each request worked on.
    pub fn operations(&self) -> u32 {
        let depth = u32::from(self.queue_size.min(DEPTH_MAX));
        (u32::from(self.queues) * depth).min(OPERATIONS_MAX)
    }

    /// What GET_ID answers.
    pub(super) fn id_bytes(&self) -> [u8; ID_SIZE] {
        let mut bytes = [0; ID_SIZE];
        let id = self.id.as_deref().unwrap_or_default().as_bytes();
        bytes.iter_mut().zip(id).for_each(|(to, from)| *to = *from);
        bytes
    }

    /// The configuration space; what is not offered is zero (virtio 1.3, 5.2.4).
    pub(super) fn space(&self) -> [u8; CONFIG_SIZE] {
        let sectors = self.limits().capacity / SECTOR_SIZE;
        // A chain is as long as its queue at most; two of it are header and status.
        let seg_max = u32::from(self.queue_size.saturating_sub(2));
        let mut space = [0; CONFIG_SIZE];
        let mut put = |at: usize, bytes: &[u8]| space[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &sectors.to_le_bytes());
        put(12, &seg_max.to_le_bytes());
        put(20, &self.block_size.to_le_bytes());
        put(34, &self.queues.to_le_bytes());
        space
    }
}

/// What a file or block device says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Measure {
    /// Its length in bytes.
    pub capacity: u64,
    /// What O_DIRECT wants buffers, offsets and lengths to be multiples of; `None` if it cannot
    /// be opened so, or if the file system does not tell.
    pub direct_alignment: Option<u32>,
}

/// Measures an open file or block device. Its stream position moves.
pub fn measure(file: impl AsFd) -> io::Result<Measure> {
    // Seeking finds the length of block devices too, without an ioctl.
    let capacity = rustix::fs::seek(&file, SeekFrom::End(0))?;
    let statx = rustix::fs::statx(&file, c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN)?;
    let wanted = statx.stx_dio_mem_align.max(statx.stx_dio_offset_align);
    let told = statx.stx_mask & StatxFlags::DIOALIGN.bits() != 0 && wanted != 0;
    Ok(Measure {
        capacity,
        direct_alignment: told.then_some(wanted),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> BlockConfig {
        BlockConfig {
            capacity: 10_000,
            ..BlockConfig::default()
        }
    }

    fn u32_at(space: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(space[at..at + 4].try_into().unwrap())
    }

    #[test]
    fn the_space_tells_sectors_segments_block_size_and_queues() {
        let space = config().space();
        assert_eq!(space[..8], 19u64.to_le_bytes());
        assert_eq!(u32_at(&space, 12), 254);
        assert_eq!(u32_at(&space, 20), 512);
        assert_eq!(space[34..36], 16u16.to_le_bytes());
        let told = [0..8, 12..16, 20..24, 34..36];
        let rest = (0..CONFIG_SIZE).filter(|at| !told.iter().any(|range| range.contains(at)));
        assert!(rest.into_iter().all(|at| space[at] == 0));
    }

    #[test]
    fn direct_access_ends_at_the_last_whole_aligned_block() {
        let direct = BlockConfig {
            direct: true,
            direct_alignment: 4096,
            block_size: 4096,
            ..config()
        };
        assert_eq!(direct.check(), Ok(()));
        assert_eq!(direct.space()[..8], 16u64.to_le_bytes());
    }

    #[test]
    fn features_follow_the_description() {
        assert_eq!(config().features(), F_SEG_MAX | F_BLK_SIZE | F_FLUSH | F_MQ);
        let single = BlockConfig {
            read_only: true,
            queues: 1,
            ..config()
        };
        assert_eq!(single.features(), F_SEG_MAX | F_BLK_SIZE | F_RO);
    }

    #[test]
    fn operations_are_bounded_however_many_queues_there_are() {
        assert_eq!(config().operations(), 1024);
        let small = BlockConfig {
            queues: 2,
            queue_size: 16,
            ..config()
        };
        assert_eq!(small.operations(), 32);
    }

    #[test]
    fn values_out_of_range_are_named() {
        let check = |change: fn(&mut BlockConfig)| {
            let mut config = config();
            change(&mut config);
            config.check().unwrap_err()
        };
        assert_eq!(check(|c| c.block_size = 256), BlockError::BlockSize(256));
        assert_eq!(check(|c| c.block_size = 1536), BlockError::BlockSize(1536));
        assert_eq!(
            check(|c| c.block_size = 131_072),
            BlockError::BlockSize(131_072)
        );
        assert_eq!(check(|c| c.id = Some("x".repeat(21))), BlockError::Id(21));
        assert_eq!(check(|c| c.queues = 0), BlockError::Queues(0));
        assert_eq!(check(|c| c.queues = 257), BlockError::Queues(257));
        assert_eq!(check(|c| c.queue_size = 2), BlockError::QueueSize(2));
        assert_eq!(check(|c| c.queue_size = 96), BlockError::QueueSize(96));
        let unaligned = check(|c| (c.direct, c.direct_alignment) = (true, 4096));
        assert_eq!(
            unaligned,
            BlockError::DirectAlignment {
                block_size: 512,
                alignment: 4096
            }
        );
    }

    #[test]
    fn a_name_is_padded_with_nul() {
        assert_eq!(config().id_bytes(), [0; ID_SIZE]);
        let named = BlockConfig {
            id: Some("disk-1".into()),
            ..config()
        };
        assert_eq!(named.id_bytes(), *b"disk-1\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    }

    #[test]
    fn a_file_is_measured_by_its_length() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(12_345).unwrap();
        assert_eq!(measure(&file).unwrap().capacity, 12_345);
    }
}
