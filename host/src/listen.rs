//! Binds the sockets that a device's `vhost=` and its other keys name, and removes them at the
//! end. It accepts nobody; and it never removes what is not a socket, or is somebody else's.
//!
//! In two steps, so that a command with several devices finds every mistake before it changes
//! anything: [`Claim::check`] looks, [`Claim::bind`] binds.

use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::options::{OptionError, VHOST, Values, reason, shown};

/// The longest path of a socket: `sun_path` has 108 bytes with its NUL (unix(7)).
pub(crate) const PATH_MAX: usize = 107;

/// Front-ends that may wait while one is served; there is seldom more than one.
const BACKLOG: i32 = 8;

/// Whoever may wait at a device's own sockets: programs of the host, which come by the hundred.
const BACKLOG_OF_DEVICE: i32 = 1024;

/// Only the user who started the command may connect: a front-end can do to the device all that
/// its guest can.
const MODE: Mode = Mode::from_raw_mode(0o600);

/// A key and its path.
#[derive(Debug, Clone, Copy)]
struct Wanted<'a> {
    values: &'a Values,
    key: &'static str,
}

impl<'a> Wanted<'a> {
    fn path(self) -> &'a Path {
        self.values.path(self.key)
    }
}

/// A path that can be listened on, with nothing changed yet.
#[derive(Debug)]
pub(crate) struct Claim<'a> {
    wanted: Wanted<'a>,
    place: Place,
    /// A socket that nobody listens on any more.
    stale: Option<Identity>,
}

/// A bound socket that listens.
#[derive(Debug)]
pub(crate) struct Listening {
    /// Blocking, CLOEXEC.
    pub(crate) descriptor: OwnedFd,
    /// Removes the socket's name when it is dropped.
    pub(crate) guard: SocketGuard,
}

/// Removes the name of our socket on drop, if it is still ours. Keep it in the process that is to
/// remove it.
#[derive(Debug)]
pub(crate) struct SocketGuard {
    place: Place,
    ours: Identity,
}

/// A name in a directory that stays the same one, whatever becomes of the way to it.
#[derive(Debug)]
struct Place {
    directory: OwnedFd,
    name: OsString,
}

/// Device and inode of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity(u64, u64);

impl<'a> Claim<'a> {
    /// Finds out whether the socket that the key names can be bound; a socket there that refuses
    /// connections is left over from an earlier run and does not count. Changes nothing.
    ///
    /// # Errors
    /// The path is too long, its directory cannot be entered, or something is there already.
    pub(crate) fn check(values: &'a Values, key: &'static str) -> Result<Self, OptionError> {
        let wanted = Wanted { values, key };
        let path = wanted.path();
        let length = path.as_os_str().len();
        if length > PATH_MAX {
            let error = fault(
                wanted,
                format!("the path has {length} bytes, more than {PATH_MAX}"),
            );
            return Err(
                error.remedy("use a shorter path, or one relative to the directory you are in")
            );
        }
        let place = Place::of(path, wanted)?;
        let stale = match place.find() {
            Ok(None) => None,
            Ok(Some(stat)) => stale_socket(&stat, path, wanted)?,
            Err(errno) => return Err(unreachable_path(wanted, errno)),
        };
        Ok(Self {
            wanted,
            place,
            stale,
        })
    }

    /// Binds and listens; replaces the stale socket, if there is one.
    ///
    /// # Errors
    /// The socket cannot be made, or the path has been taken meanwhile.
    pub(crate) fn bind(self) -> Result<Listening, OptionError> {
        let Self {
            wanted,
            place,
            stale,
        } = self;
        if let Some(stale) = stale {
            // Looked at again: between the check and now another command may have bound it.
            let still = place
                .find()
                .ok()
                .flatten()
                .filter(|stat| Identity::of(stat) == stale);
            if let Some(stat) = still
                && stale_socket(&stat, wanted.path(), wanted)?.is_some()
            {
                place
                    .remove()
                    .map_err(|errno| cannot(wanted, "remove the old socket", errno))?;
            }
        }
        let descriptor = bound(wanted)?;
        let ours = match place.find() {
            Ok(Some(stat)) => Identity::of(&stat),
            Ok(None) => {
                return Err(fault(
                    wanted,
                    "the socket vanished while it was being bound",
                ));
            }
            Err(errno) => return Err(cannot(wanted, "find the socket", errno)),
        };
        let guard = SocketGuard { place, ours };
        let backlog = match wanted.key {
            key if key == VHOST.name => BACKLOG,
            _ => BACKLOG_OF_DEVICE,
        };
        rustix::net::listen(&descriptor, backlog)
            .map_err(|errno| cannot(wanted, "listen", errno))?;
        Ok(Listening { descriptor, guard })
    }
}

impl Drop for SocketGuard {
    fn drop(&mut self) {
        // There is nobody to tell: a name that cannot be removed is replaced by the next run.
        if let Ok(Some(stat)) = self.place.find()
            && is_socket(&stat)
            && Identity::of(&stat) == self.ours
        {
            let _ = self.place.remove();
        }
    }
}

impl Place {
    fn of(path: &Path, wanted: Wanted<'_>) -> Result<Self, OptionError> {
        let bytes = path.as_os_str().as_bytes();
        let at = bytes
            .iter()
            .rposition(|byte| *byte == b'/')
            .map_or(0, |slash| slash + 1);
        let (directory, name) = bytes.split_at(at);
        let name = OsStr::from_bytes(name).to_owned();
        if name.is_empty() || name == "." || name == ".." {
            let error = fault(wanted, format!("{} names a directory", shown(path)));
            return Err(error.remedy("write the path of a socket in it"));
        }
        let directory = if directory.is_empty() {
            b".".as_slice()
        } else {
            directory
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match rustix::fs::open(directory, flags, Mode::empty()) {
            Ok(directory) => Ok(Self { directory, name }),
            Err(errno) => Err(no_directory(
                wanted,
                Path::new(OsStr::from_bytes(directory)),
                errno,
            )),
        }
    }

    /// What the name is now, itself and not what a link points to.
    fn find(&self) -> Result<Option<Stat>, Errno> {
        match rustix::fs::statat(&self.directory, &self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    fn remove(&self) -> Result<(), Errno> {
        rustix::fs::unlinkat(&self.directory, &self.name, AtFlags::empty())
    }
}

impl Identity {
    fn of(stat: &Stat) -> Self {
        Self(stat.st_dev, stat.st_ino)
    }
}

/// Whether what is there is a socket that nobody listens on; anything else is an error.
fn stale_socket(
    stat: &Stat,
    path: &Path,
    wanted: Wanted<'_>,
) -> Result<Option<Identity>, OptionError> {
    if !is_socket(stat) {
        let what = describe(FileType::from_raw_mode(stat.st_mode));
        let error = fault(
            wanted,
            format!("{} is {what} and not a socket", shown(path)),
        );
        return Err(error.remedy("use another path; nothing has been removed"));
    }
    match probe(path) {
        Err(Errno::CONNREFUSED) => Ok(Some(Identity::of(stat))),
        Err(Errno::NOENT) => Ok(None),
        // EAGAIN: its backlog is full. EPROTOTYPE: it is not of the stream type, and in use.
        Ok(()) | Err(Errno::AGAIN | Errno::INPROGRESS | Errno::PROTOTYPE) => {
            let error = fault(
                wanted,
                format!("another process listens on {}", shown(path)),
            );
            Err(error.remedy("use another path, or end that process"))
        }
        Err(errno) => {
            let (path, why) = (shown(path), reason(errno));
            let problem = format!("cannot find out whether {path} is in use: {why}");
            Err(fault(wanted, problem).remedy("use another path"))
        }
    }
}

/// Connects and hangs up.
fn probe(path: &Path) -> Result<(), Errno> {
    let socket = stream(SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)
}

fn bound(wanted: Wanted<'_>) -> Result<OwnedFd, OptionError> {
    let make = || {
        let socket = stream(SocketFlags::CLOEXEC)?;
        // Before the bind, which gives this mode to the file: so it is never open to more, and the
        // umask of the process stays as it is.
        rustix::fs::fchmod(&socket, MODE)?;
        rustix::net::bind(&socket, &SocketAddrUnix::new(wanted.path())?)?;
        Ok(socket)
    };
    make().map_err(|errno| match errno {
        Errno::ADDRINUSE => {
            let path = shown(wanted.path());
            let problem = format!("{path} has been taken, by this command or another process");
            fault(wanted, problem).remedy("give each socket a path of its own")
        }
        Errno::ACCESS | Errno::PERM | Errno::ROFS => {
            cannot(wanted, "make the socket", errno).remedy("use a directory that you may write to")
        }
        Errno::MFILE => cannot(wanted, "make the socket", errno)
            .remedy("raise the limit of open files (ulimit -n)"),
        errno => cannot(wanted, "make the socket", errno),
    })
}

fn stream(flags: SocketFlags) -> Result<OwnedFd, Errno> {
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

fn is_socket(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Socket
}

/// A type of file in words.
pub(crate) fn describe(file_type: FileType) -> &'static str {
    match file_type {
        FileType::RegularFile => "a regular file",
        FileType::Directory => "a directory",
        FileType::Symlink => "a symbolic link",
        FileType::Fifo => "a FIFO",
        FileType::Socket => "a socket",
        FileType::CharacterDevice => "a character device",
        FileType::BlockDevice => "a block device",
        FileType::Unknown => "of an unknown type",
    }
}

fn fault(wanted: Wanted<'_>, problem: impl std::fmt::Display) -> OptionError {
    wanted.values.error(wanted.key, problem)
}

fn cannot(wanted: Wanted<'_>, what: &str, errno: Errno) -> OptionError {
    let (path, why) = (shown(wanted.path()), reason(errno));
    fault(wanted, format!("cannot {what} at {path}: {why}"))
}

fn no_directory(wanted: Wanted<'_>, directory: &Path, errno: Errno) -> OptionError {
    let directory = shown(directory);
    match errno {
        Errno::NOENT => fault(wanted, format!("there is no directory {directory}"))
            .remedy("make it, or use another path"),
        Errno::NOTDIR => {
            fault(wanted, format!("{directory} is not a directory")).remedy("use another path")
        }
        errno => fault(
            wanted,
            format!("cannot enter the directory {directory}: {}", reason(errno)),
        )
        .remedy("use another path"),
    }
}

fn unreachable_path(wanted: Wanted<'_>, errno: Errno) -> OptionError {
    cannot(wanted, "look", errno).remedy("use another path")
}

#[cfg(test)]
mod tests;
