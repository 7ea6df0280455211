//! What an operator sees when a device calls what its policy forbids, in each `seccomp-mode`, as
//! root and as an ordinary user. The device is `vudev-escape`'s.

use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Instant;

use anyhow::Result;
use rustix::process::Signal;
use vudev_tests::attempt::Attempt;

#[path = "support/escape.rs"]
mod support;

use support::{Escape, LIMIT, PROGRAM};

/// An id that no account has.
const USER: u32 = 61_234;

/// As whoever runs the test, and if that is root, as an ordinary user too.
fn users() -> Vec<Option<u32>> {
    match rustix::process::geteuid().is_root() {
        true => vec![None, Some(USER)],
        false => vec![None],
    }
}

fn start(jail: &str, user: Option<u32>) -> Result<Escape> {
    let mut command = Command::new(PROGRAM);
    command.args(["--jail", jail]);
    Escape::start(command, "escape", |command| {
        if let Some(user) = user {
            command.uid(user).gid(user);
        }
    })
}

#[test]
fn trap_names_the_call_and_ends_the_device() -> Result<()> {
    for user in users() {
        let escape = start("seccomp-mode=trap", user)?;
        let line = escape.dies_of(Attempt::Socket)?;
        assert!(line.contains("its policy forbids: socket(0x1, "), "{line}");
        assert!(line.ends_with("(exit status 159)"), "{line}");
    }
    Ok(())
}

#[test]
fn kill_ends_the_device_and_the_report_says_how_to_hear_more() -> Result<()> {
    for user in users() {
        let escape = start("seccomp-mode=kill", user)?;
        let line = escape.dies_of(Attempt::Socket)?;
        assert!(line.contains("has died: killed by signal SIGSYS"), "{line}");
        assert!(line.contains("--jail seccomp-mode=trap"), "{line}");
    }
    Ok(())
}

#[test]
fn log_names_each_call_once_and_the_device_goes_on() -> Result<()> {
    for user in users() {
        let mut escape = start("seccomp-log-failures=true", user)?;
        for _ in 0..3 {
            escape.attempt(Attempt::Socket)?;
            assert_eq!(escape.result()?, 0, "socket is carried out");
        }
        // Carried out too, and refused by what is left of the jail: an empty root, and Landlock.
        escape.attempt(Attempt::Open)?;
        assert!(escape.result()? < 0);
        escape.supervisor.signal(Signal::TERM)?;
        let mut lines = Vec::new();
        while let Some(line) = escape.log.next(Instant::now() + LIMIT)? {
            lines.push(line);
        }
        let denied = "escape-0: warning: its policy forbids, and the log lets go on: ";
        let denied: Vec<_> = lines
            .iter()
            .filter_map(|l| l.strip_prefix(denied))
            .collect();
        for name in ["socket(0x1, ", "openat(0xffff"] {
            let told = denied.iter().filter(|call| call.starts_with(name));
            assert_eq!(told.count(), 1, "{name}: {lines:#?}");
        }
        println!("{}", denied.join("\n"));
        assert!(lines.iter().any(|line| line == "escape-0: info: has ended"));
        assert_eq!(escape.supervisor.wait(LIMIT)?.code(), Some(0));
    }
    Ok(())
}
