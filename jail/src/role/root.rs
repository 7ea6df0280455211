//! An empty, read-only root directory, and no way back to the host's.

use std::os::fd::OwnedFd;

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount,
    fsopen, mount_change, move_mount, open_tree, unmount,
};
use rustix::process::{chdir, fchdir, pivot_root};

use super::StepError;

pub(super) const STEP_PRIVATE: &str = "make mounts private";
pub(super) const STEP_TMPFS: &str = "make the empty root";
pub(super) const STEP_MOVE: &str = "mount the empty root";
pub(crate) const STEP_PIVOT: &str = "pivot_root";
pub(super) const STEP_NESTING: &str = "cover the empty root";
pub(super) const STEP_UNMOUNT: &str = "unmount the host's root";

/// A root directory holds nothing: the directory itself is all that has to fit.
const SIZE: &str = "4k";

/// Makes an empty tmpfs the root directory. Needs a mount namespace of our own.
///
/// The tmpfs is read-only from its making, as file system and as mount, so that there is no moment
/// at which it could be written to. It is mounted on top of "/", the one directory that every host
/// has, and entered by its descriptor, since a path does not lead onto a mount over the root.
pub(super) fn empty_root() -> Result<(), StepError> {
    mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .map_err(StepError::at(STEP_PRIVATE))?;

    let made = StepError::at(STEP_TMPFS);
    let tmpfs = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).map_err(&made)?;
    for (key, value) in [("source", "vudev"), ("size", SIZE), ("mode", "0555")] {
        fsconfig_set_string(&tmpfs, key, value).map_err(&made)?;
    }
    fsconfig_set_flag(&tmpfs, "ro").map_err(&made)?;
    fsconfig_create(&tmpfs).map_err(&made)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let root = fsmount(&tmpfs, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(&made)?;

    move_mount(&root, "", CWD, "/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(StepError::at(STEP_MOVE))?;
    // Stacks the old root over the new one, where it can be detached with all that is mounted
    // below it (pivot_root(2), "pivot_root(".", ".")").
    fchdir(&root)
        .and_then(|()| pivot_root(".", "."))
        .map_err(StepError::at(STEP_PIVOT))?;
    unmount(".", UnmountFlags::DETACH)
        .and_then(|()| chdir("/"))
        .map_err(StepError::at(STEP_UNMOUNT))?;
    forbid_nesting(&root).map_err(StepError::at(STEP_NESTING))
}

/// Covers the root that we stay in with itself. Who is not in the topmost root of its mount
/// namespace counts as chrooted, and is given no user namespace (user_namespaces(7)), in which it
/// would have all capabilities again.
fn forbid_nesting(root: &OwnedFd) -> Result<(), Errno> {
    let clone = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    let cover = open_tree(root, "", clone)?;
    move_mount(
        &cover,
        "",
        CWD,
        "/",
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
}
