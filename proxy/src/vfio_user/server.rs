//! One client's session: its commands in their order, each answered before the next is read. So a
//! client that floods us is as fast as we are, and one that reads no answers waits for itself.

use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::io::Errno;
use vudev_executor::{Handle, Socket};

use super::error::{FrameError, MapError, RequestError};
use super::header::{HEADER_SIZE, Header, PAYLOAD_MAX};
use super::reply::{RegionInfo, Reply, encode, encode_error};
use super::request::{
    Command, DATA_MAX, DESCRIPTORS_MAX, DmaMap, DmaUnmap, Request, SetInterrupts, parse,
};
use super::version::answer;
use crate::wire::{Wire, WireError};

/// The regions of a PCI function (`VFIO_PCI_NUM_REGIONS`): six BARs, ROM, configuration, VGA.
pub const REGIONS: u32 = 9;

/// Its types of interrupts (`VFIO_PCI_NUM_IRQS`): INTx, MSI, MSI-X, errors, requests.
pub const INTERRUPTS: u32 = 5;

/// How many refusals one client gets into the log. An honest one gets none.
const REFUSALS_LOGGED: u32 = 16;

/// A PCI function, as its client's commands see it. Nothing here may wait: the client's virtual CPU
/// stands still meanwhile.
pub trait Function {
    /// What region `index` is, of [`REGIONS`].
    fn region(&self, index: u32) -> RegionInfo;

    /// The file behind the mapped part of a region.
    fn region_file(&self, index: u32) -> Option<BorrowedFd<'_>>;

    /// How many interrupts of type `index` there are, of [`INTERRUPTS`].
    fn interrupts(&self, index: u32) -> u32;

    /// Reads a range that lies in the region.
    fn read(&self, region: u32, offset: u64, into: &mut [u8]);

    /// Writes a range that lies in the region.
    fn write(&self, region: u32, offset: u64, data: &[u8]);

    /// Gives the function memory.
    ///
    /// # Errors
    ///
    /// What the client is told.
    fn map(&self, map: DmaMap) -> Result<(), MapError>;

    /// Takes memory away. None of it is used any more once this returns.
    ///
    /// # Errors
    ///
    /// What the client is told.
    fn unmap(&self, unmap: &DmaUnmap) -> Result<(), Errno>;

    /// Changes what interrupts do. They exist.
    ///
    /// # Errors
    ///
    /// What the client is told.
    fn set_interrupts(&self, set: SetInterrupts<'_>) -> Result<(), Errno>;

    /// Resets it.
    fn reset(&self);

    /// A client is there that speaks the protocol: who only looks whether somebody listens is none.
    fn agreed(&self) {}
}

/// Why a session ended, other than by the client's leaving.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The client left in the middle of a message.
    #[error("the vfio-user client left in the middle of a message")]
    Truncated,
    /// A header that cannot be followed.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The socket.
    #[error("the vfio-user socket: {0}")]
    Wire(#[from] WireError),
}

/// Serves one client until it leaves.
///
/// # Errors
///
/// When the connection cannot go on.
pub async fn serve(
    handle: &Handle,
    connection: impl Into<OwnedFd>,
    function: &impl Function,
) -> Result<(), ServerError> {
    let socket = Socket::new(handle, connection);
    let mut session = Session {
        wire: Wire::new(&socket, HEADER_SIZE + PAYLOAD_MAX, DESCRIPTORS_MAX),
        versions_agreed: false,
        refusals: 0,
        reply: Vec::with_capacity(HEADER_SIZE + PAYLOAD_MAX),
        data: Box::new([0; DATA_MAX]),
    };
    let mut payload = vec![0; PAYLOAD_MAX].into_boxed_slice();
    while session.command(function, &mut payload).await? {}
    Ok(())
}

struct Session {
    wire: Wire,
    versions_agreed: bool,
    refusals: u32,
    reply: Vec<u8>,
    /// What REGION_READ reads.
    data: Box<[u8; DATA_MAX]>,
}

impl Session {
    /// Serves the next command; false when there is none.
    async fn command(
        &mut self,
        function: &impl Function,
        payload: &mut [u8],
    ) -> Result<bool, ServerError> {
        let mut bytes = [0; HEADER_SIZE];
        match self.wire.fill(&mut bytes).await? {
            0 => return Ok(false),
            HEADER_SIZE => {}
            _ => return Err(ServerError::Truncated),
        }
        let header = Header::parse(bytes)?;
        let file = match payload.get_mut(..header.payload_size()) {
            Some(payload) => {
                if self.wire.fill(payload).await? < payload.len() {
                    return Err(ServerError::Truncated);
                }
                let descriptors = self.wire.take_descriptors();
                let outcome = parse(&header, payload, descriptors);
                let outcome = outcome.and_then(|request| self.obey(&header, request, function));
                self.settle(&header, outcome)
            }
            None => {
                self.skip(header.payload_size(), payload).await?;
                // All are closed.
                self.wire.take_descriptors();
                let (command, size) = (header.name(), header.payload_size());
                self.settle(&header, Err(RequestError::Oversized { command, size }))
            }
        };
        if !header.no_reply() {
            // A client that is gone is found out by the next receive.
            self.wire.send(&self.reply, file).await?;
        }
        Ok(true)
    }

    /// Reads past `count` bytes, by way of `scratch`.
    async fn skip(&mut self, count: usize, scratch: &mut [u8]) -> Result<(), ServerError> {
        let mut left = count;
        while left > 0 {
            let step = left.min(scratch.len());
            if self.wire.fill(&mut scratch[..step]).await? < step {
                return Err(ServerError::Truncated);
            }
            left -= step;
        }
        Ok(())
    }

    /// Turns a refusal into the reply that says so.
    fn settle(
        &mut self,
        header: &Header,
        outcome: Result<Option<OwnedFd>, RequestError>,
    ) -> Option<OwnedFd> {
        let error = match outcome {
            Ok(file) => return file,
            Err(error) => error,
        };
        self.refusals = self.refusals.saturating_add(1);
        if self.refusals <= REFUSALS_LOGGED {
            log::warn!("vfio-user: {error}");
        }
        if self.refusals == REFUSALS_LOGGED {
            log::warn!("vfio-user: further refusals of this client are not logged");
        }
        encode_error(header, error.errno(), &mut self.reply);
        None
    }

    /// Does what a command asks, and writes the reply; gives the descriptor that goes along.
    fn obey(
        &mut self,
        header: &Header,
        request: Request<'_>,
        function: &impl Function,
    ) -> Result<Option<OwnedFd>, RequestError> {
        let is_version = matches!(request, Request::Version { .. });
        if is_version == self.versions_agreed {
            return Err(RequestError::OutOfOrder(header.name()));
        }
        match request {
            Request::Version {
                minor: _,
                proposal,
                data_size,
            } => {
                self.versions_agreed = true;
                function.agreed();
                let data = answer(&proposal, data_size);
                encode(header, &Reply::Version { data: &data }, &mut self.reply);
                Ok(None)
            }
            Request::DeviceInfo | Request::RegionInfo { .. } | Request::IrqInfo { .. } => {
                self.tell(header, &request, function)
            }
            Request::RegionRead { .. } | Request::RegionWrite { .. } => {
                self.access(header, &request, function)?;
                Ok(None)
            }
            Request::DmaMap(_) | Request::DmaUnmap(_) | Request::SetIrqs(_) | Request::Reset => {
                self.change(header, request, function)?;
                Ok(None)
            }
        }
    }

    /// What a client wants to know of the function.
    fn tell(
        &mut self,
        header: &Header,
        request: &Request<'_>,
        function: &impl Function,
    ) -> Result<Option<OwnedFd>, RequestError> {
        let mut file = None;
        let reply = match *request {
            Request::RegionInfo { index, room } => {
                check(header, "the region's index", index, REGIONS)?;
                let info = function.region(index);
                if info.sends_file(room) {
                    let region_file = function.region_file(index);
                    let region_file = region_file.map(|file| file.try_clone_to_owned());
                    file = region_file.transpose().map_err(|error| {
                        let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
                        refused(header)(errno)
                    })?;
                }
                Reply::RegionInfo { index, info, room }
            }
            Request::IrqInfo { index } => {
                check(header, "the interrupts' index", index, INTERRUPTS)?;
                let count = function.interrupts(index);
                Reply::IrqInfo { index, count }
            }
            _ => Reply::DeviceInfo {
                regions: REGIONS,
                interrupts: INTERRUPTS,
            },
        };
        encode(header, &reply, &mut self.reply);
        Ok(file)
    }

    /// Loads and stores.
    fn access(
        &mut self,
        header: &Header,
        request: &Request<'_>,
        function: &impl Function,
    ) -> Result<(), RequestError> {
        let (region, offset, count) = match *request {
            Request::RegionRead {
                region,
                offset,
                count,
            } => (region, offset, count),
            Request::RegionWrite {
                region,
                offset,
                data,
            } => (region, offset, data.len()),
            _ => return Err(RequestError::Unsupported(header.name())),
        };
        check(header, "the region's index", region, REGIONS)?;
        let size = function.region(region).size;
        // The codec has seen to it that the sum does not wrap.
        if offset + count as u64 > size {
            return Err(RequestError::Value {
                command: header.name(),
                field: "offset",
                value: offset,
                rule: "and the region ends before it does",
            });
        }
        let data = match *request {
            Request::RegionWrite { data, .. } => {
                function.write(region, offset, data);
                &[]
            }
            _ => {
                let data = &mut self.data[..count];
                function.read(region, offset, data);
                &*data
            }
        };
        let reply = Reply::Access {
            region,
            offset,
            count,
            data,
        };
        encode(header, &reply, &mut self.reply);
        Ok(())
    }

    /// What a client changes of the function's surroundings, and resets.
    fn change(
        &mut self,
        header: &Header,
        request: Request<'_>,
        function: &impl Function,
    ) -> Result<(), RequestError> {
        let mut reply = Reply::Done;
        match request {
            Request::DmaMap(map) => function.map(map)?,
            Request::DmaUnmap(unmap) => {
                function.unmap(&unmap).map_err(refused(header))?;
                reply = Reply::Unmapped(unmap);
            }
            Request::SetIrqs(set) => {
                check(header, "the interrupts' index", set.index, INTERRUPTS)?;
                let most = function.interrupts(set.index);
                if set.start + set.count > most {
                    let last = set.start + set.count;
                    return Err(RequestError::Value {
                        command: header.name(),
                        field: "the last interrupt",
                        value: u64::from(last),
                        rule: "beyond those that there are",
                    });
                }
                function.set_interrupts(set).map_err(refused(header))?;
            }
            _ => function.reset(),
        }
        encode(header, &reply, &mut self.reply);
        Ok(())
    }
}

fn refused(header: &Header) -> impl Fn(Errno) -> RequestError {
    let command = header.name();
    move |errno| RequestError::Refused { command, errno }
}

fn check(header: &Header, field: &'static str, index: u32, count: u32) -> Result<(), RequestError> {
    debug_assert!(header.command() != Some(Command::Version));
    if index < count {
        return Ok(());
    }
    Err(RequestError::Value {
        command: header.name(),
        field,
        value: u64::from(index),
        rule: "beyond those of a PCI function",
    })
}
