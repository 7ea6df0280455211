//! From payload and descriptors to a [`Request`]: every check that needs nothing but the message
//! itself. Whether the region exists, or the range is mapped already, is not asked here.

use std::os::fd::OwnedFd;

use super::error::RequestError;
use super::header::{CommandName, Header, PAYLOAD_MAX};
use super::version::Proposal;

/// Bytes that one REGION_READ or REGION_WRITE moves. QEMU never moves more than 8 of a BAR or the
/// whole of a configuration space; one page leaves room.
pub const DATA_MAX: usize = 4096;

/// Descriptors on one message: the most that QEMU lets a server ask for.
pub const DESCRIPTORS_MAX: usize = 16;

/// The commands that we speak, with their numbers on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
#[expect(missing_docs, reason = "the names are the specification's")]
pub enum Command {
    Version = 1,
    DmaMap = 2,
    DmaUnmap = 3,
    DeviceGetInfo = 4,
    DeviceGetRegionInfo = 5,
    DeviceGetIrqInfo = 7,
    DeviceSetIrqs = 8,
    RegionRead = 9,
    RegionWrite = 10,
    DeviceReset = 13,
}

impl Command {
    const ALL: [Self; 10] = [
        Self::Version,
        Self::DmaMap,
        Self::DmaUnmap,
        Self::DeviceGetInfo,
        Self::DeviceGetRegionInfo,
        Self::DeviceGetIrqInfo,
        Self::DeviceSetIrqs,
        Self::RegionRead,
        Self::RegionWrite,
        Self::DeviceReset,
    ];

    /// The command with this number, if we speak it.
    pub fn from_wire(number: u16) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|command| *command as u16 == number)
    }
}

/// A command of the client's.
#[derive(Debug)]
pub enum Request<'a> {
    /// VERSION, of major version 0.
    Version {
        /// The minor version that it proposes.
        minor: u16,
        /// What it can do.
        proposal: Proposal,
        /// Bytes of its version data.
        data_size: usize,
    },
    /// DMA_MAP.
    DmaMap(DmaMap),
    /// DMA_UNMAP.
    DmaUnmap(DmaUnmap),
    /// DEVICE_GET_INFO.
    DeviceInfo,
    /// DEVICE_GET_REGION_INFO.
    RegionInfo {
        /// Which region.
        index: u32,
        /// Bytes that the reply's payload may have.
        room: usize,
    },
    /// DEVICE_GET_IRQ_INFO.
    IrqInfo {
        /// Which type of interrupt.
        index: u32,
    },
    /// DEVICE_SET_IRQS.
    SetIrqs(SetInterrupts<'a>),
    /// REGION_READ.
    RegionRead {
        /// Which region.
        region: u32,
        /// Where in it.
        offset: u64,
        /// Bytes, from 1 to [`DATA_MAX`].
        count: usize,
    },
    /// REGION_WRITE.
    RegionWrite {
        /// Which region.
        region: u32,
        /// Where in it.
        offset: u64,
        /// What: 1 to [`DATA_MAX`] bytes.
        data: &'a [u8],
    },
    /// DEVICE_RESET.
    Reset,
}

/// Memory that the function may use. Its ends do not wrap.
#[derive(Debug)]
pub struct DmaMap {
    /// Whether the function may read.
    pub readable: bool,
    /// Whether the function may write.
    pub writable: bool,
    /// The address of the first byte, as the function says it.
    pub address: u64,
    /// How many bytes, at least one.
    pub size: u64,
    /// Where in the file it begins.
    pub offset: u64,
    /// The file; without one the function cannot reach this memory.
    pub file: Option<OwnedFd>,
}

/// Memory that the function must no longer use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DmaUnmap {
    /// The first address.
    pub first: u64,
    /// The last address, for QEMU unmaps up to the end of all addresses.
    pub last: u64,
    /// The fields as they came, which the reply repeats.
    pub echo: [u8; 24],
}

/// What is to become of interrupts.
#[derive(Debug)]
pub struct SetInterrupts<'a> {
    /// Which type.
    pub index: u32,
    /// The first.
    pub start: u32,
    /// How many. The sum does not wrap.
    pub count: u32,
    /// What is to be done with them.
    pub action: InterruptAction<'a>,
}

/// What is to be done with interrupts.
#[derive(Debug)]
pub enum InterruptAction<'a> {
    /// Each is told of by its descriptor from now on. As many as there are interrupts.
    Assign(Vec<OwnedFd>),
    /// They are told of by nothing.
    Unassign,
    /// All of the type are told of by nothing; start and count are 0.
    DisableAll,
    /// They are to be told of now, whatever the function thinks.
    Trigger(Which<'a>),
}

/// Some of a range of interrupts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which<'a> {
    /// All.
    All,
    /// Those whose byte is not zero. As many bytes as there are interrupts.
    Marked(&'a [u8]),
}

/// Reads a command's payload. On an error all descriptors are closed.
///
/// # Errors
///
/// When it is none that we speak, or not as the specification has it.
pub fn parse<'a>(
    header: &Header,
    payload: &'a [u8],
    descriptors: Vec<OwnedFd>,
) -> Result<Request<'a>, RequestError> {
    let name = header.name();
    let Some(command) = header.command() else {
        return Err(RequestError::Unsupported(name));
    };
    let fields = Fields { name, payload };
    if payload.len() > PAYLOAD_MAX {
        let (command, size) = (name, payload.len());
        return Err(RequestError::Oversized { command, size });
    }
    match command {
        Command::DmaMap => return dma_map(&fields, descriptors),
        Command::DeviceSetIrqs => return set_irqs(&fields, descriptors),
        Command::Version
        | Command::DmaUnmap
        | Command::DeviceGetInfo
        | Command::DeviceGetRegionInfo
        | Command::DeviceGetIrqInfo
        | Command::RegionRead
        | Command::RegionWrite
        | Command::DeviceReset => fields.descriptors(&descriptors, 0)?,
    }
    match command {
        Command::Version => version(&fields),
        Command::DmaUnmap => dma_unmap(&fields),
        Command::DeviceGetInfo => {
            fields.room(16, 16)?;
            Ok(Request::DeviceInfo)
        }
        Command::DeviceGetRegionInfo => Ok(Request::RegionInfo {
            room: fields.room(32, 32)?,
            index: fields.u32(8),
        }),
        Command::DeviceGetIrqInfo => {
            fields.room(16, 16)?;
            Ok(Request::IrqInfo {
                index: fields.u32(8),
            })
        }
        Command::RegionRead => region_read(&fields),
        Command::RegionWrite => region_write(&fields),
        Command::DeviceReset => {
            fields.exactly(0)?;
            Ok(Request::Reset)
        }
        Command::DmaMap | Command::DeviceSetIrqs => Err(RequestError::Unsupported(name)),
    }
}

/// `{ major, minor: u16, data… }`.
fn version<'a>(fields: &Fields<'a>) -> Result<Request<'a>, RequestError> {
    fields.at_least(4)?;
    let major = fields.u16(0);
    if major != 0 {
        return Err(fields.wrong("the major version", u64::from(major), "and we speak 0"));
    }
    let data = &fields.payload[4..];
    Ok(Request::Version {
        minor: fields.u16(2),
        proposal: Proposal::parse(data)?,
        data_size: data.len(),
    })
}

const DMA_READABLE: u32 = 1 << 0;
const DMA_WRITABLE: u32 = 1 << 1;

/// `{ argsz, flags: u32, offset, address, size: u64 }`, with a descriptor if there is a file.
fn dma_map<'a>(
    fields: &Fields<'a>,
    mut descriptors: Vec<OwnedFd>,
) -> Result<Request<'a>, RequestError> {
    fields.exactly(32)?;
    if descriptors.len() > 1 {
        fields.descriptors(&descriptors, 1)?;
    }
    let flags = fields.u32(4);
    let (offset, address, size) = (fields.u64(8), fields.u64(16), fields.u64(24));
    if flags & !(DMA_READABLE | DMA_WRITABLE) != 0 {
        return Err(fields.wrong("flags", u64::from(flags), "more than read and write"));
    }
    if size == 0 {
        return Err(fields.wrong("size", size, "and nothing cannot be mapped"));
    }
    if address.checked_add(size - 1).is_none() {
        return Err(fields.wrong("address", address, "and its end wraps"));
    }
    if offset.checked_add(size).is_none() {
        return Err(fields.wrong("offset", offset, "and its end wraps"));
    }
    Ok(Request::DmaMap(DmaMap {
        readable: flags & DMA_READABLE != 0,
        writable: flags & DMA_WRITABLE != 0,
        address,
        size,
        offset,
        file: descriptors.pop(),
    }))
}

/// `VFIO_DMA_UNMAP_FLAG_ALL`: address and size are zero and mean everything.
const UNMAP_ALL: u32 = 1 << 1;

/// `{ argsz, flags: u32, address, size: u64 }`.
fn dma_unmap<'a>(fields: &Fields<'a>) -> Result<Request<'a>, RequestError> {
    fields.exactly(24)?;
    let flags = fields.u32(4);
    let (address, size) = (fields.u64(8), fields.u64(16));
    let (first, last) = match flags {
        0 if size == 0 => return Err(fields.wrong("size", size, "and flags say nothing of all")),
        0 => match address.checked_add(size - 1) {
            Some(last) => (address, last),
            None => return Err(fields.wrong("address", address, "and its end wraps")),
        },
        UNMAP_ALL if (address, size) == (0, 0) => (0, u64::MAX),
        UNMAP_ALL => return Err(fields.wrong("size", size, "where flags say all")),
        _ => return Err(fields.wrong("flags", u64::from(flags), "none that we know")),
    };
    let mut echo = [0; 24];
    echo.copy_from_slice(fields.payload);
    Ok(Request::DmaUnmap(DmaUnmap { first, last, echo }))
}

const IRQ_DATA_NONE: u32 = 1 << 0;
const IRQ_DATA_BOOL: u32 = 1 << 1;
const IRQ_DATA_EVENTFD: u32 = 1 << 2;
const IRQ_ACTION_TRIGGER: u32 = 1 << 5;
const IRQ_HEADER: usize = 20;

/// `{ argsz, flags, index, start, count: u32, data… }`, with descriptors if flags say so. We have
/// nothing that can be masked, so the only action is the trigger.
fn set_irqs<'a>(
    fields: &Fields<'a>,
    descriptors: Vec<OwnedFd>,
) -> Result<Request<'a>, RequestError> {
    fields.at_least(IRQ_HEADER)?;
    let (flags, index) = (fields.u32(4), fields.u32(8));
    let (start, count) = (fields.u32(12), fields.u32(16));
    if start.checked_add(count).is_none() {
        return Err(fields.wrong("start", u64::from(start), "and its end wraps"));
    }
    let data = &fields.payload[IRQ_HEADER..];
    let data_bytes = match flags & !IRQ_ACTION_TRIGGER {
        IRQ_DATA_BOOL => usize::try_from(count).unwrap_or(usize::MAX),
        _ => 0,
    };
    fields.exactly(IRQ_HEADER.saturating_add(data_bytes))?;
    if flags != IRQ_DATA_EVENTFD | IRQ_ACTION_TRIGGER {
        fields.descriptors(&descriptors, 0)?;
    }
    let action = match flags.checked_sub(IRQ_ACTION_TRIGGER) {
        Some(IRQ_DATA_EVENTFD) if descriptors.is_empty() => InterruptAction::Unassign,
        Some(IRQ_DATA_EVENTFD) => {
            fields.descriptors(&descriptors, usize::try_from(count).unwrap_or(usize::MAX))?;
            InterruptAction::Assign(descriptors)
        }
        Some(IRQ_DATA_NONE) if (start, count) == (0, 0) => InterruptAction::DisableAll,
        Some(IRQ_DATA_NONE) => InterruptAction::Trigger(Which::All),
        Some(IRQ_DATA_BOOL) => InterruptAction::Trigger(Which::Marked(data)),
        _ => return Err(fields.wrong("flags", u64::from(flags), "no action of ours with data")),
    };
    Ok(Request::SetIrqs(SetInterrupts {
        index,
        start,
        count,
        action,
    }))
}

/// `{ offset: u64, region, count: u32 }`.
fn region_read<'a>(fields: &Fields<'a>) -> Result<Request<'a>, RequestError> {
    fields.exactly(16)?;
    let (offset, region, count) = fields.access()?;
    Ok(Request::RegionRead {
        region,
        offset,
        count,
    })
}

/// The same, with the data behind it.
fn region_write<'a>(fields: &Fields<'a>) -> Result<Request<'a>, RequestError> {
    fields.at_least(16)?;
    let (offset, region, count) = fields.access()?;
    fields.exactly(16 + count)?;
    Ok(Request::RegionWrite {
        region,
        offset,
        data: &fields.payload[16..],
    })
}

/// A payload. Fields are read only where its size was checked.
struct Fields<'a> {
    name: CommandName,
    payload: &'a [u8],
}

impl Fields<'_> {
    fn u16(&self, at: usize) -> u16 {
        u16::from_ne_bytes(self.array(at))
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from_ne_bytes(self.array(at))
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from_ne_bytes(self.array(at))
    }

    fn array<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut bytes = [0; N];
        bytes.copy_from_slice(&self.payload[at..at + N]);
        bytes
    }

    fn at_least(&self, expected: usize) -> Result<(), RequestError> {
        match self.payload.len() < expected {
            true => Err(self.size(expected)),
            false => Ok(()),
        }
    }

    fn exactly(&self, expected: usize) -> Result<(), RequestError> {
        match self.payload.len() == expected {
            true => Ok(()),
            false => Err(self.size(expected)),
        }
    }

    fn size(&self, expected: usize) -> RequestError {
        RequestError::PayloadSize {
            command: self.name,
            size: self.payload.len(),
            expected,
        }
    }

    /// A payload of `size` bytes that begins with `argsz`, which is at least `least`.
    fn room(&self, size: usize, least: usize) -> Result<usize, RequestError> {
        self.exactly(size)?;
        let argsz = self.u32(0);
        match usize::try_from(argsz) {
            Ok(room) if room >= least => Ok(room),
            _ => Err(self.wrong("argsz", u64::from(argsz), "too little for any reply")),
        }
    }

    /// Offset, region and count of an access, whose end does not wrap.
    fn access(&self) -> Result<(u64, u32, usize), RequestError> {
        let (offset, region, count) = (self.u64(0), self.u32(8), self.u32(12));
        let bytes = usize::try_from(count).unwrap_or(usize::MAX);
        if !(1..=DATA_MAX).contains(&bytes) {
            return Err(self.wrong("count", u64::from(count), "not from 1 to 4096"));
        }
        if offset.checked_add(u64::from(count)).is_none() {
            return Err(self.wrong("offset", offset, "and its end wraps"));
        }
        Ok((offset, region, bytes))
    }

    fn descriptors(&self, descriptors: &[OwnedFd], expected: usize) -> Result<(), RequestError> {
        match descriptors.len() == expected {
            true => Ok(()),
            false => Err(RequestError::Descriptors {
                command: self.name,
                count: descriptors.len(),
                expected,
            }),
        }
    }

    fn wrong(&self, field: &'static str, value: u64, rule: &'static str) -> RequestError {
        RequestError::Value {
            command: self.name,
            field,
            value,
            rule,
        }
    }
}
