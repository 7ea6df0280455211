//! Policies as text, against what they mean and against the BPF they become.

use std::collections::BTreeMap;

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
fn files_that_include_each_other_many_times_are_not_read_without_end() {
    let mut sources = BTreeMap::from([("x86_64/f9.policy".to_owned(), String::new())]);
    for file in 1..9 {
        let include = format!("@include ./f{}.policy\n", file + 1);
        sources.insert(format!("x86_64/f{file}.policy"), include.repeat(12));
    }
    let text = "@include ./f1.policy\n".to_owned();
    sources.insert("x86_64/x_device.policy".to_owned(), text);
    let error = read("x_device", Arch::X86_64, &sources).unwrap_err();
    assert!(
        error.to_string().contains("more than 256 inclusions"),
        "{error}"
    );
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

/// Texts, and the place and beginning of what is said about them.
const ERRORS: &[(&str, &str)] = &[
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
        "1:15: `NO_SUCH` is no constant of x86_64",
    ),
    (
        "read: arg0 == 0x1ffffffffffffffff",
        "1:15: `0x1ffffffffffffffff` is no number",
    ),
    ("read: arg0 == 08", "1:15: `08` is no number"),
    ("read: arg0 == 0x", "1:15: `0x` is no number"),
    ("read: arg0 == 0o10", "1:15: `0o10` is no number"),
    (
        "read: arg0 == -0x8000000000000001",
        "1:15: `-0x8000000000000001` is no number",
    ),
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
        "1:10: expected a default that does not go on",
    ),
    ("@include x", "1:10: expected a path"),
    ("@include ./x.policy", "1:1: cannot include x86_64/x.policy"),
    (
        "@include ./../../x",
        "1:1: cannot include ./../../x: it is outside",
    ),
    ("@default errno", "1:10: expected an action"),
    ("@default return 1", "1:10: expected a default"),
    (
        "@default trap\n@default kill",
        "2:1: there is another `@default`, at x86_64/a_device.policy:1:1",
    ),
    (
        "@denylist",
        "1:1: a policy of what is forbidden is not taken",
    ),
    ("@frequency x", "1:12: expected a path"),
    (
        "@frequency ./x",
        "1:1: cannot include x86_64/x: entity not found",
    ),
    (
        "@nonsense",
        "1:1: expected `@include`, `@frequency` or `@default`",
    ),
    ("read: trace", "1:7: `trace` is not taken"),
    ("read: arg0 == 1; trace", "1:18: `trace` is not taken"),
    (
        "file@systemd: 1",
        "1:1: named groups of calls are not known here",
    ),
    ("{read, write: 1", "1:13: expected `,` or `}`, found `:`"),
    ("{read,}: 1", "1:7: expected a name, found `}`"),
    ("{}: 1", "1:2: expected a name, found `}`"),
    ("{read, nope}: 1", "1:8: `nope` is no system call"),
    ("{read, read}: 1", "1:8: `read` is decided"),
    (
        "read: {arg0 == 1, 1",
        "1:20: expected `,` or `}`, the line ends",
    ),
    ("read: {1, arg0 == 1}", "1:1: `read` is decided"),
    ("read: {{1}}", "1:8: expected an action"),
    ("read: ~1", "1:7: expected an action"),
    ("read: arg0 == ~~1", "1:16: expected a number or the name"),
    ("read: (arg0 == 1)", "1:7: expected an action"),
    ("read[]: 1", "1:6: expected `arch`, found `]`"),
    ("read[os=linux]: 1", "1:6: expected `arch`, found `os`"),
    ("read[arch]: 1", "1:10: expected `=`, found `]`"),
    ("read[arch=x86-64]: 1", "1:11: expected an architecture"),
    ("read[arch=arm: 1", "1:14: expected `,` or `]`, found `:`"),
    ("read[arch=arm]", "1:15: expected `:` after the name"),
    (
        "read: 1\nread: arg0 == 1",
        "2:1: `read` is decided without a condition already, at x86_64/a_device.policy:1:1",
    ),
    (
        "read: arg0 == 1\nread: arg0 == 1; return 1",
        "2:1: `read` has another action for this condition, at x86_64/a_device.policy:1:1",
    ),
];

#[test]
fn an_error_says_where_and_what_was_expected() {
    let file = |rest| format!("x86_64/a_device.policy:{rest}");
    for (text, expected) in ERRORS {
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
fn a_text_that_includes_is_told_how_to_be_read() {
    let text = "@include ./common_device.policy\n";
    let error = Policy::from_text(text, Arch::X86_64)
        .unwrap_err()
        .to_string();
    let expected = "<policy>:1:1: cannot include common_device.policy: a text includes nothing: \
                    read it from a `Directory` (`policy::read`)";
    assert_eq!(error, expected);
    let error = crate::RingList::from_text("@include ./common_device.ring\n").unwrap_err();
    let error = error.to_string();
    assert!(
        error.ends_with("`Directory` (`ring::allow_list`)"),
        "{error}"
    );
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

#[test]
fn groups_give_each_call_each_filter() {
    let policy = policy(
        "{read, write[arch=x86_64], \\\n pread64}: \\\n \
         {arg0 == 1; return EPERM, arg0 == 2; log, allow}\n\
         {close, dup[arch=arm,mips]}: user-notify\n\
         dup[arch=arm64]: nonsense is still an error\n",
    );
    assert!(policy.unwrap_err().to_string().contains(":5:18: expected"));
    let policy = self::policy(
        "{read, write[arch=x86_64], \\\n pread64}: \\\n \
         {arg0 == 1; return EPERM, arg0 == 2; log, allow}\n\
         {close, dup[arch=arm,mips]}: user-notify\n\
         no_call_of_ours[arch=arm64]: 1\n",
    )
    .unwrap();
    for name in ["read", "write", "pread64"] {
        let first = |value| verdict(&policy, name, [value, 0, 0, 0, 0, 0]);
        assert_eq!(
            [first(0), first(1), first(2)],
            [Action::Allow, Action::Errno(1), Action::Log]
        );
    }
    assert_eq!(verdict(&policy, "close", [0; 6]), Action::UserNotify);
    assert_eq!(verdict(&policy, "dup", [0; 6]), Action::Trap);
}

#[test]
fn a_policy_means_its_own_architectures_numbers() {
    for arch in Arch::ALL {
        let source = BTreeMap::from([(
            format!("{arch}/a_device.policy"),
            "fcntl: arg2 == O_DIRECTORY|010; return 7\n\
             fcntl: arg0 == AT_FDCWD\n\
             openat[arch=arm64]: return EPERM\n\
             openat[arch=x86_64,arm]: return ENOENT\n"
                .to_owned(),
        )]);
        let policy = read("a_device", arch, &source).unwrap();
        let (directory, openat) = match arch {
            Arch::X86_64 => (0x1_0008, 2),
            Arch::Aarch64 => (0x4008, 1),
            Arch::Arm => (0x4008, 2),
        };
        let fcntl = |first, third| verdict(&policy, "fcntl", [first, 0, third, 0, 0, 0]);
        assert_eq!(fcntl(0, directory), Action::Errno(7));
        assert_eq!(fcntl(0xffff_ff9c, 0) == Action::Allow, arch == Arch::Arm);
        assert_eq!(fcntl(-100_i64 as u64, 0), Action::Allow);
        assert_eq!(verdict(&policy, "openat", [0; 6]), Action::Errno(openat));
    }
    let error = |text: &str| {
        let source = BTreeMap::from([("arm/a_device.policy".to_owned(), text.to_owned())]);
        read("a_device", Arch::Arm, &source)
            .unwrap_err()
            .to_string()
    };
    assert!(error("mmap2: arg3 & MAP_32BIT").contains("1:15: `MAP_32BIT` is no constant of arm"));
    assert!(error("mmap2: arg3 == 0x100000000").contains("is no number of at most 32 bits"));
}

#[test]
fn what_is_called_often_is_found_soon() {
    let names = (0..300).filter_map(|number| Arch::X86_64.syscall_name(number));
    let rules = String::from_iter(
        (1..)
            .zip(names)
            .map(|(errno, name)| format!("{name}: arg0 == 1; return {errno}\n")),
    );
    let steps = |text: String, name| {
        let mut source = files(&[
            ("a_device.policy", &text),
            (
                "often",
                "# Measured.\nread: 5\nioctl: 100000\nread[arch=x86_64]: 6\nread[arch=arm]: 9",
            ),
        ]);
        source.insert("x86_64/more".to_owned(), "fsync: 0".to_owned());
        let policy = read("a_device", Arch::X86_64, &source).unwrap();
        assert!(policy.frequencies.is_empty() || policy.frequencies[&0] == 11);
        let call = call(Arch::X86_64, name, [1, 0, 0, 0, 0, 0]);
        policy.compile().unwrap().steps(&call).unwrap()
    };
    let often = format!("@frequency ./often\n@frequency ./sub/../more\n{rules}");
    assert!(steps(often.clone(), "ioctl") < steps(rules.clone(), "ioctl"));
    // Architecture and number; two words of the condition and the return; the search, and a jump
    // for each of its and the condition's ends that is out of a test's reach.
    assert_eq!(steps(often, "ioctl"), 3 + 5 + 2 + 3);
    for name in ["read", "ioctl", "fsync", "futex"] {
        assert!(steps(rules.clone(), name) <= 3 + 5 + 2 * 10, "{name}");
    }
}

#[test]
fn an_error_in_a_file_of_frequencies_is_placed_there() {
    for (text, expected) in [
        ("read 1", "1:6: expected `:` after the name"),
        (
            "read: -1",
            "1:7: expected how often it is called, found `-1`",
        ),
        (
            "read: 1\nread: many",
            "2:7: expected how often it is called",
        ),
        (
            "no_such_call: 1",
            "1:1: `no_such_call` is no system call of x86_64",
        ),
        ("@include ./a_device.policy", "1:1: expected a name"),
        (
            "read: 18446744073709551616",
            "1:7: `18446744073709551616` is no number",
        ),
    ] {
        let source = files(&[
            ("a_device.policy", "@include ./a.policy"),
            ("a.policy", "@frequency ./counts"),
            ("counts", text),
        ]);
        let error = read("a_device", Arch::X86_64, &source)
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with(&format!("x86_64/counts:{expected}")),
            "{error}"
        );
    }
}

#[test]
fn rules_that_say_the_same_share_their_instructions() {
    let length = |text| {
        policy(text)
            .unwrap()
            .compile()
            .unwrap()
            .instructions()
            .len()
    };
    // One more range of numbers at most, at each side.
    assert!(length("{read, preadv}: arg0 == 1") <= length("read: arg0 == 1") + 2);
    // Neighbours are one range.
    assert_eq!(length("{read, write, open, close}: 1"), length("read: 1"));
}

#[test]
fn a_call_has_a_bounded_number_of_filters() {
    let text = String::from_iter((0..1025).map(|value| format!("read: arg0 == {value}\n")));
    assert!(error(&text).contains(":1025:1: `read` has more than 1024 filters"));
    let names = Vec::from_iter((0..257).map(|_| "read[arch=arm]")).join(",");
    assert!(error(&format!("{{{names}}}: 1")).contains(":1:1: expected at most 256 in a group"));
}

#[test]
fn a_verdict_names_the_filter_and_clause_that_gave_it_and_where_it_stands() {
    let source = files(&[
        (
            "a_device.policy",
            "@include ./a.policy\nread: arg0 == 2\nwrite: 1\n",
        ),
        ("a.policy", "# Why.\n\nread: arg0 == 0 || arg0 == 1\n"),
    ]);
    let (policy, places) = read_with_places("a_device", Arch::X86_64, &source).unwrap();
    let decided = |name, first| {
        let call = call(Arch::X86_64, name, [first, 0, 0, 0, 0, 0]);
        let Decision { filter, clause, .. } = policy.decide(&call)?;
        Some((places[&call.number][filter].to_string(), clause))
    };
    assert_eq!(decided("read", 1), Some(("x86_64/a.policy:3:1".into(), 1)));
    assert_eq!(
        decided("read", 2),
        Some(("x86_64/a_device.policy:2:1".into(), 0))
    );
    assert_eq!(
        decided("write", 9),
        Some(("x86_64/a_device.policy:3:1".into(), 0))
    );
    assert_eq!(decided("read", 3), None);
    assert_eq!(decided("close", 0), None);
}
