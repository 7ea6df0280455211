//! The jail as a whole: real processes, real namespaces, real filters. Each test starts this same
//! binary again in the role of a device process, through [`vudev_jail::Spawn`], and looks at it
//! from outside or lets it tell over its channel.
//!
//! It has a main of its own, since a role's `argv` must not reach libtest; it understands as much
//! of libtest's command line as cargo and nextest use. As root, each test runs a second time as an
//! ordinary user.
#![expect(
    clippy::unwrap_used,
    reason = "a test, which clippy knows by libtest's main alone"
)]

mod attempts;
mod container;
mod denials;
mod example;
mod jail;
mod role;
#[path = "../../examples/shout.rs"]
mod shout;
mod support;
mod verdicts;

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

type Test = (&'static str, fn());

const AS_USER: &str = "as_an_ordinary_user::";

/// An id that no account has.
pub(crate) const USER: u32 = 61_234;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.first().map(String::as_str) {
        Some(role::NAME) => role::main(&arguments[1..]),
        Some(support::SUPERVISOR) => jail::supervisor(),
        Some(support::CONTAINER) => container::supervisor(),
        Some(shout::DAEMON | example::SHOUT) => return shout::main(),
        _ => {}
    }
    let tests = [
        jail::TESTS,
        container::TESTS,
        attempts::TESTS,
        verdicts::TESTS,
        denials::TESTS,
        example::TESTS,
    ]
    .concat();
    let root = rustix::process::geteuid().is_root();
    let names: Vec<String> = tests
        .iter()
        .map(|(name, _)| (*name).to_owned())
        .chain(
            tests
                .iter()
                .filter(|_| root)
                .map(|(name, _)| format!("{AS_USER}{name}")),
        )
        .collect();
    if arguments.iter().any(|argument| argument == "--list") {
        list(&arguments, &names);
        return ExitCode::SUCCESS;
    }
    let wanted = |name: &str| selected(&arguments[1..], name);
    let chosen: Vec<_> = names.iter().filter(|name| wanted(name)).collect();
    let failed = chosen.iter().filter(|name| !run(&tests, name)).count();
    println!("{} tests of the jail, {failed} failed", chosen.len());
    ExitCode::from(u8::from(failed != 0))
}

fn list(arguments: &[String], names: &[String]) {
    if !arguments.iter().any(|argument| argument == "--ignored") {
        names.iter().for_each(|name| println!("{name}: test"));
    }
}

fn selected(arguments: &[String], name: &str) -> bool {
    let exact = arguments.iter().any(|argument| argument == "--exact");
    let mut filters = arguments
        .iter()
        .filter(|argument| !argument.starts_with("--"))
        .peekable();
    filters.peek().is_none()
        || filters.any(|filter| {
            if exact {
                name == filter
            } else {
                name.contains(filter.as_str())
            }
        })
}

fn run(tests: &[Test], name: &str) -> bool {
    let done = match name.strip_prefix(AS_USER) {
        Some(name) => Command::new("/proc/self/exe")
            .args(["--exact", name])
            .uid(USER)
            .gid(USER)
            .status()
            .is_ok_and(|status| status.success()),
        None => {
            let test = tests.iter().find(|(known, _)| *known == name);
            test.is_some_and(|(_, test)| std::panic::catch_unwind(test).is_ok())
        }
    };
    println!("test {name} ... {}", if done { "ok" } else { "FAILED" });
    done
}
