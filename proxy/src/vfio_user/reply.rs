//! What we say back. Not when: one reply to each command, in their order.

use std::ops::Range;

use rustix::io::Errno;

use super::header::Header;
use super::request::DmaUnmap;

/// `VFIO_DEVICE_FLAGS_RESET | VFIO_DEVICE_FLAGS_PCI`.
const DEVICE_FLAGS: u32 = 1 << 0 | 1 << 1;
const REGION_READ: u32 = 1 << 0;
const REGION_WRITE: u32 = 1 << 1;
const REGION_MMAP: u32 = 1 << 2;
const REGION_CAPS: u32 = 1 << 3;
const REGION_INFO_SIZE: usize = 32;
/// `VFIO_REGION_INFO_CAP_SPARSE_MMAP`, with one area.
const SPARSE_MMAP: u16 = 1;
const SPARSE_MMAP_SIZE: usize = 32;
/// `VFIO_IRQ_INFO_EVENTFD`.
const IRQ_EVENTFD: u32 = 1 << 0;
/// `VFIO_IRQ_INFO_NORESIZE` is not ours: a vector can be assigned at any time.
const IRQ_NONE: u32 = 0;

/// An answer to a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply<'a> {
    /// To what is answered by a header alone.
    Done,
    /// To VERSION; ours is 0.0.
    Version {
        /// The version data, with its NUL, or nothing.
        data: &'a [u8],
    },
    /// To DMA_UNMAP.
    Unmapped(DmaUnmap),
    /// To DEVICE_GET_INFO.
    DeviceInfo {
        /// How many regions there are.
        regions: u32,
        /// How many types of interrupts.
        interrupts: u32,
    },
    /// To DEVICE_GET_REGION_INFO.
    RegionInfo {
        /// Which region.
        index: u32,
        /// What it is.
        info: RegionInfo,
        /// Bytes that the reply's payload may have.
        room: usize,
    },
    /// To DEVICE_GET_IRQ_INFO.
    IrqInfo {
        /// Which type.
        index: u32,
        /// How many of it.
        count: u32,
    },
    /// To REGION_READ and REGION_WRITE.
    Access {
        /// Which region.
        region: u32,
        /// Where in it.
        offset: u64,
        /// How many bytes were moved.
        count: usize,
        /// What was read; nothing of a write.
        data: &'a [u8],
    },
}

/// A region as its client sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RegionInfo {
    /// Its bytes; none where there is no such region.
    pub size: u64,
    /// What of it is mapped, from the same offset of the file that comes along. The rest is
    /// trapped.
    pub mapped: Option<Range<u64>>,
}

impl RegionInfo {
    /// Bytes of the whole reply's payload.
    fn reply_size(&self) -> usize {
        match self.mapped {
            Some(_) => REGION_INFO_SIZE + SPARSE_MMAP_SIZE,
            None => REGION_INFO_SIZE,
        }
    }

    /// Whether a reply with `room` for its payload takes the region's file along.
    pub fn sends_file(&self, room: usize) -> bool {
        self.mapped.is_some() && room >= self.reply_size()
    }

    fn encode(&self, index: u32, room: usize, into: &mut Vec<u8>) {
        let access = match self.size {
            0 => 0,
            _ => REGION_READ | REGION_WRITE,
        };
        let (flags, cap_offset) = match self.mapped {
            Some(_) => (access | REGION_MMAP | REGION_CAPS, REGION_INFO_SIZE),
            None => (access, 0),
        };
        // `argsz` says what there is, also where there is no room for it: then the client asks
        // again.
        into.extend(small(self.reply_size()).to_ne_bytes());
        into.extend(flags.to_ne_bytes());
        into.extend(index.to_ne_bytes());
        into.extend(small(cap_offset).to_ne_bytes());
        into.extend(self.size.to_ne_bytes());
        into.extend(0_u64.to_ne_bytes());
        let Some(mapped) = self.mapped.as_ref().filter(|_| self.sends_file(room)) else {
            return;
        };
        into.extend(SPARSE_MMAP.to_ne_bytes());
        into.extend(1_u16.to_ne_bytes());
        into.extend(0_u32.to_ne_bytes());
        into.extend(1_u32.to_ne_bytes());
        into.extend(0_u32.to_ne_bytes());
        into.extend(mapped.start.to_ne_bytes());
        into.extend((mapped.end - mapped.start).to_ne_bytes());
    }
}

/// Puts the whole reply to `header` into `into`, and nothing else.
pub fn encode(header: &Header, reply: &Reply<'_>, into: &mut Vec<u8>) {
    into.clear();
    into.extend(header.reply(0, None));
    match reply {
        Reply::Done => {}
        Reply::Version { data } => {
            into.extend([0; 4]);
            into.extend_from_slice(data);
        }
        Reply::Unmapped(DmaUnmap {
            first: _,
            last: _,
            echo,
        }) => into.extend(echo),
        Reply::DeviceInfo {
            regions,
            interrupts,
        } => words(into, [16, DEVICE_FLAGS, *regions, *interrupts]),
        Reply::RegionInfo { index, info, room } => info.encode(*index, *room, into),
        Reply::IrqInfo { index, count } => {
            let flags = if *count == 0 { IRQ_NONE } else { IRQ_EVENTFD };
            words(into, [16, flags, *index, *count]);
        }
        Reply::Access {
            region,
            offset,
            count,
            data,
        } => {
            into.extend(offset.to_ne_bytes());
            into.extend(region.to_ne_bytes());
            into.extend(small(*count).to_ne_bytes());
            into.extend_from_slice(data);
        }
    }
    let payload = into.len() - super::HEADER_SIZE;
    into[..super::HEADER_SIZE].copy_from_slice(&header.reply(payload, None));
}

/// Puts the reply that says `errno` into `into`, and nothing else.
pub fn encode_error(header: &Header, errno: Errno, into: &mut Vec<u8>) {
    into.clear();
    into.extend(header.reply(0, Some(errno.raw_os_error().unsigned_abs())));
}

fn words<const N: usize>(into: &mut Vec<u8>, words: [u32; N]) {
    into.extend(words.iter().flat_map(|word| word.to_ne_bytes()));
}

/// A size that we made ourselves and that is small by construction.
fn small(size: usize) -> u32 {
    u32::try_from(size).expect("a reply is short")
}
