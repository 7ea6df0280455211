//! A forbidden call after the report of it was sabotaged: the signal blocked or ignored, its
//! handler without a stack or without a channel. The process must end all the same.

use super::hands::{at, call, text};
use super::{Attempt, Death, Filtered, Hands, Unfiltered, dies, refused};

const NOT_THERE: &[i32] = &[libc::ENOENT];

pub(super) static ATTEMPTS: &[Attempt] = &[
    dies(
        "rt_sigprocmask to block SIGSYS, then openat",
        NOT_THERE,
        |_| {
            let signals = 1_u64 << (libc::SIGSYS - 1);
            let how = libc::SIG_BLOCK.into();
            call(
                libc::SYS_rt_sigprocmask,
                &[how, at(&raw const signals), 0, 8],
            );
            let opened = open();
            let how = libc::SIG_UNBLOCK.into();
            call(
                libc::SYS_rt_sigprocmask,
                &[how, at(&raw const signals), 0, 8],
            );
            opened
        },
    ),
    refused(
        "rt_sigaction to ignore SIGSYS, then openat",
        NOT_THERE,
        |_| {
            let (mut old, ignore) = ([0_u64; 4], [1_u64, 0, 0, 0]);
            let signal = libc::SIGSYS.into();
            call(
                libc::SYS_rt_sigaction,
                &[signal, at(&raw const ignore), at(&raw mut old), 8],
            );
            let opened = open();
            call(libc::SYS_rt_sigaction, &[signal, at(&raw const old), 0, 8]);
            opened
        },
    ),
    Attempt {
        name: "sigaltstack at no memory, then openat",
        filtered: Filtered::Dies(Death::Signal(libc::SIGSEGV)),
        unfiltered: Unfiltered::Fails(NOT_THERE),
        run: without_a_stack,
    },
    Attempt {
        name: "close of the channel, then openat",
        filtered: Filtered::Dies(Death::Status(vudev_jail::report::SIGSYS_EXIT_STATUS)),
        unfiltered: Unfiltered::Fails(NOT_THERE),
        run: without_a_channel,
    },
];

fn open() -> i64 {
    let here = libc::AT_FDCWD.into();
    call(libc::SYS_openat, &[here, text(c"/etc/passwd"), 0])
}

/// `stack_t`: where, flags, size. The kernel looks at it when a handler is to run.
fn without_a_stack(_: &Hands) -> i64 {
    let (mut old, nowhere) = ([0_u64; 3], [4096_u64, 0, 1 << 16]);
    call(
        libc::SYS_sigaltstack,
        &[at(&raw const nowhere), at(&raw mut old)],
    );
    let opened = open();
    call(libc::SYS_sigaltstack, &[at(&raw const old), 0]);
    opened
}

/// The control channel's number in every role.
const CHANNEL: i64 = 3;

fn without_a_channel(_: &Hands) -> i64 {
    let duplicate = libc::F_DUPFD_CLOEXEC.into();
    let kept = call(libc::SYS_fcntl, &[CHANNEL, duplicate, 0]);
    call(libc::SYS_close, &[CHANNEL]);
    let opened = open();
    call(libc::SYS_dup3, &[kept, CHANNEL, 0]);
    call(libc::SYS_close, &[kept]);
    opened
}
