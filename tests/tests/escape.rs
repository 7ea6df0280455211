//! A device that tries to break out of its jail, and a device that misbehaves: what it can do, and
//! what its supervisor says about it. The device is `vudev-escape`'s, made as an author outside of
//! the workspace would make one.

use std::fs::File;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Result;
use rustix::process::Signal;
use tempfile::TempDir;
use vudev_tests::attempt::Attempt;

#[path = "support/escape.rs"]
mod support;

use support::{Escape, LIMIT, PROGRAM};

/// `-EACCES`.
const REFUSED: i32 = -13;

fn start() -> Result<Escape> {
    Escape::start(Command::new(PROGRAM), "escape", |_| ())
}

#[test]
fn a_forbidden_system_call_ends_the_device_and_is_named() -> Result<()> {
    for (attempt, name) in [(Attempt::Open, "openat("), (Attempt::Socket, "socket(")] {
        let line = start()?.dies_of(attempt)?;
        assert!(line.starts_with("escape-0: error: "), "{line}");
        assert!(
            line.contains(&format!("its policy forbids: {name}")),
            "{attempt:?}: {line}"
        );
        assert!(line.ends_with("(exit status 159)"), "{line}");
    }
    Ok(())
}

#[test]
fn a_ring_operation_outside_the_list_completes_with_eacces() -> Result<()> {
    let mut escape = start()?;
    escape.attempt(Attempt::RingOpcode)?;
    assert_eq!(escape.result()?, REFUSED);
    // It has done no harm, and the device is what it was.
    escape.supervisor.signal(Signal::TERM)?;
    assert_eq!(escape.ended()?, Some(0));
    Ok(())
}

#[test]
fn a_panic_is_reported_with_its_place_and_text() -> Result<()> {
    let line = start()?.dies_of(Attempt::Panic)?;
    assert!(
        line.contains("has panicked at ") && line.contains("as the test asked"),
        "{line}"
    );
    assert!(line.ends_with("(exit status 101)"), "{line}");
    Ok(())
}

#[test]
fn an_unasked_exit_is_reported_with_its_status() -> Result<()> {
    let line = start()?.dies_of(Attempt::Exit)?;
    assert!(line.contains("has died: exit status 7"), "{line}");
    Ok(())
}

#[test]
fn a_device_that_hangs_is_killed_at_the_deadline_and_named() -> Result<()> {
    let mut escape = start()?;
    escape
        .front
        .connection()
        .set_limit(Duration::from_millis(100));
    assert!(escape.attempt(Attempt::Hang).is_err());
    let asked = Instant::now();
    escape.supervisor.signal(Signal::TERM)?;
    let line = escape.death()?;
    assert!(
        line.contains("did not end in time and was killed"),
        "{line}"
    );
    assert!(asked.elapsed() < Duration::from_secs(2));
    Ok(())
}

#[test]
fn a_device_that_sends_its_supervisor_a_descriptor_is_killed() -> Result<()> {
    let mut escape = start()?;
    // Whether it is answered before it is killed is a race that nobody minds.
    let _ = escape.attempt(Attempt::Smuggle);
    let line = escape.death()?;
    let text = "has sent descriptors in a packet that takes none and was killed";
    assert!(line.contains(text), "{line}");
    Ok(())
}

#[test]
fn a_flood_of_lines_is_cut_counted_and_harmless() -> Result<()> {
    let mut escape = start()?;
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
    let output = Command::new(PROGRAM)
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
