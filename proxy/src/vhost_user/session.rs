//! One front-end's session: its messages into the rx queue, the driver's messages of the tx queue
//! to it, each carried whole. What came with descriptors becomes a resource of the device.

use std::cell::RefCell;
use std::convert::Infallible;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use futures_util::future::try_join;
use vudev_executor::{EventError, Kick, Socket, Task};

use super::message::{HEADER_SIZE, Header, MESSAGE_MAX, mask_reply, mask_request, request};
use super::table::{self, TableError};
use crate::device::{Device, Doorbell, RX, SharedMemoryError, TX};
use crate::pci::layout::VHOST_QUEUES_MAX;
use crate::virtio::RingError;
use crate::wire::{Wire, WireError};

/// The ring's index in the messages that carry a descriptor (spec, "A vring file descriptor").
const INDEX_MASK: u64 = 0xff;
/// The bit of these messages that says that no descriptor comes along.
const NO_DESCRIPTOR: u64 = 0x100;

/// Descriptors of one message: SET_MEM_TABLE has the most.
const DESCRIPTORS_MAX: usize = 8;

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SessionError {
    #[error("it left")]
    Left,
    #[error("message {request} is not of protocol version 1")]
    Version { request: u32 },
    #[error("message {request} has a payload of {size} bytes")]
    Oversized { request: u32, size: u32 },
    #[error("message {request} is a reply to nothing")]
    UnexpectedReply { request: u32 },
    #[error("a message of {bytes} bytes, which is not what its header says")]
    Length { bytes: usize },
    #[error("message {request} is no reply, and comes over the channel for those")]
    NoReply { request: u32 },
    #[error("message {request} came with {count} descriptors, which cannot cross")]
    Descriptors { request: u32, count: usize },
    #[error("message {request} names ring {value:#x}, and {VHOST_QUEUES_MAX} are the most")]
    RingIndex { request: u32, value: u64 },
    #[error("message {request}: {source}")]
    Event { request: u32, source: EventError },
    #[error(transparent)]
    Memory(#[from] SharedMemoryError),
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The driver's fault: the device needs a reset.
    #[error("the driver: {0}")]
    Driver(#[from] RingError),
    /// The same, by what it sent.
    #[error("the driver sent {0}")]
    Transmission(Box<Self>),
}

impl From<TableError> for SessionError {
    fn from(error: TableError) -> Self {
        Self::Memory(error.into())
    }
}

/// Carries messages until the front-end leaves or either side breaks the rules.
pub(crate) async fn serve(device: &Rc<Device>, connection: OwnedFd) -> SessionError {
    let socket = Socket::new(device.handle(), connection);
    let session = Session {
        device: device.clone(),
        kicks: RefCell::new((0..VHOST_QUEUES_MAX).map(|_| None).collect()),
        channel: RefCell::default(),
    };
    let requests = session.requests(Wire::new(&socket, MESSAGE_MAX, DESCRIPTORS_MAX));
    let transmissions = session.transmissions(Wire::new(&socket, MESSAGE_MAX, DESCRIPTORS_MAX));
    match try_join(requests, transmissions).await {
        Ok((never, _)) => match never {},
        Err(error) => error,
    }
}

struct Session {
    device: Rc<Device>,
    /// Each watches the kicks of one ring.
    kicks: RefCell<Vec<Option<Task<()>>>>,
    /// The back-end's channel, of SET_BACKEND_REQ_FD.
    channel: RefCell<Option<Channel>>,
}

struct Channel {
    socket: Socket,
    /// Carries the answers that come over it.
    _answers: Task<()>,
}

impl Session {
    /// From the front-end to the driver.
    async fn requests(&self, mut wire: Wire) -> Result<Infallible, SessionError> {
        let mut message = Vec::with_capacity(MESSAGE_MAX);
        loop {
            let header = receive(&mut wire, &mut message).await?;
            if header.is_reply {
                let request = header.request;
                return Err(SessionError::UnexpectedReply { request });
            }
            let descriptors = wire.take_descriptors();
            self.convert(&header, &mut message, descriptors)?;
            deliver(&self.device, &message).await?;
        }
    }

    /// Makes a message one that can cross: its descriptors stay here.
    fn convert(
        &self,
        header: &Header,
        message: &mut Vec<u8>,
        mut descriptors: Vec<OwnedFd>,
    ) -> Result<(), SessionError> {
        let (request, count) = (header.request, descriptors.len());
        let too_many = SessionError::Descriptors { request, count };
        match request {
            request::SET_MEM_TABLE => {
                let regions = table::parse(&message[HEADER_SIZE..], count)?;
                let shown = self.device.set_memory(regions, descriptors)?;
                message.truncate(HEADER_SIZE);
                table::encode(&shown, message);
                let size = u32::try_from(message.len() - HEADER_SIZE).expect("a table is short");
                message[8..12].copy_from_slice(&size.to_ne_bytes());
            }
            request::SET_VRING_KICK | request::SET_VRING_CALL | request::SET_VRING_ERR => {
                let ring = ring(request, &message[HEADER_SIZE..], count)?;
                self.set_event(request, ring, descriptors.pop())?;
            }
            request::SET_BACKEND_REQ_FD => match descriptors.pop() {
                Some(socket) if count == 1 => self.open_channel(socket),
                _ => return Err(too_many),
            },
            _ if count > 0 => return Err(too_many),
            _ => mask_request(header, &mut message[HEADER_SIZE..]),
        }
        Ok(())
    }

    /// A ring's eventfd, or that it has none.
    fn set_event(
        &self,
        request: u32,
        ring: u16,
        event: Option<OwnedFd>,
    ) -> Result<(), SessionError> {
        let handle = self.device.handle();
        let wrong = |source| SessionError::Event { request, source };
        let index = usize::from(ring);
        if request == request::SET_VRING_KICK {
            let kick = event.map(|event| Kick::new(handle, event)).transpose();
            let kick = kick.map_err(wrong)?;
            let task = kick.map(|kick| handle.spawn(self.device.clone().watch_kicks(ring, kick)));
            self.kicks.borrow_mut()[index] = task;
            return Ok(());
        }
        let doorbell = event.map(|event| Doorbell::new(handle, event)).transpose();
        let number = match request {
            request::SET_VRING_CALL => index,
            _ => usize::from(VHOST_QUEUES_MAX) + index,
        };
        self.device.set_doorbell(number, doorbell.map_err(wrong)?);
        Ok(())
    }

    fn open_channel(&self, socket: OwnedFd) {
        let handle = self.device.handle();
        let socket = Socket::new(handle, socket);
        let wire = Wire::new(&socket, MESSAGE_MAX, DESCRIPTORS_MAX);
        let answers = handle.spawn(answers(self.device.clone(), wire));
        self.channel.replace(Some(Channel {
            socket,
            _answers: answers,
        }));
    }

    /// From the driver to the front-end: replies where requests come from, requests over the
    /// channel for them.
    async fn transmissions(&self, mut wire: Wire) -> Result<Infallible, SessionError> {
        let mut message = Vec::with_capacity(MESSAGE_MAX);
        loop {
            if !self.device.take_message(&mut message)? {
                self.device.notified(TX).await;
                continue;
            }
            let wrong = |error| SessionError::Transmission(Box::new(error));
            let header = Header::of(&message).map_err(wrong)?;
            if header.is_reply {
                mask_reply(&header, &mut message[HEADER_SIZE..]);
                if !wire.send(&message, None).await? {
                    return Err(SessionError::Left);
                }
            } else {
                self.request_back(&message).await;
            }
            self.device.transmitted()?;
        }
    }

    /// A request of the back-end's own. Without a channel there is nobody to hear it.
    async fn request_back(&self, message: &[u8]) {
        let socket = self
            .channel
            .borrow()
            .as_ref()
            .map(|channel| channel.socket.clone());
        let sent = match socket {
            Some(socket) => {
                let mut wire = Wire::new(&socket, MESSAGE_MAX, DESCRIPTORS_MAX);
                matches!(wire.send(message, None).await, Ok(true))
            }
            None => {
                // A driver that goes on and on leaves time for all else.
                self.device.handle().yield_now().await;
                false
            }
        };
        if !sent {
            self.device
                .complain(format_args!("a request of the back-end's has no channel"));
        }
    }
}

/// The next whole message, header first.
async fn receive(wire: &mut Wire, message: &mut Vec<u8>) -> Result<Header, SessionError> {
    let mut bytes = [0; HEADER_SIZE];
    if wire.fill(&mut bytes).await? < HEADER_SIZE {
        return Err(SessionError::Left);
    }
    let header = Header::parse(bytes)?;
    message.clear();
    message.extend(bytes);
    message.resize(HEADER_SIZE + header.payload_size, 0);
    if wire.fill(&mut message[HEADER_SIZE..]).await? < header.payload_size {
        return Err(SessionError::Left);
    }
    Ok(header)
}

/// Waits for a buffer of the driver's, and puts a message there.
async fn deliver(device: &Device, message: &[u8]) -> Result<(), RingError> {
    while !device.put_message(message)? {
        device.notified(RX).await;
    }
    Ok(())
}

/// What comes over the back-end's channel is answers to its requests.
async fn answers(device: Rc<Device>, mut wire: Wire) {
    let mut message = Vec::with_capacity(MESSAGE_MAX);
    let outcome = async {
        loop {
            let header = receive(&mut wire, &mut message).await?;
            let (request, count) = (header.request, wire.take_descriptors().len());
            if !header.is_reply {
                return Err(SessionError::NoReply { request });
            }
            if count > 0 {
                return Err(SessionError::Descriptors { request, count });
            }
            deliver(&device, &message).await?;
        }
    };
    let error: Result<Infallible, SessionError> = outcome.await;
    match error {
        Ok(never) => match never {},
        Err(SessionError::Left) => {}
        Err(SessionError::Driver(error)) => device.needs_reset(&error),
        Err(error) => device.complain(format_args!("the back-end's channel ended: {error}")),
    }
}

/// The ring that a message with an eventfd is about; whether there is one must agree.
fn ring(request: u32, payload: &[u8], count: usize) -> Result<u16, SessionError> {
    let Ok(bytes) = <[u8; 8]>::try_from(payload) else {
        let bytes = HEADER_SIZE + payload.len();
        return Err(SessionError::Length { bytes });
    };
    let value = u64::from_ne_bytes(bytes);
    let expected = if value & NO_DESCRIPTOR == 0 { 1 } else { 0 };
    if count != expected {
        return Err(SessionError::Descriptors { request, count });
    }
    let known = value & !(INDEX_MASK | NO_DESCRIPTOR) == 0;
    u16::try_from(value & INDEX_MASK)
        .ok()
        .filter(|ring| known && *ring < VHOST_QUEUES_MAX)
        .ok_or(SessionError::RingIndex { request, value })
}
