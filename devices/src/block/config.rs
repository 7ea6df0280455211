//! What a disk is: its description as the operator gives it, and what can be wrong with that. Not
//! what a guest sees of it, and not how requests are carried out.

use serde::{Deserialize, Serialize};

use super::request::ID_SIZE;

/// The least logical block size: a sector.
const BLOCK_SIZE_MIN: u32 = 512;

/// The greatest logical block size: Linux guests take no greater one.
const BLOCK_SIZE_MAX: u32 = 65_536;

/// The greatest physical block, and the coarsest direct access: two of it fit a bounce buffer.
const PHYSICAL_BLOCK_SIZE_MAX: u32 = 65_536;

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
    /// Whether the guest can give space back to the file system.
    pub sparse: bool,
    /// Whether a write is durable when it is complete, until the driver chooses otherwise.
    pub write_through: bool,
    /// The logical block size that the guest is told, in bytes: a power of two from 512 on.
    pub block_size: u32,
    /// What the file writes as a whole, in bytes ([`measure`] tells): a power of two, not less than
    /// `block_size`. Guests lay out their data by it.
    ///
    /// [`measure`]: super::measure()
    pub physical_block_size: u32,
    /// The file's length in bytes. What does not fill a block (or, with `direct`, an aligned
    /// block) at the end is not part of the disk.
    pub capacity: u64,
    /// Whether the file was opened with O_DIRECT.
    pub direct: bool,
    /// What O_DIRECT wants buffers, offsets and lengths to be multiples of, in bytes
    /// ([`measure`] tells); without meaning if not `direct`. Where it is more than a sector, a
    /// guest's write to a part of so many bytes reads and writes them all.
    ///
    /// [`measure`]: super::measure()
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
            sparse: true,
            write_through: false,
            block_size: 512,
            physical_block_size: 512,
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
    /// Physical blocks are no whole number of logical ones.
    #[error("physical block size {0} is not a power of two from the block size to 65536")]
    PhysicalBlockSize(u32),
    /// O_DIRECT wants what no bounce buffer has.
    #[error("direct access in blocks of {0} bytes, not a power of two up to 65536")]
    DirectAlignment(u32),
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
            physical_block_size,
            direct_alignment,
            queues,
            queue_size,
            ..
        } = *self;
        let sizes = BLOCK_SIZE_MIN..=BLOCK_SIZE_MAX;
        if !block_size.is_power_of_two() || !sizes.contains(&block_size) {
            return Err(BlockError::BlockSize(block_size));
        }
        let sizes = block_size..=PHYSICAL_BLOCK_SIZE_MAX;
        if !physical_block_size.is_power_of_two() || !sizes.contains(&physical_block_size) {
            return Err(BlockError::PhysicalBlockSize(physical_block_size));
        }
        let aligned =
            direct_alignment.is_power_of_two() && direct_alignment <= PHYSICAL_BLOCK_SIZE_MAX;
        if self.direct && !aligned {
            return Err(BlockError::DirectAlignment(direct_alignment));
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

    /// The length of the disk on a file of `length` bytes: whole blocks.
    pub(super) fn whole_blocks(&self, length: u64) -> u64 {
        let block = u64::from(self.alignment().max(self.block_size));
        length - length % block
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

    #[test]
    fn a_disk_ends_at_the_last_whole_block() {
        assert_eq!(config().whole_blocks(10_000), 19 * 512);
        let direct = BlockConfig {
            direct: true,
            direct_alignment: 4096,
            ..config()
        };
        assert_eq!(direct.check(), Ok(()));
        assert_eq!(direct.whole_blocks(10_000), 8192);
        let coarse = BlockConfig {
            block_size: 4096,
            ..config()
        };
        assert_eq!(coarse.whole_blocks(4095), 0);
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
        let unaligned = check(|c| (c.direct, c.direct_alignment) = (true, 131_072));
        assert_eq!(unaligned, BlockError::DirectAlignment(131_072));
        let small = check(|c| (c.block_size, c.physical_block_size) = (4096, 512));
        assert_eq!(small, BlockError::PhysicalBlockSize(512));
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
}
