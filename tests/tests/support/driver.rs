//! A disk as crate `virtio-driver` drives it: a front-end that is not ours, with deadlines around
//! its eventfds. For data and figures; the control plane is the crate's own business.

#![allow(dead_code, reason = "each user uses its part")]
#![allow(
    clippy::unwrap_used,
    reason = "without a driver there is nothing to test"
)]

use std::{
    fmt,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
    ptr::NonNull,
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    mm::{MapFlags, ProtFlags},
};
use virtio_driver::{
    Completion, EventFd, QueueNotifier, VhostUser, VirtioBlkConfig, VirtioBlkQueue,
    VirtioBlkReqBuf, VirtioBlkTransport, VirtioFeatureFlags,
};

/// How long a completion may take.
const LIMIT: Duration = Duration::from_secs(10);

/// A driver of one queue with `slots` buffers of `size` bytes.
pub(crate) struct Driver {
    queue: VirtioBlkQueue<'static, usize>,
    notifier: Box<dyn QueueNotifier>,
    call: Arc<EventFd>,
    size: usize,
    buffers: Buffers,
    // Owns the memory of the queue, so it goes last.
    transport: Box<VirtioBlkTransport>,
}

impl Driver {
    /// Connects and sets up one queue of 128 descriptors.
    pub(crate) fn connect(socket: &Path, slots: usize, size: usize) -> Self {
        let features = VirtioFeatureFlags::VERSION_1
            | VirtioFeatureFlags::RING_EVENT_IDX
            | VirtioFeatureFlags::RING_INDIRECT_DESC;
        let path = socket.to_str().unwrap();
        let vhost = VhostUser::<VirtioBlkConfig, VirtioBlkReqBuf>::new(path, features.bits());
        let mut transport: Box<VirtioBlkTransport> = Box::new(vhost.unwrap());
        let buffers = Buffers::new(slots * size);
        let start = buffers.start.as_ptr() as usize;
        let file = buffers.file.as_raw_fd();
        transport
            .map_mem_region(start, buffers.size, file, 0)
            .unwrap();
        let mut queues = VirtioBlkQueue::setup_queues(&mut *transport, 1, 128).unwrap();
        let queue = queues.remove(0);
        let notifier = transport.get_submission_notifier(0);
        let call = transport.get_completion_fd(0);
        Self {
            queue,
            notifier,
            call,
            size,
            buffers,
            transport,
        }
    }

    /// The disk's length in bytes.
    pub(crate) fn capacity(&self) -> u64 {
        u64::from(self.transport.get_config().unwrap().capacity) * 512
    }

    /// Sends a read into a slot's buffer, without telling the device.
    pub(crate) fn send_read(&mut self, slot: usize, offset: u64) {
        let buffer = self.buffers.at(slot * self.size);
        #[expect(unsafe_code, reason = "the crate takes raw buffers")]
        // SAFETY: the buffer is a slot of our mapping, which lives as long as the queue; a slot is
        // sent again only after its completion.
        unsafe { self.queue.read_raw(offset, buffer, self.size, slot) }.unwrap();
    }

    /// Sends a write of a slot's buffer, without telling the device.
    pub(crate) fn send_write(&mut self, slot: usize, offset: u64) {
        let buffer = self.buffers.at(slot * self.size);
        #[expect(unsafe_code, reason = "the crate takes raw buffers")]
        // SAFETY: as for `send_read`.
        unsafe { self.queue.write_raw(offset, buffer, self.size, slot) }.unwrap();
    }

    /// Tells the device, if it wants to be told.
    pub(crate) fn kick(&mut self) {
        if self.queue.avail_notif_needed() {
            self.notifier.notify().unwrap();
        }
    }

    /// Waits until something has completed, and gives each completed slot to `done`.
    pub(crate) fn complete(&mut self, mut done: impl FnMut(&mut Self, usize)) {
        let deadline = Instant::now() + LIMIT;
        loop {
            let finished: Vec<_> = self.queue.completions().collect();
            if !finished.is_empty() {
                for Completion { context, ret } in finished {
                    assert_eq!(ret, 0, "request of slot {context}");
                    done(self, context);
                }
                return;
            }
            self.queue.set_used_notif_enabled(true);
            if !self.queue.completions().has_next() {
                self.wait(deadline);
            }
            self.queue.set_used_notif_enabled(false);
        }
    }

    /// Writes bytes of one slot's length, and waits.
    pub(crate) fn write(&mut self, offset: u64, bytes: &[u8]) {
        self.buffers.write(0, bytes);
        self.send_write(0, offset);
        self.kick();
        self.complete(|_, _| ());
    }

    /// Reads one slot's length, and waits.
    pub(crate) fn read(&mut self, offset: u64) -> Vec<u8> {
        self.send_read(0, offset);
        self.kick();
        self.complete(|_, _| ());
        self.buffers.read(0, self.size)
    }

    /// Makes what was written durable.
    pub(crate) fn flush(&mut self) {
        self.queue.flush(0).unwrap();
        self.kick();
        self.complete(|_, _| ());
    }

    fn wait(&self, deadline: Instant) {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).unwrap();
        let mut entries = [PollFd::from_borrowed_fd(self.call.as_fd(), PollFlags::IN)];
        let ready = poll(&mut entries, Some(&timeout)).unwrap();
        assert_ne!(ready, 0, "no completion within {LIMIT:?}");
        self.call.read().unwrap();
    }
}

impl fmt::Debug for Driver {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Driver")
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}

/// Shared memory for the slots.
struct Buffers {
    file: OwnedFd,
    start: NonNull<u8>,
    size: usize,
}

impl Buffers {
    fn new(size: usize) -> Self {
        let file = rustix::fs::memfd_create("slots", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&file, size as u64).unwrap();
        let access = ProtFlags::READ | ProtFlags::WRITE;
        #[expect(unsafe_code, reason = "the device writes to shared memory")]
        // SAFETY: the kernel chooses the place; the file has this size.
        let start = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                size,
                access,
                MapFlags::SHARED,
                &file,
                0,
            )
        };
        Self {
            file,
            start: NonNull::new(start.unwrap().cast()).unwrap(),
            size,
        }
    }

    fn at(&self, offset: usize) -> *mut u8 {
        assert!(offset < self.size);
        self.start.as_ptr().wrapping_add(offset)
    }

    fn read(&self, offset: usize, length: usize) -> Vec<u8> {
        assert!(offset <= self.size && length <= self.size - offset);
        let mut bytes = vec![0; length];
        #[expect(unsafe_code, reason = "the device writes to shared memory")]
        // SAFETY: in bounds by the assertion; the destination is ours.
        unsafe {
            std::ptr::copy_nonoverlapping(self.at(offset), bytes.as_mut_ptr(), length);
        }
        bytes
    }

    fn write(&self, offset: usize, bytes: &[u8]) {
        assert!(offset <= self.size && bytes.len() <= self.size - offset);
        #[expect(unsafe_code, reason = "the device reads shared memory")]
        // SAFETY: in bounds by the assertion; nothing refers into the mapping.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.at(offset), bytes.len());
        }
    }
}

impl Drop for Buffers {
    fn drop(&mut self) {
        #[expect(unsafe_code, reason = "what was mapped is unmapped")]
        // SAFETY: exactly what `new` mapped; nobody keeps a pointer.
        let unmapped = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.size) };
        debug_assert!(unmapped.is_ok(), "{unmapped:?}");
    }
}
