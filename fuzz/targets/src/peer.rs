//! One end of a Unix stream socket that never waits: what does not fit is not sent, and what comes
//! is thrown away, but for its last bytes.

use std::io::{IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

/// Where a peer connects to: a name that nobody else has.
pub(crate) struct Place(SocketAddr);

impl Place {
    pub(crate) fn listen() -> (Self, OwnedFd) {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("vudev-fuzz-{}-{number}", std::process::id());
        let address = SocketAddr::from_abstract_name(name).expect("a name");
        let listener = UnixListener::bind_addr(&address).expect("a socket");
        (Self(address), listener.into())
    }

    pub(crate) fn connect(&self) -> Peer {
        let stream = UnixStream::connect_addr(&self.0).expect("a connection");
        stream.set_nonblocking(true).expect("no waiting");
        Peer(stream)
    }
}

/// A connection.
pub(crate) struct Peer(UnixStream);

impl Peer {
    /// Sends bytes and descriptors as they are.
    pub(crate) fn send(&self, bytes: &[u8], files: &[OwnedFd]) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(32))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let files: Vec<_> = files.iter().map(AsFd::as_fd).collect();
        if !files.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(&files)));
        }
        // The other end may be gone, or have no room.
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        let _ = sendmsg(&self.0, &[IoSlice::new(bytes)], &mut control, flags);
    }

    /// Reads what there is, behind `last`, of which it keeps no more than some bytes. False once
    /// the other end is closed.
    pub(crate) fn drain(&mut self, last: &mut Vec<u8>) -> bool {
        let mut bytes = [0; 8192];
        loop {
            match self.0.read(&mut bytes) {
                Ok(0) => return false,
                Ok(count) => last.extend_from_slice(&bytes[..count]),
                Err(error) => return error.kind() == std::io::ErrorKind::WouldBlock,
            }
            last.drain(..last.len().saturating_sub(bytes.len()));
        }
    }

    /// Says that nothing more will come.
    pub(crate) fn finish(&self) {
        let _ = self.0.shutdown(std::net::Shutdown::Write);
    }
}
