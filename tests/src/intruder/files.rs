//! Files by every call that takes a path or a handle, programs, and what is inherited.

use super::hands::{at, call, text};
use super::{Attempt, Hands, by_seccomp, refused};

const HERE: i64 = libc::AT_FDCWD as i64;
const READ: i64 = libc::O_RDONLY as i64;
const CREATE: i64 = (libc::O_RDWR | libc::O_CREAT) as i64;
const NO_PROGRAM: i64 = -(libc::ENOEXEC as i64);
const EMPTY_PATH: i64 = libc::AT_EMPTY_PATH as i64;

/// Not there, or there and refused by Landlock, which is asked last.
const NO_PATH: &[i32] = &[libc::ENOENT];
const LANDLOCK: &[i32] = &[libc::EACCES];
/// Nothing can be made in the root: it is read-only.
/// Not every host has it.
const NO_DEVICE: &[i32] = &[libc::ENOENT, libc::EACCES];
const READ_ONLY: &[i32] = &[libc::EROFS, libc::EACCES];

pub(super) static ATTEMPTS: &[Attempt] = &[
    #[cfg(not(target_arch = "aarch64"))]
    refused("open /etc/passwd", NO_PATH, |_| {
        call(libc::SYS_open, &[text(c"/etc/passwd"), READ])
    }),
    #[cfg(not(target_arch = "aarch64"))]
    refused("open the root", LANDLOCK, |_| {
        call(libc::SYS_open, &[text(c"/"), READ])
    }),
    refused("openat /etc/passwd", NO_PATH, |_| {
        call(libc::SYS_openat, &[HERE, text(c"/etc/passwd"), READ])
    }),
    refused("openat upwards", LANDLOCK, |_| {
        call(libc::SYS_openat, &[HERE, text(c"../../.."), READ])
    }),
    refused("openat a file without a name", READ_ONLY, |_| {
        call(
            libc::SYS_openat,
            &[
                HERE,
                text(c"/"),
                (libc::O_TMPFILE | libc::O_RDWR).into(),
                0o600,
            ],
        )
    }),
    refused("openat2 /etc/passwd", NO_PATH, |_| {
        let how = [0_u64; 3];
        call(
            libc::SYS_openat2,
            &[HERE, text(c"/etc/passwd"), at(&raw const how), 24],
        )
    }),
    refused("openat2 the root", LANDLOCK, |_| {
        let how = [0_u64; 3];
        call(
            libc::SYS_openat2,
            &[HERE, text(c"/"), at(&raw const how), 24],
        )
    }),
    #[cfg(not(target_arch = "aarch64"))]
    refused("creat", READ_ONLY, |_| {
        call(libc::SYS_creat, &[text(c"/file"), 0o600])
    }),
    refused("openat to create", READ_ONLY, |_| {
        call(libc::SYS_openat, &[HERE, text(c"/file"), CREATE, 0o600])
    }),
    refused("open_by_handle_at", &[libc::EPERM], |hands| {
        // The handle of the first inode of a usual file system, as "shocker" guessed it.
        let handle = [0x0000_0001_0000_0008_u64, 2];
        call(
            libc::SYS_open_by_handle_at,
            &[hands.file.into(), at(&raw const handle), READ],
        )
    }),
    // Namespaces have handles that need no capability since Linux 6.18, and the first of each kind
    // has a known number.
    refused(
        "open_by_handle_at of the host's namespaces",
        &[libc::ESTALE, libc::EPERM, libc::EBADF],
        open_first_namespaces,
    ),
    by_seccomp(
        "name_to_handle_at",
        "a name of its own root or file is no access; opening by it is EPERM",
        |hands| {
            let (mut handle, mut mount) = ([128_u64; 24], 0_i32);
            call(
                libc::SYS_name_to_handle_at,
                &[
                    hands.file.into(),
                    text(c""),
                    at(&raw mut handle),
                    at(&raw mut mount),
                    EMPTY_PATH,
                ],
            )
        },
    ),
    refused("openat /proc/self/maps", NO_PATH, |_| {
        call(libc::SYS_openat, &[HERE, text(c"/proc/self/maps"), READ])
    }),
    refused("openat /proc/self/mem to write", NO_PATH, |_| {
        let write = libc::O_RDWR.into();
        call(libc::SYS_openat, &[HERE, text(c"/proc/self/mem"), write])
    }),
    refused("openat /proc/1/root", NO_PATH, |_| {
        call(libc::SYS_openat, &[HERE, text(c"/proc/1/root"), READ])
    }),
    refused("openat /dev/mem", NO_DEVICE, |_| {
        call(libc::SYS_openat, &[HERE, text(c"/dev/mem"), READ])
    }),
    refused("statx /etc/passwd", NO_PATH, |_| {
        let mut status = [0_u64; 32];
        call(
            libc::SYS_statx,
            &[HERE, text(c"/etc/passwd"), 0, 0x7ff, at(&raw mut status)],
        )
    }),
    refused("mkdirat", READ_ONLY, |_| {
        call(libc::SYS_mkdirat, &[HERE, text(c"/folder"), 0o700])
    }),
    refused("mknodat", &[libc::EROFS, libc::EACCES, libc::EPERM], |_| {
        call(
            libc::SYS_mknodat,
            &[
                HERE,
                text(c"/memory"),
                (libc::S_IFCHR | 0o600).into(),
                0x101,
            ],
        )
    }),
    refused("symlinkat", READ_ONLY, |_| {
        call(libc::SYS_symlinkat, &[text(c"/etc"), HERE, text(c"/link")])
    }),
    refused(
        "linkat its own file",
        &[libc::ENOENT, libc::EXDEV, libc::EROFS, libc::EACCES],
        |hands| {
            call(
                libc::SYS_linkat,
                &[
                    hands.file.into(),
                    text(c""),
                    HERE,
                    text(c"/link"),
                    EMPTY_PATH,
                ],
            )
        },
    ),
    refused("unlinkat", NO_PATH, |_| {
        call(libc::SYS_unlinkat, &[HERE, text(c"/etc/passwd"), 0])
    }),
    refused("renameat2", NO_PATH, |_| {
        call(
            libc::SYS_renameat2,
            &[HERE, text(c"/etc/a"), HERE, text(c"/etc/b"), 0],
        )
    }),
    refused("truncate", NO_PATH, |_| {
        call(libc::SYS_truncate, &[text(c"/etc/passwd"), 0])
    }),
    #[cfg(not(target_arch = "aarch64"))]
    refused("chmod", NO_PATH, |_| {
        call(libc::SYS_chmod, &[text(c"/etc/passwd"), 0o644])
    }),
    #[cfg(not(target_arch = "aarch64"))]
    refused("chown", NO_PATH, |_| {
        call(libc::SYS_chown, &[text(c"/etc/passwd"), 0, 0])
    }),
    refused("inotify_init1 and a watch", NO_PATH, |_| {
        let watcher = call(libc::SYS_inotify_init1, &[0]);
        call(libc::SYS_inotify_add_watch, &[watcher, text(c"/etc"), 2])
    }),
    refused("fanotify_init of a file system", &[libc::EPERM], |_| {
        call(libc::SYS_fanotify_init, &[0, 0])
    }),
    // Without a capability there are descriptors that only number what happens.
    refused("fanotify_init and a mark at a path", NO_PATH, |_| {
        let watcher = call(libc::SYS_fanotify_init, &[FAN_REPORT_FID, 0]);
        let path = text(c"/etc/passwd");
        call(libc::SYS_fanotify_mark, &[watcher, 1, 2, HERE, path])
    }),
    refused("execve", NO_PATH, |_| {
        call(libc::SYS_execve, &[text(c"/bin/true"), 0, 0])
    }),
    refused("execveat", NO_PATH, |_| {
        call(libc::SYS_execveat, &[HERE, text(c"/bin/true"), 0, 0, 0])
    }),
    refused("execveat of the device's file", &[libc::EACCES], |hands| {
        call(
            libc::SYS_execveat,
            &[hands.file.into(), text(c""), 0, 0, EMPTY_PATH],
        )
    }),
    by_seccomp(
        "memfd_create and execveat of it",
        "a program in memory has no more rights than the code that wrote it",
        execute_memory,
    ),
    refused(
        "quotactl",
        &[
            libc::ENOENT,
            libc::EPERM,
            libc::ENOSYS,
            libc::ENODEV,
            libc::ENOTBLK,
        ],
        |_| {
            call(
                libc::SYS_quotactl,
                &[0x80_0003_i64 << 8, text(c"/dev/vda"), 0, 0],
            )
        },
    ),
    refused("flock of another's file", &[libc::EBADF], |_| {
        call(libc::SYS_flock, &[4095, 2])
    }),
    by_seccomp(
        "ioctl of its own file",
        "FIGETBSZ; a driver's commands need a device node, which it cannot open",
        |hands| {
            let mut size = 0_i32;
            call(libc::SYS_ioctl, &[hands.file.into(), 2, at(&raw mut size)])
        },
    ),
];

/// `FD_NSFS_ROOT` (`linux/fcntl.h`), and the type of a handle there.
const NAMESPACES: i64 = -10_003;
const FILEID_NSFS: u64 = 0xf1;
/// The first namespaces of IPC, host names, users, processes, network and mounts
/// (`linux/nsfs.h`, `enum init_ns_id`); those of cgroups and times are a device's own.
const FIRST_NAMESPACES: [u64; 6] = [1, 2, 3, 4, 7, 8];

/// The first that can be opened, or what the last one said.
fn open_first_namespaces(_: &Hands) -> i64 {
    let mut opened = 0;
    for id in FIRST_NAMESPACES {
        let handle = [16 | FILEID_NSFS << 32, id, 0];
        opened = call(
            libc::SYS_open_by_handle_at,
            &[NAMESPACES, at(&raw const handle), READ],
        );
        if opened >= 0 {
            break;
        }
    }
    opened
}

/// `linux/fanotify.h`.
const FAN_REPORT_FID: i64 = 0x200;

/// What it would execute is no program: that it is looked at is the point.
fn execute_memory(_: &Hands) -> i64 {
    let program = call(libc::SYS_memfd_create, &[text(c"program"), 0]);
    call(libc::SYS_write, &[program, text(c"no program"), 10]);
    call(libc::SYS_fchmod, &[program, 0o700]);
    match call(libc::SYS_execveat, &[program, text(c""), 0, 0, EMPTY_PATH]) {
        NO_PROGRAM => 0,
        result => result,
    }
}
