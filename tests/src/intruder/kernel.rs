//! The kernel itself: its modules, clocks, keys, logs and processors.

use super::hands::{at, call, text};
use super::{Attempt, by_seccomp, by_seccomp_if_there, refused};

const FORBIDDEN: &[i32] = &[libc::EPERM];
/// Or not built into this kernel.
const FORBIDDEN_OR_ABSENT: &[i32] = &[libc::EPERM, libc::ENOSYS];
const KEYS: &str = "keyrings are counted and owned by user namespace: it sees its own, empty ones";

pub(super) static ATTEMPTS: &[Attempt] = &[
    by_seccomp("add_key", KEYS, |_| {
        call(
            libc::SYS_add_key,
            &[
                text(c"user"),
                text(c"vudev"),
                text(c"x"),
                1,
                PROCESS_KEYRING,
            ],
        )
    }),
    by_seccomp("keyctl to join a session", KEYS, |_| {
        call(libc::SYS_keyctl, &[1, 0])
    }),
    refused(
        "request_key",
        &[libc::ENOKEY, libc::ENOSYS, libc::EACCES],
        |_| {
            call(
                libc::SYS_request_key,
                &[text(c"user"), text(c"another"), 0, 0],
            )
        },
    ),
    refused(
        "perf_event_open of every process",
        &[libc::EACCES, libc::EPERM, libc::ENOENT, libc::ENOSYS],
        |_| {
            let mut attributes = [0_u64; 16];
            attributes[0] = 1 | 128 << 32;
            call(
                libc::SYS_perf_event_open,
                &[at(&raw const attributes), -1, 0, -1, 0],
            )
        },
    ),
    refused("bpf to load a program", FORBIDDEN_OR_ABSENT, |_| {
        let attributes = [0_u64; 16];
        call(libc::SYS_bpf, &[5, at(&raw const attributes), 128])
    }),
    refused("kexec_load", FORBIDDEN_OR_ABSENT, |_| {
        call(libc::SYS_kexec_load, &[0, 0, 0, 0])
    }),
    refused("kexec_file_load", FORBIDDEN_OR_ABSENT, |_| {
        call(libc::SYS_kexec_file_load, &[-1, -1, 0, 0, 0])
    }),
    refused("reboot", &[libc::EPERM], |_| {
        call(libc::SYS_reboot, &[0, 0, 0, 0])
    }),
    refused("init_module", FORBIDDEN_OR_ABSENT, |_| {
        call(libc::SYS_init_module, &[0, 0, text(c"")])
    }),
    refused("finit_module", FORBIDDEN_OR_ABSENT, |hands| {
        call(libc::SYS_finit_module, &[hands.file.into(), text(c""), 0])
    }),
    refused("delete_module", FORBIDDEN_OR_ABSENT, |_| {
        call(libc::SYS_delete_module, &[text(c"none"), 0])
    }),
    #[cfg(target_arch = "x86_64")]
    refused("iopl", FORBIDDEN_OR_ABSENT, |_| call(libc::SYS_iopl, &[3])),
    #[cfg(target_arch = "x86_64")]
    refused("ioperm", &[libc::EPERM, libc::ENOSYS, libc::EIO], |_| {
        call(libc::SYS_ioperm, &[0x80, 1, 1])
    }),
    #[cfg(target_arch = "x86_64")]
    by_seccomp("modify_ldt", "segments of its own process", |_| {
        let mut table = [0_u64; 16];
        call(libc::SYS_modify_ldt, &[0, at(&raw mut table), 128])
    }),
    refused("settimeofday", FORBIDDEN, |_| {
        call(libc::SYS_settimeofday, &[0, 0])
    }),
    refused("clock_settime", FORBIDDEN, |_| {
        let mut now = [0_i64; 2];
        call(libc::SYS_clock_gettime, &[0, at(&raw mut now)]);
        call(libc::SYS_clock_settime, &[0, at(&raw const now)])
    }),
    refused("clock_adjtime", FORBIDDEN, |_| {
        let mut timex = [0_u64; 32];
        timex[0] = 0x2000;
        call(libc::SYS_clock_adjtime, &[0, at(&raw mut timex)])
    }),
    refused("adjtimex", FORBIDDEN, |_| {
        let mut timex = [0_u64; 32];
        timex[0] = 0x2000;
        call(libc::SYS_adjtimex, &[at(&raw mut timex)])
    }),
    refused("acct", FORBIDDEN_OR_ABSENT, |_| call(libc::SYS_acct, &[0])),
    refused("syslog to read and clear", FORBIDDEN, |_| {
        call(libc::SYS_syslog, &[2, 0, 0])
    }),
    by_seccomp_if_there(
        "syslog to read",
        "the kernel's log is anybody's where kernel.dmesg_restrict is 0",
        FORBIDDEN,
        |_| {
            let mut buffer = [0_u8; 64];
            call(libc::SYS_syslog, &[3, at(&raw mut buffer), 64])
        },
    ),
    refused("vhangup", FORBIDDEN, |_| call(libc::SYS_vhangup, &[])),
    refused(
        "lookup_dcookie or whatever came after the last call",
        &[libc::ENOSYS],
        |_| call(libc::SYS_lookup_dcookie, &[0, 0, 0]),
    ),
    refused(
        "migrate_pages of a process outside",
        &[libc::ESRCH, libc::ENOSYS, libc::EINVAL, libc::EPERM],
        |hands| call(libc::SYS_migrate_pages, &[hands.outside.process(), 0, 0, 0]),
    ),
    refused(
        "move_pages of a process outside",
        &[libc::ESRCH, libc::ENOSYS, libc::EINVAL],
        |hands| {
            call(
                libc::SYS_move_pages,
                &[hands.outside.process(), 0, 0, 0, 0, 0],
            )
        },
    ),
];

/// `KEY_SPEC_PROCESS_KEYRING`.
const PROCESS_KEYRING: i64 = -2;
