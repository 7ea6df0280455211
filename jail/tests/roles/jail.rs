//! What a role is, has and sees, from outside and by its own account.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use rustix::io::Errno;
use rustix::process::{Resource, getegid, geteuid, getrlimit};
use vudev_jail::{Spawn, own_program};

use crate::Test;
use crate::role::{CHANNEL, NAME, OPEN_FILES, ORPHAN};
use crate::support::{End, Role, SUPERVISOR, channel, wait};

pub(crate) const TESTS: &[Test] = &[
    (
        "every_layer_of_the_jail_shows_in_proc",
        every_layer_of_the_jail_shows_in_proc,
    ),
    (
        "a_role_is_an_unprivileged_init_of_its_own",
        a_role_is_an_unprivileged_init_of_its_own,
    ),
    (
        "only_the_kept_descriptors_are_left",
        only_the_kept_descriptors_are_left,
    ),
    (
        "the_root_directory_is_empty_and_read_only",
        the_root_directory_is_empty_and_read_only,
    ),
    (
        "without_namespaces_landlock_refuses_paths",
        without_namespaces_landlock_refuses_paths,
    ),
    (
        "a_role_ends_when_its_supervisor_leaves",
        a_role_ends_when_its_supervisor_leaves,
    ),
    (
        "a_role_is_killed_when_its_supervisor_dies",
        a_role_is_killed_when_its_supervisor_dies,
    ),
    (
        "a_role_notices_a_supervisor_that_died_early",
        a_role_notices_a_supervisor_that_died_early,
    ),
    (
        "a_failed_start_says_its_step_and_leaves_nothing",
        a_failed_start_leaves_nothing,
    ),
];

fn outer_ids() -> [u32; 2] {
    match geteuid().as_raw() {
        0 => [65534; 2],
        user => [user, getegid().as_raw()],
    }
}

fn every_layer_of_the_jail_shows_in_proc() {
    let mut role = Role::start("idle", "");
    assert_eq!(role.hear_text(), "ready");
    assert_eq!(role.status("Seccomp"), "2");
    assert_eq!(role.status("Seccomp_filters"), "1");
    assert_eq!(role.status("NoNewPrivs"), "1");
    assert_eq!(role.status("Threads"), "1");
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(role.status(set), "0000000000000000", "{set}");
    }
    let [user, group] = outer_ids();
    assert_eq!(
        role.status("Uid"),
        [user; 4].map(|id| id.to_string()).join(" ")
    );
    assert_eq!(
        role.status("Gid"),
        [group; 4].map(|id| id.to_string()).join(" ")
    );
    if geteuid().is_root() {
        assert_eq!(role.status("Groups"), "");
    }
    let map = std::fs::read_to_string(role.proc("uid_map")).unwrap();
    let map: Vec<_> = map.split_whitespace().collect();
    assert_eq!(map, ["0", &user.to_string(), "1"]);
    for namespace in ["user", "pid", "mnt", "net", "ipc", "uts"] {
        let theirs = std::fs::read_link(role.proc(&format!("ns/{namespace}"))).unwrap();
        let ours = std::fs::read_link(format!("/proc/self/ns/{namespace}")).unwrap();
        assert_ne!(ours, theirs, "{namespace}");
    }
    role.leave();
    assert_eq!(role.end(), End::Code(0));
}

fn a_role_is_an_unprivileged_init_of_its_own() {
    let role = Role::start("facts", "");
    let facts = role.hear_text();
    let processes = getrlimit(Resource::Nproc).current;
    let limits = [Some(OPEN_FILES), Some(0), processes];
    let expected = format!("0 0 1 true 0xef {limits:?} 0 ");
    // An ordinary user keeps its groups: emptying them is forbidden by the kernel.
    let groups = facts
        .strip_prefix(&expected)
        .unwrap_or_else(|| panic!("{facts} / {expected}"));
    assert!(groups == "0" || !geteuid().is_root(), "{groups} groups");
    assert_eq!(role.end(), End::Code(0));
}

fn only_the_kept_descriptors_are_left() {
    // One that is not CLOEXEC, as a library may leave behind, and one between the kept numbers.
    let null = std::fs::File::open("/dev/null").unwrap();
    let stray = rustix::io::dup(&null).unwrap();
    let role = Role::start_with("descriptors", "", true, &[(null.as_fd(), 9)]);
    assert_eq!(role.hear_text(), "[0, 1, 2, 3, 9] [0, 1, 2, 3, 9]");
    drop(stray);
}

fn the_root_directory_is_empty_and_read_only() {
    let role = Role::start("root", "");
    let read_only = Some(libc::EROFS);
    let absent = Some(libc::ENOENT);
    assert_eq!(
        role.hear_text(),
        format!("0 0 {read_only:?} {read_only:?} {absent:?} /")
    );
}

fn without_namespaces_landlock_refuses_paths() {
    let role = Role::start_with("landlock", "", false, &[]);
    let outcome = role.hear_text();
    match outcome.strip_prefix("0 ") {
        Some(_) => println!("this kernel has no Landlock"),
        None => assert!(outcome.ends_with(" Some(13)"), "{outcome}"),
    }
    assert_eq!(role.end(), End::Code(0));
}

fn a_role_ends_when_its_supervisor_leaves() {
    let mut role = Role::start("idle", "");
    assert_eq!(role.hear_text(), "ready");
    role.leave();
    assert_eq!(role.end(), End::Code(0));
}

/// The role holds a pipe's write end and looks at nothing else, so that the pipe's end is its own.
fn a_role_is_killed_when_its_supervisor_dies() {
    let mut supervisor = Command::new("/proc/self/exe")
        .arg0(SUPERVISOR)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut pipe = supervisor.stdout.take().unwrap();
    let mut ready = [0; 5];
    pipe.read_exact(&mut ready).unwrap();
    assert_eq!(&ready, b"ready");
    supervisor.kill().unwrap();
    supervisor.wait().unwrap();
    wait(pipe.as_fd(), "the role's end");
    assert_eq!(pipe.read(&mut ready).unwrap(), 0);
}

/// The supervisor of the test above, a process of its own: one role, then waits to be killed.
pub(crate) fn supervisor() -> ! {
    let mut stdout = std::io::stdout();
    let role = Role::start_with("stay", "", true, &[(stdout.as_fd(), 4)]);
    assert_eq!(role.hear_text(), "ready");
    stdout
        .write_all(b"ready")
        .and_then(|()| stdout.flush())
        .unwrap();
    let _ = std::io::stdin().read(&mut [0]);
    std::process::exit(1)
}

fn a_role_notices_a_supervisor_that_died_early() {
    let mut role = Role::start("orphan", "");
    role.leave();
    assert_eq!(role.end(), End::Code(ORPHAN));
}

fn a_failed_start_leaves_nothing() {
    let not_a_program = std::fs::File::open("/dev/null").unwrap();
    let program = own_program().unwrap();
    let (_, theirs) = channel();
    for namespaces in [true, false] {
        let error = Spawn::new(not_a_program.as_fd(), NAME)
            .unwrap()
            .keep(theirs.as_fd(), CHANNEL)
            .namespaces(namespaces)
            .spawn()
            .unwrap_err();
        assert_eq!(
            (error.step(), error.errno()),
            ("execveat", Errno::ACCESS),
            "{error}"
        );
    }
    drop(program);
    let children = rustix::process::wait(rustix::process::WaitOptions::NOHANG);
    assert_eq!(children.unwrap_err(), Errno::CHILD, "no zombie is left");
}
