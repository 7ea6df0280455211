//! What this kernel's seccomp can do, asked without doing it. What only a trial can tell
//! (namespaces, Landlock, the empty root) is found out by going through a [`Jail`](crate::Jail).
#![expect(unsafe_code, reason = "seccomp(2) takes an action by pointer")]

use rustix::io::Errno;

use crate::last_errno;

/// What seccomp does with a system call that a policy does not allow, by minijail's names.
pub const SECCOMP_ACTIONS: [(&str, u32); 5] = [
    ("trap", libc::SECCOMP_RET_TRAP),
    ("errno", libc::SECCOMP_RET_ERRNO),
    ("kill-process", libc::SECCOMP_RET_KILL_PROCESS),
    ("log", libc::SECCOMP_RET_LOG),
    ("user-notify", libc::SECCOMP_RET_USER_NOTIF),
];

/// Whether the kernel knows `action` (`SECCOMP_GET_ACTION_AVAIL`, seccomp(2)): EOPNOTSUPP if not,
/// EINVAL or ENOSYS without seccomp filters.
pub fn seccomp_action(action: u32) -> Result<(), Errno> {
    // SAFETY: the kernel reads one u32, which lives through the call.
    let known = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_GET_ACTION_AVAIL,
            0,
            &raw const action,
        )
    };
    match known {
        0 => Ok(()),
        _ => Err(last_errno()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_action_that_nobody_knows_is_not_available() {
        assert_eq!(seccomp_action(0x1234_0000), Err(Errno::OPNOTSUPP));
        for (name, action) in SECCOMP_ACTIONS {
            assert_eq!(seccomp_action(action), Ok(()), "{name}");
        }
    }
}
