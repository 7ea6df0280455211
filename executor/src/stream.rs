//! Connected stream sockets through the ring, without ever waiting in a transfer: what moves, moves
//! in the turn in which it was asked for, and readiness is waited for apart. So a peer that does
//! not read or write holds nothing but its wait. Not messages and descriptors: see `socket`.

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::rc::Rc;

use libc::msghdr;

use crate::buffers::{Bytes, IoBuffers};
use crate::executor::Handle;
use crate::multishot::MultishotPoll;
use crate::op::{Op, Plain, Request};
use crate::operation::{Operation, PIECES_MAX};

/// A connected stream socket. Clones share it. Its file flags are never changed.
///
/// What a ring that is restricted must allow: `IORING_OP_RECVMSG`, `IORING_OP_SENDMSG`,
/// `IORING_OP_POLL_ADD`, and `IORING_OP_SHUTDOWN` for [`Stream::shut_down`].
#[derive(Clone)]
pub struct Stream {
    handle: Handle,
    shared: Rc<Shared>,
}

/// Which half of a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    /// The peer's writes fail.
    Receiving,
    /// The peer reads what is on its way, and then the end.
    Sending,
}

struct Shared {
    fd: OwnedFd,
    /// Headers of earlier transfers, one for each direction, so that a transfer allocates nothing.
    spare: [Cell<Option<Box<msghdr>>>; 2],
}

impl AsRawFd for Shared {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl Stream {
    /// Hands `fd` to the loop of `handle`.
    pub fn new(handle: &Handle, fd: impl Into<OwnedFd>) -> Self {
        let shared = Shared {
            fd: fd.into(),
            spare: [const { Cell::new(None) }; 2],
        };
        Self {
            handle: handle.clone(),
            shared: Rc::new(shared),
        }
    }

    /// Takes what is there into `buffers`, and gives them back with the number of bytes: 0 at the
    /// end, EAGAIN when there is nothing yet. Descriptors that the peer sends never become ours.
    pub fn receive<B: IoBuffers>(&self, buffers: B) -> impl Transfer<B> + use<B> {
        self.transfer(Direction::Receive, buffers)
    }

    /// Sends as much of `buffers` as there is room for, and gives them back with the number of
    /// bytes, EAGAIN when there is no room. A peer that is gone is EPIPE, never a signal.
    pub fn send<B: IoBuffers>(&self, buffers: B) -> impl Transfer<B> + use<B> {
        self.transfer(Direction::Send, buffers)
    }

    /// Completes when there is something to receive, at the end and on an error too.
    pub fn readable(&self) -> impl Future<Output = io::Result<()>> + Unpin + 'static + use<> {
        self.plain(Operation::poll_once(self.shared.as_raw_fd(), libc::POLLIN))
    }

    /// Waits for room to send, again and again.
    pub fn room(&self) -> Room {
        Room(self.watch(libc::POLLOUT))
    }

    /// Completes when both halves have ended, or on an error.
    ///
    /// # Errors
    ///
    /// The kernel's, if the descriptor cannot be polled.
    pub async fn hung_up(&self) -> io::Result<()> {
        // POLLHUP is reported unasked, and so is the end of the receiving half: which of the two
        // it was is known from a send of nothing.
        let mut changes = self.watch(0);
        loop {
            changes.wait().await?;
            if self.send(Bytes::zeroed(0)).await.0.is_err() {
                return Ok(());
            }
        }
    }

    fn watch(&self, events: i16) -> MultishotPoll<Shared> {
        MultishotPoll::new(&self.handle, &self.shared, events)
    }

    /// Ends one half. The kernel uses a worker for it, and may answer ECANCELED or EAGAIN when it
    /// can make none.
    pub fn shut_down(
        &self,
        half: Half,
    ) -> impl Future<Output = io::Result<()>> + Unpin + 'static + use<> {
        let how = match half {
            Half::Receiving => libc::SHUT_RD,
            Half::Sending => libc::SHUT_WR,
        };
        let fd = self.shared.as_raw_fd();
        self.plain(Operation::Shutdown { fd, how })
    }

    fn plain(&self, operation: Operation) -> Op<Plain<Shared, ()>> {
        Op::new(&self.handle, Plain::new(&self.shared, operation, drop))
    }

    fn transfer<B: IoBuffers>(&self, direction: Direction, buffers: B) -> Op<TransferRequest<B>> {
        let header = self.shared.spare[direction as usize].take();
        let request = TransferRequest {
            shared: self.shared.clone(),
            direction,
            header: header.unwrap_or_else(empty_header),
            buffers,
        };
        Op::new(&self.handle, request)
    }
}

/// Room to send, watched by one multishot poll. A plain poll would not do: a ring's completes at
/// once whenever the peer has ended its half, room or not.
pub struct Room(MultishotPoll<Shared>);

impl Room {
    /// Completes when there was room at the first time, and after that when some more was made
    /// since the last. May complete without.
    ///
    /// # Errors
    ///
    /// The kernel's, if the descriptor cannot be polled.
    pub async fn wait(&mut self) -> io::Result<()> {
        self.0.wait().await
    }
}

/// A transfer on its way: yields the number of bytes and the buffers.
pub trait Transfer<B>: Future<Output = (io::Result<usize>, B)> + Unpin + 'static {}

impl<B, T: Future<Output = (io::Result<usize>, B)> + Unpin + 'static> Transfer<B> for T {}

fn empty_header() -> Box<msghdr> {
    // SAFETY: all-zero is a valid msghdr: no name, no pieces, no control data.
    #[expect(unsafe_code, reason = "a C structure with private padding")]
    Box::new(unsafe { mem::zeroed() })
}

#[derive(Clone, Copy)]
enum Direction {
    Receive,
    Send,
}

struct TransferRequest<B> {
    shared: Rc<Shared>,
    direction: Direction,
    /// On the heap, where the kernel may look while this is moved.
    header: Box<msghdr>,
    buffers: B,
}

// SAFETY: `buffers` keeps its pieces valid by its own contract, the header is on the heap, and the
// descriptor is kept too.
#[expect(unsafe_code, reason = "owns what its operation points at")]
unsafe impl<B: IoBuffers> Request for TransferRequest<B> {
    type Output = (io::Result<usize>, B);

    fn operation(&mut self) -> Operation {
        let fd = self.shared.as_raw_fd();
        let pieces = self.buffers.iovecs();
        self.header.msg_iov = pieces.as_ptr().cast_mut();
        self.header.msg_iovlen = pieces.len().min(PIECES_MAX) as _;
        match self.direction {
            Direction::Receive => Operation::ReceiveMessage {
                fd,
                header: &raw mut *self.header,
                flags: libc::MSG_DONTWAIT.cast_unsigned(),
            },
            Direction::Send => Operation::SendMessage {
                fd,
                header: &raw const *self.header,
                flags: (libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL).cast_unsigned(),
            },
        }
    }

    fn complete(self, result: io::Result<u32>) -> Self::Output {
        self.shared.spare[self.direction as usize].set(Some(self.header));
        (result.map(|bytes| bytes as usize), self.buffers)
    }
}
