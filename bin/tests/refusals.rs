//! A kernel, or whatever lies between it and us, that refuses a call which a jail is made of: the
//! step is named with what the kernel said and what may help, nothing is left behind, and no device
//! starts with less.

mod support;

use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::retry_on_intr;
use support::filter::{Refused, refuse};
use support::{LIMIT, PROGRAM};
use tempfile::TempDir;

/// What nothing else says here.
const ERRNO: i32 = libc::EDOM;
const WORDS: &str = "Numerical argument out of domain (os error 33)";

/// What devices and their supervisor say when these calls are refused; the exit status is 1.
fn told(refused: &[Refused]) -> Result<String> {
    told_of(&[], refused)
}

fn told_of(switches: &[&str], refused: &[Refused]) -> Result<String> {
    let folder = TempDir::new()?;
    let mut command = Command::new(PROGRAM);
    command
        .args(switches)
        .args([
            "--serial",
            "type=sink,vhost=a",
            "--serial",
            "type=sink,vhost=b",
        ])
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .stderr(Stdio::piped());
    refuse(&mut command, refused);
    let mut child = command.spawn()?;
    let mut polled = [PollFd::new(
        child.stderr.as_ref().context("its log")?,
        PollFlags::empty(),
    )];
    let limit = Timespec::try_from(LIMIT)?;
    // Nobody holds its other end any more.
    if retry_on_intr(|| poll(&mut polled, Some(&limit)))? == 0 {
        child.kill()?;
    }
    let output = child.wait_with_output()?;
    let text = String::from_utf8(output.stderr)?;
    ensure!(
        output.status.code() == Some(1),
        "{:?}: {text}",
        output.status
    );
    ensure!(!text.contains("ready"), "{text}");
    let left = std::fs::read_dir(folder.path())?.count();
    ensure!(left == 0, "{left} sockets are left behind: {text}");
    Ok(text)
}

const fn refused(call: libc::c_long) -> Refused {
    Refused::new(call, ERRNO)
}

const fn prctl(option: i32) -> Refused {
    refused(libc::SYS_prctl).only(0, option)
}

const fn limit(resource: i32) -> Refused {
    refused(libc::SYS_prlimit64).only(1, resource).set(2)
}

/// Steps that the supervisor makes for a process.
const STARTS: &[(&str, Refused)] = &[
    ("clone3", refused(libc::SYS_clone3)),
    ("setresgid", refused(libc::SYS_setresgid)),
    ("setresuid", refused(libc::SYS_setresuid)),
    ("descriptors", refused(libc::SYS_dup3)),
    ("descriptors", refused(libc::SYS_close_range)),
    ("execveat", refused(libc::SYS_execveat)),
];

/// Steps of a device's own process, by the names that it tells.
const STEPS: &[(&str, Refused)] = &[
    (
        "inherited descriptors",
        refused(libc::SYS_close_range).only(2, 0),
    ),
    ("setsid", refused(libc::SYS_setsid)),
    ("make mounts private", refused(libc::SYS_mount)),
    ("make the empty root", refused(libc::SYS_fsopen)),
    ("make the empty root", refused(libc::SYS_fsconfig)),
    ("make the empty root", refused(libc::SYS_fsmount)),
    ("mount the empty root", refused(libc::SYS_move_mount)),
    ("pivot_root", refused(libc::SYS_pivot_root)),
    ("unmount the host's root", refused(libc::SYS_umount2)),
    ("cover the empty root", refused(libc::SYS_open_tree)),
    ("landlock", refused(libc::SYS_landlock_restrict_self)),
    ("PR_SET_SECUREBITS", prctl(libc::PR_SET_SECUREBITS)),
    ("PR_CAPBSET_DROP", prctl(libc::PR_CAPBSET_DROP)),
    ("PR_CAP_AMBIENT_CLEAR_ALL", prctl(libc::PR_CAP_AMBIENT)),
    ("capset", refused(libc::SYS_capset)),
    ("RLIMIT_CORE", limit(4)),
    ("RLIMIT_NOFILE", limit(7)),
    ("RLIMIT_MEMLOCK", limit(8)),
    ("PR_SET_PDEATHSIG", prctl(libc::PR_SET_PDEATHSIG)),
    ("PR_SET_DUMPABLE", prctl(libc::PR_SET_DUMPABLE)),
    (
        "sigaction SIGSYS",
        refused(libc::SYS_rt_sigaction).only(0, libc::SIGSYS).set(1),
    ),
    (
        "unblock fault signals",
        refused(libc::SYS_rt_sigprocmask).only(0, libc::SIG_UNBLOCK),
    ),
    // Landlock needs it first.
    ("landlock", prctl(libc::PR_SET_NO_NEW_PRIVS)),
    ("seccomp", refused(libc::SYS_seccomp)),
];

#[test]
fn a_step_of_the_start_that_fails_is_named_with_its_errno() -> Result<()> {
    for (step, call) in STARTS {
        let text = told(&[*call])?;
        let expected = format!("serial-0: error: could not be started: {step}: {WORDS}");
        ensure!(text.starts_with(&expected), "{step}: {text}");
        ensure!(text.lines().count() == 1, "{step}: {text}");
    }
    Ok(())
}

#[test]
fn a_step_of_the_jail_that_fails_is_named_with_its_errno() -> Result<()> {
    for (step, call) in STEPS {
        let text = told(&[*call])?;
        let expected = format!(": error: could not {step}: jail: {step}: {WORDS}");
        ensure!(text.contains(&expected), "{step}: {text}");
    }
    Ok(())
}

/// What forbids, and what is told of it beside the kernel's words.
const PROFILES: &[(&[Refused], &str)] = &[
    // What a container's profile is by default, without a capability.
    (
        &[
            Refused::new(libc::SYS_clone3, libc::ENOSYS),
            forbidden(libc::SYS_unshare),
            forbidden(libc::SYS_setns),
            forbidden(libc::SYS_mount),
            forbidden(libc::SYS_umount2),
            forbidden(libc::SYS_pivot_root),
            forbidden(libc::SYS_fsopen),
            forbidden(libc::SYS_move_mount),
            forbidden(libc::SYS_open_tree),
        ],
        "(the seccomp profile of the container that this runs in must allow clone3)",
    ),
    (
        &[
            forbidden(libc::SYS_io_uring_setup),
            forbidden(libc::SYS_io_uring_enter),
            forbidden(libc::SYS_io_uring_register),
        ],
        "or the seccomp profile of the container this runs in",
    ),
    (
        &[forbidden(libc::SYS_clone3)],
        "--disable-sandbox does without namespaces",
    ),
    (
        &[forbidden(libc::SYS_mount)],
        "--disable-sandbox does without namespaces",
    ),
    (
        &[forbidden(libc::SYS_fsopen)],
        "--disable-sandbox does without namespaces",
    ),
    (
        &[forbidden(libc::SYS_pivot_root)],
        "--disable-sandbox does without namespaces",
    ),
    (
        &[forbidden(libc::SYS_seccomp)],
        "--disable-sandbox does without a jail",
    ),
    (
        &[forbidden(libc::SYS_capset)],
        "--disable-sandbox does without a jail",
    ),
    (
        &[forbidden(libc::SYS_umount2)],
        "--disable-sandbox does without a jail",
    ),
    (
        &[forbidden(libc::SYS_execveat)],
        "or a security module, must allow it",
    ),
];

const fn forbidden(call: libc::c_long) -> Refused {
    Refused::new(call, libc::EPERM)
}

#[test]
fn what_a_containers_profile_forbids_is_told_with_the_remedy() -> Result<()> {
    for (refused, remedy) in PROFILES {
        let text = told(refused)?;
        ensure!(text.contains(remedy), "{refused:?}: {text}");
        ensure!(text.lines().all(|line| line.contains("error: ")), "{text}");
    }
    Ok(())
}

#[test]
fn the_switch_that_does_without_namespaces_is_not_told_to_who_has_set_it() -> Result<()> {
    let text = told_of(&["--disable-sandbox"], &[forbidden(libc::SYS_clone3)])?;
    ensure!(
        text.contains("(the seccomp profile of the container"),
        "{text}"
    );
    ensure!(!text.contains("does without"), "{text}");
    Ok(())
}
