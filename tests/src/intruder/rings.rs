//! Rings: new ones, other rules for this one, and what seccomp does not see, the operations.

use std::io;
use std::os::fd::AsRawFd;

use super::hands::{at, call, text};
use super::ring::{Entry, NO_SLOT};
use super::{
    Attempt, Filtered, Hands, Unfiltered, by_seccomp, by_seccomp_if_there, refused, unseen,
};

const HERE: i32 = libc::AT_FDCWD;
/// What a restricted ring says to what it does not list.
const UNLISTED: &[i32] = &[libc::EACCES];
const NEW_RING: &str = "an unrestricted ring asks the same Landlock, capabilities and namespaces \
                        as the calls do";

/// The member is the operation.
pub const OPERATION: &str = "an operation that is not listed";
/// The member is the flag's number.
pub const FLAG: &str = "a listed operation with a flag that is not listed";
/// The member is what is to be registered.
pub const REGISTER: &str = "io_uring_register of anything";

/// What a restricted ring says to members of the families. It looks at its list last: what this
/// kernel does not know, or can never do, it refuses before that.
#[derive(Clone, Copy, Debug)]
pub struct Refusals {
    last_operation: u16,
}

impl Refusals {
    /// Of this kernel, which is asked by a ring without restrictions.
    pub fn of_this_kernel() -> io::Result<Self> {
        let ring = super::leaks::ring()?;
        // `struct io_uring_probe`: the last operation that is known comes first.
        let mut probe = [0_u8; 16 + 256 * 8];
        let probed = call(
            libc::SYS_io_uring_register,
            &[ring.as_raw_fd().into(), 8, at(&raw mut probe), 256],
        );
        match probed {
            0.. => Ok(Self {
                last_operation: probe[0].into(),
            }),
            _ => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// To an operation that is not listed.
    pub fn operation(self, number: u16) -> &'static [i32] {
        match number {
            known if known <= self.last_operation => UNLISTED,
            _ => UNKNOWN,
        }
    }

    /// To a listed operation with this flag.
    pub fn flag(self, number: u16) -> &'static [i32] {
        match number {
            IOSQE_KNOWN_END.. => UNKNOWN,
            _ => UNLISTED,
        }
    }

    /// To a registration.
    pub fn registration(self, number: u16) -> &'static [i32] {
        match number {
            // What Linux 6.1 has, the oldest that this program runs on.
            0..=25 => UNLISTED,
            _ => &[libc::EACCES, libc::EINVAL],
        }
    }
}

const UNKNOWN: &[i32] = &[libc::EINVAL];
/// One past `IOSQE_CQE_SKIP_SUCCESS_BIT`.
const IOSQE_KNOWN_END: u16 = 7;

pub(super) static ATTEMPTS: &[Attempt] = &[
    by_seccomp("io_uring_setup", NEW_RING, |_| {
        let mut parameters = [0_u64; 15];
        call(libc::SYS_io_uring_setup, &[4, at(&raw mut parameters)])
    }),
    refused(REGISTER, &[libc::EACCES], |hands| {
        hands.ring.register(hands.member.into())
    }),
    by_seccomp_if_there(
        "io_uring_register without a ring, to send itself a message",
        "who has no other ring's descriptor has nobody to write to",
        // Linux before 6.13.
        &[libc::EINVAL, libc::EBADF],
        message_itself,
    ),
    refused(
        "io_uring_register of ring descriptors elsewhere",
        &[libc::EOPNOTSUPP, libc::EBADF],
        |hands| call(libc::SYS_io_uring_register, &[hands.file.into(), 8, 0, 0]),
    ),
    unseen(OPERATION, UNLISTED, |hands| {
        hands.ring.submit(&Entry {
            operation: u8::try_from(hands.member).unwrap_or(u8::MAX),
            ..Entry::default()
        })
    }),
    unseen(FLAG, UNLISTED, |hands| {
        hands.ring.submit(&Entry {
            operation: READV,
            flags: 1 << hands.member,
            file: hands.file,
            ..Entry::default()
        })
    }),
    // Nobody has registered one, and nobody can.
    unseen(
        "a listed operation in the name of somebody else",
        &[libc::EINVAL],
        |hands| {
            hands.ring.submit(&Entry {
                operation: READV,
                file: hands.file,
                personality: 1,
                ..Entry::default()
            })
        },
    ),
    unseen(
        "READ_FIXED into memory that is not registered",
        UNREGISTERED,
        |hands| hands.ring.submit(&unregistered(4, hands)),
    ),
    unseen(
        "WRITE_FIXED of memory that is not registered",
        UNREGISTERED,
        |hands| hands.ring.submit(&unregistered(5, hands)),
    ),
    unseen("OPENAT of /etc/passwd", UNLISTED, |hands| {
        hands.ring.submit(&path(18, 0))
    }),
    unseen("OPENAT2 of the root", UNLISTED, |hands| {
        let how = [0_u64; 3];
        hands.ring.submit(&Entry {
            second: at(&raw const how),
            length: 24,
            ..path(28, 0)
        })
    }),
    unseen("STATX", UNLISTED, |hands| {
        let mut status = [0_u64; 32];
        hands.ring.submit(&Entry {
            second: at(&raw mut status),
            length: 0x7ff,
            ..path(21, 0)
        })
    }),
    unseen("UNLINKAT", UNLISTED, |hands| {
        hands.ring.submit(&path(36, 0))
    }),
    unseen("MKDIRAT", UNLISTED, |hands| {
        hands.ring.submit(&path(37, 0o700))
    }),
    unseen("SOCKET", UNLISTED, |hands| {
        hands.ring.submit(&Entry {
            operation: 45,
            file: libc::AF_UNIX,
            second: 1,
            ..Entry::default()
        })
    }),
    unseen("CONNECT", UNLISTED, |hands| {
        hands.ring.submit(&Entry {
            file: hands.file,
            ..path(16, 0)
        })
    }),
    unseen("URING_CMD", UNLISTED, |hands| {
        hands.ring.submit(&Entry {
            operation: 46,
            file: hands.file,
            ..Entry::default()
        })
    }),
    unseen("MSG_RING to itself", UNLISTED, |hands| {
        hands.ring.submit(&Entry {
            operation: 40,
            file: hands.ring.descriptor(),
            ..Entry::default()
        })
    }),
    unseen("SPLICE of the channel", UNLISTED, |hands| {
        hands.ring.submit(&Entry {
            operation: 30,
            file: 3,
            length: 1,
            ..Entry::default()
        })
    }),
    unseen("WAITID of a process outside", UNLISTED, |hands| {
        hands.ring.submit(&Entry {
            operation: 50,
            ..Entry::default()
        })
    }),
    unseen(
        "POLL_ADD with IOSQE_FIXED_FILE of a table that is not there",
        UNLISTED,
        |hands| {
            hands.ring.submit(&Entry {
                operation: 6,
                flags: 1,
                ..Entry::default()
            })
        },
    ),
    // Of all descriptors, its own ring is the only one that can be entered.
    Attempt {
        name: "io_uring_enter of another ring",
        filtered: Filtered::Fails(&[libc::EOPNOTSUPP]),
        unfiltered: Unfiltered::Fails(&[libc::EOPNOTSUPP]),
        run: enter_another,
    },
    Attempt {
        name: "the mapping of another ring",
        filtered: Filtered::Fails(&[libc::ENODEV]),
        unfiltered: Unfiltered::Fails(&[libc::ENODEV]),
        run: map_another,
    },
    // Of what was inherited nothing is a directory, a disk, a terminal nobody gave, or memory.
    Attempt {
        name: "a descriptor that leads elsewhere",
        filtered: Filtered::Fails(&[libc::EBADF]),
        unfiltered: Unfiltered::Fails(&[libc::EBADF]),
        run: lead_elsewhere,
    },
];

const READV: u8 = 1;

/// A device that is listed for these has memory of its own registered, or none could be.
const UNREGISTERED: &[i32] = &[libc::EACCES, libc::EFAULT];

/// A page of the program itself.
fn unregistered(operation: u8, hands: &Hands) -> Entry {
    static PAGE: [u8; 512] = [0; 512];
    Entry {
        operation,
        file: hands.file,
        first: at(&raw const PAGE),
        length: 512,
        ..Entry::default()
    }
}

/// An entry with a path.
fn path(operation: u8, length: u32) -> Entry {
    Entry {
        operation,
        file: HERE,
        first: text(c"/etc/passwd"),
        length,
        ..Entry::default()
    }
}

/// RLIMIT_NOFILE of a role.
const DESCRIPTORS: i32 = 4096;

fn others(hands: &Hands) -> impl Iterator<Item = i32> {
    let own = hands.ring.descriptor();
    (0..DESCRIPTORS).filter(move |number| *number != own && !hands.leaked.contains(*number))
}

/// `IORING_REGISTER_SEND_MSG_RING` of an `IORING_OP_MSG_RING` for its own ring.
fn message_itself(hands: &Hands) -> i64 {
    let ring = u64::from(hands.ring.descriptor().cast_unsigned());
    let entry = [40 | ring << 32, NO_SLOT, 0, 0, 0, 0, 0, 0];
    call(
        libc::SYS_io_uring_register,
        &[-1, 31, at(&raw const entry), 1],
    )
}

fn enter_another(hands: &Hands) -> i64 {
    let entered = others(hands)
        .map(|number| call(libc::SYS_io_uring_enter, &[number.into(), 0, 0, 0, 0, 0]))
        .find(|result| *result >= 0);
    entered.unwrap_or_else(|| -i64::from(libc::EOPNOTSUPP))
}

/// What a ring's mapping is found at, and no file has: the device's own is shorter.
fn map_another(hands: &Hands) -> i64 {
    const ENTRIES: i64 = 0x1000_0000;
    let mapped = others(hands)
        .filter(|number| *number != hands.file)
        .filter(|number| kind(*number) == Some(ANONYMOUS))
        .map(|number| call(libc::SYS_mmap, &[0, 4096, 3, 1, number.into(), ENTRIES]))
        .find(|result| *result >= 0);
    mapped.unwrap_or_else(|| -i64::from(libc::ENODEV))
}

fn lead_elsewhere(hands: &Hands) -> i64 {
    let known = |number: i32, kind: u32| {
        let given = number == hands.file || Some(number) == hands.terminal;
        let given = given || hands.leaked.contains(number);
        given || number < 3 && kind == CHARACTERS || matches!(kind, SOCKET | ANONYMOUS)
    };
    let led =
        (0..DESCRIPTORS).find(|number| kind(*number).is_some_and(|kind| !known(*number, kind)));
    led.map_or_else(|| -i64::from(libc::EBADF), i64::from)
}

/// Parts of `st_mode`.
const SOCKET: u32 = libc::S_IFSOCK;
const CHARACTERS: u32 = libc::S_IFCHR;
const ANONYMOUS: u32 = 0;

/// What is open at this number.
fn kind(number: i32) -> Option<u32> {
    // `struct stat`: the mode is the low half of x86_64's fourth word, and of others' third.
    const MODE: usize = if cfg!(target_arch = "x86_64") { 3 } else { 2 };
    let mut status = [0_u64; 18];
    (call(libc::SYS_fstat, &[number.into(), at(&raw mut status)]) >= 0)
        .then(|| u32::try_from(status[MODE] & u64::from(libc::S_IFMT)).unwrap_or(u32::MAX))
}
