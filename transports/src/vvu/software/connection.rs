//! The software function's end of a front-end's socket: descriptors stay here and become kicks,
//! doorbells and shared memory; bytes go on to the driver, a message a buffer. Not what the
//! messages mean beyond that.

use std::cell::RefCell;
use std::os::fd::OwnedFd;
use std::rc::{Rc, Weak};

use rustix::fs::FileType;
use rustix::net::SocketType;
use rustix::net::sockopt::socket_type;
use vudev_executor::{Call, Kick, MAX_DESCRIPTORS, Message, Socket, Task};
use vudev_virtio::Queue;

use super::{Inner, MemoryPlacement};
use crate::message::{Code, HEADER_SIZE, PAYLOAD_SIZE_MAX};

/// The messages whose descriptors the function keeps.
const SET_MEM_TABLE: u32 = Code::SetMemTable as u32;
const SET_VRING_KICK: u32 = Code::SetVringKick as u32;
const SET_VRING_CALL: u32 = Code::SetVringCall as u32;
const SET_VRING_ERR: u32 = Code::SetVringErr as u32;
const SET_BACKEND_REQ_FD: u32 = Code::SetBackendReqFd as u32;

/// `VHOST_USER_VRING_NOFD_MASK`.
const NO_DESCRIPTOR: u8 = 1;

/// The bit of a header's flags that says that it is an answer.
const REPLY: u32 = 4;

/// A table's header, and its regions.
const TABLE_HEADER: usize = 8;
const REGION_SIZE: usize = 32;

/// A message of the front-end that cannot be passed on: the connection ends.
struct Broken;

/// A front-end.
pub(super) struct Connection {
    function: Weak<Inner>,
    socket: Socket,
    channel: RefCell<Option<Socket>>,
    memory: RefCell<Vec<Shown>>,
    /// By queue: what forwards its kicks, what calls it, and what tells it of errors.
    kicks: RefCell<Vec<Option<Task<()>>>>,
    doorbells: RefCell<Vec<Option<Call>>>,
}

/// A region in the shared memory window.
struct Shown {
    at: u64,
    size: u64,
    file: Rc<OwnedFd>,
    offset: u64,
}

impl Connection {
    pub(super) fn new(function: &Rc<Inner>, socket: OwnedFd) -> Self {
        let queues = usize::from(function.options.max_vhost_queues);
        Self {
            function: Rc::downgrade(function),
            socket: Socket::new(&function.handle, socket),
            channel: RefCell::default(),
            memory: RefCell::default(),
            kicks: RefCell::new((0..queues).map(|_| None).collect()),
            doorbells: RefCell::new((0..2 * queues).map(|_| None).collect()),
        }
    }

    pub(super) fn shared_memory(&self, at: u64, size: u64) -> Option<(Rc<OwnedFd>, u64)> {
        let memory = self.memory.borrow();
        memory.iter().find_map(|shown| {
            let within = at.checked_sub(shown.at)?;
            let fits = within.checked_add(size)? <= shown.size;
            fits.then(|| (shown.file.clone(), shown.offset + within))
        })
    }

    /// Rings a doorbell. Nobody waits for what comes of it.
    pub(super) fn ring(&self, number: u64) {
        let doorbells = self.doorbells.borrow();
        let call = usize::try_from(number)
            .ok()
            .and_then(|number| doorbells.get(number));
        if let Some(Some(call)) = call
            && let Err(error) = call.signal()
        {
            log::debug!("the front-end's eventfd cannot be signalled: {error}");
        }
    }

    /// Keeps the descriptors of a message and makes of it what the driver is to see.
    fn keep(&self, bytes: &mut [u8], descriptors: Vec<OwnedFd>) -> Result<(), Broken> {
        let (header, payload) = bytes.split_at_mut(HEADER_SIZE);
        let request = word(header, 0);
        let rule = Code::from_wire(request).map(Code::rule);
        if rule.is_some_and(|rule| !rule.descriptors.contains(&descriptors.len())) {
            return Err(Broken);
        }
        let mut descriptors = descriptors.into_iter();
        match request {
            SET_MEM_TABLE => self.show(payload, descriptors.collect()),
            SET_BACKEND_REQ_FD => {
                let function = self.function.upgrade().ok_or(Broken)?;
                let socket = descriptors.next().ok_or(Broken)?;
                if socket_type(&socket) != Ok(SocketType::STREAM) {
                    return Err(Broken);
                }
                *self.channel.borrow_mut() = Some(Socket::new(&function.handle, socket));
                Ok(())
            }
            request @ (SET_VRING_KICK | SET_VRING_CALL | SET_VRING_ERR) => {
                let &mut [index, flags, ..] = payload else {
                    return Ok(());
                };
                let event = descriptors.next();
                if event.is_none() != (flags & NO_DESCRIPTOR != 0) {
                    return Err(Broken);
                }
                self.set_event(request, usize::from(index), event)
            }
            _ => Ok(()),
        }
    }

    fn set_event(&self, request: u32, queue: usize, event: Option<OwnedFd>) -> Result<(), Broken> {
        let function = self.function.upgrade().ok_or(Broken)?;
        if request == SET_VRING_KICK {
            let task = event.map(|event| self.forward(&function, queue, event));
            if let Some(place) = self.kicks.borrow_mut().get_mut(queue) {
                *place = task.transpose()?;
            }
            return Ok(());
        }
        let call = event
            .map(|event| Call::new(&function.handle, event))
            .transpose()
            .map_err(|_| Broken)?;
        let mut doorbells = self.doorbells.borrow_mut();
        let errors = if request == SET_VRING_ERR {
            doorbells.len() / 2
        } else {
            0
        };
        if queue < doorbells.len() / 2 {
            doorbells[errors + queue] = call;
        }
        Ok(())
    }

    /// Raises the vector of a queue with each of its kicks.
    fn forward(
        &self,
        function: &Rc<Inner>,
        queue: usize,
        event: OwnedFd,
    ) -> Result<Task<()>, Broken> {
        let mut kick = Kick::new(&function.handle, event).map_err(|_| Broken)?;
        let weak = self.function.clone();
        let queue = u16::try_from(queue).map_err(|_| Broken)?;
        Ok(function.handle.spawn(async move {
            while kick.wait().await.is_ok() {
                let Some(function) = weak.upgrade() else {
                    return;
                };
                let vector = function.registers.borrow().notification_vector(queue);
                function.raise(vector);
            }
        }))
    }

    /// Puts the regions of a table into the window. One that makes no sense is passed on as it is:
    /// the driver sees it and finds nothing there.
    fn show(&self, payload: &mut [u8], files: Vec<OwnedFd>) -> Result<(), Broken> {
        let function = self.function.upgrade().ok_or(Broken)?;
        let placement = function.options.placement;
        let mut memory = self.memory.borrow_mut();
        memory.clear();
        let Some((_, regions)) = payload.split_at_mut_checked(TABLE_HEADER) else {
            return Ok(());
        };
        let regions = regions.chunks_exact_mut(REGION_SIZE);
        if regions.len() != files.len() {
            return Err(Broken);
        }
        let mut next = 0_u64;
        for (region, file) in regions.zip(files) {
            let (size, offset) = (long(region, 8), long(region, 24));
            let at = match placement {
                MemoryPlacement::WholeFiles => next.checked_add(offset).ok_or(Broken)?,
                MemoryPlacement::Regions => next,
                MemoryPlacement::FileOffsets => offset,
            };
            next = at.checked_add(size).ok_or(Broken)?;
            let stat = rustix::fs::fstat(&file).map_err(|_| Broken)?;
            let end = offset.checked_add(size).ok_or(Broken)?;
            let length = u64::try_from(stat.st_size).map_err(|_| Broken)?;
            if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile || length < end {
                return Err(Broken);
            }
            if placement == MemoryPlacement::Regions {
                region[24..32].fill(0);
            }
            let file = Rc::new(file);
            memory.push(Shown {
                at,
                size,
                file,
                offset,
            });
        }
        Ok(())
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // At once, and not when the last operation has let go of it.
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
    }
}

/// Passes the front-end's messages on to the driver until it leaves, or sends what cannot be passed
/// on.
pub(super) async fn receive(function: &Rc<Inner>, queue: &mut Queue) {
    let Some(socket) = socket_of(function) else {
        return;
    };
    let mut message = Message::with_capacity(HEADER_SIZE + PAYLOAD_SIZE_MAX);
    loop {
        let (read, returned) = read_message(&socket, message).await;
        message = returned;
        let Some((mut bytes, descriptors)) = read else {
            return;
        };
        let kept = match function.connection.borrow().as_ref() {
            Some(connection) => connection.keep(&mut bytes, descriptors),
            None => return,
        };
        if kept.is_err() {
            return log::debug!("the front-end sent what cannot be passed on");
        }
        match queue.next().await {
            Ok(Some(mut chain)) => {
                let length = u32::try_from(bytes.len()).expect("a message");
                let written = chain.writable.write(&bytes).is_ok();
                queue.complete(chain, if written { length } else { 0 });
                if !written {
                    return log::debug!("the driver's buffers are too small");
                }
            }
            Ok(None) => return,
            Err(error) => {
                log::debug!("the driver's queue: {error}");
                return function.fail();
            }
        }
    }
}

/// Passes the driver's messages on to the front-end, as long as the driver is there.
pub(super) async fn transmit(function: Rc<Inner>, mut queue: Queue) {
    let mut message = Message::with_capacity(HEADER_SIZE + PAYLOAD_SIZE_MAX);
    while let Ok(Some(mut chain)) = queue.next().await {
        let mut bytes = vec![0; chain.readable.len()];
        let whole = chain.readable.read(&mut bytes).is_ok()
            && (HEADER_SIZE..=message.capacity()).contains(&bytes.len());
        assert!(whole, "a message of the driver, whole");
        let answer = word(&bytes, 4) & REPLY != 0;
        let socket = if answer {
            socket_of(&function)
        } else {
            channel_of(&function)
        };
        if let Some(socket) = socket {
            message.set(&bytes, Vec::new());
            let (sent, returned) = socket.send(message).await;
            message = returned;
            if let Err(error) = sent {
                log::debug!("the front-end does not listen: {error}");
            }
        }
        queue.complete(chain, 0);
    }
}

fn socket_of(function: &Inner) -> Option<Socket> {
    let connection = function.connection.borrow();
    connection
        .as_ref()
        .map(|connection| connection.socket.clone())
}

fn channel_of(function: &Inner) -> Option<Socket> {
    let connection = function.connection.borrow();
    connection.as_ref()?.channel.borrow().clone()
}

/// A message and its descriptors; `None` at the end, or where the stream cannot be followed.
async fn read_message(
    socket: &Socket,
    mut message: Message,
) -> (Option<(Vec<u8>, Vec<OwnedFd>)>, Message) {
    let (mut bytes, mut descriptors) = (Vec::new(), Vec::new());
    let mut expected = HEADER_SIZE;
    while bytes.len() < expected {
        message.receive_limit(expected - bytes.len());
        let (count, returned) = socket.receive(message).await;
        message = returned;
        if !matches!(count, Ok(1..)) || message.truncated() {
            return (None, message);
        }
        bytes.extend_from_slice(message.bytes());
        descriptors.append(&mut message.take_descriptors());
        if descriptors.len() > MAX_DESCRIPTORS {
            return (None, message);
        }
        if bytes.len() == HEADER_SIZE {
            match usize::try_from(word(&bytes, 8)) {
                Ok(size) if size <= PAYLOAD_SIZE_MAX => expected += size,
                _ => return (None, message),
            }
        }
    }
    (Some((bytes, descriptors)), message)
}

fn word(bytes: &[u8], at: usize) -> u32 {
    let bytes = bytes[at..at + 4].try_into().expect("four bytes");
    u32::from_ne_bytes(bytes)
}

fn long(bytes: &[u8], at: usize) -> u64 {
    let bytes = bytes[at..at + 8].try_into().expect("eight bytes");
    u64::from_ne_bytes(bytes)
}
