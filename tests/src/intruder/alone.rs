//! What comes of attempts where there are neither namespaces nor a filter, and the process is an
//! ordinary user's: what Landlock, the ring's list, no new privileges and the user's own limits
//! hold by themselves. Only what differs from a jail that lacks its filter is here; and what
//! passes, with the reason why it does.

use super::Unfiltered;

/// What comes of the attempt of this name, if it is something else than with namespaces.
pub(super) fn exception(name: &str) -> Option<Unfiltered> {
    let mut found = EXCEPTIONS.iter();
    found
        .find(|(_, names)| names.contains(&name))
        .map(|(outcome, _)| *outcome)
}

/// Names that are here, for a test that each is an attempt's.
pub fn names() -> impl Iterator<Item = &'static str> {
    EXCEPTIONS.iter().flat_map(|(_, names)| *names).copied()
}

/// Landlock refuses what an empty root does not have.
const PATHS: Unfiltered = Unfiltered::Fails(&[libc::EACCES]);
/// Landlock refuses signals out of its domain, and tracing.
const OUTSIDE: Unfiltered = Unfiltered::Fails(&[libc::EPERM]);
/// An ordinary user may not.
const USER: Unfiltered = Unfiltered::Fails(&[libc::EPERM]);
/// Its own is not entered again.
const ITS_OWN: Unfiltered = Unfiltered::Fails(&[libc::EINVAL]);

static EXCEPTIONS: &[(Unfiltered, &[&str])] = &[
    (
        PATHS,
        &[
            "open /etc/passwd",
            "openat /etc/passwd",
            "openat2 /etc/passwd",
            "openat /proc/self/maps",
            "openat /proc/self/mem to write",
            "openat /proc/1/root",
            "openat by /proc of what is open as a path only",
            "unlinkat",
            "truncate",
            "execve",
            "execveat",
            "int 0x80: open, whose number is fstat's",
            "int 0x80: execve, whose number is munmap's",
            "rt_sigprocmask to block SIGSYS, then openat",
            "rt_sigaction to ignore SIGSYS, then openat",
            "sigaltstack at no memory, then openat",
            "close of the channel, then openat",
        ],
    ),
    (
        OUTSIDE,
        &[
            "kill a process outside",
            "kill the next process",
            "tgkill a process outside",
            "tkill",
            "rt_sigqueueinfo",
            "pidfd_send_signal to another process",
            "int 0x80: kill a process outside",
            "ptrace PTRACE_SEIZE",
            "ptrace PTRACE_ATTACH",
            "process_vm_readv",
            "process_vm_writev",
            "kcmp",
            "move_pages of a process outside",
        ],
    ),
    (USER, &["chmod", "chown", "setuid", "setresuid", "setgid"]),
    (ITS_OWN, &["setns to the supervisor's user namespace"]),
    (
        Unfiltered::Passes("kill(2) does not tell of those that it could not signal"),
        &["kill everybody"],
    ),
    (
        Unfiltered::Passes("what a process is, its user may know; Landlock guards what it does"),
        &[
            "pidfd_open of a process outside",
            "prlimit64 of a process outside",
        ],
    ),
    (
        Unfiltered::Passes("Landlock is asked when the signal is sent"),
        &["fcntl F_SETOWN to a process outside"],
    ),
    (
        Unfiltered::Passes("what a file is, and that it changes, Landlock does not hide"),
        &[
            "statx /etc/passwd",
            "inotify_init1 and a watch",
            "fanotify_init and a mark at a path",
        ],
    ),
    (
        Unfiltered::Passes("Landlock knows TCP alone; the empty network is a namespace's"),
        &["socket AF_INET of datagrams, connect"],
    ),
    (
        Unfiltered::Passes("Landlock knows no System V IPC; keys are a namespace's"),
        &[
            "shmget of the host's key",
            "semget of the host's key",
            "msgget of the host's key",
        ],
    ),
    (
        Unfiltered::Passes(
            "an ordinary user may be root of a namespace: only our covered root forbids it, and \
             Landlock and no new privileges hold in there too",
        ),
        &[
            "unshare CLONE_NEWUSER",
            "clone3 with a user namespace in it",
            "clone3 with user and mount namespaces",
            "clone with a user namespace in it",
            "int 0x80: unshare CLONE_NEWUSER",
        ],
    ),
    (
        Unfiltered::Passes("its own network's owner is its own user namespace"),
        &["ioctl NS_GET_USERNS of the supervisor's network"],
    ),
];
