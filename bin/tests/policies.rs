//! An operator's own policies, `--jail seccomp-policy-dir=`: every mistake in them is told with the
//! file, what was likely meant and what to do, before anything starts; `check` finds it too.

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::process::Signal;
use support::{LIMIT, Setting, output};
use tempfile::TempDir;
use vudev_frontend::{Block, FrontEnd};

const ARCH: &str = std::env::consts::ARCH;

/// The files of this architecture and of the ring, laid out as the source's.
fn copied(into: &Path) -> Result<PathBuf> {
    let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("../seccomp");
    let directory = into.join("policies");
    for part in [ARCH, "ring"] {
        fs::create_dir_all(directory.join(part))?;
        for file in fs::read_dir(ours.join(part))? {
            let file = file?;
            fs::copy(file.path(), directory.join(part).join(file.file_name()))?;
        }
    }
    Ok(directory)
}

fn append(file: &Path, line: &str) -> Result<()> {
    let text = fs::read_to_string(file)?;
    Ok(fs::write(file, text + line + "\n")?)
}

/// What a console with these policies is refused with.
fn told(folder: &Path) -> Result<String> {
    let jail = "seccomp-policy-dir=policies";
    let device = "type=sink,vhost=s";
    let output = output(&["--jail", jail, "--serial", device], folder)?;
    let text = String::from_utf8(output.stderr)?;
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    let mistake = "vudev: error: --jail: seccomp-policy-dir: column 20: ";
    assert!(text.starts_with(mistake), "{text}");
    assert!(!folder.join("s").exists());
    Ok(text)
}

#[test]
fn a_directory_that_is_none_is_told_with_what_it_must_hold() -> Result<()> {
    let folder = TempDir::new()?;
    let must = format!("give a directory that holds {ARCH}/*.policy and ring/*.ring\n");
    let text = told(folder.path())?;
    let problem = "cannot look at \"policies\": No such file or directory";
    assert!(text.contains(problem) && text.ends_with(&must), "{text}");
    fs::write(folder.path().join("policies"), "")?;
    let text = told(folder.path())?;
    assert!(text.ends_with(&format!("\"policies\" is no directory: {must}")));
    Ok(())
}

#[test]
fn a_directory_of_system_calls_alone_is_told_to_lack_the_ring_lists() -> Result<()> {
    let folder = TempDir::new()?;
    let directory = copied(folder.path())?;
    fs::remove_dir_all(directory.join("ring"))?;
    let text = told(folder.path())?;
    assert!(text.contains("serial_device_vhost_user.ring:1:1: "));
    let must = format!("the directory must hold {ARCH}/*.policy and ring/*.ring as seccomp/ of");
    assert!(text.contains(&must), "{text}");
    assert!(text.ends_with("or these files without the folders\n"));
    Ok(())
}

#[test]
fn a_misspelt_name_is_told_with_the_one_that_was_meant() -> Result<()> {
    for (part, line, expected) in [
        (
            format!("{ARCH}/serial.policy"),
            "opentat: 1",
            format!("`opentat` is no system call of {ARCH}: did you mean `openat`?\n"),
        ),
        (
            "ring/serial.ring".to_owned(),
            "IORING_OP_REDV: 1",
            "`IORING_OP_REDV` is no IORING_OP_* or IOSQE_* that we know: did you mean \
             `IORING_OP_READV`?\n"
                .to_owned(),
        ),
    ] {
        let folder = TempDir::new()?;
        let directory = copied(folder.path())?;
        append(&directory.join(&part), line)?;
        let text = told(folder.path())?;
        assert!(text.contains(&format!("policies/{part}:")), "{text}");
        assert!(text.ends_with(&expected), "{text}");
    }
    Ok(())
}

#[test]
fn a_bad_file_that_is_included_is_told_with_its_path_and_a_remedy() -> Result<()> {
    let folder = TempDir::new()?;
    let file = copied(folder.path())?.join(ARCH).join("serial.policy");
    let refused = |expected: &str| {
        let text = told(folder.path())?;
        let included = format!("cannot include {}: ", file.display());
        assert!(text.contains("serial_device_vhost_user.policy:"), "{text}");
        assert!(text.contains(&included), "{text}");
        assert!(text.ends_with(expected), "{text}");
        Ok::<_, anyhow::Error>(())
    };
    fs::remove_file(&file)?;
    refused("or these files without the folders\n")?;
    fs::create_dir(&file)?;
    refused("it is not a regular file: put one there, or a link to one\n")?;
    fs::remove_dir(&file)?;
    fs::write(&file, b"# caf\xe9\n")?;
    refused("byte 5 is not UTF-8: put a text there\n")?;
    fs::File::create(&file)?.set_len(1 << 20)?;
    refused("it is larger than 256 KiB, which no policy is: put the policy there\n")
}

#[test]
fn a_flat_directory_of_another_architecture_is_told() -> Result<()> {
    let other = match ARCH {
        "aarch64" => "x86_64",
        _ => "aarch64",
    };
    let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("../seccomp");
    let folder = TempDir::new()?;
    let directory = folder.path().join("policies");
    fs::create_dir(&directory)?;
    for part in [other, "ring"] {
        for file in fs::read_dir(ours.join(part))? {
            let file = file?;
            fs::copy(file.path(), directory.join(file.file_name()))?;
        }
    }
    let text = told(folder.path())?;
    let expected = format!("it is the one for {other}: give the directory of this architecture\n");
    assert!(text.ends_with(&expected), "{text}");
    Ok(())
}

#[test]
fn check_tries_the_files_of_each_device() -> Result<()> {
    let folder = TempDir::new()?;
    let directory = copied(folder.path())?;
    let check = || {
        let jail = "seccomp-policy-dir=policies";
        let output = output(&["check", "--jail", jail], folder.path())?;
        let text = String::from_utf8(output.stdout)?;
        Ok::<_, anyhow::Error>((output.status.code(), text))
    };
    let (status, text) = check()?;
    assert_eq!(status, Some(0), "{text}");
    assert!(text.contains("policies.vsock         yes  "), "{text}");
    assert!(text.contains("policies.net.vvu       yes  "), "{text}");

    // Who starts no network cards needs no files for them.
    fs::remove_file(directory.join(ARCH).join("net_device_vhost_user.policy"))?;
    fs::remove_file(directory.join("ring/net_device_vhost_user.ring"))?;
    let (status, text) = check()?;
    assert_eq!(status, Some(0), "{text}");
    assert!(text.contains("policies.net           no   "), "{text}");
    fs::remove_file(directory.join(ARCH).join("rng_device_vvu.policy"))?;
    fs::remove_file(directory.join("ring/rng_device_vvu.ring"))?;
    let (status, text) = check()?;
    assert_eq!(status, Some(0), "{text}");
    assert!(!text.contains("policies.rng.vvu"), "{text}");

    append(&directory.join(ARCH).join("block.policy"), "raed: 1")?;
    let (status, text) = check()?;
    assert_eq!(status, Some(1), "{text}");
    let line = text.lines().find(|line| line.starts_with("policies.block"));
    let line = line.context("its line")?;
    assert!(
        line.contains("  NO   ") && line.contains("did you mean `read`?"),
        "{line}"
    );
    let both = ": policies.block, policies.block.vvu not available\n";
    assert!(text.ends_with(both), "{text}");

    let output = output(
        &["check", "--jail", "seccomp-policy-dir=none"],
        folder.path(),
    )?;
    assert_eq!(output.status.code(), Some(2));
    Ok(())
}

/// The policies without two calls of which the role makes one before it is ready, and the device
/// both when a front-end leaves.
#[test]
fn the_log_of_denied_calls_has_the_devices_own_and_none_of_the_jails() -> Result<()> {
    let setting = Setting::new()?;
    let directory = copied(setting.folder.path())?.join(ARCH);
    for file in fs::read_dir(&directory)? {
        let file = file?.path();
        let text = fs::read_to_string(&file)?;
        let denied = |line: &&str| !line.starts_with("close:") && !line.starts_with("fcntl:");
        let kept: Vec<_> = text.lines().filter(denied).collect();
        fs::write(&file, kept.join("\n") + "\n")?;
    }
    let jail = format!(
        "seccomp-mode=log,seccomp-policy-dir={}",
        setting.path("policies").display()
    );
    let setting = setting.argument("--jail").argument(&jail).block()?;
    let (lines, errors) = rustix::pipe::pipe()?;
    let (mut child, folder) = setting.start_with(errors)?;
    let mut log = vudev_harness::Lines::new(lines);
    let mut before = Vec::new();
    while !before
        .iter()
        .any(|line: &String| line.contains("1 device is ready"))
    {
        let deadline = std::time::Instant::now() + LIMIT;
        before.push(log.next(deadline)?.context("it is ready")?);
    }
    assert!(!before.concat().contains("lets go on"), "{before:?}");
    let disk = Block::start(FrontEnd::connect(folder.path().join("block-0")), 4, 512)?;
    let _ = disk.into_front().leave()?;
    log.until("its policy forbids, and the log lets go on: close(", LIMIT)?;
    child.signal(Signal::TERM)?;
    assert_eq!(child.wait(LIMIT)?.code(), Some(0));
    Ok(())
}
