//! What the policies allow, by name and by running their programs.

use std::collections::BTreeMap;

use vudev_jail::policy::{self, Action, Arch, Call, Policy, Program};

use crate::table::{DEVICES, policies, programs};

/// Calls that no device makes. A name that an architecture does not have is skipped there; all
/// that begin with `open` are added.
const CALLS: [&str; 26] = [
    "io_uring_setup",
    "io_uring_register",
    "creat",
    "socket",
    "socketpair",
    "connect",
    "bind",
    "listen",
    "execve",
    "execveat",
    "fork",
    "vfork",
    "clone",
    "clone3",
    "ptrace",
    "mount",
    "move_mount",
    "pivot_root",
    "setns",
    "unshare",
    "bpf",
    "userfaultfd",
    "pidfd_getfd",
    "prctl",
    "kill",
    "seccomp",
];

/// Calls whose third argument is a protection.
const PROTECTION: [&str; 4] = ["mmap", "mmap2", "mprotect", "pkey_mprotect"];

/// Protections that are executable, or more than readable and writable.
const EXECUTABLE: [u64; 8] = [4, 5, 6, 7, 4 | 1 << 32, 0x0100_0004, 0x10, u64::MAX];

/// Arguments that rules compare with, and some that they must not be fooled by.
const VALUES: [u64; 12] = [
    0,
    1,
    2,
    3,
    4,
    6,
    7,
    8,
    0x1000,
    u64::MAX,
    1 << 32,
    0xffff_ff9c,
];

/// Numbers beyond the tables of all architectures are not asked for.
const NUMBER_MAX: u32 = 1024;

fn permits(policy: &Policy, call: &str) -> bool {
    let rule = policy.rules.values().find(|rule| rule.name == call);
    rule.is_some_and(|rule| rule.filters.iter().any(|filter| filter.action.permits()))
}

fn forbidden(arch: Arch) -> impl Iterator<Item = &'static str> {
    let opens = (0..NUMBER_MAX)
        .filter_map(move |number| arch.syscall_name(number))
        .filter(|name| name.starts_with("open"));
    let known = move |call: &&str| arch.syscall_number(call).is_some();
    CALLS.into_iter().filter(known).chain(opens)
}

fn run(program: &Program, arch: Arch, call: &str, args: [u64; 6]) -> Option<Action> {
    let number = arch.syscall_number(call).expect("asked of calls it has");
    let audit = arch.audit();
    program.run(&Call {
        number,
        arch: audit,
        args,
    })
}

#[test]
fn every_policy_allows_the_loop_and_the_report_of_its_end() {
    for (file, policy) in policies() {
        assert!(policy::missing(&policy).is_empty(), "{file}");
    }
}

/// Of filters that do nothing but allow, fewer allow less; where there are others, both policies
/// have the same.
#[test]
fn a_vvu_transport_adds_no_call_to_those_of_a_socket() {
    let all: BTreeMap<_, _> = policies().collect();
    let mut compared = 0;
    for (file, vvu) in &all {
        let Some(device) = file.strip_suffix("_vvu") else {
            continue;
        };
        let socket = &all[&format!("{device}_vhost_user")];
        assert_eq!(vvu.default, socket.default, "{file}");
        for (number, rule) in &vvu.rules {
            let others = socket.rules.get(number).map(|rule| &rule.filters[..]);
            let others = others.unwrap_or_default();
            let mut both = rule.filters.iter().chain(others);
            let no_more = match both.all(|filter| filter.action == Action::Allow) {
                true => rule.filters.iter().all(|filter| others.contains(filter)),
                false => rule.filters == others,
            };
            assert!(no_more, "{file}: {}", rule.name);
        }
        compared += 1;
    }
    assert_eq!(compared, DEVICES.len() * Arch::ALL.len());
}

#[test]
fn what_a_policy_lacks_is_named() {
    let source: BTreeMap<String, String> = [(
        "x86_64/mine_device.policy".to_owned(),
        "io_uring_enter: 1\nsendto: return EPERM\nrt_sigreturn: arg0 == 0\n".to_owned(),
    )]
    .into();
    let policy = policy::read("mine_device", Arch::X86_64, &source).unwrap();
    assert_eq!(policy::missing(&policy), ["sendto", "exit_group"]);
}

#[test]
fn no_policy_allows_what_undoes_the_jail() {
    for (file, policy) in policies() {
        assert_eq!(policy::violations(&policy), [], "{file}");
        for call in forbidden(policy.arch) {
            assert!(!permits(&policy, call), "{file}: {call}");
        }
    }
}

#[test]
fn the_forbidden_calls_are_known_by_their_names() {
    for arch in Arch::ALL {
        let found: Vec<_> = forbidden(arch).collect();
        for call in ["openat", "openat2", "open_by_handle_at", "open_tree"] {
            assert!(found.contains(&call), "{arch}: {call}");
        }
        for call in CALLS {
            // Only what the newer architectures never had may be unknown.
            let old = ["creat", "fork", "vfork"].contains(&call);
            assert!(found.contains(&call) || old, "{arch}: {call}");
        }
    }
}

/// As above, of the programs themselves, which do not share that judgement.
#[test]
fn no_program_lets_the_forbidden_calls_through() {
    for (file, arch, program) in programs() {
        for call in forbidden(arch) {
            for value in VALUES {
                let verdict = run(&program, arch, call, [value; 6]);
                assert_eq!(verdict, Some(Action::Trap), "{file}: {call} {value:#x}");
            }
        }
    }
}

#[test]
fn no_program_lets_memory_become_executable() {
    for (file, arch, program) in programs() {
        let known = |call: &&str| arch.syscall_number(call).is_some();
        for call in PROTECTION.into_iter().filter(known) {
            for other in VALUES {
                for protection in EXECUTABLE {
                    let args = [other, other, protection, other, other, other];
                    let verdict = run(&program, arch, call, args);
                    let what = format!("{file}: {call} {protection:#x}");
                    assert_eq!(verdict, Some(Action::Trap), "{what}");
                }
            }
        }
        let anonymous = [0, 0, 3, 0x22, 0, 0];
        let mmap = if arch == Arch::Arm { "mmap2" } else { "mmap" };
        let verdict = run(&program, arch, mmap, anonymous);
        assert_eq!(verdict, Some(Action::Allow), "{file}");
    }
}

/// Whether x86_64 has a call that newer architectures were not given any more.
fn is_x86_only(call: &str) -> bool {
    Arch::X86_64.syscall_number(call).is_some() && Arch::Aarch64.syscall_number(call).is_none()
}

/// 32-bit Arm has some of these calls, too, but what is written for it must not need them.
#[test]
fn no_policy_of_arm_or_aarch64_has_names_of_x86() {
    for call in ["open", "poll", "epoll_wait", "time", "select", "fork"] {
        assert!(is_x86_only(call), "{call}");
    }
    let arms = policies().filter(|(_, policy)| policy.arch != Arch::X86_64);
    for (file, policy) in arms {
        for rule in policy.rules.values() {
            assert!(!is_x86_only(&rule.name), "{file}: {}", rule.name);
        }
    }
}

/// The tables of 64-bit architectures also name calls that only 32-bit kernels have.
#[test]
fn no_policy_of_aarch64_has_names_of_32_bits() {
    let aarch64 = policies().filter(|(_, policy)| policy.arch == Arch::Aarch64);
    for (file, policy) in aarch64 {
        for rule in policy.rules.values() {
            let known = Arch::X86_64.syscall_number(&rule.name);
            assert!(known.is_some(), "{file}: {}", rule.name);
        }
    }
}

/// Calls of arm that have a wider form, which the C library makes instead; and the exceptions, for
/// which the file has its reasons.
#[test]
fn arm_has_the_wide_form_of_a_call_and_not_the_narrow_one() {
    const NARROW_TOO: [&str; 2] = ["timer_settime", "ppoll"];
    let arm = policies().filter(|(_, policy)| policy.arch == Arch::Arm);
    for (file, policy) in arm {
        for rule in policy.rules.values() {
            let name = &rule.name;
            let wide = ["64", "_time64"].map(|ending| format!("{name}{ending}"));
            let exists = wide.iter().any(|w| Arch::Arm.syscall_number(w).is_some());
            assert!(
                !exists || NARROW_TOO.contains(&&**name),
                "{file}: {name} instead of {wide:?}"
            );
        }
    }
}

/// rustix asks by it first on 32 bits, and knows what to do without it.
#[test]
fn statx_is_answered_on_arm_as_if_it_were_not_there() {
    let errno = Action::Errno(u16::try_from(libc::ENOSYS).unwrap());
    for (file, arch, program) in programs().filter(|(_, arch, _)| *arch == Arch::Arm) {
        let verdict = run(&program, arch, "statx", [0; 6]);
        assert_eq!(verdict, Some(errno), "{file}");
    }
}
