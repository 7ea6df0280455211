//! What a device would never be given and here is, as if it had leaked: descriptors of another
//! process, of the supervisor's namespaces, of a host's directory and program, and of a ring. That
//! nothing of the kind is inherited is another attempt's matter; here the kernel is asked what the
//! jail leaves of the rights that such a descriptor carries.
//!
//! A descriptor that needs no right but itself is not here: who holds `/proc/PID/mem` open for
//! writing, or a directory for reading, holds just that.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::hands::{at, call, new_descriptor, text};
use super::ring::{Entry, RawRing};
use super::{Attempt, Filtered, Hands, Unfiltered, by_seccomp, refused};

/// The attempt that needs a ring which the kernel lets nobody send.
pub const LEAKED_RING: &str = "OPENAT of the root by a ring that leaked";

/// Namespaces in the order of their descriptors.
const NAMESPACES: [&str; 6] = ["user", "mnt", "net", "pid", "ipc", "uts"];

/// How many [`leaks`] are.
pub const LEAKS: usize = NAMESPACES.len() + 3;

/// The descriptors, of a process and of whoever calls this. A ring is not among them.
pub fn leaks(process: u32) -> io::Result<Vec<OwnedFd>> {
    let process = i32::try_from(process).ok().and_then(Pid::from_raw);
    let process = process.ok_or(io::ErrorKind::InvalidInput)?;
    let mut leaks = vec![pidfd_open(process, PidfdFlags::empty())?];
    for namespace in NAMESPACES {
        leaks.push(File::open(format!("/proc/self/ns/{namespace}"))?.into());
    }
    leaks.push(File::open("/")?.into());
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    leaks.push(rustix::fs::open("/bin/sh", flags, Mode::empty())?);
    Ok(leaks)
}

/// A ring that is restricted to nothing.
pub fn ring() -> io::Result<OwnedFd> {
    let mut parameters = [0_u64; 15];
    new_descriptor(call(
        libc::SYS_io_uring_setup,
        &[4, at(&raw mut parameters)],
    ))
}

/// The numbers of [`leaks`], and of [`ring`].
#[derive(Clone, Copy, Debug)]
pub struct Leaked {
    process: RawFd,
    namespaces: [RawFd; NAMESPACES.len()],
    directory: RawFd,
    program: RawFd,
    ring: Option<RawFd>,
}

impl Leaked {
    /// In the order of [`leaks`].
    pub fn of(leaks: &[impl AsRawFd], ring: Option<RawFd>) -> Option<Self> {
        let numbers: Vec<_> = leaks.iter().map(AsRawFd::as_raw_fd).collect();
        let (process, rest) = numbers.split_first()?;
        let (namespaces, rest) = rest.split_first_chunk()?;
        let [directory, program] = <[RawFd; 2]>::try_from(rest).ok()?;
        Some(Self {
            process: *process,
            namespaces: *namespaces,
            directory,
            program,
            ring,
        })
    }

    /// The supervisor's mounts, as an argument of a 32-bit call.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn mounts(&self) -> u32 {
        self.namespaces[1].cast_unsigned()
    }

    /// Whether it was given on purpose.
    pub(super) fn contains(&self, number: RawFd) -> bool {
        let Self {
            process,
            namespaces,
            directory,
            program,
            ring,
        } = self;
        namespaces.contains(&number)
            || [*process, *directory, *program].contains(&number)
            || *ring == Some(number)
    }
}

const FORBIDDEN: &[i32] = &[libc::EPERM];
const LANDLOCK: &[i32] = &[libc::EACCES];
/// What may not be traced has no memory to be looked at.
const UNTRACEABLE: &[i32] = &[libc::EACCES];

pub(super) static ATTEMPTS: &[Attempt] = &[
    refused("setns to the supervisor's user namespace", FORBIDDEN, |h| {
        enter(h, 0)
    }),
    refused("setns to the supervisor's mounts", FORBIDDEN, |h| {
        enter(h, 1)
    }),
    refused("setns to the supervisor's network", FORBIDDEN, |h| {
        enter(h, 2)
    }),
    refused("setns to the supervisor's processes", FORBIDDEN, |h| {
        enter(h, 3)
    }),
    refused("setns to the supervisor's IPC", FORBIDDEN, |h| enter(h, 4)),
    refused("setns to the supervisor's host name", FORBIDDEN, |h| {
        enter(h, 5)
    }),
    refused("setns to all of another process", FORBIDDEN, |hands| {
        let all = libc::CLONE_NEWNS | libc::CLONE_NEWNET | libc::CLONE_NEWPID;
        call(libc::SYS_setns, &[hands.leaked.process.into(), all.into()])
    }),
    refused(
        "ioctl NS_GET_USERNS of the supervisor's network",
        FORBIDDEN,
        |hands| {
            let network = hands.leaked.namespaces[2];
            call(libc::SYS_ioctl, &[network.into(), NS_GET_USERNS])
        },
    ),
    refused("pidfd_getfd of another process", FORBIDDEN, |hands| {
        call(libc::SYS_pidfd_getfd, &[hands.leaked.process.into(), 0, 0])
    }),
    // From a namespace in which it is not (pidfd_send_signal(2)).
    refused(
        "pidfd_send_signal to another process",
        &[libc::EINVAL],
        |hands| {
            call(
                libc::SYS_pidfd_send_signal,
                &[hands.leaked.process.into(), 0, 0, 0],
            )
        },
    ),
    refused("process_madvise of another process", UNTRACEABLE, |hands| {
        let vector = [0x40_0000_i64, 4096];
        call(
            libc::SYS_process_madvise,
            &[
                hands.leaked.process.into(),
                at(&raw const vector),
                1,
                libc::MADV_COLD.into(),
                0,
            ],
        )
    }),
    // It is asked of the dying only.
    refused(
        "process_mrelease of another process",
        &[libc::EINVAL],
        |hands| {
            let process = hands.leaked.process.into();
            call(libc::SYS_process_mrelease, &[process, 0])
        },
    ),
    refused("waitid of another process", &[libc::ECHILD], |hands| {
        let mut info = [0_u64; 16];
        let process = hands.leaked.process.into();
        let exited = i64::from(libc::WEXITED | libc::WNOHANG);
        call(
            libc::SYS_waitid,
            &[P_PIDFD, process, at(&raw mut info), exited, 0],
        )
    }),
    // Before Linux 6.11 there is no such command.
    refused(
        "ioctl PIDFD_GET_MNT_NAMESPACE of another process",
        &[libc::EACCES, libc::ENOTTY],
        |hands| {
            let process = hands.leaked.process.into();
            call(libc::SYS_ioctl, &[process, PIDFD_GET_MNT_NAMESPACE, 0])
        },
    ),
    refused("openat below a host's directory", LANDLOCK, |hands| {
        let directory = hands.leaked.directory.into();
        call(libc::SYS_openat, &[directory, text(c"etc/passwd"), 0])
    }),
    refused(
        "openat to write below a host's directory",
        LANDLOCK,
        |hands| {
            let directory = hands.leaked.directory.into();
            let create = i64::from(libc::O_WRONLY | libc::O_CREAT);
            call(
                libc::SYS_openat,
                &[directory, text(c"tmp/vudev-escape"), create, 0o600],
            )
        },
    ),
    refused(
        "fchdir to a host's directory, then openat",
        LANDLOCK,
        |hands| {
            call(libc::SYS_fchdir, &[hands.leaked.directory.into()]);
            let opened = call(libc::SYS_openat, &[HERE, text(c"etc/passwd"), 0]);
            call(libc::SYS_chdir, &[text(c"/")]);
            opened
        },
    ),
    refused("unlinkat below a host's directory", LANDLOCK, |hands| {
        let directory = hands.leaked.directory.into();
        call(libc::SYS_unlinkat, &[directory, text(c"etc/passwd"), 0])
    }),
    refused("mkdirat below a host's directory", LANDLOCK, |hands| {
        let directory = hands.leaked.directory.into();
        call(
            libc::SYS_mkdirat,
            &[directory, text(c"tmp/vudev-escape"), 0o700],
        )
    }),
    // By the file's owner, not by Landlock.
    refused("fchmodat below a host's directory", FORBIDDEN, |hands| {
        let directory = hands.leaked.directory.into();
        call(
            libc::SYS_fchmodat,
            &[directory, text(c"etc/passwd"), 0o644, 0],
        )
    }),
    by_seccomp(
        "newfstatat below a host's directory",
        "Landlock does not hide what a file is from who has the directory",
        |hands| {
            let mut status = [0_u64; 18];
            let directory = hands.leaked.directory.into();
            call(
                libc::SYS_newfstatat,
                &[directory, text(c"etc/passwd"), at(&raw mut status), 0],
            )
        },
    ),
    refused(
        "name_to_handle_at below a host's directory, and open by it",
        FORBIDDEN,
        open_by_handle,
    ),
    refused("open_tree of a host's directory", FORBIDDEN, |hands| {
        let flags = i64::from(libc::AT_EMPTY_PATH) | 1;
        let directory = hands.leaked.directory.into();
        call(libc::SYS_open_tree, &[directory, text(c""), flags])
    }),
    refused("execveat of a host's program", LANDLOCK, |hands| {
        call(
            libc::SYS_execveat,
            &[hands.leaked.program.into(), text(c""), 0, 0, EMPTY_PATH],
        )
    }),
    refused(
        "openat by /proc of what is open as a path only",
        &[libc::ENOENT],
        open_again,
    ),
    // The ring knows no restriction, but what enters it does.
    Attempt {
        name: LEAKED_RING,
        filtered: Filtered::Fails(LANDLOCK),
        unfiltered: Unfiltered::Fails(LANDLOCK),
        run: open_by_another_ring,
    },
];

const HERE: i64 = libc::AT_FDCWD as i64;
const EMPTY_PATH: i64 = libc::AT_EMPTY_PATH as i64;
const P_PIDFD: i64 = 3;
/// `linux/nsfs.h`, `linux/pidfd.h`.
const NS_GET_USERNS: i64 = 0xb701;
const PIDFD_GET_MNT_NAMESPACE: i64 = 0xff03;

fn enter(hands: &Hands, namespace: usize) -> i64 {
    let namespace = hands.leaked.namespaces[namespace];
    call(libc::SYS_setns, &[namespace.into(), 0])
}

fn open_by_handle(hands: &Hands) -> i64 {
    let directory = hands.leaked.directory.into();
    let (mut handle, mut mount) = ([0_u32; 34], 0_i32);
    // `struct file_handle`: first the room that there is behind it.
    handle[0] = 128;
    let named = call(
        libc::SYS_name_to_handle_at,
        &[
            directory,
            text(c"etc/passwd"),
            at(&raw mut handle),
            at(&raw mut mount),
            0,
        ],
    );
    match named {
        // Or the file system has no handles, and nothing can be opened by one.
        NO_HANDLES => -i64::from(libc::EPERM),
        0.. => call(
            libc::SYS_open_by_handle_at,
            &[directory, at(&raw const handle), 0],
        ),
        errno => errno,
    }
}

const NO_HANDLES: i64 = -(libc::EOPNOTSUPP as i64);

fn open_again(hands: &Hands) -> i64 {
    let path = format!("/proc/self/fd/{}\0", hands.leaked.program);
    call(libc::SYS_openat, &[HERE, at(path.as_ptr()), 0])
}

fn open_by_another_ring(hands: &Hands) -> i64 {
    let Some(ring) = hands.leaked.ring else {
        return -i64::from(libc::EBADF);
    };
    let ring = match RawRing::mapped(ring) {
        Ok(ring) => ring,
        Err(errno) => return errno,
    };
    ring.submit_to_end(&Entry {
        operation: OPENAT,
        file: libc::AT_FDCWD,
        first: text(c"/"),
        ..Entry::default()
    })
}

/// `IORING_OP_OPENAT`.
const OPENAT: u8 = 18;
