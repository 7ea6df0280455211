//! A command line that makes no sense: one line that names what is wrong, exit status 2, nothing
//! started, nothing removed.

mod support;

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Result;
use support::{PROGRAM, output};
use tempfile::TempDir;

fn refused(folder: &Path, arguments: &[&str], named: &[&str]) -> Result<()> {
    let before = fs::read_dir(folder)?.count();
    let output = output(arguments, folder)?;
    let text = String::from_utf8(output.stderr)?;
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    for name in named {
        assert!(text.contains(name), "{name:?} is not in {text}");
    }
    assert!(output.stdout.is_empty());
    assert_eq!(
        fs::read_dir(folder)?.count(),
        before,
        "{arguments:?} left something behind"
    );
    Ok(())
}

#[test]
fn a_mistake_is_one_line_with_device_key_and_column_and_status_2() -> Result<()> {
    let folder = TempDir::new()?;
    let folder = folder.path();
    fs::File::create(folder.join("disk"))?.set_len(1 << 20)?;
    refused(folder, &[], &["no device"])?;
    refused(folder, &["--blok", "disk"], &["--blok", "--block"])?;
    refused(
        folder,
        &["--block", "path=disk,vhost=b,sped=1"],
        &["--block", "sped", "column 19"],
    )?;
    refused(folder, &["--block", "path=disk"], &["--block", "vhost"])?;
    refused(
        folder,
        &["--block", "path=none,vhost=b"],
        &["--block", "path", "column 6"],
    )?;
    refused(
        folder,
        &["--block", "disk,vhost=b,queues=0"],
        &["--block", "queues", "column"],
    )?;
    let good = "path=disk,vhost=b";
    refused(
        folder,
        &["--block", good, "--serial", "type=file,vhost=s"],
        &["--serial"],
    )?;
    refused(
        folder,
        &["--block", good, "--serial", "type=sink,vhost=b"],
        &["--serial", "vhost"],
    )
}

#[test]
fn what_is_at_the_socket_path_and_not_a_socket_stays() -> Result<()> {
    let folder = TempDir::new()?;
    let folder = folder.path();
    fs::write(folder.join("notes"), "keep me")?;
    refused(
        folder,
        &["--serial", "type=sink,vhost=notes"],
        &["--serial", "vhost", "not a socket"],
    )?;
    assert_eq!(fs::read_to_string(folder.join("notes"))?, "keep me");
    refused(
        folder,
        &[
            "--serial",
            "type=sink,vhost=a",
            "--serial",
            "type=sink,vhost=notes",
        ],
        &[],
    )?;
    Ok(())
}

#[test]
fn a_policy_that_is_missing_or_wrong_is_named_before_anything_starts() -> Result<()> {
    let folder = TempDir::new()?;
    let folder = folder.path();
    fs::create_dir(folder.join("policies"))?;
    let jail = [
        "--jail",
        "seccomp-policy-dir=policies",
        "--serial",
        "type=sink,vhost=s",
    ];
    refused(folder, &jail, &["--jail", "serial_device_vhost_user"])?;

    // Nobody could be told why such a device dies.
    let name = folder.join("policies/serial_device_vhost_user");
    fs::write(name.with_extension("policy"), "exit_group: 1\n")?;
    fs::write(name.with_extension("ring"), "IORING_OP_READV: 1\n")?;
    let missing = "io_uring_enter, sendto, rt_sigreturn not allowed";
    refused(folder, &jail, &["--jail", missing])
}

#[test]
fn a_policy_directory_that_cannot_be_read_is_told_with_the_remedy() -> Result<()> {
    let folder = TempDir::new()?;
    let folder = folder.path();
    let told = |directory: &str, named: &[&str]| {
        let jail = format!("seccomp-policy-dir={directory}");
        let device = ["--serial", "type=sink,vhost=s"];
        refused(folder, &["--jail", &jail, device[0], device[1]], named)
    };
    let list = "/serial_device_vhost_user.ring:";
    fs::create_dir(folder.join("policies"))?;
    told(
        "policies",
        &["policies/", list, "/*.policy and ring/*.ring as seccomp/"],
    )?;

    let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("../seccomp");
    let other = match std::env::consts::ARCH {
        "aarch64" => "x86_64",
        _ => "aarch64",
    };
    std::os::unix::fs::symlink(ours.join("ring"), folder.join("policies/ring"))?;
    std::os::unix::fs::symlink(ours.join(other), folder.join("policies").join(other))?;
    let theirs = format!("has files for {other}, and none for this");
    told("policies", &["serial_device_vhost_user.policy:", &theirs])?;

    // Its writer may never come.
    fs::remove_file(folder.join("policies/ring"))?;
    let status = Command::new("mkfifo")
        .arg(folder.join("policies/serial_device_vhost_user.ring"))
        .status()?;
    assert!(status.success());
    told("policies", &[list, "it is not a regular file"])
}

/// Either spelling, and nothing is left behind: the file of a VM's memory is not ours to make.
#[test]
fn a_proxy_that_cannot_be_is_refused_with_the_remedy() -> Result<()> {
    let folder = TempDir::new()?;
    let folder = folder.path();
    fs::write(folder.join("empty"), "")?;
    let cases: [(&str, &[&str], &[&str]); 7] = [
        ("", &[], &["socket", "is missing"]),
        ("vhost=v", &["--vhost", "v"], &["socket", "is missing"]),
        (
            "socket=s,vhost=00:05.0",
            &["--socket", "s", "--vhost", "00:05.0"],
            &["00:05.0 is a PCI address", "./00:05.0"],
        ),
        (
            "socket=s,vhost=v,ram-file=none",
            &["--socket", "s", "--vhost", "v", "--ram-file", "none"],
            &["there is no \"none\" yet", "truncate -s SIZE none"],
        ),
        (
            "socket=s,vhost=v,ram-file=empty",
            &["--socket=s", "--vhost=v", "--ram-file=empty"],
            &["is empty", "truncate -s SIZE empty"],
        ),
        (
            "socket=s,vhost=v,bar-size=3M",
            &["--socket", "s", "--vhost", "v", "--bar-size", "3M"],
            &["no power of two", "write 4194304"],
        ),
        (
            "socket=s,vhost=none/v,ram-file=empty,pci-id=1af4",
            &["--socket", "s", "--vhost", "none/v", "--pci-id", "1af4"],
            &["is no PCI id", "1af4:107d say"],
        ),
    ];
    for (argument, words, named) in cases {
        refused(folder, &["--vvu-proxy", argument], &["--vvu-proxy: "])?;
        refused(folder, &["--vvu-proxy", argument], named)?;
        let words = [&["vvu-proxy"], words].concat();
        refused(folder, &words, &["vudev: error: vvu-proxy: --"])?;
        refused(folder, &words, named)?;
    }
    Ok(())
}

#[test]
fn help_and_version_are_answers_and_no_mistakes() -> Result<()> {
    let folder = TempDir::new()?;
    for (argument, wanted) in [
        ("--help", "--block"),
        ("--help=vvu-proxy", "vudev vvu-proxy [OPTION…] --KEY VALUE"),
        ("--version", env!("CARGO_PKG_VERSION")),
    ] {
        let output = output(&[argument], folder.path())?;
        assert_eq!(output.status.code(), Some(0));
        assert!(String::from_utf8(output.stdout)?.contains(wanted));
    }
    Ok(())
}

#[test]
fn what_cannot_be_written_changes_no_status_but_that_of_an_answer() -> Result<()> {
    let full = || fs::OpenOptions::new().write(true).open("/dev/full");
    for arguments in [&["--blok"][..], &["--block", "path=none,vhost=b"]] {
        let status = Command::new(PROGRAM)
            .args(arguments)
            .stderr(full()?)
            .status()?;
        assert_eq!(status.code(), Some(2), "{arguments:?}");
    }
    let output = Command::new(PROGRAM)
        .arg("--help")
        .stdout(full()?)
        .output()?;
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr)?;
    assert!(
        text.starts_with("vudev: error: standard output: No space"),
        "{text}"
    );
    assert_eq!(text.lines().count(), 1, "{text}");
    Ok(())
}
