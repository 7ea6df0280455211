//! What an author outside of the workspace is told to copy: `vudev-entropy` runs in a jail of its
//! own policies, and the document shows it as it is.

use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Result;
use rustix::process::Signal;
use tempfile::TempDir;
use vudev_frontend::{Buffer, FrontEnd};
use vudev_tests::{Child, Lines};

const LIMIT: Duration = Duration::from_secs(5);

/// A program's supervisor with its log.
fn start(program: &str, arguments: &[&str]) -> Result<(Child, Lines)> {
    let (lines, errors) = rustix::pipe::pipe()?;
    let mut command = Command::new(program);
    command.args(arguments);
    let supervisor = Child::start_with("vudev-entropy", &command, |command| {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr::<OwnedFd>(errors);
    })?;
    Ok((supervisor, Lines::new(lines)))
}

#[test]
fn the_document_s_program_is_the_one_that_is_tested() {
    let document = include_str!("../../docs/writing-a-device.md");
    let programs = document.split("```rust\n").skip(1);
    let mut programs = programs.filter_map(|code| Some(code.split_once("```\n")?.0));
    assert!(
        programs.any(|code| code == include_str!("../src/bin/vudev-entropy.rs")),
        "copy src/bin/vudev-entropy.rs into the document"
    );
}

#[test]
fn a_device_of_another_program_serves_from_its_own_jail() -> Result<()> {
    let folder = TempDir::new()?;
    let socket = folder.path().join("vu-entropy");
    let source = folder.path().join("source");
    std::fs::write(&source, "not random at all")?;
    let options = format!(
        "path={},most=10,vhost={}",
        source.display(),
        socket.display()
    );
    let program = env!("CARGO_BIN_EXE_vudev-entropy");
    let (mut supervisor, mut log) = start(program, &["--entropy", &options])?;
    log.until("1 device is ready", LIMIT)?;

    let mut front = FrontEnd::connect(&socket).queue_size(64).start()?;
    let at = front.memory().allocate(64, 1)?;
    for expected in ["not random", " at all"] {
        front.ring(0).add(&[], &[Buffer::new(at, 64)])?;
        front.ring(0).kick()?;
        let written = front.ring(0).wait_used(LIMIT)?.written;
        let mut bytes = vec![0; usize::try_from(written)?];
        front.memory().read(at, &mut bytes)?;
        assert_eq!(String::from_utf8(bytes)?, expected);
    }
    assert_eq!(front.stop()?, [2]);

    supervisor.signal(Signal::TERM)?;
    log.until("vudev-entropy: info: SIGTERM: stopping", LIMIT)?;
    assert_eq!(supervisor.wait(LIMIT)?.code(), Some(0));
    Ok(())
}

#[test]
fn a_directory_without_the_policies_is_the_jail_options_mistake() -> Result<()> {
    let folder = TempDir::new()?;
    let directory = format!("seccomp-policy-dir={}", folder.path().display());
    let options = format!("vhost={}", folder.path().join("vu-entropy").display());
    let program = env!("CARGO_BIN_EXE_vudev-entropy");
    let arguments = ["--jail", &directory, "--entropy", &options];
    let (mut supervisor, mut log) = start(program, &arguments)?;
    let line = log.until("entropy_device_vhost_user.ring", LIMIT)?;
    assert!(line.contains("--jail: seccomp-policy-dir: "), "{line}");
    assert_eq!(supervisor.wait(LIMIT)?.code(), Some(2));
    Ok(())
}

#[test]
fn a_source_that_is_not_there_is_a_line_with_its_key() -> Result<()> {
    let program = env!("CARGO_BIN_EXE_vudev-entropy");
    let options = "path=/nowhere/at all,vhost=/tmp/vu-entropy-unused";
    let (mut supervisor, mut log) = start(program, &["--entropy", options])?;
    let line = log.until("cannot open", LIMIT)?;
    let expected = "--entropy: path: column 6: cannot open \"/nowhere/at all\": ";
    assert!(line.contains(expected), "{line}");
    assert_eq!(supervisor.wait(LIMIT)?.code(), Some(2));
    Ok(())
}
