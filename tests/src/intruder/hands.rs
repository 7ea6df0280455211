//! System calls by number, without a wrapper that would do something else first or refuse.
#![expect(unsafe_code, reason = "an intruder does not use safe wrappers")]

#[cfg(target_arch = "x86_64")]
use std::arch::asm;
use std::ffi::CStr;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
#[cfg(target_arch = "x86_64")]
use std::sync::atomic::{AtomicI64, Ordering};

/// What an intruder looks for outside of its jail: a process, a listener at an abstract name, and
/// message queue, semaphores and shared memory with a key. All have the same number, the test's.
#[derive(Clone, Copy, Debug)]
pub struct Outside(pub u32);

impl Outside {
    /// The process.
    pub fn process(self) -> i64 {
        self.0.into()
    }

    /// The abstract name, without its leading zero.
    pub fn abstract_name(self) -> String {
        format!("vudev-escape-{}", self.0)
    }

    /// The key.
    pub fn key(self) -> i64 {
        0x5600_0000 ^ i64::from(self.0)
    }
}

/// Makes the call; what it gave, or a negative errno.
pub(super) fn call(number: libc::c_long, arguments: &[i64]) -> i64 {
    let mut six = [0_i64; 6];
    six[..arguments.len()].copy_from_slice(arguments);
    let [a, b, c, d, e, f] = six;
    // SAFETY: not sound for any arguments; those of this module's tables point at nothing, at
    // statics, or at locals that are large enough for what the kernel would write.
    let result = unsafe { libc::syscall(number, a, b, c, d, e, f) };
    if result < 0 {
        -i64::from(last_errno())
    } else {
        result
    }
}

/// A descriptor that a call has just given.
pub(super) fn new_descriptor(result: i64) -> io::Result<OwnedFd> {
    match RawFd::try_from(result) {
        // SAFETY: new, and nobody else's: the caller passes what a call gave.
        Ok(number @ 0..) => Ok(unsafe { OwnedFd::from_raw_fd(number) }),
        Ok(errno) => Err(io::Error::from_raw_os_error(-errno)),
        Err(_) => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Makes a call by the door of 32-bit programs; what it gave, or a negative errno.
#[cfg(target_arch = "x86_64")]
pub(super) fn call_32(number: i32, [a, b, c]: [u32; 3]) -> i64 {
    let result: i32;
    // SAFETY: as for `call`. The compiler keeps `rbx` for itself, so it is swapped in and out;
    // kernels clear the registers that 32-bit programs do not have.
    unsafe {
        asm!(
            "xchg {a:r}, rbx",
            "int 0x80",
            "xchg {a:r}, rbx",
            a = inout(reg) u64::from(a) => _,
            inlateout("eax") number => result,
            in("ecx") b,
            in("edx") c,
            in("esi") 0,
            in("edi") 0,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    result.into()
}

/// A copy of these bytes, at most a page, at an address below 4 GiB; 0 if there is no room.
#[cfg(target_arch = "x86_64")]
pub(super) fn low_copy(bytes: &[u8]) -> u32 {
    const PAGE: usize = 4096;
    // Far below all that a program of 64 bits has; no policy lets MAP_32BIT through.
    static NEXT: AtomicI64 = AtomicI64::new(0x2000_0000);
    let place = NEXT.fetch_add(4096, Ordering::Relaxed);
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
    let page = call(libc::SYS_mmap, &[place, 4096, 3, flags.into(), -1, 0]);
    let Ok(address) = u32::try_from(page) else {
        return 0;
    };
    let page = std::ptr::with_exposed_provenance_mut::<u8>(address as usize);
    // SAFETY: a new page, writable, of which at most its length is written.
    unsafe { page.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len().min(PAGE)) };
    address
}

fn last_errno() -> i32 {
    io::Error::last_os_error()
        .raw_os_error()
        .unwrap_or(libc::EIO)
}

/// A C string as an argument.
pub(super) fn text(text: &'static CStr) -> i64 {
    at(text.as_ptr())
}

/// An address as an argument.
pub(super) fn at<T: ?Sized>(place: *const T) -> i64 {
    let address = place.cast::<u8>().expose_provenance() as u64;
    address.cast_signed()
}
