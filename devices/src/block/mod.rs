//! The block device (virtio 1.3, 5.2): a disk whose bytes are those of a raw file or a block
//! device. Not image formats: what a format's header means is not looked at.
//!
//! Requests of one queue are worked on many at a time. Data goes straight between the file and
//! guest memory; nothing is allocated for a request.
//!
//! What a request cannot have, the guest is told by its status, and nothing is read or written:
//!
//! - IOERR: a header that is too short, data in the wrong direction or not in whole sectors (for
//!   direct access: aligned blocks), anything beyond the end, a write to a read-only disk, and
//!   whatever the file answered with an error, a file that has become shorter included.
//! - UNSUPP: a type that is not IN, OUT, FLUSH or GET_ID.
//! - A chain without room for a status byte is completed with nothing written.
//!
//! A driver that did not take FLUSH cannot ask for durability, so each of its writes is made
//! durable before it is completed (5.2.6.2).

mod bounce;
mod config;
mod request;
mod transfer;

use std::cell::Cell;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use vudev_executor::{File, Handle};
use vudev_virtio::spec::device_id;
use vudev_virtio::{Chain, Device, GuestBuffers, Identity, Queue, QueueError};

pub use self::config::{BlockConfig, BlockError, Measure, measure};
use self::config::{CONFIG_SIZE, F_FLUSH};
use self::request::{HEADER_SIZE, ID_SIZE, Limits, Payload, Request, Status};
use self::transfer::Storage;

/// A disk.
pub struct Block {
    identity: Identity,
    depth: usize,
    limits: Limits,
    id: [u8; ID_SIZE],
    space: [u8; CONFIG_SIZE],
    storage: Storage,
    failures: Cell<u64>,
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
        Ok(Self {
            identity: Identity {
                device_id: device_id::BLOCK,
                features: config.features(),
                queue_sizes: vec![config.queue_size; usize::from(config.queues)],
                config_size: CONFIG_SIZE,
                operations: config.operations(),
            },
            depth: config.depth(),
            limits: config.limits(),
            id: config.id_bytes(),
            space: config.space(),
            storage: Storage::new(File::new(handle, file), config.alignment()),
            failures: Cell::new(0),
        })
    }

    /// Carries out a chain's request and tells its status; the bytes written to the chain.
    async fn answer(&self, chain: &mut Chain, durable: Durability) -> u32 {
        // The status is the last byte, however the chain is cut (5.2.6, 2.7.4.2).
        let Some(room) = chain.writable.len().checked_sub(1) else {
            return 0;
        };
        let Ok(mut told) = chain.writable.split_off(room) else {
            return 0;
        };
        let status = self.carry_out(chain, durable).await;
        // One byte was split off for it.
        let _ = told.write(&[status as u8]);
        used_length(room, chain.writable.len())
    }

    async fn carry_out(&self, chain: &mut Chain, durable: Durability) -> Status {
        let mut header = [0; HEADER_SIZE];
        if chain.readable.read(&mut header).is_err() {
            return Status::IoError;
        }
        let payload = Payload {
            readable: chain.readable.len(),
            writable: chain.writable.len(),
        };
        let request = match Request::parse(&header, payload, &self.limits) {
            Ok(request) => request,
            Err(status) => return status,
        };
        let result = match request {
            Request::Read { offset } => self.storage.read(&mut chain.writable, offset).await,
            Request::Write { offset } => self.write(&mut chain.readable, offset, durable).await,
            Request::Flush => self.storage.sync().await,
            Request::Identify => chain.writable.write(&self.id).map_err(io::Error::other),
        };
        match result {
            Ok(()) => Status::Ok,
            Err(error) => {
                self.report(request, &error);
                Status::IoError
            }
        }
    }

    async fn write(
        &self,
        from: &mut GuestBuffers,
        offset: u64,
        durable: Durability,
    ) -> io::Result<()> {
        self.storage.write(from, offset).await?;
        match durable {
            Durability::OnFlush => Ok(()),
            Durability::AtOnce => self.storage.sync().await,
        }
    }

    /// Says that the file failed. A guest can ask for the impossible without end, so only the
    /// first failure, the second, the fourth and so on make a line.
    fn report(&self, request: Request, error: &io::Error) {
        let failures = self.failures.get().saturating_add(1);
        self.failures.set(failures);
        if failures.is_power_of_two() {
            log::warn!("{request:?} failed ({failures} failures so far): {error}");
        }
    }
}

/// When a write must be durable.
#[derive(Clone, Copy)]
enum Durability {
    /// The driver asks for it.
    OnFlush,
    /// Before the write is completed.
    AtOnce,
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
        self.identity.clone()
    }

    fn read_config(&self, offset: usize, into: &mut [u8]) {
        let length = into.len();
        into.copy_from_slice(&self.space[offset..offset + length]);
    }

    async fn serve(self: Rc<Self>, queue: Queue) -> Result<(), QueueError> {
        let durable = if queue.features() & F_FLUSH == 0 {
            Durability::AtOnce
        } else {
            Durability::OnFlush
        };
        let answer = async |chain: &mut Chain| self.answer(chain, durable).await;
        queue.serve(self.depth, answer).await
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
