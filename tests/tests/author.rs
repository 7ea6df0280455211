//! What an author outside of the workspace is told to copy: `vudev-entropy` runs in a jail of its
//! own policies, and the document shows it as it is.

use std::env;
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
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

/// What is in the document between fences of this language and of which `mark` is a part.
fn from_the_document(language: &str, mark: &str) -> Result<&'static str> {
    let document = include_str!("../../docs/writing-a-device.md");
    let fence = format!("```{language}\n");
    let blocks = document.split(fence.as_str()).skip(1);
    let mut blocks = blocks.filter_map(|block| Some(block.split_once("```\n")?.0));
    let found = blocks.find(|block| block.contains(mark));
    found.with_context(|| format!("the document has no {language} with {mark:?}"))
}

/// The document's program under another name, and with a request that makes a forbidden call.
fn mydev_program() -> Result<String> {
    let code = from_the_document("rust", "DeviceKind for EntropyKind")?;
    let code = code.replace("entropy", "mydev").replace("Entropy", "Mydev");
    let limit = "        chain.writable.truncate(self.most);\n";
    ensure!(code.contains(limit), "nowhere to put the forbidden call");
    let forbidden = "        if chain.writable.len() == 13 {\n            \
                     drop(StdFile::open(\"/etc/passwd\"));\n        }\n";
    Ok(code.replace(limit, &format!("{forbidden}{limit}")))
}

/// A crate outside of the workspace that depends on it, with what the document tells.
fn write_mydev(folder: &Path, workspace: &Path) -> Result<()> {
    let manifest = from_the_document("toml", "[package]")?.replace("entropy", "mydev");
    let manifest = manifest.replace('…', &workspace.display().to_string());
    fs::create_dir(folder.join("src"))?;
    fs::write(folder.join("Cargo.toml"), manifest)?;
    fs::write(folder.join("src/main.rs"), mydev_program()?)?;
    // The same versions as the workspace's, which are there already.
    fs::copy(workspace.join("Cargo.lock"), folder.join("Cargo.lock"))?;
    Ok(())
}

/// Builds that crate into the folder that this test was built into, where its dependencies are.
/// Who may not write there, as the ordinary user of `cargo xtask test`, takes what the run before
/// has built; `None` if that is nothing.
fn build_mydev() -> Result<Option<PathBuf>> {
    let beside = Path::new(env!("CARGO_BIN_EXE_vudev-entropy")).parent();
    let beside = beside.context("a program in a folder")?;
    let (target, program) = (
        beside.parent().context("a folder")?,
        beside.join("vudev-mydev"),
    );
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    let (workspace, cargo) = (workspace.context("a workspace")?, env::var_os("CARGO"));
    let (Some(cargo), Ok(log)) = (cargo, File::create(target.join("vudev-mydev.log"))) else {
        return Ok(program.exists().then_some(program));
    };
    let folder = TempDir::new()?;
    write_mydev(folder.path(), workspace)?;
    println!(
        "building {}: half a minute, the first time",
        program.display()
    );
    let mut command = Command::new(cargo);
    command.args(["build", "--offline", "--manifest-path"]);
    command.arg(folder.path().join("Cargo.toml"));
    command.arg("--target-dir").arg(target);
    let status = command.current_dir(workspace).stderr(log).status()?;
    let said = fs::read_to_string(target.join("vudev-mydev.log"))?;
    ensure!(
        status.success(),
        "the author's crate does not build:\n{said}"
    );
    Ok(Some(program))
}

#[test]
fn a_crate_made_from_the_document_has_a_device_in_a_jail_that_names_a_forbidden_call() -> Result<()>
{
    let Some(program) = build_mydev()? else {
        println!("SKIPPED: needs cargo, and a target folder that can be written");
        return Ok(());
    };
    let folder = TempDir::new()?;
    let (socket, source) = (folder.path().join("vu-mydev"), folder.path().join("source"));
    fs::write(&source, "of a crate elsewhere")?;
    let options = format!("path={},vhost={}", source.display(), socket.display());
    let program = program.to_str().context("a path in UTF-8")?;
    let (mut supervisor, mut log) = start(program, &["--mydev", &options])?;
    log.until("1 device is ready", LIMIT)?;

    let mut front = FrontEnd::connect(&socket).queue_size(64).start()?;
    let at = front.memory().allocate(64, 1)?;
    front.ring(0).add(&[], &[Buffer::new(at, 64)])?;
    front.ring(0).kick()?;
    let written = front.ring(0).wait_used(LIMIT)?.written;
    let mut bytes = vec![0; usize::try_from(written)?];
    front.memory().read(at, &mut bytes)?;
    assert_eq!(String::from_utf8(bytes)?, "of a crate elsewhere");

    front.ring(0).add(&[], &[Buffer::new(at, 13)])?;
    front.ring(0).kick()?;
    let line = log.until("its policy forbids: ", LIMIT)?;
    assert!(line.starts_with("mydev-0: error: "), "{line}");
    assert!(line.contains("its policy forbids: openat("), "{line}");
    println!("{line}");
    assert_eq!(supervisor.wait(LIMIT)?.code(), Some(1));
    assert!(!socket.exists());
    Ok(())
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
    fs::write(&source, "not random at all")?;
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
