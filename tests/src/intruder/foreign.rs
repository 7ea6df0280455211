//! System calls by other doors: the numbers and arguments of 32-bit programs (`int 0x80`), where
//! what is `munmap` by the usual door is `execve`; and the numbers of x32, which have a bit more.
//! No policy speaks of them: whatever they are, the process ends, and cannot even report it.

use super::hands::{at, call, call_32};
use super::{Attempt, Death, Filtered, Unfiltered, dies};

/// What a kernel says that was built without x32.
const NO_SUCH_CALL: i32 = libc::ENOSYS;
const NOT_THERE: &[i32] = &[libc::ENOENT];
const FORBIDDEN: &[i32] = &[libc::EPERM];

pub(super) static ATTEMPTS: &[Attempt] = &[
    Attempt {
        name: "int 0x80: getpid, which the policies allow",
        filtered: Filtered::Dies(Death::Signal(libc::SIGSYS)),
        unfiltered: Unfiltered::Passes("who it is, it may know"),
        run: |_| call_32(20, [0; 3]),
    },
    dies("int 0x80: open, whose number is fstat's", NOT_THERE, |_| {
        call_32(5, [low(b"/etc/passwd\0"), 0, 0])
    }),
    dies(
        "int 0x80: execve, whose number is munmap's",
        NOT_THERE,
        |_| call_32(11, [low(b"/bin/true\0"), 0, 0]),
    ),
    dies("int 0x80: mount", FORBIDDEN, |_| {
        let path = low(b"/\0");
        call_32(21, [path, path, path])
    }),
    dies("int 0x80: unshare CLONE_NEWUSER", FORBIDDEN, |_| {
        call_32(310, [0x1000_0000, 0, 0])
    }),
    dies(
        "int 0x80: kill a process outside",
        &[libc::ESRCH],
        |hands| call_32(37, [hands.outside.0, 0, 0]),
    ),
    dies(
        "int 0x80: setns to the supervisor's mounts",
        FORBIDDEN,
        |hands| call_32(346, [hands.leaked.mounts(), 0, 0]),
    ),
    dies("x32: openat", &[NO_SUCH_CALL, libc::ENOENT], |_| {
        let here = libc::AT_FDCWD.into();
        let path = c"/etc/passwd";
        call(X32 | libc::SYS_openat, &[here, at(path.as_ptr()), 0])
    }),
    dies(
        "x32: unshare CLONE_NEWUSER",
        &[NO_SUCH_CALL, libc::EPERM],
        |_| call(X32 | libc::SYS_unshare, &[libc::CLONE_NEWUSER.into()]),
    ),
    dies(
        "x32: close, which the policies allow",
        &[NO_SUCH_CALL, libc::EBADF],
        |_| call(X32 | libc::SYS_close, &[-1]),
    ),
];

/// `__X32_SYSCALL_BIT`.
const X32: libc::c_long = 0x4000_0000;

/// The text at an address that a 32-bit call can name.
fn low(text: &[u8]) -> u32 {
    super::hands::low_copy(text)
}
