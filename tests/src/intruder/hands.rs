//! System calls by number, without a wrapper that would do something else first or refuse.
#![expect(unsafe_code, reason = "an intruder does not use safe wrappers")]

use std::ffi::CStr;

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

fn last_errno() -> i32 {
    std::io::Error::last_os_error()
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
