//! Files, devices, pipes and terminals through the ring: what a `read(2)` or a `write(2)` could be
//! done on. Nothing here changes a descriptor's flags, which others may share.

use std::future::Future;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use crate::buffers::IoBuffers;
use crate::executor::Handle;
use crate::message::Message;
use crate::op::{Op, Plain, Request};
use crate::operation::{Operation, PIECES_MAX, STREAM_POSITION};
use crate::socket::MessageRequest;

/// An open descriptor whose operations go through a ring. Clones share it.
///
/// What a ring that is restricted must allow: `IORING_OP_READV` for [`File::read`] and
/// [`File::read_at`], `IORING_OP_WRITEV` for [`File::write`] and [`File::write_at`],
/// `IORING_OP_FSYNC` for [`File::sync`], `IORING_OP_FALLOCATE` for [`File::allocate`],
/// `IORING_OP_POLL_ADD` for [`File::readable`], [`File::writable`], [`File::hung_up`] and
/// [`File::has_input`], `IORING_OP_RECVMSG` for [`File::has_unread`]. What it does not allow fails
/// with `EACCES`. Where it allows `IORING_OP_READ` and `IORING_OP_WRITE` too, what has one piece
/// goes by those, which cost less; and a part of [`Registered`] memory by `IORING_OP_READ_FIXED`
/// and `IORING_OP_WRITE_FIXED`, without which there is none.
///
/// [`Registered`]: crate::Registered
#[derive(Clone)]
pub struct File {
    handle: Handle,
    // Shared with every operation in flight: the kernel may look the number up late.
    fd: Rc<OwnedFd>,
}

impl File {
    /// Hands `fd` to the loop of `handle`.
    pub fn new(handle: &Handle, fd: impl Into<OwnedFd>) -> Self {
        Self {
            handle: handle.clone(),
            fd: Rc::new(fd.into()),
        }
    }

    /// Fills `buffers` from `offset`; gives them back with the number of bytes, which may be less
    /// than they hold: at the end of the file, and for more than 1024 pieces.
    pub fn read_at<B: IoBuffers>(&self, buffers: B, offset: u64) -> impl Vectored<B> + use<B> {
        self.vectored(Direction::Read, buffers, offset)
    }

    /// Writes `buffers` at `offset`; gives them back with the number of bytes, which may be less
    /// than they hold.
    pub fn write_at<B: IoBuffers>(&self, buffers: B, offset: u64) -> impl Vectored<B> + use<B> {
        self.vectored(Direction::Write, buffers, offset)
    }

    /// [`File::read_at`] at the descriptor's own position: pipes, terminals.
    pub fn read<B: IoBuffers>(&self, buffers: B) -> impl Vectored<B> + use<B> {
        self.vectored(Direction::Read, buffers, STREAM_POSITION)
    }

    /// [`File::write_at`] at the descriptor's own position: pipes, terminals, files to append to.
    pub fn write<B: IoBuffers>(&self, buffers: B) -> impl Vectored<B> + use<B> {
        self.vectored(Direction::Write, buffers, STREAM_POSITION)
    }

    /// [`File::read_at`] without the ring and without waiting: what the page cache has, by
    /// `preadv2` with RWF_NOWAIT; how many bytes, which may be fewer than there is room for. What
    /// is not there fails with EAGAIN, and a file system that cannot tell with EOPNOTSUPP;
    /// [`File::read_at`] does it then. A turn moves 1 MiB so, shared by all files of the executor:
    /// what is longer than the rest of that fails with EAGAIN. A system call of this process, so it
    /// needs a rule of the policy and none of the ring's list.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn try_read_at<B: IoBuffers>(&self, buffers: &mut B, offset: u64) -> io::Result<usize> {
        self.at_once(Direction::Read, buffers, offset, false)
    }

    /// [`File::write_at`] without the ring and without waiting, as [`File::try_read_at`].
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn try_write_at<B: IoBuffers>(&self, buffers: &B, offset: u64) -> io::Result<usize> {
        self.at_once(Direction::Write, buffers, offset, false)
    }

    /// [`File::read`] without the ring and without waiting, as [`File::try_read_at`]: of a device
    /// or a socket, what is there.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn try_read<B: IoBuffers>(&self, buffers: &mut B) -> io::Result<usize> {
        self.at_once(Direction::Read, buffers, STREAM_POSITION, false)
    }

    /// [`File::write`] without the ring and without waiting, as [`File::try_read_at`].
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn try_write<B: IoBuffers>(&self, buffers: &B) -> io::Result<usize> {
        self.at_once(Direction::Write, buffers, STREAM_POSITION, false)
    }

    /// [`File::write_at`] without the ring, however long that takes: everybody on this executor
    /// waits meanwhile. For local file systems that refuse [`File::try_write_at`] with EOPNOTSUPP:
    /// there it waits for this machine's memory and disks at most. Fails with EAGAIN where it is
    /// longer than what is left of the turn's share ([`File::try_read_at`]).
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn write_at_once<B: IoBuffers>(&self, buffers: &B, offset: u64) -> io::Result<usize> {
        self.at_once(Direction::Write, buffers, offset, true)
    }

    fn at_once<B: IoBuffers>(
        &self,
        direction: Direction,
        buffers: &B,
        offset: u64,
        wait: bool,
    ) -> io::Result<usize> {
        let operation = direction.operation(&self.fd, buffers, offset);
        let length = buffers.bytes();
        // SAFETY: whoever owns the pieces is borrowed, for a read as nobody else's, and the call is
        // over when this returns.
        #[expect(unsafe_code, reason = "hands pointers to the kernel")]
        let moved = unsafe { self.handle.driver().at_once(&operation, length, wait) };
        moved.map(|bytes| bytes as usize)
    }

    fn vectored<B: IoBuffers>(
        &self,
        direction: Direction,
        buffers: B,
        offset: u64,
    ) -> Op<VectoredRequest<B>> {
        let request = VectoredRequest {
            fd: self.fd.clone(),
            buffers,
            offset,
            direction,
        };
        Op::new(&self.handle, request)
    }

    /// Makes what was written durable: `fdatasync`, or `fsync`. The kernel uses a worker for it and
    /// may answer ECANCELED or EAGAIN when it can make none.
    pub fn sync(
        &self,
        data_only: bool,
    ) -> impl Future<Output = io::Result<()>> + Unpin + 'static + use<> {
        let operation = Operation::Sync {
            fd: self.fd.as_raw_fd(),
            data_only,
        };
        self.plain(operation, drop)
    }

    /// `fallocate(2)` with `mode` (`FALLOC_FL_*`) on `len` bytes from `offset`.
    pub fn allocate(
        &self,
        mode: i32,
        offset: u64,
        len: u64,
    ) -> impl Future<Output = io::Result<()>> + Unpin + 'static + use<> {
        let operation = Operation::Allocate {
            fd: self.fd.as_raw_fd(),
            mode,
            offset,
            len,
        };
        self.plain(operation, drop)
    }

    /// Completes when a read would not wait, at the end of input or on an error too.
    pub fn readable(&self) -> impl Future<Output = io::Result<()>> + Unpin + 'static + use<> {
        let fd = self.fd.as_raw_fd();
        self.plain(Operation::poll_once(fd, libc::POLLIN), drop)
    }

    /// Completes when a write would not wait, or would fail.
    pub fn writable(&self) -> impl Future<Output = io::Result<()>> + Unpin + 'static + use<> {
        let fd = self.fd.as_raw_fd();
        self.plain(Operation::poll_once(fd, libc::POLLOUT), drop)
    }

    /// Completes when the other side has gone or will send no more: `true` if it is gone altogether
    /// (a socket shut down both ways, a terminal that nobody has open), whatever is left to read.
    /// The kernel tells of both unasked, and again at once when asked again.
    pub fn hung_up(&self) -> impl Future<Output = io::Result<bool>> + Unpin + 'static + use<> {
        let fd = self.fd.as_raw_fd();
        self.plain(Operation::poll_once(fd, 0), |events| {
            events & u32::from((libc::POLLHUP | libc::POLLERR).cast_unsigned()) != 0
        })
    }

    /// Completes as [`File::readable`] does: `true` if there are bytes, and not only their end. A
    /// terminal tells these apart, and a socket does not ([`File::has_unread`]).
    pub fn has_input(&self) -> impl Future<Output = io::Result<bool>> + Unpin + 'static + use<> {
        let fd = self.fd.as_raw_fd();
        self.plain(Operation::poll_once(fd, libc::POLLIN), |events| {
            events & u32::from(libc::POLLIN.cast_unsigned()) != 0
        })
    }

    /// Whether bytes have come to a socket that have not been read. It does not wait for any, and
    /// leaves them where they are. What is no socket answers ENOTSOCK.
    pub async fn has_unread(&self) -> io::Result<bool> {
        let request = MessageRequest::peek(self.fd.clone(), Message::with_capacity(1));
        match Op::new(&self.handle, request).await.0 {
            Ok(bytes) => Ok(bytes > 0),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn plain<T: 'static>(
        &self,
        operation: Operation,
        output: fn(u32) -> T,
    ) -> Op<Plain<OwnedFd, T>> {
        Op::new(&self.handle, Plain::new(&self.fd, operation, output))
    }
}

impl AsFd for File {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A read or a write on its way: yields the number of bytes and the buffers. Dropped early it is
/// cancelled, and the buffers are freed when the kernel has let go of them.
pub trait Vectored<B>: Future<Output = (io::Result<usize>, B)> + Unpin + 'static {
    /// Asks the kernel to end the operation early, and stays its owner: awaited on, it yields the
    /// bytes that had moved, or ECANCELED when none had. For streams, where bytes read and then
    /// dropped would be lost. Has no effect before the first poll.
    fn cancel(&mut self);
}

impl<B: IoBuffers> Vectored<B> for Op<VectoredRequest<B>> {
    fn cancel(&mut self) {
        Self::cancel(self);
    }
}

#[derive(Clone, Copy)]
enum Direction {
    Read,
    Write,
}

impl Direction {
    fn operation<B: IoBuffers>(self, fd: &OwnedFd, buffers: &B, offset: u64) -> Operation {
        let fd = fd.as_raw_fd();
        let (pieces, registered) = (buffers.iovecs(), buffers.registered());
        let count = u32::try_from(pieces.len().min(PIECES_MAX)).expect("at most 1024");
        let pieces = pieces.as_ptr();
        match self {
            Self::Read => Operation::ReadVectored {
                fd,
                pieces,
                count,
                offset,
                registered,
            },
            Self::Write => Operation::WriteVectored {
                fd,
                pieces,
                count,
                offset,
                registered,
            },
        }
    }
}

struct VectoredRequest<B> {
    fd: Rc<OwnedFd>,
    buffers: B,
    offset: u64,
    direction: Direction,
}

// SAFETY: `buffers` keeps its pieces valid by its own contract; the descriptor is kept too.
#[expect(unsafe_code, reason = "owns what its operation points at")]
unsafe impl<B: IoBuffers> Request for VectoredRequest<B> {
    type Output = (io::Result<usize>, B);

    fn operation(&mut self) -> Operation {
        self.direction
            .operation(&self.fd, &self.buffers, self.offset)
    }

    fn complete(self, result: io::Result<u32>) -> Self::Output {
        (result.map(|bytes| bytes as usize), self.buffers)
    }
}
