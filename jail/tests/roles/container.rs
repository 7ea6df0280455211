//! A supervisor that is itself in a user namespace, as in a rootless container.
#![expect(unsafe_code, reason = "unshare(2) of the process's own")]

use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::io::Errno;
use rustix::process::{getegid, geteuid};
use vudev_jail::{Spawn, own_program};

use crate::role::NAME;
use crate::support::{CONTAINER, End, Role};
use crate::{Test, USER};

pub(crate) const TESTS: &[Test] = &[(
    "a_root_of_a_rootless_container_starts_roles_until_namespaces_are_forbidden",
    start_container,
)];

/// As root, an ordinary user makes the container: the id outside must not be root's.
fn start_container() {
    let mut command = Command::new("/proc/self/exe");
    command.arg0(CONTAINER);
    if geteuid().is_root() {
        command.uid(USER).gid(USER);
    }
    assert!(command.status().unwrap().success());
}

/// The process of the test above.
pub(crate) fn supervisor() -> ! {
    let (user, group) = (geteuid().as_raw(), getegid().as_raw());
    // SAFETY: this process has one thread and shares nothing with another.
    assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWUSER) }, 0);
    std::fs::write("/proc/self/setgroups", "deny").unwrap();
    std::fs::write("/proc/self/uid_map", format!("0 {user} 1")).unwrap();
    std::fs::write("/proc/self/gid_map", format!("0 {group} 1")).unwrap();
    assert!(geteuid().is_root());

    let mut role = Role::start("idle", "");
    assert_eq!(role.hear_text(), "ready");
    assert_eq!(role.status("CapEff"), "0000000000000000");
    role.leave();
    assert_eq!(role.end(), End::Code(0));

    std::fs::write("/proc/sys/user/max_user_namespaces", "0").unwrap();
    let program = own_program().unwrap();
    let error = Spawn::new(program.as_fd(), NAME)
        .unwrap()
        .spawn()
        .unwrap_err();
    assert_eq!((error.step(), error.errno()), ("clone3", Errno::NOSPC));
    let text = error.to_string();
    assert!(
        text.contains("user.max_user_namespaces = 0; sysctl -w user.max_user_namespaces="),
        "{text}"
    );
    std::process::exit(0)
}
