//! A virtio-blk driver (virtio 1.3, 5.2) with many requests in flight, for tests and figures; not a
//! block layer: no merging, no retries, no cache.

use std::time::Duration;

use crate::{
    Buffer, Builder, Error, FrontEnd, LIMIT, Token,
    message::{u32_at, u64_at},
};

/// Bytes in a sector, the unit of addresses and of the capacity.
pub const SECTOR: u64 = 512;
/// Length of the answer to "get id".
const ID_SIZE: u32 = 20;
/// Length of the request header.
const HEADER_SIZE: u32 = 16;
/// What stands in a status byte that the device did not write.
const UNWRITTEN: u8 = 0xee;

/// Feature bits of a block device.
pub mod feature {
    /// `size_max` is valid.
    pub const SIZE_MAX: u64 = 1 << 1;
    /// `seg_max` is valid.
    pub const SEG_MAX: u64 = 1 << 2;
    /// Read-only.
    pub const RO: u64 = 1 << 5;
    /// `blk_size` is valid.
    pub const BLK_SIZE: u64 = 1 << 6;
    /// Flush requests.
    pub const FLUSH: u64 = 1 << 9;
    /// The fields on the best transfers are valid.
    pub const TOPOLOGY: u64 = 1 << 10;
    /// The driver can write `writeback`.
    pub const CONFIG_WCE: u64 = 1 << 11;
    /// Several queues.
    pub const MQ: u64 = 1 << 12;
    /// Discard requests.
    pub const DISCARD: u64 = 1 << 13;
    /// Requests to make ranges zero.
    pub const WRITE_ZEROES: u64 = 1 << 14;
}

/// Request types.
pub mod kind {
    /// Read.
    pub const IN: u32 = 0;
    /// Write.
    pub const OUT: u32 = 1;
    /// Flush.
    pub const FLUSH: u32 = 4;
    /// Get the device's name.
    pub const GET_ID: u32 = 8;
    /// Give ranges back.
    pub const DISCARD: u32 = 11;
    /// Make ranges zero.
    pub const WRITE_ZEROES: u32 = 13;
}

/// The flag of a range to zero whose space may be given back.
pub const UNMAP: u32 = 1;

/// Where the cache mode is in the configuration space: 1 is writeback, 0 writethrough.
pub const WRITEBACK_AT: u32 = 32;

/// A range of [`kind::DISCARD`] or [`kind::WRITE_ZEROES`] as it is in memory.
pub fn range(sector: u64, sectors: u32, flags: u32) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&sector.to_le_bytes());
    bytes[8..12].copy_from_slice(&sectors.to_le_bytes());
    bytes[12..].copy_from_slice(&flags.to_le_bytes());
    bytes
}

/// The part of the configuration space that every block device has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// In sectors.
    pub capacity: u64,
    /// Most segments in a request (with `SEG_MAX`).
    pub seg_max: u32,
    /// Block size (with `BLK_SIZE`).
    pub blk_size: u32,
    /// Number of queues (with `MQ`).
    pub num_queues: u16,
}

/// A request that was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Request {
    slot: usize,
}

/// A driver with `depth` requests in flight on each queue.
#[derive(Debug)]
pub struct Block {
    front: FrontEnd,
    config: Config,
    depth: usize,
    data_size: u32,
    slots: Vec<Slot>,
}

/// Memory for one request, and the chain it is in.
#[derive(Clone, Copy, Debug)]
struct Slot {
    header: u64,
    data: u64,
    status: u64,
    chain: Option<Token>,
    length: u32,
}

/// A request that came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finished {
    /// Which request.
    pub request: Request,
    /// Its status byte: 0 is success.
    pub status: u8,
    /// Bytes that the device says it wrote, the status byte among them.
    pub written: u32,
}

impl Block {
    /// Starts a driver with room for `depth` requests of at most `data_size` bytes on each queue.
    /// The builder must give enough memory for that.
    pub fn start(builder: Builder, depth: usize, data_size: u32) -> Result<Self, Error> {
        Self::over(builder.start()?, depth, data_size)
    }

    /// Like [`Block::start`], over a front-end that runs.
    pub fn over(mut front: FrontEnd, depth: usize, data_size: u32) -> Result<Self, Error> {
        let config = read_config(&mut front)?;
        let count = depth * usize::from(front.ring_count());
        let slots = (0..count)
            .map(|_| Slot::new(&front, data_size))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            front,
            config,
            depth,
            data_size,
            slots,
        })
    }

    /// What the device says of itself.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The front-end below.
    pub fn front(&mut self) -> &mut FrontEnd {
        &mut self.front
    }

    /// The front-end below, for leaving.
    pub fn into_front(self) -> FrontEnd {
        self.front
    }

    /// Reads bytes at a byte offset (a multiple of the sector size).
    pub fn read(&mut self, offset: u64, into: &mut [u8]) -> Result<(), Error> {
        let size = usize::try_from(self.data_size).unwrap_or(usize::MAX);
        let mut at = offset;
        for piece in into.chunks_mut(size) {
            let request = self.send(0, kind::IN, at, length(piece)?)?;
            self.finish(0, request)?;
            self.front
                .memory()
                .read(self.slots[request.slot].data, piece)?;
            at += piece.len() as u64;
        }
        Ok(())
    }

    /// Writes bytes at a byte offset (a multiple of the sector size).
    pub fn write(&mut self, offset: u64, from: &[u8]) -> Result<(), Error> {
        let size = usize::try_from(self.data_size).unwrap_or(usize::MAX);
        let mut at = offset;
        for piece in from.chunks(size) {
            let request = self.send_write(0, at, piece)?;
            self.finish(0, request)?;
            at += piece.len() as u64;
        }
        Ok(())
    }

    /// Makes everything written so far durable.
    pub fn flush(&mut self) -> Result<(), Error> {
        let request = self.send(0, kind::FLUSH, 0, 0)?;
        self.finish(0, request)
    }

    /// Gives sectors back.
    pub fn discard(&mut self, sector: u64, sectors: u32) -> Result<(), Error> {
        let request = self.send_ranges(0, kind::DISCARD, &range(sector, sectors, 0))?;
        self.finish(0, request)
    }

    /// Makes sectors zero; `flags` may be [`UNMAP`].
    pub fn write_zeroes(&mut self, sector: u64, sectors: u32, flags: u32) -> Result<(), Error> {
        let request = self.send_ranges(0, kind::WRITE_ZEROES, &range(sector, sectors, flags))?;
        self.finish(0, request)
    }

    /// The device's name, at most 20 bytes, without trailing zeros.
    pub fn id(&mut self) -> Result<Vec<u8>, Error> {
        let request = self.send(0, kind::GET_ID, 0, ID_SIZE)?;
        self.finish(0, request)?;
        let mut id = vec![0; 20];
        self.front
            .memory()
            .read(self.slots[request.slot].data, &mut id)?;
        let end = id.iter().position(|byte| *byte == 0).unwrap_or(id.len());
        id.truncate(end);
        Ok(id)
    }

    /// Sends a read of `length` bytes without waiting, and without a kick: see [`Block::kick`].
    pub fn send_read(&mut self, queue: u16, offset: u64, length: u32) -> Result<Request, Error> {
        self.send(queue, kind::IN, offset, length)
    }

    /// Sends a write without waiting, and without a kick.
    pub fn send_write(&mut self, queue: u16, offset: u64, from: &[u8]) -> Result<Request, Error> {
        let slot = self.free_slot(queue)?;
        self.front.memory().write(self.slots[slot].data, from)?;
        self.send_in(slot, queue, kind::OUT, offset, length(from)?)
    }

    /// Sends ranges (see [`range`]) of a request of this kind, without waiting or a kick.
    pub fn send_ranges(&mut self, queue: u16, kind: u32, ranges: &[u8]) -> Result<Request, Error> {
        let slot = self.free_slot(queue)?;
        self.front.memory().write(self.slots[slot].data, ranges)?;
        self.send_in(slot, queue, kind, 0, length(ranges)?)
    }

    /// Sends any request whose data part (if `length` > 0) the device reads for [`kind::OUT`],
    /// [`kind::DISCARD`] and [`kind::WRITE_ZEROES`], and writes for all others.
    pub fn send(
        &mut self,
        queue: u16,
        kind: u32,
        offset: u64,
        length: u32,
    ) -> Result<Request, Error> {
        let slot = self.free_slot(queue)?;
        self.send_in(slot, queue, kind, offset, length)
    }

    /// Tells the device about what was sent.
    pub fn kick(&mut self, queue: u16) -> Result<bool, Error> {
        self.front.ring(queue).kick()
    }

    /// Waits for any request of a queue.
    pub fn wait(&mut self, queue: u16, limit: Duration) -> Result<Finished, Error> {
        let used = self.front.ring(queue).wait_used(limit)?;
        let slot = self
            .own_slots(queue)
            .find(|slot| self.slots[*slot].chain == Some(used.token))
            .ok_or(Error::Misuse(
                "a chain came back that this driver did not send",
            ))?;
        self.slots[slot].chain = None;
        let mut status = [0];
        self.front
            .memory()
            .read(self.slots[slot].status, &mut status)?;
        Ok(Finished {
            request: Request { slot },
            status: status[0],
            written: used.written,
        })
    }

    /// The data that a finished read brought. Valid until the next request is sent.
    pub fn data(&self, request: Request) -> Result<Vec<u8>, Error> {
        let slot = &self.slots[request.slot];
        let mut data = vec![0; usize::try_from(slot.length).unwrap_or_default()];
        self.front.memory().read(slot.data, &mut data)?;
        Ok(data)
    }

    fn finish(&mut self, queue: u16, request: Request) -> Result<(), Error> {
        self.kick(queue)?;
        let finished = self.wait(queue, LIMIT)?;
        match finished.status {
            0 if finished.request == request => Ok(()),
            0 => Err(Error::Misuse("another request is in flight on this queue")),
            status => Err(Error::Status { status }),
        }
    }

    fn own_slots(&self, queue: u16) -> std::ops::Range<usize> {
        let first = usize::from(queue) * self.depth;
        first..first + self.depth
    }

    fn free_slot(&self, queue: u16) -> Result<usize, Error> {
        let mut slots = self.own_slots(queue);
        slots
            .find(|slot| self.slots[*slot].chain.is_none())
            .ok_or(Error::Misuse(
                "as many requests are in flight as the driver was made for",
            ))
    }

    fn send_in(
        &mut self,
        slot: usize,
        queue: u16,
        kind: u32,
        offset: u64,
        length: u32,
    ) -> Result<Request, Error> {
        if length > self.data_size.max(ID_SIZE) {
            return Err(Error::Misuse(
                "longer than the requests that the driver was made for",
            ));
        }
        let Slot {
            header,
            data,
            status,
            ..
        } = self.slots[slot];
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&kind.to_le_bytes());
        bytes[8..].copy_from_slice(&(offset / SECTOR).to_le_bytes());
        self.front.memory().write(header, &bytes)?;
        self.front.memory().write(status, &[UNWRITTEN])?;
        let (head, tail) = (Buffer::new(header, HEADER_SIZE), Buffer::new(status, 1));
        let middle = Buffer::new(data, length);
        let ring = self.front.ring(queue);
        let token = match (length, kind) {
            (0, _) => ring.add(&[head], &[tail])?,
            (_, kind::OUT | kind::DISCARD | kind::WRITE_ZEROES) => {
                ring.add(&[head, middle], &[tail])?
            }
            (_, _) => ring.add(&[head], &[middle, tail])?,
        };
        self.slots[slot].chain = Some(token);
        self.slots[slot].length = length;
        Ok(Request { slot })
    }
}

impl Slot {
    fn new(front: &FrontEnd, data_size: u32) -> Result<Self, Error> {
        let memory = front.memory();
        Ok(Self {
            header: memory.allocate(HEADER_SIZE.into(), 8)?,
            data: memory.allocate(data_size.max(ID_SIZE).into(), 512)?,
            status: memory.allocate(1, 1)?,
            chain: None,
            length: 0,
        })
    }
}

fn length(bytes: &[u8]) -> Result<u32, Error> {
    u32::try_from(bytes.len()).map_err(|_| Error::Misuse("a request above 4 GiB"))
}

fn read_config(front: &mut FrontEnd) -> Result<Config, Error> {
    // Up to and with num_queues, which every block device has (5.2.4).
    let space = front.connection().config(0, 36)?;
    let queues = space
        .get(34..36)
        .map_or([0; 2], |bytes| [bytes[0], bytes[1]]);
    Ok(Config {
        capacity: u64_at(&space, 0).unwrap_or_default(),
        seg_max: u32_at(&space, 12).unwrap_or_default(),
        blk_size: u32_at(&space, 20).unwrap_or_default(),
        num_queues: u16::from_le_bytes(queues),
    })
}
