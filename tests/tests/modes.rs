//! What an operator sees when a device calls what its policy forbids, in each `seccomp-mode`, as
//! root and as an ordinary user. The device is `vudev-escape`'s.

use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Result;
use rustix::process::Signal;
use tempfile::TempDir;
use vudev_frontend::FrontEnd;
use vudev_tests::attempt::{Attempt, RESULT_PENDING};
use vudev_tests::{Child, Lines};

const LIMIT: Duration = Duration::from_secs(5);

/// An id that no account has.
const USER: u32 = 61_234;

struct Escape {
    supervisor: Child,
    log: Lines,
    front: FrontEnd,
    _folder: TempDir,
}

/// As whoever runs the test, and if that is root, as an ordinary user too.
fn users() -> Vec<Option<u32>> {
    match rustix::process::geteuid().is_root() {
        true => vec![None, Some(USER)],
        false => vec![None],
    }
}

impl Escape {
    fn start(jail: &str, user: Option<u32>) -> Result<Self> {
        let folder = TempDir::new()?;
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o777))?;
        let socket = folder.path().join("vu-escape");
        let (lines, errors) = rustix::pipe::pipe()?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_vudev-escape"));
        command.args(["--jail", jail, "--escape"]);
        command.arg(format!("vhost={}", socket.display()));
        let supervisor = Child::start_with("vudev-escape", &command, |command| {
            if let Some(user) = user {
                command.uid(user).gid(user);
            }
            command
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr::<OwnedFd>(errors);
        })?;
        let mut log = Lines::new(lines);
        log.until("1 device is ready", LIMIT)?;
        let front = FrontEnd::connect(&socket).queue_size(16).start()?;
        Ok(Self {
            supervisor,
            log,
            front,
            _folder: folder,
        })
    }

    fn attempt(&mut self, attempt: Attempt) -> Result<()> {
        let number = attempt.number();
        Ok(self.front.connection().set_config(0, 0, &[number])?)
    }

    fn result(&mut self) -> Result<i32> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let bytes = self.front.connection().config(1, 4)?;
            let result = i32::from_le_bytes(bytes.as_slice().try_into()?);
            if result != RESULT_PENDING || Instant::now() > deadline {
                return Ok(result);
            }
        }
    }

    /// What is said of a device that dies of an attempt.
    fn dies_of(mut self, attempt: Attempt) -> Result<String> {
        assert!(self.attempt(attempt).is_err(), "{attempt:?} was answered");
        let line = self.log.until("escape-0: error: ", LIMIT)?;
        assert_eq!(self.supervisor.wait(LIMIT)?.code(), Some(1));
        println!("{line}");
        Ok(line)
    }
}

#[test]
fn trap_names_the_call_and_ends_the_device() -> Result<()> {
    for user in users() {
        let escape = Escape::start("seccomp-mode=trap", user)?;
        let line = escape.dies_of(Attempt::Socket)?;
        assert!(line.contains("its policy forbids: socket(0x1, "), "{line}");
        assert!(line.ends_with("(exit status 159)"), "{line}");
    }
    Ok(())
}

#[test]
fn kill_ends_the_device_and_the_report_says_how_to_hear_more() -> Result<()> {
    for user in users() {
        let escape = Escape::start("seccomp-mode=kill", user)?;
        let line = escape.dies_of(Attempt::Socket)?;
        assert!(line.contains("has died: killed by signal SIGSYS"), "{line}");
        assert!(line.contains("--jail seccomp-mode=trap"), "{line}");
    }
    Ok(())
}

#[test]
fn log_names_each_call_once_and_the_device_goes_on() -> Result<()> {
    for user in users() {
        let mut escape = Escape::start("seccomp-log-failures=true", user)?;
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
