//! Other processes: seeing, signalling, tracing, reading and making them, and getting rights back.

use super::hands::{at, call, text};
use super::{Attempt, Hands, by_seccomp, refused, unseen};

/// There is nobody else in the namespace of processes.
const NOBODY: &[i32] = &[libc::ESRCH];
const FORBIDDEN: &[i32] = &[libc::EPERM];

pub(super) static ATTEMPTS: &[Attempt] = &[
    refused("kill a process outside", NOBODY, |hands| {
        call(libc::SYS_kill, &[hands.outside.process(), 0])
    }),
    refused("kill everybody", NOBODY, |_| call(libc::SYS_kill, &[-1, 0])),
    refused("kill the next process", NOBODY, |_| {
        call(libc::SYS_kill, &[2, 0])
    }),
    by_seccomp(
        "kill its process group",
        "the group is the process alone",
        |_| call(libc::SYS_kill, &[0, 0]),
    ),
    refused("tgkill a process outside", NOBODY, |hands| {
        call(
            libc::SYS_tgkill,
            &[hands.outside.process(), hands.outside.process(), 0],
        )
    }),
    // What abort(3) needs is all that is allowed, and must lead to nobody else.
    unseen(
        "tgkill SIGABRT outside",
        &[libc::ESRCH, libc::EPERM],
        |hands| {
            call(
                libc::SYS_tgkill,
                &[
                    hands.outside.process(),
                    hands.outside.process(),
                    libc::SIGABRT.into(),
                ],
            )
        },
    ),
    refused("tkill", NOBODY, |hands| {
        call(libc::SYS_tkill, &[hands.outside.process(), 0])
    }),
    refused("rt_sigqueueinfo", NOBODY, |hands| {
        let mut info = [0_u32; 32];
        info[2] = (-1_i32).cast_unsigned();
        call(
            libc::SYS_rt_sigqueueinfo,
            &[hands.outside.process(), 0, at(&raw const info)],
        )
    }),
    refused("pidfd_open of a process outside", NOBODY, |hands| {
        call(libc::SYS_pidfd_open, &[hands.outside.process(), 0])
    }),
    refused("pidfd_getfd", &[libc::EBADF], |hands| {
        call(libc::SYS_pidfd_getfd, &[hands.file.into(), 0, 0])
    }),
    refused("pidfd_send_signal", &[libc::EBADF], |hands| {
        call(libc::SYS_pidfd_send_signal, &[hands.file.into(), 0, 0, 0])
    }),
    refused("ptrace PTRACE_SEIZE", NOBODY, |hands| {
        call(libc::SYS_ptrace, &[0x4206, hands.outside.process(), 0, 0])
    }),
    refused("ptrace PTRACE_ATTACH", NOBODY, |hands| {
        call(libc::SYS_ptrace, &[16, hands.outside.process(), 0, 0])
    }),
    refused("process_vm_readv", NOBODY, |hands| {
        vectors(hands, libc::SYS_process_vm_readv)
    }),
    refused("process_vm_writev", NOBODY, |hands| {
        vectors(hands, libc::SYS_process_vm_writev)
    }),
    refused("process_madvise", &[libc::EBADF], |hands| {
        call(libc::SYS_process_madvise, &[hands.file.into(), 0, 0, 21, 0])
    }),
    refused("kcmp", NOBODY, |hands| {
        call(libc::SYS_kcmp, &[1, hands.outside.process(), 0, 0, 0])
    }),
    refused("prlimit64 of a process outside", NOBODY, |hands| {
        call(libc::SYS_prlimit64, &[hands.outside.process(), 7, 0, 0])
    }),
    refused(
        "prlimit64 to raise the limit of open files",
        FORBIDDEN,
        |_| {
            let more = [1_u64 << 20; 2];
            call(libc::SYS_prlimit64, &[0, 7, at(&raw const more), 0])
        },
    ),
    refused("setrlimit of core files", FORBIDDEN, |_| {
        let more = [1_u64 << 20; 2];
        call(libc::SYS_setrlimit, &[4, at(&raw const more)])
    }),
    refused("sched_setscheduler SCHED_FIFO", FORBIDDEN, |_| {
        let priority = 1_i32;
        call(
            libc::SYS_sched_setscheduler,
            &[0, 1, at(&raw const priority)],
        )
    }),
    refused(
        "setpriority above the usual",
        &[libc::EACCES, libc::EPERM],
        |_| call(libc::SYS_setpriority, &[0, 0, -20]),
    ),
    by_seccomp(
        "setpriority below the usual",
        "a device that is slower harms its own guest",
        |_| call(libc::SYS_setpriority, &[0, 0, 1]),
    ),
    refused("ioprio_set to real time", FORBIDDEN, |_| {
        call(libc::SYS_ioprio_set, &[1, 0, 1 << 13])
    }),
    #[cfg(not(target_arch = "aarch64"))]
    by_seccomp(
        "fork",
        "a child has the same jail, and dies with it",
        |_| child(libc::SYS_fork, &[]),
    ),
    by_seccomp(
        "clone",
        "a child has the same jail, and dies with it",
        |_| child(libc::SYS_clone, &[libc::SIGCHLD.into()]),
    ),
    refused(
        "clone3 into a group of processes that is none",
        &[libc::EBADF],
        |hands| {
            let file = u64::from(hands.file.cast_unsigned());
            let signal = u64::from(libc::SIGCHLD.cast_unsigned());
            let arguments = [CLONE_INTO_CGROUP, 0, 0, 0, signal, 0, 0, 0, 0, 0, file];
            child(libc::SYS_clone3, &[at(&raw const arguments), 88])
        },
    ),
    refused("fcntl F_SETOWN to a process outside", NOBODY, |hands| {
        let owner = libc::F_SETOWN.into();
        call(
            libc::SYS_fcntl,
            &[hands.file.into(), owner, hands.outside.process()],
        )
    }),
    refused(
        "timer_create that signals a process outside",
        &[libc::EINVAL],
        |hands| {
            // `struct sigevent`: value, signal, SIGEV_THREAD_ID, thread.
            let thread = u64::from(hands.outside.0);
            let event = [0_u64, 4 << 32, thread, 0, 0, 0, 0, 0];
            let mut timer = 0_u64;
            call(
                libc::SYS_timer_create,
                &[1, at(&raw const event), at(&raw mut timer)],
            )
        },
    ),
    refused("setuid", &[libc::EINVAL], |_| call(libc::SYS_setuid, &[1])),
    refused("setresuid", &[libc::EINVAL], |_| {
        call(libc::SYS_setresuid, &[1, 1, 1])
    }),
    refused("setgid", &[libc::EINVAL], |_| call(libc::SYS_setgid, &[1])),
    refused("setgroups", FORBIDDEN, |_| {
        let group = 0_u32;
        call(libc::SYS_setgroups, &[1, at(&raw const group)])
    }),
    refused("capset", FORBIDDEN, |_| {
        let (header, all) = ([0x2008_0522_u32, 0], [u32::MAX; 6]);
        call(
            libc::SYS_capset,
            &[at(&raw const header), at(&raw const all)],
        )
    }),
    refused("prctl PR_SET_NO_NEW_PRIVS off", &[libc::EINVAL], |_| {
        call(libc::SYS_prctl, &[38, 0, 0, 0, 0])
    }),
    refused("prctl PR_SET_SECCOMP off", &[libc::EINVAL], |_| {
        call(libc::SYS_prctl, &[22, 0, 0, 0, 0])
    }),
    refused("prctl PR_SET_SECUREBITS", FORBIDDEN, |_| {
        call(libc::SYS_prctl, &[28, 0, 0, 0, 0])
    }),
    refused("prctl PR_CAP_AMBIENT", FORBIDDEN, |_| {
        call(libc::SYS_prctl, &[47, 2, 21, 0, 0])
    }),
    refused("prctl PR_SET_MM", FORBIDDEN, |_| {
        call(libc::SYS_prctl, &[35, 6, 4096, 0, 0])
    }),
    by_seccomp(
        "prctl PR_SET_PDEATHSIG off",
        "it would outlive its supervisor in the same jail",
        |_| call(libc::SYS_prctl, &[1, 15, 0, 0, 0]),
    ),
    by_seccomp(
        "prctl PR_SET_DUMPABLE",
        "who may look at it is outside and may more",
        |_| call(libc::SYS_prctl, &[4, 0, 0, 0, 0]),
    ),
    refused(
        "seccomp to load an action that does not exist",
        &[libc::EINVAL],
        |_| call(libc::SYS_seccomp, &[99, 0, 0]),
    ),
    #[cfg(target_arch = "x86_64")]
    refused("arch_prctl of no known code", &[libc::EINVAL], |_| {
        call(libc::SYS_arch_prctl, &[0x7777, 0])
    }),
    by_seccomp(
        "personality",
        "it changes how its own memory is laid out",
        |_| call(libc::SYS_personality, &[0xffff_ffff]),
    ),
    // It leads its session.
    refused("setpgid", FORBIDDEN, |_| call(libc::SYS_setpgid, &[0, 0])),
    by_seccomp(
        "personality READ_IMPLIES_EXEC",
        "memory of its own; what it would write there it can do by what is there",
        |_| {
            let before = call(libc::SYS_personality, &[0xffff_ffff]);
            let set = call(libc::SYS_personality, &[before | 0x40_0000]);
            call(libc::SYS_personality, &[before]);
            set
        },
    ),
    by_seccomp(
        "seccomp to load a filter that allows everything",
        "filters only add up: the strictest answer counts",
        |_| {
            // `BPF_RET | BPF_K` of SECCOMP_RET_ALLOW.
            let (instruction, count) = (0x7fff_0000_0000_0006_u64, 1_u64);
            let program = [count, at(&raw const instruction).cast_unsigned()];
            call(libc::SYS_seccomp, &[1, 0, at(&raw const program)])
        },
    ),
    by_seccomp(
        "rt_sigaction of SIGSYS",
        "without the filter there is no SIGSYS",
        |_| call(libc::SYS_rt_sigaction, &[libc::SIGSYS.into(), 0, 0, 8]),
    ),
    refused("chroot", FORBIDDEN, |_| {
        call(libc::SYS_chroot, &[text(c"/")])
    }),
];

const CLONE_INTO_CGROUP: u64 = 1 << 33;

fn vectors(hands: &Hands, number: libc::c_long) -> i64 {
    let mut buffer = [0_u8; 8];
    let ours = [at(&raw mut buffer), 8];
    let theirs = [0x40_0000_i64, 8];
    let (process, one) = (hands.outside.process(), 1);
    call(
        number,
        &[
            process,
            at(&raw const ours),
            one,
            at(&raw const theirs),
            one,
            0,
        ],
    )
}

/// A child ends at once.
fn child(number: libc::c_long, arguments: &[i64]) -> i64 {
    match call(number, arguments) {
        0 => call(libc::SYS_exit_group, &[0]),
        child => child,
    }
}
