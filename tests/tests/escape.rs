//! A device that tries to break out of its jail, and a device that misbehaves: what it can do, and
//! what its supervisor says about it. The device is `vudev-escape`'s, made as an author outside of
//! the workspace would make one.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Result;
use rustix::process::Signal;
use tempfile::TempDir;
use vudev_frontend::FrontEnd;
use vudev_tests::attempt::{Attempt, RESULT_PENDING};
use vudev_tests::{Child, Lines};

const LIMIT: Duration = Duration::from_secs(5);

/// `-EACCES`.
const REFUSED: i32 = -13;

struct Escape {
    supervisor: Child,
    log: Lines,
    front: FrontEnd,
    _folder: TempDir,
}

impl Escape {
    fn start() -> Result<Self> {
        let folder = TempDir::new()?;
        let socket = folder.path().join("vu-escape");
        let (lines, errors) = rustix::pipe::pipe()?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_vudev-escape"));
        command.args(["--escape", &format!("vhost={}", socket.display())]);
        let supervisor = Child::start_with("vudev-escape", &command, |command| {
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

    /// Whether it was refused as such is in the result; a device that dies of it cannot answer.
    fn attempt(&mut self, attempt: Attempt) -> Result<()> {
        Ok(self
            .front
            .connection()
            .set_config(0, 0, &[attempt.number()])?)
    }

    /// The result of an attempt that the device survives.
    fn result(&mut self) -> Result<i32> {
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

    fn ended(&mut self) -> Result<Option<i32>> {
        Ok(self.supervisor.wait(LIMIT)?.code())
    }
}

#[test]
fn a_forbidden_system_call_ends_the_device_and_is_named() -> Result<()> {
    for (attempt, name) in [(Attempt::Open, "openat("), (Attempt::Socket, "socket(")] {
        let mut escape = Escape::start()?;
        let answer = escape.attempt(attempt);
        assert!(answer.is_err(), "{attempt:?} was answered");
        let line = escape.log.until("escape-0: error: ", LIMIT)?;
        assert!(
            line.contains(&format!("its policy forbids: {name}")),
            "{attempt:?}: {line}"
        );
        assert!(line.ends_with("(exit status 159)"), "{line}");
        assert_eq!(escape.ended()?, Some(1));
    }
    Ok(())
}

#[test]
fn a_ring_operation_outside_the_list_completes_with_eacces() -> Result<()> {
    let mut escape = Escape::start()?;
    escape.attempt(Attempt::RingOpcode)?;
    assert_eq!(escape.result()?, REFUSED);
    // It has done no harm, and the device is what it was.
    escape.supervisor.signal(Signal::TERM)?;
    assert_eq!(escape.ended()?, Some(0));
    Ok(())
}

#[test]
fn a_panic_is_reported_with_its_place_and_text() -> Result<()> {
    let mut escape = Escape::start()?;
    assert!(escape.attempt(Attempt::Panic).is_err());
    let line = escape.log.until("escape-0: error: ", LIMIT)?;
    assert!(
        line.contains("has panicked at ") && line.contains("as the test asked"),
        "{line}"
    );
    assert!(line.ends_with("(exit status 101)"), "{line}");
    assert_eq!(escape.ended()?, Some(1));
    Ok(())
}

#[test]
fn an_unasked_exit_is_reported_with_its_status() -> Result<()> {
    let mut escape = Escape::start()?;
    assert!(escape.attempt(Attempt::Exit).is_err());
    escape
        .log
        .until("escape-0: error: has died: exit status 7", LIMIT)?;
    assert_eq!(escape.ended()?, Some(1));
    Ok(())
}

#[test]
fn a_device_that_hangs_is_killed_at_the_deadline_and_named() -> Result<()> {
    let mut escape = Escape::start()?;
    escape
        .front
        .connection()
        .set_limit(Duration::from_millis(100));
    assert!(escape.attempt(Attempt::Hang).is_err());
    let asked = Instant::now();
    escape.supervisor.signal(Signal::TERM)?;
    escape
        .log
        .until("escape-0: error: did not end in time and was killed", LIMIT)?;
    assert_eq!(escape.ended()?, Some(1));
    assert!(asked.elapsed() < Duration::from_secs(2));
    Ok(())
}

#[test]
fn a_device_that_sends_its_supervisor_a_descriptor_is_killed() -> Result<()> {
    let mut escape = Escape::start()?;
    // Whether it is answered before it is killed is a race that nobody minds.
    let _ = escape.attempt(Attempt::Smuggle);
    let line = escape.log.until("escape-0: error: ", LIMIT)?;
    let text = "has sent descriptors in a packet that takes none and was killed";
    assert!(line.contains(text), "{line}");
    assert_eq!(escape.ended()?, Some(1));
    Ok(())
}

#[test]
fn a_flood_of_lines_is_cut_counted_and_harmless() -> Result<()> {
    let mut escape = Escape::start()?;
    escape.attempt(Attempt::Flood)?;
    let line = escape.log.until("flood 0", LIMIT)?;
    assert_eq!(line, "escape-0: info: flood 0\\u{1b}[2J");
    // The device has dropped the most itself and goes on; the supervisor hears one hundred lines
    // a second.
    assert_eq!(escape.result()?, 0);
    let asked = Instant::now();
    escape.supervisor.signal(Signal::TERM)?;
    let mut lines = 0;
    while let Some(line) = escape.log.next(Instant::now() + LIMIT)? {
        lines += 1;
        assert!(!line.contains('\u{1b}'));
        if line.contains("lines suppressed") {
            lines += 1000;
        }
    }
    assert!((1000..5000).contains(&lines), "{lines} lines");
    assert_eq!(escape.ended()?, Some(0));
    assert!(asked.elapsed() < Duration::from_secs(2));
    Ok(())
}

#[test]
fn a_device_without_policies_is_refused_before_it_starts() -> Result<()> {
    let folder = TempDir::new()?;
    let output = Command::new(env!("CARGO_BIN_EXE_vudev-escape"))
        .args([
            "--jail",
            "seccomp-policy-dir=.",
            "--escape",
            "vhost=vu-escape",
        ])
        .current_dir(folder.path())
        .stdin(File::open("/dev/null")?)
        .output()?;
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr)?.contains("escape_device_vhost_user"));
    assert!(!folder.path().join("vu-escape").exists());
    Ok(())
}
