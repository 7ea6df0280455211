//! Moves bytes between a file and a request's memory, all or an error: short operations are
//! continued, and what O_DIRECT would refuse goes through a bounce buffer. What the ring has
//! no worker thread for is asked of the kernel by a system call, which holds up the other requests
//! but does not fail the guest's. It does not know requests, and believes offsets and lengths:
//! [`super::request`] has checked them.

use std::io;
use std::os::fd::AsFd;

use vudev_executor::{File, Handle, IoBuffers};
use vudev_virtio::GuestBuffers;

use super::BlockConfig;
use super::at_once::AtOnce;
use super::bounce::{self, BOUNCE_SIZE, Lent, Pool};
use super::overlap::{Overlaps, Turn};
use super::request::SECTOR_SIZE;
use super::zeroes::Refusals;
use crate::passing::is_passing;

/// A disk's file, and how it wants to be accessed.
pub(super) struct Storage {
    pub(super) file: File,
    /// What addresses, offsets and lengths must be multiples of.
    alignment: usize,
    bounce: Pool,
    /// What the page cache has need not go through the ring; none with O_DIRECT.
    at_once: Option<AtOnce>,
    /// Where a request may be for a part of an aligned block.
    overlaps: Option<Overlaps>,
    pub(super) refusals: Refusals,
}

/// What a bounced write writes.
pub(super) enum Source<'a> {
    /// The front of a guest's buffers, which moves on.
    Guest(&'a mut GuestBuffers),
    /// Zeros without end.
    Zeros,
}

/// A part of the file that fits a bounce buffer: whole aligned blocks around a part of a request.
struct Window {
    /// Where in the file.
    start: u64,
    /// Bytes in all.
    length: usize,
    /// Bytes before the request's.
    head: usize,
    /// Bytes of the request.
    payload: usize,
}

impl Storage {
    /// A disk's storage in `file`, as its description says.
    pub(super) fn new(handle: &Handle, file: File, config: &BlockConfig) -> Self {
        // What O_DIRECT needs (a power of two), or 1.
        let alignment = config.alignment();
        // Without O_DIRECT hardly anything is bounced.
        let registered = match config.direct {
            true => bounce::registered(handle, alignment),
            false => None,
        };
        Self {
            at_once: (!config.direct).then(|| AtOnce::new(handle, &file)),
            file,
            alignment: alignment as usize,
            bounce: Pool::new(alignment, registered),
            overlaps: (u64::from(alignment) > SECTOR_SIZE).then(Overlaps::default),
            refusals: Refusals::default(),
        }
    }

    /// Fills `into` from `offset` on. What is left in `into` after an error was not filled.
    pub(super) async fn read(&self, into: &mut GuestBuffers, mut offset: u64) -> io::Result<()> {
        while !into.is_empty() {
            let moved = match self.read_at_once(into, offset) {
                Some(read) => self.advance(into, read)?,
                None if self.takes(into, offset) => self.read_straight(into, offset).await?,
                None => self.read_bounced(into, offset).await?,
            };
            if moved == 0 {
                // The file was as long as the disk once, so somebody has cut it.
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            offset += moved as u64;
        }
        Ok(())
    }

    /// Stores `from` at `offset`.
    pub(super) async fn write(&self, from: &mut GuestBuffers, mut offset: u64) -> io::Result<()> {
        let _turn = self.turn(offset, from.len() as u64).await;
        while !from.is_empty() {
            let moved = match self.write_at_once(from, offset) {
                Some(written) => self.advance(from, written)?,
                None if self.takes(from, offset) => self.write_straight(from, offset).await?,
                None => {
                    let length = from.len();
                    self.write_bounced(&mut Source::Guest(from), offset, length)
                        .await?
                }
            };
            if moved == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            offset += moved as u64;
        }
        Ok(())
    }

    /// Makes what was written durable.
    pub(super) async fn sync(&self) -> io::Result<()> {
        match self.file.sync(true).await {
            Err(error) if is_passing(&error) => Ok(rustix::fs::fdatasync(self.file.as_fd())?),
            result => result,
        }
    }

    /// Waits for whoever changes the same aligned blocks, as far as that matters.
    pub(super) async fn turn(&self, offset: u64, length: u64) -> Option<Turn<'_>> {
        let overlaps = self.overlaps.as_ref()?;
        let mask = self.alignment as u64 - 1;
        let in_part = (offset | length) & mask != 0;
        let end = (offset + length + mask) & !mask;
        Some(overlaps.enter(offset & !mask..end, in_part).await)
    }

    /// Whether the file takes these buffers as they are. O_DIRECT wants them aligned, and in memory
    /// that can be pinned (a PCI BAR's cannot: EFAULT).
    fn takes(&self, buffers: &GuestBuffers, offset: u64) -> bool {
        let misaligned = self.alignment - 1;
        let fits = |iovec: &libc::iovec| (iovec.iov_base.addr() | iovec.iov_len) & misaligned == 0;
        misaligned == 0
            || offset & misaligned as u64 == 0
                && buffers.memory().is_none_or(|it| it.pinnable())
                && buffers.iovecs().iter().all(fits)
    }

    /// What the page cache has. With it the file takes all buffers as they are.
    #[inline]
    fn read_at_once(&self, into: &mut GuestBuffers, offset: u64) -> Option<usize> {
        self.at_once.as_ref()?.read(&self.file, into, offset)
    }

    fn write_at_once(&self, from: &GuestBuffers, offset: u64) -> Option<usize> {
        self.at_once.as_ref()?.write(&self.file, from, offset)
    }

    async fn read_straight(&self, into: &mut GuestBuffers, offset: u64) -> io::Result<usize> {
        let (result, buffers) = self.file.read_at(into.take(), offset).await;
        *into = buffers;
        match result {
            Err(error) if is_passing(&error) => self.read_bounced(into, offset).await,
            result => self.advance(into, result?),
        }
    }

    async fn write_straight(&self, from: &mut GuestBuffers, offset: u64) -> io::Result<usize> {
        let (result, buffers) = self.file.write_at(from.take(), offset).await;
        *from = buffers;
        match result {
            Err(error) if is_passing(&error) => {
                let length = from.len();
                self.write_bounced(&mut Source::Guest(from), offset, length)
                    .await
            }
            result => self.advance(from, result?),
        }
    }

    /// Leaves out the `moved` bytes in front, as far as the rest can go on from there.
    #[inline]
    fn advance(&self, buffers: &mut GuestBuffers, moved: usize) -> io::Result<usize> {
        let moved = self.whole(moved);
        buffers.advance(moved).map_err(io::Error::other)?;
        Ok(moved)
    }

    async fn read_bounced(&self, into: &mut GuestBuffers, offset: u64) -> io::Result<usize> {
        let window = self.window(offset, into.len());
        let mut lent = self.bounce.lend(window.length).await;
        let read = self
            .fill(&mut lent, 0, window.start, window.length)
            .await?
            .saturating_sub(window.head)
            .min(window.payload);
        let bytes = lent.take(window.head..window.head + read);
        into.write(bytes.as_slice()).map_err(io::Error::other)?;
        lent.keep(bytes);
        Ok(read)
    }

    /// Writes at most `most` bytes, as many as fit one buffer. Aligned blocks of which they are
    /// only a part are read first: the caller has the [`Storage::turn`] for that.
    pub(super) async fn write_bounced(
        &self,
        source: &mut Source<'_>,
        offset: u64,
        most: usize,
    ) -> io::Result<usize> {
        let Window {
            start,
            length,
            head,
            payload,
        } = self.window(offset, most);
        let mut lent = self.bounce.lend(length).await;
        let block = self.alignment;
        let in_part = head + payload < length;
        if head > 0 || in_part && length == block {
            self.fill_block(&mut lent, 0, start).await?;
        }
        if in_part && length > block {
            let last = length - block;
            self.fill_block(&mut lent, last, start + last as u64)
                .await?;
        }
        let mut bytes = lent.take(head..head + payload);
        source.fill(bytes.as_mut_slice())?;
        lent.keep(bytes);
        let mut done = 0;
        while done < length {
            let at = start + done as u64;
            let (result, bytes) = self.file.write_at(lent.take(done..length), at).await;
            let written = match result {
                Err(error) if is_passing(&error) => {
                    rustix::io::pwrite(self.file.as_fd(), bytes.as_slice(), at)?
                }
                result => result?,
            };
            lent.keep(bytes);
            if self.whole(written) == 0 {
                return Ok(0);
            }
            done += self.whole(written);
        }
        Ok(payload)
    }

    /// Reads the aligned block at `start` into the buffer at `at`. One that has less is no longer
    /// in the file: to write it would make the file longer.
    async fn fill_block(&self, lent: &mut Lent<'_>, at: usize, start: u64) -> io::Result<()> {
        match self.fill(lent, at, start, self.alignment).await? {
            read if read == self.alignment => Ok(()),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Reads up to `length` bytes from `start` into the buffer at `at`; how many count.
    async fn fill(
        &self,
        lent: &mut Lent<'_>,
        at: usize,
        start: u64,
        length: usize,
    ) -> io::Result<usize> {
        let bytes = lent.take(at..at + length);
        let (result, mut bytes) = self.file.read_at(bytes, start).await;
        let read = match result {
            Err(error) if is_passing(&error) => {
                rustix::io::pread(self.file.as_fd(), bytes.as_mut_slice(), start)?
            }
            result => result?,
        };
        lent.keep(bytes);
        Ok(self.whole(read))
    }

    fn window(&self, offset: u64, most: usize) -> Window {
        let mask = self.alignment - 1;
        let start = offset & !(mask as u64);
        // Less than an alignment, and a buffer is a multiple of that.
        let head = usize::try_from(offset - start).unwrap_or_default();
        let payload = most.min(BOUNCE_SIZE - head);
        Window {
            start,
            length: (head + payload + mask) & !mask,
            head,
            payload,
        }
    }

    /// How much of `moved` counts: direct access goes on at whole blocks only.
    fn whole(&self, moved: usize) -> usize {
        moved & !(self.alignment - 1)
    }
}

impl Source<'_> {
    fn fill(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        match self {
            Self::Guest(buffers) => buffers.read(bytes).map_err(io::Error::other),
            Self::Zeros => {
                bytes.fill(0);
                Ok(())
            }
        }
    }
}
