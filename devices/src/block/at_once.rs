//! Reads and writes of the page cache, done in the turn in which they are asked for: a read costs
//! less so, and a write the ring would hand to a worker thread. Not for direct
//! access, and not for anything that may wait for a disk as a matter of course: for that there is
//! the ring, which is also told of every error.
//!
//! A read never waits (RWF_NOWAIT). Nor does a write where the file system can say that it would
//! (xfs, btrfs). Others (ext4) cannot, and there a write is made and may wait: for memory, when the
//! kernel holds those back who dirty more than the disk takes. The other queues wait along, so a
//! write that took long is followed by a time in which writes go through the ring, whose workers
//! wait instead.

use std::cell::Cell;
use std::io;
use std::time::{Duration, Instant};

use rustix::fs::fstatfs;
use rustix::io::Errno;
use rustix::param::page_size;
use vudev_executor::{File, Handle};
use vudev_virtio::GuestBuffers;

/// A write that takes longer has waited: one of a megabyte takes a quarter.
const WAITED: Duration = Duration::from_millis(1);

/// For so many times as long no write waits like that again: what it costs the other queues is at
/// most a sixteenth of their time.
const REST: u32 = 15;

/// How this is done with one file.
pub(super) struct AtOnce {
    handle: Handle,
    reads: Cell<bool>,
    writes: Cell<Writes>,
    /// Whether a write may wait, if need be: not where it may wait for somebody far away, or for
    /// another process.
    local: bool,
    /// When a write may wait again.
    rested: Cell<Option<Instant>>,
    /// The turn of the last write, by its number of enters, and how often the thread had slept when
    /// it began.
    turn: Cell<Option<(u64, u64)>>,
}

/// How writes are done.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Writes {
    /// The file system says when it would wait.
    NeverWait,
    /// It cannot say, so they may.
    MayWait,
    /// Through the ring.
    Never,
}

impl AtOnce {
    /// What there is to know of `file`, which is not open for direct access.
    pub(super) fn new(handle: &Handle, file: &File) -> Self {
        Self {
            handle: handle.clone(),
            reads: Cell::new(true),
            writes: Cell::new(Writes::NeverWait),
            local: is_local(file),
            rested: Cell::new(None),
            turn: Cell::new(None),
        }
    }

    /// How many bytes were read; `None` where the ring is to be asked.
    pub(super) fn read(&self, file: &File, into: &mut GuestBuffers, offset: u64) -> Option<usize> {
        if !self.reads.get() {
            return None;
        }
        let read = file.try_read_at(into, offset);
        if cannot_say(&read) {
            self.reads.set(false);
        }
        read.ok()
    }

    /// How many bytes were written; `None` where the ring is to be asked.
    pub(super) fn write(&self, file: &File, from: &GuestBuffers, offset: u64) -> Option<usize> {
        if self.writes.get() == Writes::NeverWait {
            let written = file.try_write_at(from, offset);
            if !cannot_say(&written) {
                return written.ok();
            }
            let instead = if self.local {
                Writes::MayWait
            } else {
                Writes::Never
            };
            self.writes.set(instead);
        }
        // A part of a page would have to be read first.
        let page = page_size();
        let aligned = offset.is_multiple_of(page as u64) && from.len().is_multiple_of(page);
        if self.writes.get() == Writes::Never || !aligned || self.rests() {
            return None;
        }
        let slept = self.slept_before();
        let before = self.handle.now();
        let written = file.write_at_once(from, offset);
        let after = self.handle.now();
        let took = after.saturating_duration_since(before);
        // On a busy machine others have the processor for a while, which is nobody's fault here.
        if took > WAITED && self.handle.sleeps() > slept {
            self.rested.set(Some(after + took * REST));
        }
        written.ok()
    }

    /// How often the thread had slept when this turn's first write began: asked once a turn.
    fn slept_before(&self) -> u64 {
        let enters = self.handle.stats().enters;
        match self.turn.get() {
            Some((turn, slept)) if turn == enters => slept,
            Some(_) | None => {
                let slept = self.handle.sleeps();
                self.turn.set(Some((enters, slept)));
                slept
            }
        }
    }

    fn rests(&self) -> bool {
        let Some(rested) = self.rested.get() else {
            return false;
        };
        let rests = self.handle.now() < rested;
        if !rests {
            self.rested.set(None);
        }
        rests
    }
}

/// Whether the file system cannot say what would wait.
fn cannot_say(result: &io::Result<usize>) -> bool {
    let error = result.as_ref().err().and_then(Errno::from_io_error);
    matches!(error, Some(Errno::OPNOTSUPP | Errno::INVAL))
}

/// Whether writes wait for nobody but this machine's memory and disks: a network's file systems,
/// and those of processes (FUSE), may hold a write up for ever. Nodes of block devices are on a
/// tmpfs.
fn is_local(file: &File) -> bool {
    fstatfs(file).is_ok_and(|fs| {
        [
            libc::EXT4_SUPER_MAGIC,
            libc::XFS_SUPER_MAGIC,
            libc::BTRFS_SUPER_MAGIC,
            libc::F2FS_SUPER_MAGIC,
            libc::TMPFS_MAGIC,
        ]
        .contains(&fs.f_type)
    })
}
