//! From payload and descriptors to a [`Request`]: every check that needs nothing but the message
//! itself. Whether the ring exists, or the feature was agreed upon, is not asked here.

use std::os::fd::OwnedFd;

use vudev_executor::CallTarget;
use vudev_virtio::{Region, RegionLayout};

use super::code::{Code, MessageName};
use super::error::MessageError;
use super::header::Header;
use super::resources::{BackendChannel, Descriptors, MemoryFile, Resources};

/// Regions that SET_MEM_TABLE may carry (spec: "no more than 8 regions").
pub const MEMORY_TABLE_REGIONS_MAX: usize = 8;

/// Bytes of configuration space that one message may read or write, and where that space ends for
/// the protocol (`VHOST_USER_MAX_CONFIG_SIZE` of every front-end).
pub const CONFIG_SIZE_MAX: usize = 256;

/// Bytes of a region on the wire: four 64-bit fields.
pub(super) const REGION_SIZE: usize = 32;

/// Bytes before the contents of a configuration message: offset, size, flags.
pub(super) const CONFIG_HEADER_SIZE: usize = 12;

/// The ring's index in the messages that carry a descriptor (spec, "A vring file descriptor").
const INDEX_MASK: u64 = 0xff;
/// The bit of these messages that says that no descriptor comes along.
const NO_DESCRIPTOR: u64 = 0x100;

/// The only flag of SET_VRING_ADDR that the spec knows is the log's, and we have no log.
const NO_LOG: &str = "a dirty log is not supported";

/// A request, by the family that handles it. `M` is what a memory region comes as: described by its
/// file straight from the codec, mapped when the transport hands it on.
#[derive(Debug)]
pub enum Request<M = Region> {
    /// What both sides can do.
    Feature(FeatureRequest),
    /// Who uses the device.
    Lifecycle(LifecycleRequest),
    /// The guest's memory.
    Memory(MemoryRequest<M>),
    /// One ring. The index is whatever the front-end says; it may be none of the device's.
    Ring {
        /// The ring.
        index: u16,
        /// What to do with it.
        request: RingRequest,
    },
    /// The device's configuration space.
    Config(ConfigRequest),
    /// SET_BACKEND_REQ_FD: what we may send on without being asked.
    BackendChannel(BackendChannel),
}

/// What both sides can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FeatureRequest {
    /// GET_FEATURES.
    Features,
    /// SET_FEATURES.
    SetFeatures(u64),
    /// GET_PROTOCOL_FEATURES.
    ProtocolFeatures,
    /// SET_PROTOCOL_FEATURES.
    SetProtocolFeatures(u64),
    /// GET_QUEUE_NUM.
    QueueCount,
}

/// Who uses the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LifecycleRequest {
    /// SET_OWNER.
    SetOwner,
    /// RESET_OWNER.
    ResetOwner,
    /// RESET_DEVICE.
    ResetDevice,
}

/// The guest's memory.
#[derive(Debug)]
pub enum MemoryRequest<M> {
    /// GET_MAX_MEM_SLOTS.
    Slots,
    /// SET_MEM_TABLE: these regions and no others.
    SetTable(Vec<M>),
    /// ADD_MEM_REG.
    Add(M),
    /// REM_MEM_REG. The file's offset in it means nothing.
    Remove(RegionLayout),
}

/// What to do with a ring.
#[derive(Debug)]
pub enum RingRequest {
    /// SET_VRING_NUM: a power of two.
    SetSize(u16),
    /// SET_VRING_ADDR.
    SetAddresses(UserAddresses),
    /// SET_VRING_BASE: the next available index, free-running modulo 65536, whatever the size.
    SetBase(u16),
    /// GET_VRING_BASE.
    Base,
    /// SET_VRING_KICK. `None`: the ring is to be polled.
    SetKick(Option<OwnedFd>),
    /// SET_VRING_CALL. `None`: the driver polls.
    SetCall(Option<CallTarget>),
    /// SET_VRING_ERR.
    SetError(Option<CallTarget>),
    /// SET_VRING_ENABLE.
    Enable(bool),
}

/// Where a ring's three parts are in the address space of the front-end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UserAddresses {
    /// The descriptor table.
    pub descriptors: u64,
    /// The available ring ("driver area").
    pub available: u64,
    /// The used ring ("device area").
    pub used: u64,
}

/// The device's configuration space. Offset and length are within [`CONFIG_SIZE_MAX`]; the device's
/// own may be shorter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConfigRequest {
    /// GET_CONFIG.
    Read {
        /// Where.
        offset: u16,
        /// How many bytes.
        length: u16,
        /// Flags, to be repeated in the reply.
        flags: u32,
    },
    /// SET_CONFIG.
    Write {
        /// Where.
        offset: u16,
        /// What.
        bytes: Vec<u8>,
    },
}

impl<M> Request<M> {
    /// Turns every memory region that the request carries from `M` into `N`.
    pub fn map_memory<N, E>(self, map: impl FnMut(M) -> Result<N, E>) -> Result<Request<N>, E> {
        Ok(match self {
            Self::Feature(request) => Request::Feature(request),
            Self::Lifecycle(request) => Request::Lifecycle(request),
            Self::Memory(request) => Request::Memory(request.map_memory(map)?),
            Self::Ring { index, request } => Request::Ring { index, request },
            Self::Config(request) => Request::Config(request),
            Self::BackendChannel(channel) => Request::BackendChannel(channel),
        })
    }
}

impl<M> MemoryRequest<M> {
    fn map_memory<N, E>(
        self,
        mut map: impl FnMut(M) -> Result<N, E>,
    ) -> Result<MemoryRequest<N>, E> {
        Ok(match self {
            Self::Slots => MemoryRequest::Slots,
            Self::SetTable(regions) => {
                MemoryRequest::SetTable(regions.into_iter().map(map).collect::<Result<_, _>>()?)
            }
            Self::Add(region) => MemoryRequest::Add(map(region)?),
            Self::Remove(layout) => MemoryRequest::Remove(layout),
        })
    }
}

/// Reads a message's contents. On an error all descriptors are closed.
pub fn parse(
    header: &Header,
    payload: &[u8],
    descriptors: Vec<OwnedFd>,
) -> Result<Request<MemoryFile>, MessageError> {
    parse_with(header, payload, &mut Descriptors::new(descriptors))
}

/// The same, on a wire with other resources than descriptors.
pub(crate) fn parse_with<R: Resources>(
    header: &Header,
    payload: &[u8],
    resources: &mut R,
) -> Result<Request<R::Memory>, MessageError> {
    let message = header.name();
    let Some(code) = header.code() else {
        return Err(MessageError::Unsupported { message });
    };
    let rule = code.rule();
    if !rule.payload.contains(&payload.len()) {
        return Err(MessageError::PayloadSize {
            message,
            size: payload.len(),
            least: *rule.payload.start(),
            most: *rule.payload.end(),
        });
    }
    let allowed = |count: &usize| rule.descriptors.contains(count);
    if let Some(count) = resources.count().filter(|count| !allowed(count)) {
        return Err(MessageError::Descriptors {
            message,
            count,
            expected: count.clamp(*rule.descriptors.start(), *rule.descriptors.end()),
        });
    }
    let fields = Fields { message, payload };
    parse_contents(code, &fields, resources)
}

/// The contents of a message whose outer shape agrees with the table.
fn parse_contents<R: Resources>(
    code: Code,
    fields: &Fields<'_>,
    resources: &mut R,
) -> Result<Request<R::Memory>, MessageError> {
    let feature = |request| Ok(Request::Feature(request));
    let lifecycle = |request| Ok(Request::Lifecycle(request));
    match code {
        Code::GetFeatures => feature(FeatureRequest::Features),
        Code::SetFeatures => feature(FeatureRequest::SetFeatures(fields.u64(0))),
        Code::GetProtocolFeatures => feature(FeatureRequest::ProtocolFeatures),
        Code::SetProtocolFeatures => feature(FeatureRequest::SetProtocolFeatures(fields.u64(0))),
        Code::GetQueueNum => feature(FeatureRequest::QueueCount),
        Code::SetOwner => lifecycle(LifecycleRequest::SetOwner),
        Code::ResetOwner => lifecycle(LifecycleRequest::ResetOwner),
        Code::ResetDevice => lifecycle(LifecycleRequest::ResetDevice),
        Code::GetMaxMemSlots => Ok(Request::Memory(MemoryRequest::Slots)),
        Code::SetMemTable => memory_table(fields, resources),
        Code::AddMemReg => add_region(fields, resources),
        Code::RemMemReg => Ok(Request::Memory(MemoryRequest::Remove(fields.region(8)?))),
        Code::SetVringNum => ring(fields, RingRequest::SetSize(ring_size(fields)?)),
        Code::SetVringAddr => ring(fields, RingRequest::SetAddresses(ring_addresses(fields)?)),
        Code::SetVringBase => ring(fields, RingRequest::SetBase(fields.u16("base", 4)?)),
        Code::GetVringBase => ring(fields, RingRequest::Base),
        Code::SetVringEnable => ring(fields, RingRequest::Enable(fields.flag("state", 4)?)),
        Code::SetVringKick => {
            let event = ring_event(fields, resources, R::kick)?;
            Ok(ring_at(event.0, RingRequest::SetKick(event.1)))
        }
        Code::SetVringCall => {
            let event = ring_event(fields, resources, R::call)?;
            Ok(ring_at(event.0, RingRequest::SetCall(event.1)))
        }
        Code::SetVringErr => {
            let event = ring_event(fields, resources, R::error)?;
            Ok(ring_at(event.0, RingRequest::SetError(event.1)))
        }
        Code::SetBackendReqFd => {
            fields.expect(resources, 1)?;
            Ok(Request::BackendChannel(resources.channel()?))
        }
        Code::GetConfig => config_read(fields),
        Code::SetConfig => config_write(fields),
    }
}

/// `{ count: u32, padding: u32, regions… }`, a descriptor for each region.
fn memory_table<R: Resources>(
    fields: &Fields<'_>,
    resources: &mut R,
) -> Result<Request<R::Memory>, MessageError> {
    let count = u64::from(fields.u32(0));
    let fitting = (fields.payload.len() - 8) / REGION_SIZE;
    let exact = (fields.payload.len() - 8).is_multiple_of(REGION_SIZE);
    if !exact || count != fitting as u64 {
        return Err(fields.wrong("region count", count, "not what the payload has room for"));
    }
    fields.expect(resources, fitting)?;
    let regions = (0..fitting)
        .map(|i| resources.memory(fields.region(8 + i * REGION_SIZE)?))
        .collect::<Result<_, _>>()?;
    Ok(Request::Memory(MemoryRequest::SetTable(regions)))
}

/// `{ padding: u64, region }` with the region's descriptor.
fn add_region<R: Resources>(
    fields: &Fields<'_>,
    resources: &mut R,
) -> Result<Request<R::Memory>, MessageError> {
    fields.expect(resources, 1)?;
    let memory = resources.memory(fields.region(8)?)?;
    Ok(Request::Memory(MemoryRequest::Add(memory)))
}

/// A message about a ring whose payload begins with the index.
fn ring<M>(fields: &Fields<'_>, request: RingRequest) -> Result<Request<M>, MessageError> {
    Ok(ring_at(fields.u16("ring index", 0)?, request))
}

fn ring_at<M>(index: u16, request: RingRequest) -> Request<M> {
    Request::Ring { index, request }
}

/// A split ring's size is a power of two (virtio 1.3, 2.7) and thus at most 32768.
fn ring_size(fields: &Fields<'_>) -> Result<u16, MessageError> {
    let size = fields.u32(4);
    match u16::try_from(size) {
        Ok(size) if size.is_power_of_two() => Ok(size),
        Ok(_) | Err(_) => Err(fields.wrong(
            "ring size",
            u64::from(size),
            "not a power of two up to 32768",
        )),
    }
}

/// `{ index, flags: u32, descriptors, used, available, log: u64 }`.
fn ring_addresses(fields: &Fields<'_>) -> Result<UserAddresses, MessageError> {
    let flags = fields.u32(4);
    if flags != 0 {
        return Err(fields.wrong("flags", u64::from(flags), NO_LOG));
    }
    Ok(UserAddresses {
        descriptors: fields.u64(8),
        used: fields.u64(16),
        available: fields.u64(24),
    })
}

/// A ring's index with what signals it, or the bit that says that there is none.
fn ring_event<R: Resources, E>(
    fields: &Fields<'_>,
    resources: &mut R,
    event: impl FnOnce(&mut R, u16) -> Result<E, MessageError>,
) -> Result<(u16, Option<E>), MessageError> {
    let value = fields.u64(0);
    if value & !(INDEX_MASK | NO_DESCRIPTOR) != 0 {
        return Err(fields.wrong("ring index", value, "more than an index and its one flag"));
    }
    let [index, ..] = value.to_le_bytes();
    let index = u16::from(index);
    if value & NO_DESCRIPTOR != 0 {
        fields.expect(resources, 0)?;
        return Ok((index, None));
    }
    fields.expect(resources, 1)?;
    Ok((index, Some(event(resources, index)?)))
}

/// `{ offset, size, flags: u32, bytes… }`. Front-ends send as many bytes as they ask for; what
/// these bytes are means nothing.
fn config_read<M>(fields: &Fields<'_>) -> Result<Request<M>, MessageError> {
    let (offset, length) = config_range(fields)?;
    Ok(Request::Config(ConfigRequest::Read {
        offset,
        length,
        flags: fields.u32(8),
    }))
}

/// The same, with the bytes to be written. The flags are 0 for a write by the driver and 1 for one
/// by a migration in the spec and in QEMU; front-ends on crate `vhost` say 1 for the driver's. Both
/// are taken, since neither writes what the device does not let the driver write.
fn config_write<M>(fields: &Fields<'_>) -> Result<Request<M>, MessageError> {
    let (offset, _) = config_range(fields)?;
    let flags = fields.u32(8);
    if flags > 1 {
        return Err(fields.wrong("flags", u64::from(flags), "neither 0 nor 1"));
    }
    let bytes = fields.payload[CONFIG_HEADER_SIZE..].to_vec();
    Ok(Request::Config(ConfigRequest::Write { offset, bytes }))
}

/// Offset and length, which must be the length of the payload's rest and end within the space.
fn config_range(fields: &Fields<'_>) -> Result<(u16, u16), MessageError> {
    let (offset, size) = (fields.u32(0), fields.u32(4));
    let rest = fields.payload.len() - CONFIG_HEADER_SIZE;
    if size == 0 || u64::from(size) != rest as u64 {
        return Err(fields.wrong("size", u64::from(size), "not the size of what follows"));
    }
    let end = u64::from(offset) + u64::from(size);
    match (u16::try_from(offset), u16::try_from(size)) {
        (Ok(offset), Ok(length)) if end <= CONFIG_SIZE_MAX as u64 => Ok((offset, length)),
        (_, _) => Err(fields.wrong(
            "offset",
            u64::from(offset),
            "beyond the configuration space",
        )),
    }
}

/// A payload whose size was checked, so that reading a field cannot fail for want of bytes.
struct Fields<'a> {
    message: MessageName,
    payload: &'a [u8],
}

impl Fields<'_> {
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

    /// A 32-bit field that must fit 16 bits.
    fn u16(&self, field: &'static str, at: usize) -> Result<u16, MessageError> {
        let value = self.u32(at);
        u16::try_from(value)
            .map_err(|_| self.wrong(field, u64::from(value), "does not fit 16 bits"))
    }

    /// A 32-bit field that must be 0 or 1.
    fn flag(&self, field: &'static str, at: usize) -> Result<bool, MessageError> {
        match self.u32(at) {
            0 => Ok(false),
            1 => Ok(true),
            value => Err(self.wrong(field, u64::from(value), "neither 0 nor 1")),
        }
    }

    /// `{ guest address, size, user address, file offset }`, none of which may overflow.
    fn region(&self, at: usize) -> Result<RegionLayout, MessageError> {
        let layout = RegionLayout {
            guest_address: self.u64(at),
            size: self.u64(at + 8),
            user_address: self.u64(at + 16),
            offset: self.u64(at + 24),
        };
        if layout.size == 0 {
            return Err(self.wrong("region size", 0, "an empty region"));
        }
        for (field, start) in [
            ("guest address", layout.guest_address),
            ("user address", layout.user_address),
            ("file offset", layout.offset),
        ] {
            if start.checked_add(layout.size).is_none() {
                return Err(self.wrong(field, start, "a region that wraps around"));
            }
        }
        Ok(layout)
    }

    /// Whether as many descriptors came as the payload calls for, on a wire that has any.
    fn expect<R: Resources>(&self, resources: &R, expected: usize) -> Result<(), MessageError> {
        match resources.count() {
            Some(count) if count != expected => Err(MessageError::Descriptors {
                message: self.message,
                count,
                expected,
            }),
            Some(_) | None => Ok(()),
        }
    }

    fn wrong(&self, field: &'static str, value: u64, rule: &'static str) -> MessageError {
        MessageError::Value {
            message: self.message,
            field,
            value,
            rule,
        }
    }
}
