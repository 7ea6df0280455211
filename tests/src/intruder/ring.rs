//! Raw hands on the process's own ring, past the executor: what code that has taken over a device
//! would do. Nothing here is safe to do while the executor waits for a completion of its own.
#![expect(unsafe_code, reason = "an intruder does not use safe wrappers")]

use std::io;
use std::os::fd::RawFd;
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};

use super::hands::{at, call};

/// `mmap` offsets of a ring's shared memory (`linux/io_uring.h`).
const OFFSET_RINGS: u64 = 0;
const OFFSET_ENTRIES: u64 = 0x1000_0000;

/// What `/proc` calls a ring.
const RING: &str = "anon_inode:[io_uring]";

/// `struct io_rings` (`linux/io_uring_types.h`): indices in 32-bit words.
const SUBMISSION_HEAD: usize = 0;
const SUBMISSION_TAIL: usize = 1;
const COMPLETION_TAIL: usize = 3;
const SUBMISSION_MASK: usize = 4;
const COMPLETION_MASK: usize = 5;
/// Bytes from the start of `struct io_rings` to its completions.
const COMPLETIONS: usize = 64;

/// `struct io_uring_sqe` has 64 bytes, a completion 16.
const ENTRY: usize = 64;
const COMPLETION: usize = 16;

/// What the executor takes for a completion that belongs to nobody.
pub(super) const NO_SLOT: u64 = u64::MAX;

/// A submission entry; what is not given is zero.
#[derive(Clone, Copy, Debug, Default)]
pub struct Entry {
    /// `IORING_OP_*`.
    pub operation: u8,
    /// `IOSQE_*`.
    pub flags: u8,
    /// The descriptor.
    pub file: RawFd,
    /// The address.
    pub first: i64,
    /// The second address, or the offset.
    pub second: i64,
    /// The length.
    pub length: u32,
    /// In whose name.
    pub personality: u16,
}

/// The shared memory of this process's ring, which the executor has mapped.
#[derive(Clone, Copy, Debug)]
pub struct RawRing {
    fd: RawFd,
    rings: *mut u8,
    entries: *mut u8,
}

impl RawRing {
    /// Finds it in `/proc`, which only works before the jail closes. `another` is not it.
    pub fn of_this_process(another: Option<RawFd>) -> io::Result<Self> {
        Ok(Self {
            fd: descriptor(another)?,
            rings: mapping(OFFSET_RINGS)?,
            entries: mapping(OFFSET_ENTRIES)?,
        })
    }

    /// Another ring, mapped now; or a negative errno. Its first entry can be submitted.
    pub(super) fn mapped(fd: RawFd) -> Result<Self, i64> {
        let map = |offset: u64| {
            let shared = libc::MAP_SHARED.into();
            let offset = offset.cast_signed();
            match call(libc::SYS_mmap, &[0, 4096, 3, shared, fd.into(), offset]) {
                errno @ ..0 => Err(errno),
                place => usize::try_from(place).map_err(|_| 0),
            }
        };
        Ok(Self {
            fd,
            rings: ptr::with_exposed_provenance_mut(map(OFFSET_RINGS)?),
            entries: ptr::with_exposed_provenance_mut(map(OFFSET_ENTRIES)?),
        })
    }

    /// Its number.
    pub fn descriptor(&self) -> RawFd {
        self.fd
    }

    /// Puts one more beside the executor's entries and submits it; the result of its completion.
    pub fn submit(&self, entry: &Entry) -> i64 {
        self.submit_and_wait(entry, 0)
    }

    /// [`RawRing::submit`] of what certainly ends, on a ring that nobody else uses: the kernel may
    /// give it to a worker, and it is waited for then.
    pub(super) fn submit_to_end(&self, entry: &Entry) -> i64 {
        self.submit_and_wait(entry, 1)
    }

    fn submit_and_wait(&self, entry: &Entry, completions: i64) -> i64 {
        let tail = self.word(SUBMISSION_TAIL).load(Ordering::Acquire);
        let index = tail & self.word(SUBMISSION_MASK).load(Ordering::Relaxed);
        let before = self.word(COMPLETION_TAIL).load(Ordering::Acquire);
        // SAFETY: the entry is inside the mapped array, and free: the executor's own are staged
        // by the tail that it stores, and it is not running now.
        unsafe {
            let to = self.entries.add(index as usize * ENTRY);
            ptr::write_bytes(to, 0, ENTRY);
            to.write(entry.operation);
            to.add(1).write(entry.flags);
            to.add(4).cast::<i32>().write(entry.file);
            to.add(8).cast::<i64>().write(entry.second);
            to.add(16).cast::<i64>().write(entry.first);
            to.add(24).cast::<u32>().write(entry.length);
            to.add(32).cast::<u64>().write(NO_SLOT);
            to.add(42).cast::<u16>().write(entry.personality);
        }
        self.word(SUBMISSION_TAIL)
            .store(tail.wrapping_add(1), Ordering::Release);
        // What the executor has staged goes first.
        let head = self.word(SUBMISSION_HEAD).load(Ordering::Acquire);
        let staged = i64::from(tail.wrapping_add(1).wrapping_sub(head));
        let arguments = [self.fd.into(), staged, completions, 1, 0, 0];
        let entered = call(libc::SYS_io_uring_enter, &arguments);
        let after = self.word(COMPLETION_TAIL).load(Ordering::Acquire);
        if entered < 0 {
            return entered;
        }
        // Others' may come meanwhile: a function interrupts whenever its other side likes.
        let news = (0..after.wrapping_sub(before)).rev();
        let mut news = news.map(|index| self.completion(before.wrapping_add(index)));
        match news.find(|(slot, _)| *slot == NO_SLOT) {
            Some((_, result)) => result.into(),
            // It has begun and not ended: it was not refused.
            None => 0,
        }
    }

    /// Sends a descriptor by `IORING_OP_SENDMSG`, which every device's list has.
    pub fn send(&self, socket: RawFd, descriptor: RawFd) -> i64 {
        let byte = 0_u8;
        let vector = [at(&raw const byte), 1];
        // `struct cmsghdr` of SCM_RIGHTS, and `struct msghdr`.
        let (size, rights) = (20_u64, 1 | 1_u64 << 32);
        let control = [size, rights, u64::from(descriptor.cast_unsigned())];
        let header = [
            0,
            0,
            at(&raw const vector),
            1,
            at(&raw const control),
            24,
            0,
        ];
        self.submit(&Entry {
            operation: 9,
            file: socket,
            first: at(&raw const header),
            length: 1,
            ..Entry::default()
        })
    }

    /// `io_uring_register` of its own ring; 8 asks what the kernel can do.
    pub fn register(&self, what: i64) -> i64 {
        let mut memory = [0_u64; 64];
        let memory = at(&raw mut memory);
        call(
            libc::SYS_io_uring_register,
            &[self.fd.into(), what, memory, 16],
        )
    }

    fn word(&self, index: usize) -> &AtomicU32 {
        // SAFETY: inside the mapped header, aligned, and accessed atomically by the kernel too.
        unsafe { AtomicU32::from_ptr(self.rings.cast::<u32>().add(index)) }
    }

    /// Whose it is, and its result.
    fn completion(&self, index: u32) -> (u64, i32) {
        let index = index & self.word(COMPLETION_MASK).load(Ordering::Relaxed);
        // SAFETY: inside the mapped ring; the kernel has released it by its tail.
        unsafe {
            let completion = self.rings.add(COMPLETIONS + index as usize * COMPLETION);
            let slot = completion.cast::<u64>().read_volatile();
            (slot, completion.add(8).cast::<i32>().read_volatile())
        }
    }
}

/// The ring's number.
fn descriptor(another: Option<RawFd>) -> io::Result<RawFd> {
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let entry = entry?;
        let target = std::fs::read_link(entry.path()).unwrap_or_default();
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.parse().ok());
        if target.as_os_str() == RING && number != another {
            return number.ok_or_else(|| io::ErrorKind::InvalidData.into());
        }
    }
    Err(io::ErrorKind::NotFound.into())
}

/// Where the part of the ring at this `mmap` offset is: a line of proc(5), `maps`, has address
/// range, permissions, offset, device, inode, name.
fn mapping(offset: u64) -> io::Result<*mut u8> {
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    let found = maps
        .lines()
        .filter(|line| line.ends_with(RING))
        .find_map(|line| {
            let mut fields = line.split_whitespace();
            let (start, _) = fields.next()?.split_once('-')?;
            let at = u64::from_str_radix(fields.nth(1)?, 16).ok()?;
            (at == offset).then(|| usize::from_str_radix(start, 16).ok())?
        });
    found
        .map(ptr::with_exposed_provenance_mut)
        .ok_or_else(|| io::ErrorKind::NotFound.into())
}
