//! vhost-user over a Unix stream socket: `recvmsg` and `sendmsg` on the ring, so that half a
//! message holds up nobody but its own session. Not the meaning of messages.

use std::io;
use std::os::fd::OwnedFd;

use vudev_executor::{Handle, MAX_DESCRIPTORS, Message, Socket};
use vudev_virtio::Region;

use crate::message::{
    HEADER_SIZE, Header, Incoming, MemoryFile, MessageError, PAYLOAD_SIZE_MAX, Reply, parse,
};
use crate::transport::{Transport, TransportError};

/// A listening socket. One connection is served at a time; the next front-end waits in the backlog.
pub struct Listener {
    handle: Handle,
    socket: Socket,
}

impl Listener {
    /// Takes a socket that listens already.
    pub fn new(handle: &Handle, listening: OwnedFd) -> Self {
        Self {
            handle: handle.clone(),
            socket: Socket::new(handle, listening),
        }
    }

    /// The next front-end.
    ///
    /// # Errors
    ///
    /// The kernel's. A front-end that left before it was accepted is none.
    pub async fn accept(&self) -> io::Result<UnixTransport> {
        loop {
            match self.socket.accept().await {
                Ok(connection) => return Ok(UnixTransport::new(&self.handle, connection)),
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// One connection to a front-end.
pub struct UnixTransport {
    socket: Socket,
    /// Taken while an operation has it; both directions take turns.
    message: Option<Message>,
}

impl UnixTransport {
    /// Takes a connected stream socket.
    pub fn new(handle: &Handle, connection: impl Into<OwnedFd>) -> Self {
        Self {
            socket: Socket::new(handle, connection),
            message: None,
        }
    }

    fn take_message(&mut self) -> Message {
        let taken = self.message.take();
        taken.unwrap_or_else(|| Message::with_capacity(HEADER_SIZE + PAYLOAD_SIZE_MAX))
    }

    /// Fills `bytes` from the stream and collects the descriptors that come along. Tells how many
    /// bytes came: fewer than asked for only if the front-end has left.
    async fn fill(
        &mut self,
        bytes: &mut [u8],
        descriptors: &mut Vec<OwnedFd>,
    ) -> Result<usize, TransportError> {
        let mut filled = 0;
        while filled < bytes.len() {
            let mut message = self.take_message();
            message.receive_limit(bytes.len() - filled);
            let (result, mut message) = self.socket.receive(message).await;
            let count = match result {
                Ok(count) => count,
                // It left without reading what we sent last: a way of leaving, not an error.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => 0,
                Err(source) => {
                    return Err(TransportError::Io {
                        operation: "recvmsg",
                        source,
                    });
                }
            };
            if message.truncated() {
                return Err(TransportError::DescriptorsLost {
                    max: MAX_DESCRIPTORS,
                });
            }
            descriptors.append(&mut message.take_descriptors());
            if descriptors.len() > MAX_DESCRIPTORS {
                return Err(TransportError::DescriptorsLost {
                    max: MAX_DESCRIPTORS,
                });
            }
            if count == 0 {
                break;
            }
            bytes[filled..filled + count].copy_from_slice(&message.bytes()[..count]);
            filled += count;
            self.message = Some(message);
        }
        Ok(filled)
    }
}

impl Transport for UnixTransport {
    /// Not to be dropped half-way, unless the connection is given up with it: bytes that were
    /// received would be lost.
    async fn recv(&mut self) -> Result<Option<Incoming>, TransportError> {
        let mut descriptors = Vec::new();
        let mut bytes = [0; HEADER_SIZE];
        match self.fill(&mut bytes, &mut descriptors).await? {
            0 => return Ok(None),
            HEADER_SIZE => {}
            received => {
                return Err(TransportError::Truncated {
                    received,
                    expected: HEADER_SIZE,
                });
            }
        }
        let header = Header::parse(bytes)?;

        let mut payload = vec![0; header.payload_size()];
        let received = self.fill(&mut payload, &mut descriptors).await?;
        if received < payload.len() {
            return Err(TransportError::Truncated {
                received: HEADER_SIZE + received,
                expected: HEADER_SIZE + payload.len(),
            });
        }
        let content = parse(&header, &payload, descriptors).and_then(|request| {
            let map = |memory| map_file(&header, memory);
            request.map_memory(map)
        });
        Ok(Some(Incoming { header, content }))
    }

    async fn reply(&mut self, reply: Reply) -> Result<(), TransportError> {
        let bytes = reply.encode();
        let mut sent = 0;
        while sent < bytes.len() {
            let mut message = self.take_message();
            message.set(&bytes[sent..], Vec::new());
            let (result, message) = self.socket.send(message).await;
            self.message = Some(message);
            sent += result.map_err(send_error)?;
        }
        Ok(())
    }
}

fn map_file(header: &Header, memory: MemoryFile) -> Result<Region, MessageError> {
    Region::map(memory.layout, memory.file).map_err(|source| MessageError::Memory {
        message: header.name(),
        source,
    })
}

fn send_error(source: io::Error) -> TransportError {
    match source.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => TransportError::FrontEndLeft,
        _ => TransportError::Io {
            operation: "sendmsg",
            source,
        },
    }
}
