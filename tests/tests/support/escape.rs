//! A `vudev-escape` with one device and a front-end, for the suites that ask it to misbehave. What
//! it is asked for, and what is to come of it, is theirs.

#![allow(dead_code, reason = "each suite uses its part of what they share")]

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tempfile::TempDir;
use vudev_frontend::FrontEnd;
use vudev_tests::attempt::{Attempt, RESULT_PENDING};
use vudev_tests::{Child, Lines};

/// How long anything may take.
pub(crate) const LIMIT: Duration = Duration::from_secs(5);

/// The program.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_vudev-escape");

/// A running one. Its device is called `escape-0`.
pub(crate) struct Escape {
    pub(crate) supervisor: Child,
    pub(crate) log: Lines,
    pub(crate) front: FrontEnd,
    _folder: TempDir,
}

impl Escape {
    /// Starts `command` with a device of this kind, and waits until it is in its jail. Standard
    /// input and output are nothing, unless `set_up` says otherwise.
    pub(crate) fn start(
        mut command: Command,
        kind: &str,
        set_up: impl FnOnce(&mut Command),
    ) -> Result<Self> {
        let folder = TempDir::new()?;
        // Whoever it runs as may make its socket there.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777))?;
        let socket = folder.path().join("vu-escape");
        let (lines, errors) = rustix::pipe::pipe()?;
        command.args([&format!("--{kind}"), &format!("vhost={}", socket.display())]);
        let supervisor = Child::start_with("vudev-escape", &command, |command| {
            command
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr::<OwnedFd>(errors);
            set_up(command);
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

    /// Whether it was refused as such is in the result; a device that dies of it cannot answer.
    pub(crate) fn attempt(&mut self, attempt: Attempt) -> Result<()> {
        let connection = self.front.connection();
        Ok(connection.set_config(0, 0, &[attempt.number()])?)
    }

    /// The result of an attempt that the device survives.
    pub(crate) fn result(&mut self) -> Result<i32> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let bytes = self.front.connection().config(1, 4)?;
            let result = i32::from_le_bytes(bytes.as_slice().try_into()?);
            // Asking is a turn of the device's loop, which is what it needs to complete.
            if result != RESULT_PENDING || Instant::now() > deadline {
                return Ok(result);
            }
        }
    }

    /// What is said of a device that dies of an attempt.
    pub(crate) fn dies_of(mut self, attempt: Attempt) -> Result<String> {
        ensure!(self.attempt(attempt).is_err(), "{attempt:?} was answered");
        self.death()
    }

    /// What is said of a device that has died.
    pub(crate) fn death(&mut self) -> Result<String> {
        let line = self.log.until(": error: ", LIMIT)?;
        ensure!(self.ended()? == Some(1), "{line}");
        Ok(line)
    }

    /// Waits for the supervisor's end.
    pub(crate) fn ended(&mut self) -> Result<Option<i32>> {
        Ok(self.supervisor.wait(LIMIT)?.code())
    }
}
