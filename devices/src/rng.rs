//! The entropy device (virtio 1.3, 5.4): random bytes of the kernel, or the bytes of a file or
//! device. Not a generator of its own.
//!
//! One request is answered after the other, each with [`ANSWER_MAX`] bytes at most: fewer than
//! there is room for are lawful (5.4.6.1), and no guest keeps the thread busy for long. A source
//! is read in order, and a byte of it is given out once, so that two requests never share one.
//!
//! With a [`RateLimit`] so many bytes are given in a period, counted as QEMU does: a period begins
//! with the first request in it. Requests beyond that stay in the ring until the next period: no
//! chain is held, so nothing stands in the way of a stop. A front-end that comes back does not
//! begin a new period, or a guest could ask for one.
//!
//! What a chain cannot have: one without writable bytes is completed with nothing written, and
//! bytes for the device are not looked at. A source that has ended, or that fails, is told once in
//! the log, and requests are then completed with 0 bytes: the specification wants at least one,
//! which nobody has, and other bytes than those that the operator chose would be a lie. A Linux
//! guest's read ends with no data and its kernel looks elsewhere.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::rand::{GetRandomFlags, getrandom};
use serde::{Deserialize, Serialize};
use vudev_executor::{File, Handle};
use vudev_virtio::spec::device_id;
use vudev_virtio::{Chain, Device, Identity, Queue, QueueError};

use crate::passing::{is_memory_lost, is_passing, rest, until_recall};

/// The most bytes of one answer. Linux asks for 64 at a time.
pub const ANSWER_MAX: usize = 4096;

/// The bytes that the kernel is asked for at once, at least: Linux's requests of 64 share the call,
/// which costs as much as these. A request that comes meanwhile waits two microseconds longer.
const BATCH: usize = 512;

/// At most so many operations are in flight: the read, the wait before it, and either again that a
/// stop dropped and the kernel has yet to let go of.
pub const OPERATIONS: u32 = 4;

/// The greatest size of the queue. One request is answered at a time, so depth gains nothing.
const QUEUE_SIZE_MAX: u16 = 64;

/// How many bytes the guest gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimit {
    /// At most so many, at least 1,
    pub max_bytes: u64,
    /// in so many milliseconds, at least 1.
    pub period_ms: u32,
}

/// An entropy device.
pub struct Rng {
    handle: Handle,
    source: Source,
    quota: Option<Quota>,
}

impl Rng {
    /// Gives the bytes of `source`, read from where it stands, or without one the kernel's.
    pub fn new(handle: &Handle, source: Option<OwnedFd>, limit: Option<RateLimit>) -> Self {
        Self {
            handle: handle.clone(),
            source: match source {
                Some(source) => Source::File(RefCell::new(Some(File::new(handle, source)))),
                None => Source::Kernel(RefCell::default()),
            },
            quota: limit.map(|limit| Quota::new(limit, handle.now())),
        }
    }

    /// Where the next bytes come from, once there are some and the guest may have them; `None` when
    /// a stop is asked for.
    async fn wait(&self, queue: &Queue) -> Option<Origin<'_>> {
        if let Some(quota) = &self.quota {
            while let Some(rest) = quota.wait(self.handle.now()) {
                queue.until_stop(self.handle.sleep(rest)).await?;
            }
        }
        loop {
            let file = match &self.source {
                Source::Kernel(batch) => return Some(Origin::Kernel(batch)),
                Source::File(file) => file.borrow().clone(),
            };
            let Some(file) = file else {
                return Some(Origin::Nowhere);
            };
            match queue.until_stop(file.readable()).await? {
                Ok(()) => return Some(Origin::File(file)),
                Err(error) if is_passing(&error) => {
                    rest(queue).await?;
                }
                Err(error) => self.end(&error.to_string()),
            }
        }
    }

    /// The next chain. While there is none, the kernel is asked for what the next ones will want, a
    /// piece at a time and after the turn's call: the driver is at work meanwhile.
    async fn next(&self, queue: &mut Queue) -> Result<Option<Chain>, QueueError> {
        if let Source::Kernel(batch) = &self.source {
            while batch.borrow().wants_more() && !queue.is_stopping() {
                if let Some(chain) = queue.try_next()? {
                    return Ok(Some(chain));
                }
                self.handle.yield_now().await;
                if !batch.borrow_mut().fill_ahead() {
                    break;
                }
            }
        }
        queue.next().await
    }

    /// Fills what may be filled of a chain: how many bytes, or `None` if they cannot be had yet.
    async fn fill(&self, queue: &Queue, chain: &mut Chain, origin: Origin<'_>) -> Option<usize> {
        let most = self
            .quota
            .as_ref()
            .map_or(ANSWER_MAX, |quota| quota.most(self.handle.now()));
        chain.writable.truncate(most);
        if chain.writable.is_empty() {
            return Some(0);
        }
        let filled = match origin {
            Origin::Kernel(batch) => batch.borrow_mut().give(chain),
            Origin::File(file) => self.read_source(queue, chain, &file).await?,
            Origin::Nowhere => 0,
        };
        if let Some(quota) = &self.quota {
            quota.spend(filled);
        }
        Some(filled)
    }

    async fn read_source(&self, queue: &Queue, chain: &mut Chain, file: &File) -> Option<usize> {
        let read = file.read(chain.writable.take());
        let (result, buffers) = until_recall(queue, read).await;
        chain.writable = buffers;
        match result {
            Ok(0) => self.end("it has ended"),
            Ok(count) => return Some(count),
            Err(error) if is_passing(&error) => return None,
            // The buffer is gone with the front-end's memory, not the source.
            Err(error) if is_memory_lost(&error) => {}
            Err(error) => self.end(&error.to_string()),
        }
        Some(0)
    }

    fn end(&self, why: &str) {
        if let Source::File(file) = &self.source
            && file.take().is_some()
        {
            log::error!("the source gives no more bytes, the guest gets none: {why}");
        }
    }
}

impl Device for Rng {
    fn identity(&self) -> Identity {
        Identity {
            device_id: device_id::ENTROPY,
            features: 0,
            queue_sizes: vec![QUEUE_SIZE_MAX],
            config_size: 0,
            operations: OPERATIONS,
        }
    }

    fn read_config(&self, _offset: usize, _into: &mut [u8]) {}

    async fn serve(self: Rc<Self>, mut queue: Queue) -> Result<(), QueueError> {
        while let Some(origin) = self.wait(&queue).await {
            let Some(mut chain) = self.next(&mut queue).await? else {
                break;
            };
            match self.fill(&queue, &mut chain, origin).await {
                Some(filled) => queue.complete(chain, u32::try_from(filled).unwrap_or(0)),
                None => {
                    queue.put_back(chain);
                    if rest(&queue).await.is_none() {
                        break;
                    }
                }
            }
        }
        Ok(())
    }
}

enum Source {
    /// `getrandom(2)`.
    Kernel(RefCell<Batch>),
    /// `None` once it has ended.
    File(RefCell<Option<File>>),
}

/// Where the bytes of one answer come from.
enum Origin<'s> {
    Kernel(&'s RefCell<Batch>),
    File(File),
    /// The source has ended.
    Nowhere,
}

/// Bytes of the kernel that nobody has had. By way of memory of ours: `getrandom` must not write to
/// what a guest sees change, and costs more than the copy.
struct Batch {
    bytes: Box<[u8; ANSWER_MAX]>,
    /// So many from the first on; the others are zero.
    left: usize,
    /// Whether anybody has asked for some. Before that there is no need, and early at boot the
    /// kernel may not be ready: whoever asks waits.
    is_used: bool,
}

impl Default for Batch {
    fn default() -> Self {
        Self {
            bytes: Box::new([0; ANSWER_MAX]),
            left: 0,
            is_used: false,
        }
    }
}

impl Batch {
    /// Copies random bytes into the chain, how many, and leaves none of them here.
    fn give(&mut self, chain: &mut Chain) -> usize {
        let given = self.take(chain.writable.len().min(ANSWER_MAX));
        let written = chain.writable.write(given);
        given.fill(0);
        written.map_or(0, |()| given.len())
    }

    /// Whether there is room for more that is going to be asked for.
    fn wants_more(&self) -> bool {
        self.is_used && self.left <= ANSWER_MAX - BATCH
    }

    /// Asks the kernel for more; whether there is more.
    fn fill_ahead(&mut self) -> bool {
        let before = self.left;
        self.fill(before + BATCH);
        self.left > before
    }

    /// Has the kernel make it so many.
    fn fill(&mut self, length: usize) {
        let missing = &mut self.bytes[self.left..length];
        // Waits only before the kernel's pool is ready for the first time, early at boot.
        match getrandom(missing, GetRandomFlags::empty()) {
            Ok(filled) => self.left += filled,
            Err(errno) => log::debug!("getrandom: {}", io::Error::from(errno)),
        }
    }

    /// At most `length` bytes, for the caller to wipe.
    fn take(&mut self, length: usize) -> &mut [u8] {
        self.is_used = true;
        if length > self.left {
            self.fill(length.max(BATCH));
        }
        let end = self.left;
        self.left -= length.min(end);
        &mut self.bytes[self.left..end]
    }
}

/// What is left of a period.
struct Quota {
    limit: RateLimit,
    left: Cell<u64>,
    /// When the period is over; in the past while none has begun.
    end: Cell<Instant>,
}

impl Quota {
    fn new(limit: RateLimit, now: Instant) -> Self {
        Self {
            limit,
            left: Cell::new(limit.max_bytes),
            end: Cell::new(now),
        }
    }

    /// How long until there are bytes again.
    fn wait(&self, now: Instant) -> Option<Duration> {
        let rest = self.end.get().saturating_duration_since(now);
        (self.left.get() == 0 && !rest.is_zero()).then_some(rest)
    }

    /// How many bytes the next answer may have. Begins a period if the last one is over.
    fn most(&self, now: Instant) -> usize {
        if now >= self.end.get() {
            self.left.set(self.limit.max_bytes);
            let period = Duration::from_millis(self.limit.period_ms.into());
            self.end.set(now + period);
        }
        usize::try_from(self.left.get()).map_or(ANSWER_MAX, |left| left.min(ANSWER_MAX))
    }

    fn spend(&self, bytes: usize) {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        self.left.set(self.left.get().saturating_sub(bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_byte_of_a_batch_is_given_out_twice_or_kept() {
        let mut batch = Batch::default();
        let mut given: Vec<Vec<u8>> = Vec::new();
        for length in [64, 64, BATCH, 1, ANSWER_MAX, 64, 300, 300] {
            let bytes = batch.take(length);
            assert_eq!(bytes.len(), length);
            given.push(bytes.to_vec());
            bytes.fill(0);
            let left = batch.left;
            assert!(batch.bytes[left..].iter().all(|byte| *byte == 0));
            if length < BATCH {
                assert!(batch.fill_ahead());
            }
        }
        // Eight bytes in a row that come twice are no chance.
        let pieces: Vec<&[u8]> = given
            .iter()
            .flat_map(|bytes| bytes.chunks_exact(8))
            .collect();
        let different: std::collections::HashSet<_> = pieces.iter().collect();
        assert_eq!(different.len(), pieces.len());
    }

    #[test]
    fn nothing_is_asked_for_ahead_of_the_first_request_nor_without_end() {
        let mut batch = Batch::default();
        assert!(!batch.wants_more());
        batch.take(64).fill(0);
        let mut pieces = 0;
        while batch.wants_more() {
            assert!(batch.fill_ahead());
            pieces += 1;
        }
        assert_eq!(pieces, ANSWER_MAX / BATCH - 1);
        // All of it is there for the next ones, without a call.
        assert_eq!(batch.left, ANSWER_MAX - 64);
    }
}
