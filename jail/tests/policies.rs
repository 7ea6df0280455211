//! The files of `seccomp/` as they are embedded: that all of them hold what their README says.

use std::collections::{BTreeMap, BTreeSet};

use vudev_jail::policy::{self, Action, Arch, Call};
use vudev_jail::{Embedded, Source, ring};

/// Names of the files that are loaded, of one directory.
fn loaded(directory: &str, extension: &str) -> Vec<&'static str> {
    let name = |file: &'static str| {
        let (parent, name) = file.split_once('/')?;
        let name = name.strip_suffix(extension)?;
        (parent == directory && policy::is_loadable(name)).then_some(name)
    };
    Embedded.names().filter_map(name).collect()
}

#[test]
fn every_policy_that_is_loaded_compiles_and_has_a_ring_list() {
    let names = loaded("x86_64", ".policy");
    assert_eq!(names, loaded("ring", ".ring"));
    assert!(names.len() >= 4);
    for name in names {
        let program = policy::compile(name, Arch::X86_64, &Embedded).unwrap();
        let list = ring::allow_list(name, &Embedded).unwrap();
        println!(
            "{name}: {} instructions, ring {list:?}",
            program.instructions().len()
        );
    }
}

#[test]
fn no_policy_allows_what_undoes_the_jail() {
    for name in loaded("x86_64", ".policy") {
        let policy = policy::read(name, Arch::X86_64, &Embedded).unwrap();
        assert_eq!(policy::violations(&policy), [], "{name}");
    }
}

#[test]
fn every_policy_allows_the_loop_and_the_report_of_its_end() {
    for name in loaded("x86_64", ".policy") {
        let policy = policy::read(name, Arch::X86_64, &Embedded).unwrap();
        assert!(policy::missing(&policy).is_empty(), "{name}");
    }
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

/// Calls that no device makes.
const CALLS: [&str; 24] = [
    "io_uring_setup",
    "io_uring_register",
    "open",
    "openat",
    "openat2",
    "creat",
    "socket",
    "socketpair",
    "connect",
    "bind",
    "execve",
    "execveat",
    "fork",
    "vfork",
    "clone",
    "clone3",
    "ptrace",
    "mount",
    "setns",
    "unshare",
    "bpf",
    "userfaultfd",
    "prctl",
    "kill",
];

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

/// As above, of the programs themselves, which do not share that judgement.
#[test]
fn no_program_lets_the_forbidden_calls_through() {
    for name in loaded("x86_64", ".policy") {
        let program = policy::compile(name, Arch::X86_64, &Embedded).unwrap();
        let run = |call: &str, args| {
            let number = Arch::X86_64.syscall_number(call).unwrap();
            program.run(&Call {
                number,
                arch: Arch::X86_64.audit(),
                args,
            })
        };
        for call in CALLS {
            for value in VALUES {
                assert_eq!(
                    run(call, [value; 6]),
                    Some(Action::Trap),
                    "{name}: {call} {value:#x}"
                );
            }
        }
        for call in ["mmap", "mprotect"] {
            for other in VALUES {
                for prot in [4, 5, 6, 7, 4 | 1 << 32, 0x0100_0004, u64::MAX] {
                    let args = [other, other, prot, other, other, other];
                    assert_eq!(
                        run(call, args),
                        Some(Action::Trap),
                        "{name}: {call} {prot:#x}"
                    );
                }
            }
        }
        assert_eq!(run("mmap", [0, 0, 3, 0x22, 0, 0]), Some(Action::Allow));
    }
}

#[test]
fn no_ring_list_allows_what_opens_or_connects() {
    let forbidden: BTreeSet<_> = ring::FORBIDDEN
        .iter()
        .map(|op| ring::opcode(op).unwrap())
        .collect();
    for name in loaded("ring", ".ring") {
        let list = ring::allow_list(name, &Embedded).unwrap();
        let opcodes: BTreeSet<_> = list.opcodes.iter().copied().collect();
        let found: Vec<_> = opcodes.intersection(&forbidden).collect();
        assert!(found.is_empty(), "{name}: {found:?}");
        assert_eq!(list.flags, 1 << 6, "{name}: IOSQE_CQE_SKIP_SUCCESS alone");
    }
}

#[test]
fn a_call_or_an_include_stands_once_in_a_file() {
    for file in Embedded.names() {
        let text = Embedded.read(file).unwrap();
        let mut seen = BTreeSet::new();
        for line in text
            .lines()
            .filter(|line| !line.starts_with('#') && !line.is_empty())
        {
            let key = line.split(':').next().unwrap();
            assert!(seen.insert(key), "{file}: {line}");
        }
        assert!(text.starts_with('#'), "{file} says what it is for");
        assert!(
            text.lines()
                .all(|line| line.len() <= 100 && line.trim_end() == line),
            "{file}"
        );
    }
}

#[test]
fn only_parts_are_included() {
    for file in Embedded.names() {
        let text = Embedded.read(file).unwrap();
        for include in text
            .lines()
            .filter_map(|line| line.strip_prefix("@include ./"))
        {
            let (name, _) = include.split_once('.').unwrap();
            assert!(!policy::is_loadable(name), "{file} includes {name}");
        }
    }
}

#[test]
fn a_wrong_ring_list_says_where_and_why() {
    let lists = [
        ("IORING_OP_NOPE: 1", "1:1: `IORING_OP_NOPE` is no"),
        (
            "IORING_OP_READV: arg0 == 1",
            "1:1: expected `IORING_OP_READV: 1`",
        ),
        (
            "IORING_OP_READV: 1\nIORING_OP_READV: 1",
            "2:1: `IORING_OP_READV` is on line 1 already",
        ),
        ("@default kill", "a ring list has no `@default`"),
    ];
    for (text, expected) in lists {
        let source = BTreeMap::from([("ring/a_device.ring".to_owned(), text.to_owned())]);
        let error = ring::allow_list("a_device", &source)
            .unwrap_err()
            .to_string();
        assert!(error.contains(expected), "{error}");
    }
    let error = ring::allow_list("common_device", &Embedded).unwrap_err();
    assert!(error.to_string().contains("is a part"), "{error}");
}
