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
use std::mem;
use std::time::{Duration, Instant};

use rustix::fs::fstatfs;
use rustix::io::Errno;
use rustix::param::page_size;
use vudev_executor::{File, Handle};
use vudev_virtio::GuestBuffers;

use crate::no_wait::NoWait;

/// A write that takes longer has waited: one of a megabyte takes a quarter.
const WAITED: Duration = Duration::from_millis(1);

/// For so many times as long no write waits like that again: what it costs the other queues is at
/// most a sixteenth of their time.
const REST: u32 = 15;

/// How this is done with one file.
pub(super) struct AtOnce {
    handle: Handle,
    reads: NoWait,
    writes: Cell<Writes>,
    /// Whether a write may wait, if need be: not where it may wait for somebody far away, or for
    /// another process.
    local: bool,
    /// When a write may wait again.
    rested: Cell<Option<Instant>>,
    /// Until when the thread's sleeps are counted, which costs a system call a turn.
    watched: Cell<Option<Instant>>,
    turn: Cell<Option<Turn>>,
}

/// The turn of the last write.
#[derive(Clone, Copy)]
struct Turn {
    /// Which one: the loop's enters so far.
    enters: u64,
    /// When its last write was done, or its first one began.
    clock: Instant,
    /// How often the thread had slept before, if that was counted.
    slept: Option<u64>,
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
            reads: NoWait::of_file(),
            writes: Cell::new(Writes::NeverWait),
            local: is_local(file),
            rested: Cell::new(None),
            watched: Cell::new(None),
            turn: Cell::new(None),
        }
    }

    /// How many bytes were read; `None` where the ring is to be asked.
    pub(super) fn read(&self, file: &File, into: &mut GuestBuffers, offset: u64) -> Option<usize> {
        let read = self.reads.attempt(|| file.try_read_at(into, offset));
        read?.ok()
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
        let mut turn = self.turn();
        let written = file.write_at_once(from, offset);
        let before = mem::replace(&mut turn.clock, self.handle.now());
        self.turn.set(Some(turn));
        let took = turn.clock.saturating_duration_since(before);
        if took > WAITED {
            self.look_into(&turn, took);
        }
        written.ok()
    }

    /// This turn, as a write is about to begin.
    fn turn(&self) -> Turn {
        let enters = self.handle.stats().enters;
        let same = self.turn.get().filter(|turn| turn.enters == enters);
        let mut turn = same.unwrap_or_else(|| Turn {
            enters,
            clock: self.handle.now(),
            slept: None,
        });
        let watched = self.watched.get().is_some_and(|end| turn.clock < end);
        if watched && turn.slept.is_none() {
            turn.slept = Some(self.handle.thread_sleeps());
        }
        turn
    }

    /// A write took long. On a busy machine others have the processor for a while, which is
    /// nobody's fault here: only a thread that slept has waited. Sleeps are counted once a write
    /// took long, and for as long as another one would cost the others more than it may.
    fn look_into(&self, turn: &Turn, took: Duration) {
        let rested = turn.clock + took * REST;
        match turn.slept {
            None => self.watched.set(Some(rested)),
            Some(slept) if self.handle.thread_sleeps() > slept => {
                self.rested.set(Some(rested));
                self.watched.set(Some(rested + took * REST));
            }
            Some(_) => {}
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
