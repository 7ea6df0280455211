//! Policies as text, against what they mean and against the BPF they become.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn files(files: &[(&str, &str)]) -> BTreeMap<String, String> {
    let named = |(name, text): &(&str, &str)| (format!("x86_64/{name}"), (*text).to_owned());
    files.iter().map(named).collect()
}

fn policy(text: &str) -> Result<Policy, PolicyError> {
    read(
        "a_device",
        Arch::X86_64,
        &files(&[("a_device.policy", text)]),
    )
}

fn error(text: &str) -> String {
    policy(text).unwrap_err().to_string()
}

fn call(arch: Arch, name: &str, args: [u64; 6]) -> Call {
    Call {
        number: arch.syscall_number(name).unwrap(),
        arch: arch.audit(),
        args,
    }
}

/// The verdict of the policy, after both ways to it agreed.
fn verdict(policy: &Policy, name: &str, args: [u64; 6]) -> Action {
    let call = call(policy.arch, name, args);
    let meant = policy.evaluate(&call);
    assert_eq!(policy.compile().unwrap().run(&call), Some(meant));
    meant
}

#[test]
fn conditions_decide_in_order_and_the_default_after_them() {
    let policy = policy(
        "read: 1\n\
         openat: return ENOENT\n\
         mmap: arg2 in PROT_READ|PROT_WRITE && arg3 & MAP_PRIVATE || arg0 == 7\n\
         fcntl: arg1 == F_GETFL; return 5\n\
         fcntl: arg1 >= (1 | 2); allow\n\
         kill: trap\n\
         madvise: arg0 in ~0xf\n",
    )
    .unwrap();
    let args = |a, b, c, d| [a, b, c, d, 0, 0];
    assert_eq!(verdict(&policy, "read", [0; 6]), Action::Allow);
    assert_eq!(verdict(&policy, "write", [0; 6]), Action::Trap);
    assert_eq!(verdict(&policy, "openat", [0; 6]), Action::Errno(2));
    assert_eq!(verdict(&policy, "mmap", args(0, 0, 3, 2)), Action::Allow);
    assert_eq!(
        verdict(&policy, "mmap", args(0, 0, 7, 2)),
        Action::Trap,
        "PROT_EXEC"
    );
    assert_eq!(verdict(&policy, "mmap", args(7, 0, 7, 0)), Action::Allow);
    assert_eq!(
        verdict(&policy, "mmap", args(0, 0, 1 << 32, 2)),
        Action::Trap
    );
    assert_eq!(
        verdict(&policy, "fcntl", args(0, 3, 0, 0)),
        Action::Errno(5)
    );
    assert_eq!(
        verdict(&policy, "fcntl", args(0, u64::MAX, 0, 0)),
        Action::Allow
    );
    assert_eq!(verdict(&policy, "fcntl", args(0, 2, 0, 0)), Action::Trap);
    assert_eq!(
        verdict(&policy, "madvise", args(!0xf, 0, 0, 0)),
        Action::Allow
    );
    assert_eq!(verdict(&policy, "madvise", args(1, 0, 0, 0)), Action::Trap);
}

#[test]
fn another_architecture_or_x32_is_killed_whatever_the_policy_allows() {
    let policy = policy("read: 1\n").unwrap();
    let program = policy.compile().unwrap();
    let read = call(Arch::X86_64, "read", [0; 6]);
    for foreign in [
        Call {
            arch: 0x4000_0003,
            ..read
        }, // i386, by int 0x80
        Call {
            number: read.number | 0x4000_0000,
            ..read
        },
        Call {
            number: u32::MAX,
            ..read
        },
    ] {
        assert_eq!(policy.evaluate(&foreign), Action::KillProcess);
        assert_eq!(program.run(&foreign), Some(Action::KillProcess));
    }
}

#[test]
fn an_error_says_where_and_what_was_expected() {
    let file = |rest| format!("x86_64/a_device.policy:{rest}");
    for (text, expected) in [
        ("read 1", "1:6: expected `:` after the name, found `1`"),
        ("\nread:", "2:6: expected an action"),
        ("read: 2", "1:7: expected an action"),
        ("read: 1 1", "1:9: expected the end of the line, found `1`"),
        ("read: arg6 == 1", "1:7: expected an action"),
        ("read: arg0 = 1", "1:12: expected a comparison"),
        (
            "read: arg0 == 1 &&",
            "1:19: expected `arg0` to `arg5`, the line ends",
        ),
        ("read: arg0 == (1 | 2", "1:21: expected `)`, the line ends"),
        (
            "read: arg0 == NO_SUCH",
            "1:15: `NO_SUCH` is no constant we know",
        ),
        (
            "read: arg0 == 0x1ffffffffffffffff",
            "1:15: `0x1ffffffffffffffff` is no number",
        ),
        ("read: arg0 == 010", "1:15: `010` is no number"),
        ("read: return 4096", "1:14: 4096 is no errno"),
        (
            "no_such_call: 1",
            "1:1: `no_such_call` is no system call of x86_64",
        ),
        (
            "read: \\\n  arg0 == ?",
            "2:11: `?` begins nothing of this language",
        ),
        (
            "@default allow",
            "1:10: expected a default that ends the caller",
        ),
        ("@include x", "1:10: expected a path"),
        ("@include ./x.policy", "1:1: cannot include x86_64/x.policy"),
        ("@frequency ./x", "1:1: `@frequency` is not read yet"),
        (
            "{read, write}: 1",
            "1:1: groups of system calls are not read yet",
        ),
        ("read[arch=arm]: 1", "1:5: `[arch=…]` is not read yet"),
        (
            "read: 1\nread: arg0 == 1",
            "2:1: `read` is decided without a condition already, at x86_64/a_device.policy:1:1",
        ),
        (
            "read: arg0 == 1\nread: arg0 == 1; return 1",
            "2:1: `read` has another action for this condition, at x86_64/a_device.policy:1:1",
        ),
    ] {
        let error = error(text);
        assert!(
            error.starts_with(&file(expected)),
            "{text:?} gave {error:?}"
        );
    }
}

#[test]
fn rules_of_several_parts_merge_and_includes_nest() {
    let source = files(&[
        (
            "a_device.policy",
            "@include ./a.policy\n@include ./b.policy\nread: 1\n",
        ),
        ("a.policy", "@include ./sub/c.policy\nfcntl: arg1 == 1\n"),
        ("sub/c.policy", "@include ./d.policy\n"),
        ("sub/d.policy", "@default kill-process\nclose: 1\n"),
        ("b.policy", "fcntl: arg1 == 2\n"),
    ]);
    let policy = read("a_device", Arch::X86_64, &source).unwrap();
    assert_eq!(verdict(&policy, "fcntl", [0, 1, 0, 0, 0, 0]), Action::Allow);
    assert_eq!(verdict(&policy, "fcntl", [0, 2, 0, 0, 0, 0]), Action::Allow);
    assert_eq!(
        verdict(&policy, "fcntl", [0, 3, 0, 0, 0, 0]),
        Action::KillProcess
    );
    assert_eq!(verdict(&policy, "close", [0; 6]), Action::Allow);
}

#[test]
fn includes_in_a_circle_or_without_end_are_refused() {
    let circle = files(&[
        ("a_device.policy", "@include ./a.policy"),
        ("a.policy", "@include ./a_device.policy"),
    ]);
    let error = read("a_device", Arch::X86_64, &circle)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("x86_64/a.policy:1:1") && error.contains("includes itself"),
        "{error}"
    );

    let mut deep = files(&[("a_device.policy", "@include ./0.policy")]);
    for depth in 0..INCLUDE_DEPTH_MAX {
        deep.insert(
            format!("x86_64/{depth}.policy"),
            format!("@include ./{}.policy", depth + 1),
        );
    }
    let error = read("a_device", Arch::X86_64, &deep)
        .unwrap_err()
        .to_string();
    assert!(error.contains("more than 10 files deep"), "{error}");
}

#[test]
fn a_part_is_not_loaded_by_itself() {
    for part in ["common_device", "block", "vhost_user", "_device", ""] {
        assert!(!is_loadable(part), "{part}");
        assert!(compile(part, Arch::X86_64, &crate::Embedded).is_err());
    }
    assert!(is_loadable("block_device") && is_loadable("block_device_vvu"));
}

#[test]
fn a_program_longer_than_the_kernel_takes_is_an_error() {
    let clause = "arg0 == 1 && arg1 == 2 && arg2 == 3 && arg3 == 4";
    let text: String = Vec::from_iter((0..300).map(|_| clause)).join(" || ");
    let error = compile(
        "a_device",
        Arch::X86_64,
        &files(&[("a_device.policy", &format!("read: {text}"))]),
    );
    assert!(
        error
            .unwrap_err()
            .message
            .contains("more than the kernel's 4096")
    );
}

#[test]
fn what_undoes_the_jail_is_found_in_a_policy() {
    let found = |text| violations(&policy(text).unwrap()).len();
    for bad in [
        "io_uring_setup: 1",
        "openat: arg0 == 5",
        "socket: log",
        "execve: arg0 == 1; return 1\nexecve: 1",
        "mmap: 1",
        "mprotect: arg2 in ~PROT_WRITE",
        "mprotect: arg2 in PROT_READ || arg0 == 0",
        "mmap: arg2 == PROT_READ|PROT_EXEC",
        "tgkill: 1",
    ] {
        assert_eq!(found(bad), 1, "{bad}");
    }
    for good in [
        "openat: return ENOENT",
        "mmap: arg2 in ~PROT_EXEC",
        "mprotect: arg2 == PROT_READ || arg2 < 4 && arg0 == 1",
        "tgkill: arg0 == 1 && arg2 == SIGABRT",
        "read: 1",
    ] {
        assert_eq!(found(good), 0, "{good}");
    }
}

/// Numbers at the edges of words and signs, and anything.
fn word(arch: Arch) -> impl Strategy<Value = u64> + Clone {
    let edges = vec![
        0,
        1,
        2,
        3,
        4,
        7,
        8,
        0x7fff_ffff,
        0x8000_0000,
        0xffff_ffff,
        0x1_0000_0000,
        0x1_0000_0001,
        0x7fff_ffff_ffff_ffff,
        0x8000_0000_0000_0000,
        u64::MAX - 1,
        u64::MAX,
    ];
    let bits = (0..64_u32).prop_map(|bit| 1 << bit);
    prop_oneof![4 => prop::sample::select(edges), 2 => bits, 1 => any::<u64>()]
        .prop_map(move |value: u64| value & arch.word_mask())
}

const OPERATORS: [(&str, Operator); 8] = [
    ("==", Operator::Equal),
    ("!=", Operator::NotEqual),
    ("<", Operator::Less),
    ("<=", Operator::LessOrEqual),
    (">", Operator::Greater),
    (">=", Operator::GreaterOrEqual),
    ("&", Operator::AnyBit),
    ("in", Operator::OnlyBits),
];

const ACTIONS: [(&str, Action); 7] = [
    ("allow", Action::Allow),
    ("1", Action::Allow),
    ("return ENOENT", Action::Errno(2)),
    ("return 4095", Action::Errno(4095)),
    ("trap", Action::Trap),
    ("kill-process", Action::KillProcess),
    ("log", Action::Log),
];

/// A rule's text and its meaning, made side by side.
fn filter(arch: Arch) -> impl Strategy<Value = (String, Filter)> + Clone {
    let atom = (
        0..6_u8,
        prop::sample::select(OPERATORS.to_vec()),
        word(arch),
    );
    let clause = prop::collection::vec(atom, 1..4);
    let clauses = prop::option::weighted(0.8, prop::collection::vec(clause, 1..4));
    (clauses, prop::sample::select(ACTIONS.to_vec())).prop_map(|(clauses, (text, action))| {
        let Some(clauses) = clauses else {
            return (
                text.to_owned(),
                Filter {
                    condition: None,
                    action,
                },
            );
        };
        let render = |(argument, (operator, _), value): &(u8, (&str, Operator), u64)| {
            format!("arg{argument} {operator} {value:#x}")
        };
        let texts: Vec<_> = clauses
            .iter()
            .map(|clause| Vec::from_iter(clause.iter().map(render)).join(" && "))
            .collect();
        let atom = |&(argument, (_, operator), value): &(u8, (&str, Operator), u64)| Atom {
            argument,
            operator,
            value,
        };
        let condition = clauses
            .iter()
            .map(|clause| clause.iter().map(atom).collect())
            .collect();
        let filter = Filter {
            condition: Some(condition),
            action,
        };
        (format!("{}; {text}", texts.join(" || ")), filter)
    })
}

type Rules = BTreeMap<u32, Vec<(String, Filter)>>;

/// Up to hundreds of rules, so that jumps leave the reach of one instruction.
fn rules(arch: Arch) -> impl Strategy<Value = Rules> {
    let numbers = (0..450_u32).filter(|number| arch.syscall_name(*number).is_some());
    let number = prop::sample::select(Vec::from_iter(numbers));
    let filters = prop::collection::vec(filter(arch), 1..4).prop_map(|mut filters| {
        // What follows an unconditional filter, or contradicts one before it, is an error.
        let end = filters.iter().position(|(_, f)| f.condition.is_none());
        filters.truncate(end.map_or(filters.len(), |end| end + 1));
        filters.dedup_by(|a, b| a.1.condition == b.1.condition);
        filters
    });
    let sizes = prop_oneof![3 => 0..8_usize, 1 => 60..120_usize];
    sizes
        .prop_flat_map(move |size| prop::collection::vec((number.clone(), filters.clone()), size))
        .prop_map(Rules::from_iter)
}

/// A number, whether it comes under another architecture's name, arguments.
type Asked = (u32, bool, [u64; 6]);

fn case() -> impl Strategy<Value = (Arch, Rules, Vec<Asked>)> {
    prop::sample::select(Arch::ALL.to_vec()).prop_flat_map(|arch| {
        let args = prop::array::uniform6(word(arch));
        let call = (
            prop_oneof![0..450_u32, any::<u32>()],
            prop::bool::weighted(0.05),
            args,
        );
        (Just(arch), rules(arch), prop::collection::vec(call, 40))
    })
}

/// Anything printable, and what looks like a rule for a while.
const NONSENSE: &str =
    "[ -~\\n]{0,80}|(arg[0-7]|read|[:;|&=~(){}@]|in|return|0x?[0-9a-f]{0,20}| ){0,20}";

proptest! {
    #[test]
    fn the_program_answers_what_the_policy_means((arch, rules, calls) in case()) {
        let mut text = String::from("@default kill-thread\n");
        for (number, filters) in &rules {
            let name = arch.syscall_name(*number).unwrap();
            for (filter, _) in filters {
                text.push_str(&format!("{name}: {filter}\n"));
            }
        }
        let source = BTreeMap::from([(format!("{arch}/a_device.policy"), text)]);
        let policy = match read("a_device", arch, &source) {
            Ok(policy) => policy,
            // Two equal conditions with one between them.
            Err(error) => {
                prop_assert!(error.message.contains("another action"), "{error}");
                return Ok(());
            }
        };
        for (number, filters) in &rules {
            let parsed = &policy.rules[number].filters;
            prop_assert_eq!(parsed, &Vec::from_iter(filters.iter().map(|(_, f)| f.clone())));
        }
        let Ok(program) = policy.compile() else { return Ok(()) };
        let audits = [arch.audit(), 0x4000_0003];
        let ruled = rules.keys().flat_map(|number| calls[..10].iter().map(|c| (*number, c.1, c.2)));
        for (number, foreign, args) in calls.iter().copied().chain(ruled) {
            let call = Call { number, arch: audits[usize::from(foreign)], args };
            prop_assert_eq!(program.run(&call), Some(policy.evaluate(&call)), "{:?}", call);
        }
    }

    #[test]
    fn no_text_makes_the_parser_panic(text in NONSENSE) {
        let _ = policy(&text);
    }
}
