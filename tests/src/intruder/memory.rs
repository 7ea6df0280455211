//! Memory that could be executed or is another's, and what is found by a key.

use super::hands::{at, call, text};
use super::{Attempt, Outside, by_seccomp, refused};

const ITS_OWN: &str = "memory of its own; what it would write there it can do by what is there";
const EXECUTABLE: i64 = (libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC) as i64;
const PRIVATE: i64 = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as i64;

pub(super) static ATTEMPTS: &[Attempt] = &[
    by_seccomp("mmap PROT_EXEC", ITS_OWN, |_| {
        call(libc::SYS_mmap, &[0, 4096, EXECUTABLE, PRIVATE, -1, 0])
    }),
    by_seccomp("mmap PROT_EXEC of the device's file", ITS_OWN, |hands| {
        call(
            libc::SYS_mmap,
            &[0, 4096, 5, libc::MAP_PRIVATE.into(), hands.file.into(), 0],
        )
    }),
    by_seccomp("mprotect PROT_EXEC", ITS_OWN, |_| {
        let page = call(libc::SYS_mmap, &[0, 4096, 3, PRIVATE, -1, 0]);
        call(libc::SYS_mprotect, &[page, 4096, 5])
    }),
    by_seccomp("pkey_mprotect PROT_EXEC", ITS_OWN, |_| {
        let page = call(libc::SYS_mmap, &[0, 4096, 3, PRIVATE, -1, 0]);
        call(libc::SYS_pkey_mprotect, &[page, 4096, 5, -1])
    }),
    refused("remap_file_pages", &[libc::EINVAL], |_| {
        call(libc::SYS_remap_file_pages, &[0, 4096, 4, 0, 0])
    }),
    refused("shmget of the host's key", &[libc::ENOENT], |hands| {
        call(libc::SYS_shmget, &[hands.outside.key(), 0, 0])
    }),
    refused("semget of the host's key", &[libc::ENOENT], |hands| {
        call(libc::SYS_semget, &[hands.outside.key(), 0, 0])
    }),
    refused("msgget of the host's key", &[libc::ENOENT], |hands| {
        call(libc::SYS_msgget, &[hands.outside.key(), 0])
    }),
    refused("mq_open", &[libc::ENOENT, libc::ENOSYS], |_| {
        call(libc::SYS_mq_open, &[text(c"vudev-escape"), 0, 0, 0])
    }),
    by_seccomp(
        "userfaultfd of user mode",
        "it delays faults of its own process only",
        |_| call(libc::SYS_userfaultfd, &[1]),
    ),
    refused(
        "userfaultfd of kernel faults",
        &[libc::EPERM, libc::ENOSYS],
        |_| call(libc::SYS_userfaultfd, &[0]),
    ),
    by_seccomp(
        "io_setup",
        "requests on its own descriptors; opening is none of them",
        |_| {
            let mut context = 0_u64;
            call(libc::SYS_io_setup, &[1, at(&raw mut context)])
        },
    ),
    refused("swapon", &[libc::EPERM], |_| {
        call(libc::SYS_swapon, &[text(c"/dev/vda"), 0])
    }),
    refused("swapoff", &[libc::EPERM], |_| {
        call(libc::SYS_swapoff, &[text(c"/dev/vda")])
    }),
    by_seccomp("mlockall", "bounded by RLIMIT_MEMLOCK", |_| {
        call(libc::SYS_mlockall, &[2])
    }),
];

/// Shared memory, semaphores and a message queue with the key of [`Outside`], which an intruder
/// must not find. Dropped, they are removed.
#[derive(Debug)]
pub struct Keyed([i64; 3]);

impl Keyed {
    /// Makes them, for everybody.
    pub fn make(outside: Outside) -> Self {
        let (key, flags) = (outside.key(), i64::from(libc::IPC_CREAT | 0o666));
        Self([
            call(libc::SYS_shmget, &[key, 4096, flags]),
            call(libc::SYS_semget, &[key, 1, flags]),
            call(libc::SYS_msgget, &[key, flags]),
        ])
    }

    /// Whether they are there.
    pub fn is_made(&self) -> bool {
        self.0.iter().all(|number| *number >= 0)
    }
}

impl Drop for Keyed {
    fn drop(&mut self) {
        let [memory, semaphores, messages] = self.0;
        let remove = i64::from(libc::IPC_RMID);
        call(libc::SYS_shmctl, &[memory, remove, 0]);
        call(libc::SYS_semctl, &[semaphores, 0, remove, 0]);
        call(libc::SYS_msgctl, &[messages, remove, 0]);
    }
}
