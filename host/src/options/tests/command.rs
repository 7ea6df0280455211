//! The command line: which devices in which order, and what is refused.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use log::LevelFilter;
use proptest::prelude::*;

use super::{DISK, PORT};
use crate::options::command::{DEVICES_MAX, UsageError};
use crate::options::help::Topic;
use crate::options::{Command, CommandLine, JailOptions, RunOptions, SeccompMode, Vhost};

const LINE: CommandLine<'static> = CommandLine {
    program: "vudev",
    tables: &[&PORT, &DISK],
};

fn parse(arguments: &[&str]) -> Result<Command, UsageError> {
    LINE.parse(arguments.iter().map(OsString::from))
}

fn run(arguments: &[&str]) -> RunOptions {
    match parse(arguments) {
        Ok(Command::Run(options)) => options,
        other => panic!("{arguments:?}: {other:?}"),
    }
}

fn wrong(arguments: &[&str]) -> String {
    parse(arguments).expect_err("bad").to_string()
}

fn names(options: &RunOptions) -> Vec<String> {
    options.devices.iter().map(|device| device.name()).collect()
}

#[test]
fn devices_are_mixed_and_repeated_and_keep_their_order() {
    let options = run(&["--disk", "a,vhost=1", "--port=vhost=2", "--disk=b,vhost=3"]);
    assert_eq!(names(&options), ["disk-0", "port-0", "disk-1"]);
    let paths: Vec<_> = options
        .devices
        .iter()
        .map(|device| device.values.vhost())
        .collect();
    assert_eq!(
        paths,
        ["1", "2", "3"].map(|path| Vhost::Socket(path.as_ref()))
    );
    assert_eq!(options.log_level, LevelFilter::Info);
    assert!(!options.disable_sandbox && options.jail.seccomp_policy_dir.is_none());
}

#[test]
fn the_keys_of_one_device_can_be_arguments_of_their_own() {
    let options = run(&[
        "disk",
        "--path",
        "a,b=\"c\"",
        "--log-level",
        "debug",
        "--ro",
        "--block_size=4k",
        "--jail=seccomp-mode=kill",
        "--vhost",
        "1",
        "--sizes",
        "[1,2]",
    ]);
    assert_eq!(names(&options), ["disk-0"]);
    let values = &options.devices[0].values;
    assert_eq!(values.text("path"), "a,b=\"c\"");
    assert!(values.flag("ro"));
    assert_eq!(values.number("block-size"), 4096);
    assert_eq!(values.numbers("sizes"), [1, 2]);
    assert_eq!(options.log_level, LevelFilter::Debug);
    assert_eq!(options.jail.seccomp_mode, SeccompMode::Kill);
    for help in ["-h", "--help"] {
        match parse(&["disk", "--path", "a", help]) {
            Ok(Command::Help(Topic::Device(table))) => assert_eq!(table.device, "disk"),
            other => panic!("{help}: {other:?}"),
        }
    }
    assert!(matches!(
        parse(&["disk", "--version"]),
        Ok(Command::Version)
    ));
}

#[test]
fn mistakes_in_arguments_for_keys_are_told_as_they_were_written() {
    let vhost = ["disk", "--vhost", "v"];
    let with = |more: &[&str]| wrong(&[&vhost[..], more].concat());
    assert_eq!(with(&[]), "disk: --path: is missing: add --path PATH");
    assert_eq!(
        wrong(&["disk", "--path", "p"]),
        "disk: --vhost: is missing: add --vhost PATH, the socket that front-ends connect to"
    );
    assert_eq!(
        with(&["--path"]),
        "--path: needs a value: write --path PATH"
    );
    assert_eq!(
        with(&["--path", "--ro"]),
        "--path: needs a value: write --path PATH"
    );
    assert_eq!(
        with(&["--path", "p", "--path", "q"]),
        "disk: --path: is given twice: remove one"
    );
    assert_eq!(
        with(&["--path", "p", "--queues", "17"]),
        "disk: --queues: \"17\" is more than 16: write a number from 1 to 16"
    );
    assert_eq!(
        with(&["--path", "p", "--sizes", "[1,x]"]),
        "disk: --sizes: \"x\" is not a number in decimal, 0x, 0o or 0b: write a number from 1 to 9"
    );
    assert_eq!(
        with(&["--path", "p", "--sizes", "[1],2"]),
        "disk: --sizes: \"[1],2\" is not a number in decimal, 0x, 0o or 0b: \
         write a number from 1 to 9"
    );
    assert_eq!(
        with(&["--pth", "p"]),
        "unknown argument \"--pth\": did you mean disk --path?"
    );
    assert_eq!(with(&["p"]), "unknown argument \"p\": see vudev --help");
    assert_eq!(
        with(&["--port", "vhost=1"]),
        "unknown argument \"--port\": see vudev --help"
    );
    // Only the first argument is a device.
    assert_eq!(
        wrong(&["--log-level=off", "disk"]),
        "unknown argument \"disk\": did you mean --disk?"
    );
}

#[test]
fn options_stand_anywhere_among_the_devices() {
    let options = run(&[
        "--log-level=debug",
        "--port",
        "vhost=1",
        "--disable_sandbox",
        "--jail",
        "seccomp-policy-dir=/p",
    ]);
    assert!(options.disable_sandbox);
    assert_eq!(options.log_level, LevelFilter::Debug);
    let note = "--jail: accepted, but changes nothing here: --disable-sandbox is given";
    assert_eq!(options.notes(2), [note]);
    assert_eq!(
        options.jail.seccomp_policy_dir.map(|found| found.path),
        Some(std::path::PathBuf::from("/p"))
    );
}

#[test]
fn what_becomes_of_a_denied_call_is_said_by_either_key() {
    for (jail, mode) in [
        ("seccomp-policy-dir=/p", SeccompMode::Trap),
        ("seccomp-mode=kill", SeccompMode::Kill),
        (
            "seccomp-mode=kill,seccomp-log-failures=false",
            SeccompMode::Kill,
        ),
        ("seccomp-mode=log,seccomp_log_failures", SeccompMode::Log),
        ("seccomp-log-failures=true", SeccompMode::Log),
    ] {
        let options = run(&["--port", "vhost=1", "--jail", jail]);
        assert_eq!(options.jail.seccomp_mode, mode, "{jail}");
        let warned = options.notes(2).concat().contains("CARRIED OUT");
        assert_eq!(warned, mode == SeccompMode::Log, "{jail}");
    }
}

#[test]
fn a_note_is_told_once_for_all_devices_of_a_kind() {
    let options = run(&["--disk", "a,root,vhost=1", "--disk", "b,root,vhost=2"]);
    assert_eq!(
        options.notes(2),
        ["--disk: root: accepted, but changes nothing here: a VMM's matter"]
    );
}

#[test]
fn polling_that_cannot_be_is_told() {
    let disk = |poll: &str| run(&["--disk", &format!("a,vhost=1{poll}")]);
    for poll in [",poll-us=5", ",poll-us=auto"] {
        let told = "--disk: poll-us: accepted, but changes nothing here: it would poll on the \
                    only processor that it may run on";
        assert_eq!(disk(poll).notes(1), [told]);
        assert_eq!(disk(poll).notes(2), [""; 0]);
    }
    // Nobody asked for it.
    for poll in ["", ",poll-us=0"] {
        assert_eq!(disk(poll).notes(1), [""; 0]);
    }
}

/// Command lines, and what is said of them.
const MISTAKES: &[(&[&str], &str)] = &[
    (
        &[],
        "no device is given: add one, --port vhost=/tmp/vu-port; see vudev --help",
    ),
    (
        &["--disable-sandbox"],
        "no device is given: add one, --port vhost=/tmp/vu-port; see vudev --help",
    ),
    (
        &["--dsk", "a,vhost=1"],
        "unknown argument \"--dsk\": did you mean --disk?",
    ),
    (
        &["--dsk=a,vhost=1"],
        "unknown argument \"--dsk\": did you mean --disk?",
    ),
    (
        &["-disk", "a,vhost=1"],
        "unknown argument \"-disk\": did you mean --disk?",
    ),
    (
        &["disk", "a,vhost=1"],
        "unknown argument \"disk\": did you mean --disk?",
    ),
    (
        &["--poll_us=5", "--disk", "a,vhost=1"],
        "unknown argument \"--poll_us\": it is a key of a device: \
         write --port …,poll-us=NUMBER|auto",
    ),
    (
        &["--network", "x"],
        "unknown argument \"--network\": see vudev --help",
    ),
    (
        &["--disk"],
        "--disk: needs a value: write --disk KEY=VALUE,…",
    ),
    (
        &["--disk", "--port", "vhost=1"],
        "--disk: needs a value: write --disk KEY=VALUE,…",
    ),
    (
        &["--disable-sandbox=yes"],
        "--disable-sandbox: takes no value: leave out =\"yes\"",
    ),
    (
        &["--log-level=loud"],
        "--log-level: \"loud\" is no level: write one of off, error, warn, info, debug, trace",
    ),
    (
        &["--log-level=off", "--log-level=off"],
        "--log-level: is given twice: remove one",
    ),
    (
        &["--jail", "pivot-root=/var/empty"],
        "--jail: pivot-root: column 12: is not available: \
          each jail makes an empty read-only root of its own: leave it out",
    ),
    (
        &["--jail", "seccomp-mode=loud"],
        "--jail: seccomp-mode: column 14: \"loud\" is not one of its values: \
          write one of trap, kill, log",
    ),
    (
        &["--jail", "seccomp-mode=kill,seccomp-log-failures"],
        "--jail: seccomp-log-failures: column 19: contradicts seccomp-mode=kill: leave it out",
    ),
    (
        &["--jail", "seccomp-log-failures=false,seccomp_mode=log"],
        "--jail: seccomp-log-failures: column 22: contradicts seccomp-mode=log: leave it out",
    ),
    (
        &["--jail", "vhost=s"],
        "--jail: column 1: unknown key \"vhost\": see `help jail` for its keys",
    ),
    (
        &["--disk", "a,vhost=1", "--disk", "b,vhost"],
        "--disk (number 2): vhost: column 3: \
          needs a value: write vhost=PATH|BUS:DEVICE.FUNCTION",
    ),
    (
        &["help", "jail", "extra"],
        "unknown argument \"extra\": help takes one topic: leave it out",
    ),
    (
        &["help", "foo"],
        "unknown argument \"foo\": there is help on port, disk, jail, check",
    ),
    (
        &["help", "dsk"],
        "unknown argument \"dsk\": did you mean help disk?",
    ),
];

#[test]
fn each_mistake_is_one_line_with_a_remedy() {
    for &(arguments, text) in MISTAKES {
        assert_eq!(wrong(arguments), text, "{arguments:?}");
    }
}

#[test]
fn flags_with_one_place_are_one_device_where_the_kind_says_so() {
    let arguments = [
        "--port",
        "vhost=1,stdin",
        "--port",
        "vhost=2",
        "--port",
        "vhost=1",
        "--port",
        "vhost=00:05.0",
        "--port",
        "vhost=0000:00:05.0",
    ];
    let run = run(&arguments);
    let parts: Vec<_> = run
        .devices
        .iter()
        .map(|d| d.values.further().len())
        .collect();
    assert_eq!(parts, [1, 0, 1]);
    assert!(!run.devices[0].values.further()[0].flag("stdin"));
    let twice = wrong(&["--port", "vhost=1,stdin", "--port", "stdin,vhost=1"]);
    assert!(
        twice.contains("--port: stdin: column 1: port-0 has it already"),
        "{twice}"
    );
    let other = wrong(&[
        "--port",
        "vhost=1",
        "--port",
        "vhost=2",
        "--disk",
        "a,vhost=2",
    ]);
    assert!(
        other.contains("--disk: vhost: column 9: port-1 has it already"),
        "{other}"
    );
}

#[test]
fn two_devices_cannot_share_a_socket_a_function_or_the_terminal() {
    let twice = wrong(&["--disk", "a,vhost=1", "--port", "vhost=1"]);
    assert_eq!(
        twice,
        "--port: vhost: column 7: disk-0 has it already: give each device its own"
    );
    let twice = wrong(&["--disk", "a,vhost=00:05.0", "--port", "vhost=0000:00:05.0"]);
    assert_eq!(
        twice,
        "--port: vhost: column 7: disk-0 has it already: give each device its own"
    );
    let twice = wrong(&["--port", "stdin,vhost=1", "--port", "vhost=2,stdin"]);
    assert_eq!(
        twice,
        "--port (number 2): stdin: column 9: port-0 has it already: give each device its own"
    );
    run(&[
        "--port",
        "stdin,vhost=1",
        "--port",
        "vhost=2,stdin=false",
        "--port",
        "vhost=3",
    ]);
}

#[test]
fn an_argument_that_is_not_utf8_is_refused() {
    let arguments = [
        "--disk".into(),
        OsString::from_vec(b"\xff,vhost=1".to_vec()),
    ];
    let error = LINE.parse(arguments).expect_err("bad").to_string();
    assert!(error.contains("is not UTF-8"), "{error}");
}

#[test]
fn more_devices_than_the_limit_are_refused() {
    let arguments = (0..=DEVICES_MAX).map(|n| OsString::from(format!("--port=vhost={n}")));
    let error = LINE.parse(arguments).expect_err("bad").to_string();
    assert_eq!(
        error,
        "more than 128 devices are given: use several commands"
    );
}

#[test]
fn help_and_version_are_found_wherever_they_stand() {
    for arguments in [
        &["--help"][..],
        &["-h"],
        &["help"],
        &["--disk", "a,vhost=1", "--help"],
    ] {
        let command = parse(arguments).expect("good");
        assert!(
            matches!(command, Command::Help(Topic::Overview)),
            "{arguments:?}"
        );
    }
    for arguments in [
        &["help", "disk"][..],
        &["--help", "disk"],
        &["--help=disk"],
        &["help", "--disk"],
        &["disk", "help"],
    ] {
        match parse(arguments).expect("good") {
            Command::Help(Topic::Device(table)) => assert_eq!(table.device, "disk"),
            other => panic!("{arguments:?}: {other:?}"),
        }
    }
    assert!(matches!(
        parse(&["help", "jail"]),
        Ok(Command::Help(Topic::Jail))
    ));
    assert!(matches!(parse(&["-V"]), Ok(Command::Version)));
    assert!(LINE.version().starts_with("vudev 0."));
}

#[test]
fn a_path_may_be_called_help() {
    assert_eq!(
        run(&["--disk", "help,vhost=help"]).devices[0]
            .values
            .text("path"),
        "help"
    );
}

proptest! {
    #[test]
    fn no_arguments_panic(arguments in prop::collection::vec(".*", 0..5)) {
        let _ = LINE.parse(arguments.into_iter().map(OsString::from));
    }
}

#[test]
fn a_check_stands_alone_and_may_be_json() {
    for (arguments, wanted) in [(&["check"][..], false), (&["check", "--json"], true)] {
        match parse(arguments).expect("good") {
            Command::Check { json, jail } => {
                assert_eq!(json, wanted);
                assert_eq!(jail, JailOptions::default());
            }
            other => panic!("{arguments:?}: {other:?}"),
        }
    }
    for arguments in [&["check", "--help"][..], &["help", "check"]] {
        let parsed = parse(arguments).expect("good");
        assert!(matches!(parsed, Command::Help(Topic::Check)), "{parsed:?}");
    }
    for (slip, meant) in [("--jsn", "check --json"), ("--jial", "check --jail")] {
        let error = parse(&["check", slip]).expect_err("a slip").to_string();
        assert!(error.contains(meant), "{error}");
    }
}

#[test]
fn a_check_is_of_the_jail_that_is_asked_for() {
    for arguments in [
        &["check", "--jail", "seccomp-mode=log"][..],
        &["check", "--json", "--jail=seccomp-mode=log"],
    ] {
        let Command::Check { jail, .. } = parse(arguments).expect("good") else {
            panic!("{arguments:?}");
        };
        assert_eq!(jail.seccomp_mode, SeccompMode::Log);
    }
    let twice = [
        "check",
        "--jail=seccomp-mode=log",
        "--jail=seccomp-mode=log",
    ];
    assert!(parse(&twice).is_err());
}
