//! Bytes for a program of the host that does not keep up: at most what the guest was given credit
//! for, in memory that is there only while there are any.

use vudev_executor::Bytes;
use vudev_virtio::GuestBuffers;

/// The bytes, in order.
pub(super) struct Backlog {
    capacity: usize,
    /// Away while it is being sent.
    bytes: Option<Bytes>,
    start: usize,
    end: usize,
}

impl Backlog {
    /// None yet, and never more than `capacity`.
    pub(super) fn of(capacity: usize) -> Self {
        Self {
            capacity,
            bytes: None,
            start: 0,
            end: 0,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Takes all of `from`. Whether there was room: there is, for what credit was given for.
    pub(super) fn append(&mut self, from: &mut GuestBuffers) -> bool {
        let capacity = self.capacity;
        let length = from.len();
        if self.end - self.start + length > capacity {
            return false;
        }
        let bytes = self.bytes.get_or_insert_with(|| Bytes::zeroed(capacity));
        bytes.set_range(0..capacity);
        let whole = bytes.as_mut_slice();
        if self.end + length > capacity {
            whole.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let taken = from.read(&mut whole[self.end..self.end + length]);
        self.end += length;
        taken.is_ok()
    }

    /// The bytes, to be sent and then given to [`Backlog::sent`].
    pub(super) fn take(&mut self) -> Option<Bytes> {
        let mut bytes = self.bytes.take()?;
        bytes.set_range(self.start..self.end);
        Some(bytes)
    }

    /// So many of them are gone.
    pub(super) fn sent(&mut self, bytes: Bytes, count: usize) {
        self.start = (self.start + count).min(self.end);
        if self.is_empty() {
            (self.start, self.end) = (0, 0);
        } else {
            self.bytes = Some(bytes);
        }
    }

    /// Nobody wants them.
    pub(super) fn clear(&mut self) {
        *self = Self::of(self.capacity);
    }
}
