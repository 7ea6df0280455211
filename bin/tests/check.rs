//! `vudev check`: what it says of this host, and of containers that forbid what a jail is made of;
//! and that there no device is started with less than that.

mod support;

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, ensure};
use support::{PROGRAM, output};
use tempfile::TempDir;

/// First of the 65,536 ids of a container that root makes; they belong to nobody.
const IDS: u32 = 1_000_000;

/// A user and group that are not root's, and nobody's.
const ORDINARY: u32 = 61_234;

/// Runs a shell script as root of a user namespace of its own: a container, made by root with ids
/// that are not root's, or by an ordinary user with its one id. `$0` in it is `vudev`.
fn in_container(script: &str) -> Result<Output> {
    let user = rustix::process::geteuid().as_raw();
    let group = rustix::process::getegid().as_raw();
    let mut command = Command::new("unshare");
    // Root's capabilities come with the second exec, when its id is mapped.
    let wait = "echo; read go; exec sh -c \"$1\" \"$0\"";
    command.args(["--user", "sh", "-c", wait, PROGRAM, script]);
    if user == 0 {
        command.uid(IDS).gid(IDS);
    }
    let mut child = command
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut stdout = BufReader::new(child.stdout.take().context("its output")?);
    stdout.read_line(&mut String::new())?;
    let set = |file: &str, text: &str| fs::write(format!("/proc/{}/{file}", child.id()), text);
    if user == 0 {
        let map = format!("0 {IDS} 65536");
        set("uid_map", &map)?;
        set("gid_map", &map)?;
    } else {
        set("setgroups", "deny")?;
        set("uid_map", &format!("0 {user} 1"))?;
        set("gid_map", &format!("0 {group} 1"))?;
    }
    child.stdin.take().context("its input")?.write_all(b"\n")?;
    let mut text = Vec::new();
    stdout.read_to_end(&mut text)?;
    let output = child.wait_with_output()?;
    Ok(Output {
        stdout: text,
        ..output
    })
}

/// The line of a layer.
fn line(output: &Output, layer: &str) -> Result<String> {
    let text = String::from_utf8(output.stdout.clone())?;
    let line = text
        .lines()
        .find(|line| line.split_whitespace().next() == Some(layer));
    Ok(line
        .with_context(|| format!("no {layer} in:\n{text}"))?
        .to_owned())
}

#[test]
fn here_everything_is_available_and_said_to_be() -> Result<()> {
    let text = output(&["check"], Path::new("/"))?;
    let lines = String::from_utf8(text.stdout.clone())?;
    ensure!(text.status.code() == Some(0), "{lines}");
    for layer in [
        "kernel",
        "io_uring",
        "namespace.net",
        "root",
        "seccomp.filter",
    ] {
        assert!(line(&text, layer)?.contains("  yes  "), "{lines}");
    }
    assert!(!lines.contains("  NO  "), "{lines}");
    assert!(
        lines.ends_with("devices can be fully jailed here\n"),
        "{lines}"
    );
    // Aligned: the state is in one column.
    let column = |line: &str| line.find("  yes  ");
    let columns: Vec<_> = lines.lines().filter_map(column).collect();
    assert!(columns.iter().all(|found| *found == columns[0]), "{lines}");

    let json = output(&["check", "--json"], Path::new("/"))?;
    assert_eq!(json.status.code(), Some(0));
    let report: serde_json::Value = serde_json::from_slice(&json.stdout)?;
    assert_eq!(report["jailed"], true);
    let devices = serde_json::json!(["serial", "block", "net", "rng", "vsock", "vvu-proxy"]);
    assert_eq!(report["devices"], devices);
    let layers = report["layers"].as_array().context("layers")?;
    assert_eq!(layers.len(), lines.lines().count() - 1);
    for layer in layers {
        for field in [
            "name",
            "available",
            "required",
            "detail",
            "missing",
            "remedy",
        ] {
            assert!(layer.get(field).is_some(), "{layer}: {field}");
        }
        assert_eq!(
            layer["available"] == true,
            layer["remedy"].is_null(),
            "{layer}"
        );
    }
    Ok(())
}

#[test]
fn a_container_that_allows_namespaces_jails_as_well() -> Result<()> {
    let output = in_container("exec $0 check")?;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let ids = line(&output, "id_mapping")?;
    assert!(ids.contains("root of a user namespace"), "{ids}");
    Ok(())
}

#[test]
fn a_forbidden_namespace_is_named_with_its_setting() -> Result<()> {
    for kind in ["user", "pid", "mnt", "net", "ipc", "uts"] {
        let setting = format!("max_{kind}_namespaces");
        let script = format!("echo 0 > /proc/sys/user/{setting}; exec $0 check");
        let output = in_container(&script)?;
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let line = line(&output, &format!("namespace.{kind}"))?;
        assert!(line.contains("  NO   "), "{line}");
        assert!(line.contains(&format!("user.{setting} = 0")), "{line}");
        let text = String::from_utf8(output.stdout)?;
        // What needs no namespaces is looked at all the same.
        assert!(text.contains("seccomp.filter         yes"), "{text}");
        let verdict = text.lines().last().context("a verdict")?;
        assert!(
            verdict.contains("cannot be fully jailed here: namespace."),
            "{verdict}"
        );
    }
    Ok(())
}

#[test]
fn the_verdict_without_user_namespaces_is_in_the_json() -> Result<()> {
    let script = "echo 0 > /proc/sys/user/max_user_namespaces; exec $0 check --json";
    let output = in_container(script)?;
    assert_eq!(output.status.code(), Some(1));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    assert_eq!(report["jailed"], false);
    let layers = report["layers"].as_array().context("layers")?;
    let user = layers
        .iter()
        .find(|layer| layer["name"] == "namespace.user");
    let remedy = user.context("its layer")?["remedy"].as_str();
    assert!(
        remedy
            .context("a remedy")?
            .contains("user.max_user_namespaces = 0")
    );
    Ok(())
}

/// As root of the container, and (where it has more than one id) as an ordinary user in it.
#[test]
fn without_user_namespaces_no_device_is_started_with_less() -> Result<()> {
    let folder = TempDir::new()?;
    // The container's ids own nothing outside.
    fs::set_permissions(folder.path(), Permissions::from_mode(0o777))?;
    let socket = folder.path().join("serial");
    let run = format!("$0 --serial type=sink,vhost={}", socket.display());
    let user = "setpriv --reuid 1000 --regid 1000 --clear-groups";
    let mut scripts = vec![format!("exec {run}")];
    if rustix::process::geteuid().is_root() {
        scripts.push(format!("exec {user} {run}"));
    }
    for script in scripts {
        let script = format!("echo 0 > /proc/sys/user/max_user_namespaces; {script}");
        let output = in_container(&script)?;
        let text = String::from_utf8(output.stderr)?;
        assert_eq!(output.status.code(), Some(1), "{text}");
        let error = "serial-0: error: could not be started: clone3: ";
        assert!(text.starts_with(error), "{text}");
        for part in ["user.max_user_namespaces = 0", "--disable-sandbox"] {
            assert!(text.contains(part), "{text}");
        }
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(!socket.exists(), "a socket is left behind");
    }
    Ok(())
}

#[test]
fn too_few_open_files_are_named_with_the_limit() -> Result<()> {
    for limit in [8, 12, 14, 20] {
        let script = format!("ulimit -n {limit}; exec \"$0\" check");
        let output = Command::new("sh").args(["-c", &script, PROGRAM]).output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.code(), Some(1), "{text}");
        let line = line(&output, "open_files")?;
        let expected = format!("NO   {limit}: for 0 devices: raise it: ulimit -n, ");
        assert!(line.contains(&expected), "{line}");
        // Who lacks them for the check itself is told so where the others refer to.
        let refers = text.contains(": see start");
        assert_eq!(refers, limit < 20, "{text}");
        let told = "Too many open files (os error 24): raise the limit of open files (ulimit -n)";
        let start = text.lines().find(|line| line.starts_with("start "));
        assert_eq!(start.context("its line")?.contains(told), refers, "{text}");
        assert!(!text.contains("see the other lines"), "{text}");
    }
    Ok(())
}

#[test]
fn where_proc_is_not_mounted_the_json_is_an_object_all_the_same() -> Result<()> {
    let script = "exec unshare -m sh -c 'mount -t tmpfs none /proc && exec \"$0\" check --json' $0";
    let output = in_container(script)?;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    assert_eq!(report["jailed"], false);
    assert_eq!(report["layers"][0]["name"], "start");
    assert_eq!(report["layers"][0]["remedy"], "mount /proc");
    Ok(())
}

/// The README tells of it.
#[test]
fn the_usual_limit_of_locked_memory_is_enough_for_twenty_disks() -> Result<()> {
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -l 8192 && exec \"$0\" check", PROGRAM]);
    // Root may lock what it likes.
    if rustix::process::geteuid().is_root() {
        command.uid(ORDINARY).gid(ORDINARY);
    }
    let output = command.output()?;
    let line = line(&output, "memlock")?;
    assert!(
        line.contains("yes  8192 KiB: for 20 disks, where"),
        "{line}"
    );
    Ok(())
}

#[test]
fn the_process_of_a_check_is_no_command() -> Result<()> {
    for arguments in [&[][..], &["jail"], &["--serial"]] {
        let output = Command::new(PROGRAM)
            .arg0("vudev-check")
            .args(arguments)
            .output()?;
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let text = String::from_utf8(output.stderr)?;
        assert!(text.contains("this is no command"), "{text}");
    }
    Ok(())
}
