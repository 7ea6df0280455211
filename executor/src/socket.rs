//! Unix sockets through the ring. Bytes and descriptors only: what they mean is the transports'.

use std::future::Future;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::rc::Rc;

use crate::executor::Handle;
use crate::message::Message;
use crate::op::{Op, Plain, Request};
use crate::operation::Operation;

/// A stream, seqpacket, datagram or listening socket. Clones share it. Its operations use the
/// slots of the reserve.
#[derive(Clone)]
pub struct Socket {
    handle: Handle,
    fd: Rc<OwnedFd>,
}

impl Socket {
    /// Hands `fd` to the loop of `handle`.
    pub fn new(handle: &Handle, fd: impl Into<OwnedFd>) -> Self {
        Self {
            handle: handle.reserved(),
            fd: Rc::new(fd.into()),
        }
    }

    /// The next connection, close-on-exec. One that arrives while this is dropped is closed.
    pub fn accept(&self) -> impl Future<Output = io::Result<OwnedFd>> + Unpin + 'static + use<> {
        let operation = Operation::Accept {
            fd: self.fd.as_raw_fd(),
        };
        // SAFETY: the kernel has just made this descriptor for us.
        #[expect(unsafe_code, reason = "takes ownership of a new descriptor")]
        let connection = |fd: u32| unsafe { OwnedFd::from_raw_fd(fd.cast_signed()) };
        Op::new(&self.handle, Plain::new(&self.fd, operation, connection))
    }

    /// Receives into `message`; yields the number of bytes, 0 at the end of a stream. The message's
    /// descriptors are close-on-exec.
    pub fn receive(&self, message: Message) -> impl Exchange + use<> {
        self.exchange(Direction::Receive, message)
    }

    /// Sends `message` whole, and closes its descriptors here. A peer that is gone is EPIPE, never
    /// a signal.
    pub fn send(&self, message: Message) -> impl Exchange + use<> {
        self.exchange(Direction::Send, message)
    }

    fn exchange(&self, direction: Direction, message: Message) -> Op<MessageRequest> {
        let request = MessageRequest {
            fd: self.fd.clone(),
            direction,
            message,
        };
        Op::new(&self.handle, request)
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A message on its way: yields the number of bytes and the message.
pub trait Exchange: Future<Output = (io::Result<usize>, Message)> + Unpin + 'static {}

impl<T: Future<Output = (io::Result<usize>, Message)> + Unpin + 'static> Exchange for T {}

enum Direction {
    Receive,
    Peek,
    Send,
}

pub(crate) struct MessageRequest {
    fd: Rc<OwnedFd>,
    direction: Direction,
    message: Message,
}

impl MessageRequest {
    /// Looks at what has come, and leaves it there. Descriptors are not looked at.
    pub(crate) fn peek(fd: Rc<OwnedFd>, message: Message) -> Self {
        Self {
            fd,
            direction: Direction::Peek,
            message,
        }
    }
}

// SAFETY: what the header points at is on the heap, owned by `message`; the descriptor is kept.
#[expect(unsafe_code, reason = "owns what its operation points at")]
unsafe impl Request for MessageRequest {
    type Output = (io::Result<usize>, Message);

    fn operation(&mut self) -> Operation {
        let fd = self.fd.as_raw_fd();
        match self.direction {
            Direction::Receive => Operation::ReceiveMessage {
                fd,
                header: self.message.header_to_receive(),
                flags: libc::MSG_CMSG_CLOEXEC.cast_unsigned(),
            },
            Direction::Peek => Operation::ReceiveMessage {
                fd,
                header: self.message.header_to_peek(),
                flags: (libc::MSG_PEEK | libc::MSG_DONTWAIT).cast_unsigned(),
            },
            Direction::Send => Operation::SendMessage {
                fd,
                header: self.message.header_to_send(),
                // The ring goes on with a stream that took only a part.
                flags: (libc::MSG_NOSIGNAL | libc::MSG_WAITALL).cast_unsigned(),
            },
        }
    }

    fn complete(mut self, result: io::Result<u32>) -> Self::Output {
        let result = result.map(|bytes| bytes as usize);
        match (&self.direction, &result) {
            (Direction::Receive | Direction::Peek, Ok(len)) => self.message.received(*len),
            (Direction::Receive | Direction::Peek, Err(_)) => {}
            (Direction::Send, _) => self.message.sent(),
        }
        (result, self.message)
    }
}
