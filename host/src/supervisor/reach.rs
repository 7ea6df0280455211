//! The host sockets that a device may be connected to, since it can connect to none itself: only
//! what its options name.

use std::cell::RefCell;
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Instant;

use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use super::pace::{CONNECTS_PER_PERIOD, NUMBERED_CONNECTS_PER_PERIOD, Pace};
use crate::kind::Target;

/// The targets of one device, each with its pace.
#[derive(Debug, Default)]
pub(crate) struct Reach(Vec<(Target, RefCell<Pace>)>);

impl Reach {
    pub(crate) fn new(targets: Vec<Target>) -> Self {
        let now = Instant::now();
        let paced = |target| {
            let limit = match target {
                Target::NumberedStream(_) => NUMBERED_CONNECTS_PER_PERIOD,
                Target::Stream(_) | Target::Datagram(_) => CONNECTS_PER_PERIOD,
            };
            (target, RefCell::new(Pace::new(limit, now)))
        };
        Self(targets.into_iter().map(paced).collect())
    }

    /// How often a target may be connected to; `None` for what is not in reach.
    pub(crate) fn pace(&self, target: u8) -> Option<&RefCell<Pace>> {
        self.0.get(usize::from(target)).map(|(_, pace)| pace)
    }

    /// A socket connected to a target; never waits.
    ///
    /// # Errors
    /// Those of socket(2) and connect(2); EPERM for what is not in reach.
    pub(crate) fn connect(&self, target: u8, number: u32) -> Result<OwnedFd, Errno> {
        match self.0.get(usize::from(target)).map(|(target, _)| target) {
            Some(Target::Stream(path)) => connected(path, SocketType::STREAM),
            Some(Target::Datagram(path)) => connected(path, SocketType::DGRAM),
            Some(Target::NumberedStream(path)) => {
                connected(&numbered(path, number), SocketType::STREAM)
            }
            None => Err(Errno::PERM),
        }
    }
}

/// `path_number`.
fn numbered(path: &Path, number: u32) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(format!("_{number}"));
    name.into()
}

fn connected(path: &Path, socket_type: SocketType) -> Result<OwnedFd, Errno> {
    let address = SocketAddrUnix::new(path)?;
    // Nonblocking for connect(2) alone: a full backlog would be waited for.
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, socket_type, flags, None)?;
    connect(&socket, &address)?;
    let set = rustix::fs::fcntl_getfl(&socket)?;
    rustix::fs::fcntl_setfl(&socket, set - OFlags::NONBLOCK)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

    use super::*;

    #[test]
    fn a_device_is_connected_to_its_targets_and_to_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let (stream, datagram) = (folder.path().join("s"), folder.path().join("d"));
        let numbered = UnixListener::bind(folder.path().join("v_1024")).unwrap();
        let listener = UnixListener::bind(&stream).unwrap();
        let log = UnixDatagram::bind(&datagram).unwrap();
        let reach = Reach::new(vec![
            Target::Stream(stream),
            Target::NumberedStream(folder.path().join("v")),
            Target::Datagram(datagram),
        ]);
        let mut byte = [0];
        for (target, listener) in [(0, &listener), (1, &numbered)] {
            let mut connection = UnixStream::from(reach.connect(target, 1024).unwrap());
            connection.write_all(&[target]).unwrap();
            listener.accept().unwrap().0.read_exact(&mut byte).unwrap();
            assert_eq!(byte, [target]);
        }
        UnixDatagram::from(reach.connect(2, 0).unwrap())
            .send(b"d")
            .unwrap();
        assert_eq!((log.recv(&mut byte).unwrap(), &byte), (1, b"d"));
        assert_eq!(reach.connect(1, 1025).unwrap_err(), Errno::NOENT);
        assert_eq!(reach.connect(3, 0).unwrap_err(), Errno::PERM);
    }

    #[test]
    fn a_full_backlog_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let flags = SocketFlags::CLOEXEC;
        let listener = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
        rustix::net::bind(&listener, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let reach = Reach::new(vec![Target::Stream(path)]);
        let first = reach.connect(0, 0).unwrap();
        assert_eq!(reach.connect(0, 0).unwrap_err(), Errno::AGAIN);
        let flags = rustix::fs::fcntl_getfl(&first).unwrap();
        assert!(!flags.contains(OFlags::NONBLOCK));
    }
}
