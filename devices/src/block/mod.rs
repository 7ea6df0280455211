//! The block device (virtio 1.3, 5.2): a disk whose bytes are those of a raw file or a block
//! device. Not image formats: what a format's header means is not looked at.
//!
//! Requests of one queue are worked on many at a time. Data goes straight between the file and
//! guest memory; nothing is allocated for a request. What the page cache has, or takes, is read and
//! written at once; the rest goes through the ring.
//!
//! What a request cannot have, the guest is told by its status, and nothing is read or written:
//!
//! - IOERR: a header that is too short, data in the wrong direction or not in whole sectors,
//!   anything beyond the end, a write to a read-only disk, ranges to discard or zero that are no
//!   whole list of them, too many or too long; and whatever the file answered with an error, a file
//!   that has become shorter and a full file system included.
//! - UNSUPP: a type that is none of IN, OUT, FLUSH, GET_ID, DISCARD and WRITE_ZEROES; DISCARD and
//!   WRITE_ZEROES of a driver that did not negotiate them; a range with an unknown flag, as `unmap`
//!   is for DISCARD (5.2.6.2). A FLUSH that was not negotiated is carried out: drivers send it, and
//!   a sync harms nobody.
//! - A chain without room for a status byte is completed with nothing written.
//!
//! A DISCARD that the file system cannot do is OK: a device may free the space (5.2.6.2), and need
//! not. WRITE_ZEROES always leaves zeros; `unmap` gives the space back where that can be done and
//! the disk is `sparse`. Neither makes the file longer.
//!
//! A write is durable when it is complete if the driver did not take FLUSH and so cannot ask for
//! durability, and while the cache mode is writethrough (5.2.6.2): the operator's choice, and with
//! CONFIG_WCE the driver's, which lasts until a reset.
//!
//! The capacity is the file's length, read again by [`Block::refresh`]. A write that was placed
//! while the disk was longer may make a shortened file longer again, as any writer would.

mod at_once;
mod bounce;
mod config;
mod measure;
mod overlap;
mod ranges;
mod request;
mod space;
mod transfer;
mod zeroes;

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use rustix::fs::SeekFrom;
use vudev_executor::{File, Handle, Notify, Task};
use vudev_virtio::spec::device_id;
use vudev_virtio::{Chain, ConfigReadOnly, Device, GuestBuffers, Identity, Queue, QueueError};

pub use self::config::{BlockConfig, BlockError};
pub use self::measure::{Measure, measure};
use self::ranges::{Extent, Purpose};
use self::request::{HEADER_SIZE, ID_SIZE, Limits, Payload, Request, Status};
use self::space::{CONFIG_SIZE, F_CONFIG_WCE, F_DISCARD, F_FLUSH, F_WRITE_ZEROES, WRITEBACK_AT};
use self::transfer::Storage;
use crate::counter::Counter;

/// A disk.
pub struct Block {
    handle: Handle,
    config: BlockConfig,
    id: [u8; ID_SIZE],
    storage: Storage,
    limits: Cell<Limits>,
    /// What the driver took; `None` before it has said.
    features: Cell<Option<u64>>,
    /// The cache mode: whether writes may be complete before they are durable.
    writeback: Cell<bool>,
    /// Makes durable what was written before the driver chose writethrough.
    catching_up: RefCell<Option<Task<()>>>,
    changed: Notify,
    /// A guest can ask for the impossible without end.
    failures: Counter,
}

impl Block {
    /// A disk on `file`, which is open for reading, and for writing unless the disk is read-only,
    /// with O_DIRECT if the description says so.
    ///
    /// # Errors
    ///
    /// [`BlockError`] names the value that is out of range.
    pub fn new(
        handle: &Handle,
        config: &BlockConfig,
        file: impl Into<OwnedFd>,
    ) -> Result<Self, BlockError> {
        config.check()?;
        let limits = Limits {
            capacity: config.whole_blocks(config.capacity),
            read_only: config.read_only,
            ..Limits::default()
        };
        Ok(Self {
            handle: handle.clone(),
            config: config.clone(),
            id: config.id_bytes(),
            storage: Storage::new(handle, File::new(handle, file), config),
            limits: Cell::new(limits),
            features: Cell::new(None),
            writeback: Cell::new(!config.write_through),
            catching_up: RefCell::new(None),
            changed: Notify::new(),
            failures: Counter::of("requests that failed"),
        })
    }

    /// Reads the file's length again. If the disk has another size now, the driver is told.
    pub fn refresh(&self) {
        let length = match rustix::fs::seek(&self.storage.file, SeekFrom::End(0)) {
            Ok(length) => length,
            Err(error) => return log::error!("the size of the disk cannot be read: {error}"),
        };
        let capacity = self.config.whole_blocks(length);
        let mut limits = self.limits.get();
        let before = limits.capacity;
        if capacity < length {
            let rest = length - capacity;
            log::warn!("the last {rest} bytes of the file are no whole block, and left out");
        }
        if capacity == before {
            return log::info!("the disk has {capacity} bytes, as before");
        }
        log::info!("the disk has {capacity} bytes now, {before} before");
        limits.capacity = capacity;
        self.limits.set(limits);
        self.changed.notify();
    }

    /// Carries out a chain's request and tells its status; the bytes written to the chain.
    async fn answer(&self, chain: &mut Chain) -> u32 {
        // The status is the last byte, however the chain is cut (5.2.6, 2.7.4.2).
        let Some(told) = chain.writable.split_last() else {
            return 0;
        };
        let room = chain.writable.len();
        let status = self.carry_out(chain).await;
        told.write(status as u8);
        used_length(room, chain.writable.len())
    }

    async fn carry_out(&self, chain: &mut Chain) -> Status {
        let mut header = [0; HEADER_SIZE];
        if chain.readable.read(&mut header).is_err() {
            return Status::IoError;
        }
        let payload = Payload {
            readable: chain.readable.len(),
            writable: chain.writable.len(),
        };
        let request = match Request::parse(&header, payload, &self.limits.get()) {
            Ok(request) => request,
            Err(status) => return status,
        };
        let result = match request {
            Request::Read { offset } => self.storage.read(&mut chain.writable, offset).await,
            Request::Write { offset } => self.write(&mut chain.readable, offset).await,
            Request::Flush => self.storage.sync().await,
            Request::Identify => chain.writable.write(&self.id).map_err(io::Error::other),
            Request::Change { purpose } => match self.change(&mut chain.readable, purpose).await {
                Ok(result) => result,
                Err(status) => return status,
            },
        };
        match result {
            Ok(()) => Status::Ok,
            Err(error) => {
                let last = format_args!("{request:?}: {error}");
                self.failures.count(&last);
                Status::IoError
            }
        }
    }

    async fn write(&self, from: &mut GuestBuffers, offset: u64) -> io::Result<()> {
        self.storage.write(from, offset).await?;
        self.settle().await
    }

    /// Gives ranges back, or makes them zero, one after another.
    async fn change(
        &self,
        from: &mut GuestBuffers,
        purpose: Purpose,
    ) -> Result<io::Result<()>, Status> {
        let mut bytes: ranges::Bytes = [0; _];
        let bytes = &mut bytes[..from.len()];
        from.read(bytes).map_err(|_| Status::IoError)?;
        let extents = purpose.extents(bytes, &self.limits.get())?;
        for extent in extents {
            if let Err(error) = self.change_one(purpose, extent).await {
                return Ok(Err(error));
            }
        }
        Ok(match purpose {
            Purpose::Discard => Ok(()),
            Purpose::WriteZeroes => self.settle().await,
        })
    }

    async fn change_one(&self, purpose: Purpose, extent: Extent) -> io::Result<()> {
        let Extent {
            offset,
            length,
            unmap,
        } = extent;
        match purpose {
            Purpose::Discard => self.storage.discard(offset, length).await,
            Purpose::WriteZeroes => {
                let unmap = unmap && self.config.sparse;
                self.storage.zero(offset, length, unmap).await
            }
        }
    }

    /// Makes a write durable that must be before it is completed. A change of the mode between
    /// the two leaves it open which holds (5.2.6.2).
    async fn settle(&self) -> io::Result<()> {
        let volatile = self.writeback.get() && self.limits.get().flush;
        if volatile {
            Ok(())
        } else {
            self.storage.sync().await
        }
    }

    /// The driver chooses the cache mode.
    fn choose(&self, writeback: bool) {
        if self.writeback.replace(writeback) == writeback {
            return;
        }
        let mode = if writeback {
            "writeback"
        } else {
            "writethrough"
        };
        log::debug!("the driver has chosen {mode}");
        if writeback {
            return;
        }
        // A driver that believes in no cache flushes no more, not even what it wrote before.
        let sync = self.storage.file.sync(true);
        let task = self.handle.spawn(async move {
            if let Err(error) = sync.await {
                log::warn!("what was written before writethrough may not be durable: {error}");
            }
        });
        *self.catching_up.borrow_mut() = Some(task);
    }

    /// Takes note of what the driver may ask for.
    fn take_features(&self, features: Option<u64>) {
        let has = |feature| features.is_some_and(|features| features & feature != 0);
        self.features.set(features);
        self.limits.set(Limits {
            flush: has(F_FLUSH),
            discard: has(F_DISCARD),
            write_zeroes: has(F_WRITE_ZEROES),
            ..self.limits.get()
        });
        // 5.2.5.2: a driver that cannot flush finds the mode in which it need not.
        if has(F_CONFIG_WCE) && !has(F_FLUSH) {
            self.writeback.set(false);
        }
    }
}

/// What the used ring tells: the bytes written from the chain's first writable one on (2.7.8.2).
/// The status is beyond a hole, and not counted, when `unfilled` bytes of `room` were not written.
fn used_length(room: usize, unfilled: usize) -> u32 {
    let written = if unfilled == 0 {
        room + 1
    } else {
        room - unfilled
    };
    u32::try_from(written).unwrap_or(u32::MAX)
}

impl Device for Block {
    fn identity(&self) -> Identity {
        let config = &self.config;
        Identity {
            device_id: device_id::BLOCK,
            features: config.features(),
            queue_sizes: vec![config.queue_size; usize::from(config.queues)],
            config_size: CONFIG_SIZE,
            operations: config.operations(),
        }
    }

    fn read_config(&self, offset: usize, into: &mut [u8]) {
        let capacity = self.limits.get().capacity;
        let space = self.config.space(capacity, self.writeback.get());
        into.copy_from_slice(&space[offset..offset + into.len()]);
    }

    /// The cache mode is a driver's to write, once it may be: before a driver has said what it
    /// takes it is believed, since VMMs pass on what their guest writes.
    fn write_config(&self, offset: usize, from: &[u8]) -> Result<(), ConfigReadOnly> {
        let offered = self.config.features();
        let taken = self.features.get().unwrap_or(offered) & offered;
        match (offset, from) {
            (WRITEBACK_AT, [mode]) if taken & F_CONFIG_WCE != 0 => {
                self.choose(*mode != 0);
                Ok(())
            }
            _ => Err(ConfigReadOnly { offset }),
        }
    }

    fn config_changed(&self) -> impl Future<Output = ()> {
        self.changed.notified()
    }

    fn negotiated(&self, features: u64) {
        self.take_features(Some(features));
    }

    async fn serve(self: Rc<Self>, queue: Queue) -> Result<(), QueueError> {
        let answer = async |chain: &mut Chain| self.answer(chain).await;
        queue.serve(self.config.depth(), answer).await
    }

    fn reset(&self) {
        self.take_features(None);
        self.writeback.set(!self.config.write_through);
    }
}

#[cfg(test)]
mod tests {
    use super::used_length;

    #[test]
    fn the_status_counts_only_when_nothing_before_it_is_missing() {
        assert_eq!(used_length(0, 0), 1);
        assert_eq!(used_length(512, 0), 513);
        assert_eq!(used_length(512, 512), 0);
        assert_eq!(used_length(1024, 512), 512);
    }
}
