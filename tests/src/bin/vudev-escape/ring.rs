//! Raw hands on the process's own ring, past the executor: what code that has taken over a device
//! would do. Nothing here is safe to do while the executor waits for a completion of its own.
#![expect(unsafe_code, reason = "an intruder does not use safe wrappers")]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};

/// `mmap` offsets of a ring's shared memory (`linux/io_uring.h`).
const OFFSET_RINGS: u64 = 0;
const OFFSET_ENTRIES: u64 = 0x1000_0000;

/// What `/proc` calls a ring.
const RING: &str = "anon_inode:[io_uring]";

/// `struct io_rings` (`linux/io_uring_types.h`): indices in 32-bit words.
const SUBMISSION_TAIL: usize = 1;
const COMPLETION_TAIL: usize = 3;
const SUBMISSION_MASK: usize = 4;
const COMPLETION_MASK: usize = 5;
/// Bytes from the start of `struct io_rings` to its completions.
const COMPLETIONS: usize = 64;

/// `struct io_uring_sqe` has 64 bytes, a completion 16.
const ENTRY: usize = 64;
const COMPLETION: usize = 16;

const IORING_OP_READV: u8 = 1;
const IOSQE_ASYNC: u8 = 1 << 4;
/// What the executor takes for a completion that belongs to nobody.
const NO_SLOT: u64 = u64::MAX;

/// The shared memory of this process's ring, which the executor has mapped.
pub(crate) struct RawRing {
    fd: RawFd,
    rings: *mut u8,
    entries: *mut u8,
}

impl RawRing {
    /// Finds it in `/proc`, which only works before the jail closes.
    pub(crate) fn of_this_process() -> io::Result<Self> {
        Ok(Self {
            fd: descriptor()?,
            rings: mapping(OFFSET_RINGS)?,
            entries: mapping(OFFSET_ENTRIES)?,
        })
    }

    /// Has an allowed read done without flags, to see that this is a way at all, and then with
    /// `IOSQE_ASYNC`; tells how that completed.
    pub(crate) fn submit_with_flag(&self, file: BorrowedFd<'_>) -> io::Result<()> {
        self.submit(file, 0)
            .map_err(|_| io::Error::from_raw_os_error(libc::EPROTO))?;
        self.submit(file, IOSQE_ASYNC)
    }

    /// Puts a read of nothing beside the executor's entries and submits it.
    fn submit(&self, file: BorrowedFd<'_>, flags: u8) -> io::Result<()> {
        let tail = self.word(SUBMISSION_TAIL).load(Ordering::Acquire);
        let index = tail & self.word(SUBMISSION_MASK).load(Ordering::Relaxed);
        let before = self.word(COMPLETION_TAIL).load(Ordering::Acquire);
        // SAFETY: the entry is inside the mapped array, and free: the executor's own are staged
        // by the tail that it stores, and it is not running now.
        unsafe {
            let entry = self.entries.add(index as usize * ENTRY);
            ptr::write_bytes(entry, 0, ENTRY);
            entry.write(IORING_OP_READV);
            entry.add(1).write(flags);
            entry.add(4).cast::<i32>().write(file.as_raw_fd());
            entry.add(32).cast::<u64>().write(NO_SLOT);
        }
        self.word(SUBMISSION_TAIL)
            .store(tail.wrapping_add(1), Ordering::Release);
        enter(self.fd)?;
        let after = self.word(COMPLETION_TAIL).load(Ordering::Acquire);
        if after == before {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        match self.completion(after.wrapping_sub(1)) {
            result @ ..0 => Err(io::Error::from_raw_os_error(-result)),
            _ => Ok(()),
        }
    }

    /// `IORING_REGISTER_PROBE`, which would be harmless.
    pub(crate) fn register(&self) -> io::Result<()> {
        let mut probe = [0_u64; 64];
        // SAFETY: the kernel writes 16 + 8 * 16 bytes there, if anything.
        let result = unsafe {
            libc::syscall(
                libc::SYS_io_uring_register,
                self.fd,
                8,
                probe.as_mut_ptr(),
                16,
            )
        };
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }

    fn word(&self, index: usize) -> &AtomicU32 {
        // SAFETY: inside the mapped header, aligned, and accessed atomically by the kernel too.
        unsafe { AtomicU32::from_ptr(self.rings.cast::<u32>().add(index)) }
    }

    fn completion(&self, index: u32) -> i32 {
        let index = index & self.word(COMPLETION_MASK).load(Ordering::Relaxed);
        // SAFETY: inside the mapped ring; the kernel has released it by its tail.
        unsafe {
            let completion = self.rings.add(COMPLETIONS + index as usize * COMPLETION);
            completion.add(8).cast::<i32>().read_volatile()
        }
    }
}

/// The ring's number.
fn descriptor() -> io::Result<RawFd> {
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let entry = entry?;
        let target = std::fs::read_link(entry.path()).unwrap_or_default();
        if target.as_os_str() == RING {
            let name = entry.file_name();
            let number = name.to_str().and_then(|name| name.parse().ok());
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

fn enter(fd: RawFd) -> io::Result<()> {
    let nothing: *const u8 = ptr::null();
    // SAFETY: no argument is passed; one entry is submitted (IORING_ENTER_GETEVENTS = 1).
    let result = unsafe { libc::syscall(libc::SYS_io_uring_enter, fd, 1, 0, 1, nothing, 0) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// `execve`, without the fork that would be found first.
pub(crate) fn execute() -> io::Error {
    let Ok(path) = CString::new("/bin/true") else {
        return io::ErrorKind::InvalidInput.into();
    };
    let arguments = [path.as_ptr(), ptr::null()];
    // SAFETY: a null-terminated list of a C string.
    unsafe { libc::execve(path.as_ptr(), arguments.as_ptr(), ptr::null()) };
    io::Error::last_os_error()
}

/// A ring of one's own, without restrictions.
pub(crate) fn set_up_another() -> io::Error {
    let mut parameters = [0_u64; 15];
    // SAFETY: 120 zeroed bytes are a valid `struct io_uring_params`.
    unsafe { libc::syscall(libc::SYS_io_uring_setup, 4, parameters.as_mut_ptr()) };
    io::Error::last_os_error()
}
