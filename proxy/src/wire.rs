//! One direction of a Unix stream socket: whole pieces of a stream, and the descriptors that come
//! along. Not messages: what a piece means is for two protocols to say.

use std::io;
use std::mem;
use std::os::fd::OwnedFd;

use vudev_executor::{Message, Socket};

/// Why nothing more can be received, or sent.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// More descriptors than a message may carry, or than this process may have.
    #[error("descriptors were lost: more than {max} on one message, or none left to give")]
    DescriptorsLost {
        /// The most on one message.
        max: usize,
    },
    /// The kernel refused.
    #[error("{operation}: {source}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// One direction, with memory for what it moves at once.
pub(crate) struct Wire {
    socket: Socket,
    capacity: usize,
    descriptors_max: usize,
    /// Taken while an operation has it.
    message: Option<Message>,
    descriptors: Vec<OwnedFd>,
}

impl Wire {
    /// Moves `capacity` bytes at once; a message has at most `descriptors_max` descriptors.
    pub(crate) fn new(socket: &Socket, capacity: usize, descriptors_max: usize) -> Self {
        Self {
            socket: socket.clone(),
            capacity,
            descriptors_max,
            message: None,
            descriptors: Vec::new(),
        }
    }

    fn take_message(&mut self) -> Message {
        let taken = self.message.take();
        taken.unwrap_or_else(|| Message::with_capacity(self.capacity))
    }

    /// Fills `bytes` from the stream and collects the descriptors that come along. Tells how many
    /// bytes came: fewer than asked for only if the peer has left. Dropped half-way, bytes are
    /// lost: the connection is to be given up with it.
    pub(crate) async fn fill(&mut self, bytes: &mut [u8]) -> Result<usize, WireError> {
        let mut filled = 0;
        while filled < bytes.len() {
            let count = self.receive(bytes.len() - filled).await?;
            if count == 0 {
                break;
            }
            if let Some(message) = &self.message {
                bytes[filled..filled + count].copy_from_slice(&message.bytes()[..count]);
            }
            filled += count;
        }
        Ok(filled)
    }

    /// Receives at most `limit` bytes into the message, 0 at the end.
    async fn receive(&mut self, limit: usize) -> Result<usize, WireError> {
        let mut message = self.take_message();
        message.receive_limit(limit.min(self.capacity));
        let (result, mut message) = self.socket.receive(message).await;
        let count = match result {
            Ok(count) => count,
            // It left without reading what we sent last: a way of leaving, not an error.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => 0,
            Err(source) => {
                return Err(WireError::Io {
                    operation: "recvmsg",
                    source,
                });
            }
        };
        self.descriptors.append(&mut message.take_descriptors());
        if message.truncated() || self.descriptors.len() > self.descriptors_max {
            let max = self.descriptors_max;
            return Err(WireError::DescriptorsLost { max });
        }
        self.message = Some(message);
        Ok(count)
    }

    /// The descriptors that came since the last time.
    pub(crate) fn take_descriptors(&mut self) -> Vec<OwnedFd> {
        mem::take(&mut self.descriptors)
    }

    /// Sends all of `bytes`; false if the peer has left.
    pub(crate) async fn send(
        &mut self,
        bytes: &[u8],
        file: Option<OwnedFd>,
    ) -> Result<bool, WireError> {
        let mut files = Vec::from_iter(file);
        let mut sent = 0;
        while sent < bytes.len() {
            let step = (bytes.len() - sent).min(self.capacity);
            let mut message = self.take_message();
            message.set(&bytes[sent..sent + step], mem::take(&mut files));
            let (result, message) = self.socket.send(message).await;
            self.message = Some(message);
            sent += match result {
                Ok(count) => count,
                Err(error) => match error.kind() {
                    io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => return Ok(false),
                    _ => {
                        return Err(WireError::Io {
                            operation: "sendmsg",
                            source: error,
                        });
                    }
                },
            };
        }
        Ok(true)
    }
}
