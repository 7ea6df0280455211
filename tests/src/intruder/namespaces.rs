//! Mounts, and namespaces: those of others, and new ones in which one would be root.

use super::hands::{at, call, text};
use super::{Attempt, refused};

/// No capability; and Landlock refuses any change of mounts to those who have one.
const FORBIDDEN: &[i32] = &[libc::EPERM];

pub(super) static ATTEMPTS: &[Attempt] = &[
    refused("mount a tmpfs", FORBIDDEN, |_| {
        call(libc::SYS_mount, &[0, text(c"/"), text(c"tmpfs"), 0, 0])
    }),
    refused("mount to make the root writable", FORBIDDEN, |_| {
        call(
            libc::SYS_mount,
            &[
                0,
                text(c"/"),
                0,
                (libc::MS_REMOUNT | libc::MS_BIND).cast_signed(),
                0,
            ],
        )
    }),
    refused("umount2", FORBIDDEN, |_| {
        call(libc::SYS_umount2, &[text(c"/"), libc::MNT_DETACH.into()])
    }),
    refused("pivot_root", FORBIDDEN, |_| {
        call(libc::SYS_pivot_root, &[text(c"/"), text(c"/")])
    }),
    refused("fsopen proc", FORBIDDEN, |_| {
        call(libc::SYS_fsopen, &[text(c"proc"), 0])
    }),
    refused("fspick", FORBIDDEN, |_| {
        call(libc::SYS_fspick, &[HERE, text(c"/"), 0])
    }),
    refused("fsconfig", &[libc::EINVAL], |hands| {
        call(libc::SYS_fsconfig, &[hands.file.into(), 6, 0, 0, 0])
    }),
    refused("fsmount", FORBIDDEN, |hands| {
        call(libc::SYS_fsmount, &[hands.file.into(), 0, 0])
    }),
    refused("move_mount", FORBIDDEN, |_| {
        call(
            libc::SYS_move_mount,
            &[HERE, text(c"/"), HERE, text(c"/"), 0],
        )
    }),
    refused("open_tree to clone", FORBIDDEN, |_| {
        call(libc::SYS_open_tree, &[HERE, text(c"/"), 1])
    }),
    refused("mount_setattr", FORBIDDEN, |_| {
        let attributes = [0_u64, 1, 0, 0];
        call(
            libc::SYS_mount_setattr,
            &[HERE, text(c"/"), 0, at(&raw const attributes), 32],
        )
    }),
    refused("unshare CLONE_NEWUSER", FORBIDDEN, |_| {
        call(libc::SYS_unshare, &[libc::CLONE_NEWUSER.into()])
    }),
    refused("unshare CLONE_NEWNS", FORBIDDEN, |_| {
        call(libc::SYS_unshare, &[libc::CLONE_NEWNS.into()])
    }),
    refused("unshare CLONE_NEWPID", FORBIDDEN, |_| {
        call(libc::SYS_unshare, &[libc::CLONE_NEWPID.into()])
    }),
    refused("unshare CLONE_NEWNET", FORBIDDEN, |_| {
        call(libc::SYS_unshare, &[libc::CLONE_NEWNET.into()])
    }),
    refused("unshare CLONE_NEWIPC", FORBIDDEN, |_| {
        call(libc::SYS_unshare, &[libc::CLONE_NEWIPC.into()])
    }),
    refused("unshare CLONE_NEWUTS", FORBIDDEN, |_| {
        call(libc::SYS_unshare, &[libc::CLONE_NEWUTS.into()])
    }),
    refused("unshare CLONE_NEWCGROUP", FORBIDDEN, |_| {
        call(libc::SYS_unshare, &[libc::CLONE_NEWCGROUP.into()])
    }),
    refused("unshare CLONE_NEWTIME", FORBIDDEN, |_| {
        call(libc::SYS_unshare, &[0x80])
    }),
    refused("clone3 with a user namespace in it", FORBIDDEN, |_| nest(0)),
    refused("clone3 with user and mount namespaces", FORBIDDEN, |_| {
        nest(libc::CLONE_NEWNS)
    }),
    refused("clone with a user namespace in it", FORBIDDEN, |_| {
        end_child(call(
            libc::SYS_clone,
            &[(libc::CLONE_NEWUSER | libc::SIGCHLD).into()],
        ))
    }),
    refused("setns to what is no namespace", &[libc::EINVAL], |hands| {
        call(libc::SYS_setns, &[hands.file.into(), 0])
    }),
    refused("sethostname", FORBIDDEN, |_| {
        call(libc::SYS_sethostname, &[text(c"x"), 65])
    }),
    refused("setdomainname", FORBIDDEN, |_| {
        call(libc::SYS_setdomainname, &[text(c"x"), 65])
    }),
];

const HERE: i64 = libc::AT_FDCWD as i64;

/// `clone3` of a child that is root of a namespace of its own, and ends at once.
fn nest(more: i32) -> i64 {
    let flags = i64::from(libc::CLONE_NEWUSER | more).cast_unsigned();
    let signal = u64::from(libc::SIGCHLD.cast_unsigned());
    let arguments = [flags, 0, 0, 0, signal, 0, 0, 0];
    end_child(call(libc::SYS_clone3, &[at(&raw const arguments), 64]))
}

fn end_child(child: i64) -> i64 {
    match child {
        0 => call(libc::SYS_exit_group, &[0]),
        other => other,
    }
}
