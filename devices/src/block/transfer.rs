//! Moves bytes between a file and a request's memory, all or an error: short operations are
//! continued, and memory that O_DIRECT would refuse goes through a bounce buffer. What the ring has
//! no worker thread for is asked of the kernel by a system call, which holds up the other requests
//! but does not fail the guest's. It does not know requests, and believes offsets and lengths:
//! [`super::request`] has checked them.

use std::io;
use std::os::fd::AsFd;

use vudev_executor::{File, IoBuffers};
use vudev_virtio::GuestBuffers;

use super::bounce::{BOUNCE_SIZE, Pool};
use crate::passing::is_passing;

/// A disk's file, and how it wants to be accessed.
pub(super) struct Storage {
    file: File,
    /// What addresses, offsets and lengths must be multiples of.
    alignment: usize,
    bounce: Pool,
}

impl Storage {
    /// `alignment` is what O_DIRECT needs (a power of two), or 1.
    pub(super) fn new(file: File, alignment: u32) -> Self {
        Self {
            file,
            alignment: alignment as usize,
            bounce: Pool::new(alignment),
        }
    }

    /// Fills `into` from `offset` on. What is left in `into` after an error was not filled.
    pub(super) async fn read(&self, into: &mut GuestBuffers, mut offset: u64) -> io::Result<()> {
        while !into.is_empty() {
            let moved = if self.takes(into) {
                self.read_straight(into, offset).await?
            } else {
                self.read_bounced(into, offset).await?
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
        while !from.is_empty() {
            let moved = if self.takes(from) {
                self.write_straight(from, offset).await?
            } else {
                self.write_bounced(from, offset).await?
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

    /// Whether the file takes these buffers as they are. O_DIRECT wants them aligned, and in memory
    /// that can be pinned (a PCI BAR's cannot: EFAULT).
    fn takes(&self, buffers: &GuestBuffers) -> bool {
        let misaligned = self.alignment - 1;
        let fits = |iovec: &libc::iovec| (iovec.iov_base.addr() | iovec.iov_len) & misaligned == 0;
        misaligned == 0 || buffers.memory().pinnable() && buffers.iovecs().iter().all(fits)
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
            Err(error) if is_passing(&error) => self.write_bounced(from, offset).await,
            result => self.advance(from, result?),
        }
    }

    /// Leaves out the `moved` bytes in front, as far as the rest can go on from there.
    fn advance(&self, buffers: &mut GuestBuffers, moved: usize) -> io::Result<usize> {
        let moved = self.whole(moved);
        buffers.advance(moved).map_err(io::Error::other)?;
        Ok(moved)
    }

    async fn read_bounced(&self, into: &mut GuestBuffers, offset: u64) -> io::Result<usize> {
        let mut lent = self.bounce.lend().await;
        let bytes = lent.take(0..into.len().min(BOUNCE_SIZE));
        let (result, mut bytes) = self.file.read_at(bytes, offset).await;
        let read = match result {
            Err(error) if is_passing(&error) => {
                rustix::io::pread(self.file.as_fd(), bytes.as_mut_slice(), offset)?
            }
            result => result?,
        };
        let read = self.whole(read);
        into.write(&bytes.as_slice()[..read])
            .map_err(io::Error::other)?;
        lent.keep(bytes);
        Ok(read)
    }

    async fn write_bounced(&self, from: &mut GuestBuffers, offset: u64) -> io::Result<usize> {
        let mut lent = self.bounce.lend().await;
        let length = from.len().min(BOUNCE_SIZE);
        let mut bytes = lent.take(0..length);
        from.read(bytes.as_mut_slice()).map_err(io::Error::other)?;
        lent.keep(bytes);
        let mut done = 0;
        while done < length {
            let at = offset + done as u64;
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
        Ok(done)
    }

    /// How much of `moved` counts: direct access goes on at whole blocks only.
    fn whole(&self, moved: usize) -> usize {
        moved & !(self.alignment - 1)
    }
}
