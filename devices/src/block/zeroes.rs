//! Gives space back to the file system, and makes ranges zero: `fallocate(2)`, which regular files
//! and block devices take alike, and bytes where it is refused. The file's length never changes.

use std::cell::Cell;
use std::io;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use super::transfer::{Source, Storage};
use crate::passing::is_passing;

/// Frees the blocks of a range, which reads as zeros afterwards.
const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;

/// Makes a range read as zeros and keeps its space.
const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;

/// What the file system has said that it never does, so that it is not asked for each request.
#[derive(Default)]
pub(super) struct Refusals {
    punch: Cell<bool>,
    zero: Cell<bool>,
}

impl Storage {
    /// Gives a range back. Where that cannot be done it is done all the same: a device *may* free
    /// the space, and what a driver reads there afterwards is anything (virtio 1.3, 5.2.6.2).
    pub(super) async fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        let _turn = self.turn(offset, length).await;
        self.allocate(PUNCH, offset, length).await.map(drop)
    }

    /// Makes a range zero, giving its space back if `unmap`.
    pub(super) async fn zero(&self, offset: u64, length: u64, unmap: bool) -> io::Result<()> {
        let _turn = self.turn(offset, length).await;
        if unmap && self.allocate(PUNCH, offset, length).await? {
            return Ok(());
        }
        if self.allocate(ZERO, offset, length).await? {
            return Ok(());
        }
        self.write_zeros(offset, length).await
    }

    /// Whether it was done; `false` where the file takes no such call.
    async fn allocate(&self, mode: i32, offset: u64, length: u64) -> io::Result<bool> {
        let refused = match mode {
            PUNCH => &self.refusals.punch,
            _ => &self.refusals.zero,
        };
        if length == 0 || refused.get() {
            return Ok(length == 0);
        }
        match self.file.allocate(mode, offset, length).await {
            Ok(()) => Ok(true),
            // Without a worker thread there is another way, and next time may be better.
            Err(error) if is_passing(&error) => Ok(false),
            Err(error) => match Errno::from_io_error(&error) {
                Some(Errno::OPNOTSUPP | Errno::NOSYS | Errno::NODEV) => {
                    refused.set(true);
                    let what = if mode == PUNCH {
                        "holes"
                    } else {
                        "zeroed ranges"
                    };
                    log::info!("the file takes no {what} (fallocate: {error})");
                    Ok(false)
                }
                // Of a block device: a range of other than its own blocks, or one that is mounted.
                Some(Errno::INVAL | Errno::BUSY) => Ok(false),
                _ => Err(error),
            },
        }
    }

    /// The long way, through a bounce buffer. A write could make a file longer that has become
    /// shorter meanwhile, so that is looked at first.
    async fn write_zeros(&self, mut offset: u64, mut length: u64) -> io::Result<()> {
        if rustix::fs::seek(&self.file, SeekFrom::End(0))? < offset + length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        while length > 0 {
            let most = usize::try_from(length).unwrap_or(usize::MAX);
            let moved = self.write_bounced(&mut Source::Zeros, offset, most).await?;
            if moved == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            offset += moved as u64;
            length -= moved as u64;
        }
        Ok(())
    }
}
