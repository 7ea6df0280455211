//! What no policy of a device may allow, whatever the device: each of these undoes the jail.

use super::{Atom, Filter, Operator, Policy, Rule};

/// A rule that a device's policy must not have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{call}`: {why}")]
pub struct Violation {
    /// The system call.
    pub call: String,
    /// What it would allow.
    pub why: &'static str,
}

/// Calls by what they would give back. A rule that answers one with an errno is no violation.
const FORBIDDEN: &[(&str, &[&str])] = &[
    (
        "an unrestricted ring",
        &["io_uring_setup", "io_uring_register"],
    ),
    (
        "paths",
        &[
            "open",
            "openat",
            "openat2",
            "creat",
            "open_by_handle_at",
            "open_tree",
            "chroot",
            "uselib",
        ],
    ),
    (
        "sockets",
        &["socket", "socketpair", "connect", "bind", "listen"],
    ),
    ("programs", &["execve", "execveat"]),
    ("processes", &["fork", "vfork", "clone", "clone3"]),
    (
        "other processes",
        &[
            "ptrace",
            "process_vm_readv",
            "process_vm_writev",
            "pidfd_getfd",
            "kill",
            "tkill",
            "process_madvise",
            "kcmp",
        ],
    ),
    (
        "mounts and namespaces",
        &[
            "mount",
            "umount2",
            "pivot_root",
            "move_mount",
            "fsopen",
            "fsmount",
            "fspick",
            "fsconfig",
            "mount_setattr",
            "setns",
            "unshare",
        ],
    ),
    (
        "the kernel itself",
        &[
            "bpf",
            "userfaultfd",
            "perf_event_open",
            "init_module",
            "finit_module",
            "kexec_load",
            "kexec_file_load",
            "add_key",
            "request_key",
            "keyctl",
            "iopl",
            "ioperm",
            "reboot",
        ],
    ),
    // READ_IMPLIES_EXEC makes every readable mapping executable.
    (
        "executable memory",
        &["personality", "shmat", "remap_file_pages", "pkey_mprotect"],
    ),
];

/// Calls whose third argument is a protection.
const PROTECTION: [&str; 4] = ["mmap", "mmap2", "mprotect", "pkey_mprotect"];
const PROTECTION_ARGUMENT: u8 = 2;

/// Everything in `policy` that must not be there. It errs on the strict side: a condition that it
/// does not understand counts as one that allows.
pub fn violations(policy: &Policy) -> Vec<Violation> {
    let mut found = Vec::new();
    if policy.default.permits() {
        found.push(Violation {
            call: "@default".to_owned(),
            why: "everything not named",
        });
    }
    for rule in policy.rules.values() {
        let permits = rule.filters.iter().any(|filter| filter.action.permits());
        let forbidden = FORBIDDEN
            .iter()
            .find(|(_, names)| names.contains(&&*rule.name));
        match forbidden {
            Some((why, _)) if permits => found.push(violation(rule, why)),
            _ if PROTECTION.contains(&&*rule.name) && allows_exec(rule) => {
                found.push(violation(rule, "executable memory"));
            }
            // Signals to others; to itself, abort(3) needs just this one.
            _ if rule.name == "tgkill" && !only_value(rule, 2, libc::SIGABRT) => {
                found.push(violation(rule, "signals other than SIGABRT"));
            }
            _ => {}
        }
    }
    found
}

fn violation(rule: &Rule, why: &'static str) -> Violation {
    Violation {
        call: rule.name.clone(),
        why,
    }
}

/// Whether some allowing clause does not rule PROT_EXEC out by itself.
fn allows_exec(rule: &Rule) -> bool {
    let exec = u64::from(libc::PROT_EXEC.cast_unsigned());
    !every_allowed_clause(rule, |atom| {
        atom.argument == PROTECTION_ARGUMENT
            && match atom.operator {
                Operator::OnlyBits | Operator::Equal => atom.value & exec == 0,
                Operator::Less => atom.value <= exec,
                Operator::LessOrEqual => atom.value < exec,
                Operator::NotEqual
                | Operator::Greater
                | Operator::GreaterOrEqual
                | Operator::AnyBit => false,
            }
    })
}

fn only_value(rule: &Rule, argument: u8, value: i32) -> bool {
    let value = u64::from(value.cast_unsigned());
    let wanted = Atom {
        argument,
        operator: Operator::Equal,
        value,
    };
    every_allowed_clause(rule, |atom| *atom == wanted)
}

/// Whether each clause that allows has an atom with this property.
fn every_allowed_clause(rule: &Rule, property: impl Fn(&Atom) -> bool) -> bool {
    rule.filters
        .iter()
        .filter(|filter| filter.action.permits())
        .all(
            |Filter {
                 condition,
                 action: _,
             }| {
                condition
                    .as_ref()
                    .is_some_and(|clauses| clauses.iter().all(|c| c.iter().any(&property)))
            },
        )
}
