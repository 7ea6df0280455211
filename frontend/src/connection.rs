//! The socket to a back-end: messages out with descriptors, answers in, a deadline on every wait.
//! It keeps no device state; the typed requests are in [`crate::requests`].

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    os::unix::net::UnixStream,
    path::Path,
    time::{Duration, Instant},
};

use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recvmsg,
        sendmsg, socket_with,
        sockopt::{Timeout, set_socket_timeout},
    },
};

use crate::{
    Error, LIMIT,
    event::{readable, writable},
    message::{
        HEADER_SIZE, Header, NEED_REPLY, PAYLOAD_MAX, REPLY, VERSION, frame, name, request, u64_at,
    },
};

/// Descriptors that an answer may carry; the protocol's own limit for one message.
const DESCRIPTORS_MAX: usize = 8;

/// A connection to a back-end.
#[derive(Debug)]
pub struct Connection {
    socket: OwnedFd,
    limit: Duration,
    acknowledge: bool,
}

/// How a back-end took a message that it may not like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It closed the connection.
    Closed,
    /// It answered: number of the request, flags, payload.
    Answered(Header, Vec<u8>),
}

impl Outcome {
    /// Whether the message was turned down: the connection ended, an acknowledgement is not 0, or
    /// `GET_CONFIG` was answered by nothing, which is its own way.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Closed => true,
            Self::Answered(header, payload) if header.request == request::GET_CONFIG => {
                payload.is_empty()
            }
            Self::Answered(_, payload) => payload.len() == 8 && u64_at(payload, 0) != Some(0),
        }
    }
}

impl Connection {
    /// Connects to a back-end's socket. A full backlog is waited for, within [`LIMIT`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let opened = || -> io::Result<OwnedFd> {
            let (family, kind) = (AddressFamily::UNIX, SocketType::STREAM);
            let socket = socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
            set_socket_timeout(&socket, Timeout::Send, Some(LIMIT))?;
            connect(&socket, &SocketAddrUnix::new(path)?)?;
            Ok(socket)
        };
        let socket = opened().map_err(|source| Error::Connect {
            path: path.into(),
            source,
        })?;
        Ok(Self::from_socket(socket))
    }

    /// Takes a socket that is connected already.
    pub fn from_socket(socket: impl Into<OwnedFd>) -> Self {
        Self {
            socket: socket.into(),
            limit: LIMIT,
            acknowledge: false,
        }
    }

    /// A connection whose other end is the returned stream, for a scripted back-end.
    pub fn pair() -> Result<(Self, UnixStream), Error> {
        let (ours, theirs) = UnixStream::pair().map_err(Error::system("socketpair"))?;
        Ok((Self::from_socket(ours), theirs))
    }

    /// Sets how long each wait lasts before it is an error.
    pub fn set_limit(&mut self, limit: Duration) {
        self.limit = limit;
    }

    /// How long each wait lasts before it is an error.
    pub fn limit(&self) -> Duration {
        self.limit
    }

    /// Sets whether requests without an answer ask for an acknowledgement and wait for it. Only
    /// lawful once `protocol::REPLY_ACK` is negotiated.
    pub fn set_acknowledge(&mut self, acknowledge: bool) {
        self.acknowledge = acknowledge;
    }

    /// Whether requests without an answer ask for an acknowledgement.
    pub fn acknowledges(&self) -> bool {
        self.acknowledge
    }

    /// Sends a request that has no answer of its own, and waits for its acknowledgement if
    /// acknowledgements are on.
    pub fn tell(&self, request: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), Error> {
        let flags = if self.acknowledge {
            VERSION | NEED_REPLY
        } else {
            VERSION
        };
        self.raw(&frame(request, flags, payload), fds)?;
        if self.acknowledge {
            self.acknowledgement(request)
        } else {
            Ok(())
        }
    }

    /// Returns when the back-end has done what it was told. Acknowledgements have said so; without
    /// them an answer comes after all that went before it.
    pub fn settle(&self) -> Result<(), Error> {
        match self.acknowledge {
            true => Ok(()),
            false => self.features().map(drop),
        }
    }

    /// Sends a request and waits for the answer's payload.
    pub fn ask(
        &self,
        request: u32,
        payload: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<Vec<u8>, Error> {
        self.raw(&frame(request, VERSION, payload), fds)?;
        self.answer(request)
    }

    /// Waits for the acknowledgement of a request that asked for one.
    pub fn acknowledgement(&self, request: u32) -> Result<(), Error> {
        let payload = self.answer(request)?;
        match u64_at(&payload, 0) {
            Some(0) if payload.len() == 8 => Ok(()),
            Some(code) if payload.len() == 8 => Err(Error::Refused {
                request: name(request),
                code,
            }),
            _ => Err(bad(
                request,
                format!("acknowledgement of {} bytes", payload.len()),
            )),
        }
    }

    /// Sends bytes and descriptors exactly as they are, in one `sendmsg` if the socket takes them.
    pub fn raw(&self, mut bytes: &[u8], mut fds: &[BorrowedFd<'_>]) -> Result<(), Error> {
        let deadline = Instant::now() + self.limit;
        while !bytes.is_empty() {
            match send(&self.socket, bytes, fds) {
                Ok(sent) => {
                    bytes = bytes.get(sent..).unwrap_or_default();
                    fds = &[];
                }
                Err(Errno::AGAIN) => self.wait_until_writable(deadline)?,
                Err(Errno::INTR) => {}
                Err(Errno::PIPE | Errno::CONNRESET) => {
                    return Err(Error::Closed {
                        awaited: "room to send a message".into(),
                    });
                }
                Err(error) => return Err(Error::system("sendmsg")(error)),
            }
        }
        Ok(())
    }

    /// Waits until the back-end either answers or closes the connection.
    pub fn outcome(&self) -> Result<Outcome, Error> {
        match self.receive("an answer or the end of the connection") {
            Ok((header, payload)) => Ok(Outcome::Answered(header, payload)),
            Err(Error::Closed { .. }) => Ok(Outcome::Closed),
            Err(error) => Err(error),
        }
    }

    /// Waits for a request of the back-end's own, on a channel made for that, and tells its number
    /// (those of [`crate::message::backend`]). It has no payload and wants no answer.
    pub fn backend_request(&self) -> Result<u32, Error> {
        let (header, payload) = self.receive("a request of the back-end")?;
        match header.flags == VERSION && payload.is_empty() {
            true => Ok(header.request),
            false => Err(bad(header.request, format!("{header:?}, {payload:?}"))),
        }
    }

    /// Waits until the back-end closes the connection; answers that come before are dropped.
    pub fn wait_closed(&self) -> Result<(), Error> {
        while self.outcome()? != Outcome::Closed {}
        Ok(())
    }

    /// Tells the back-end that nothing more will be sent, and keeps the reading side open.
    pub fn shut_down_sending(&self) -> Result<(), Error> {
        rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Write)
            .map_err(Error::system("shutdown"))
    }

    fn answer(&self, request: u32) -> Result<Vec<u8>, Error> {
        let (header, payload) = self.receive(name(request))?;
        if header.request != request {
            return Err(bad(
                request,
                format!("answered with {}", name(header.request)),
            ));
        }
        if header.flags != VERSION | REPLY {
            return Err(bad(
                request,
                format!("answer has flags {:#x}", header.flags),
            ));
        }
        Ok(payload)
    }

    fn receive(&self, awaited: &str) -> Result<(Header, Vec<u8>), Error> {
        let deadline = Instant::now() + self.limit;
        let mut header = [0; HEADER_SIZE];
        self.fill(&mut header, awaited, deadline)?;
        let header = Header::parse(header);
        let size = usize::try_from(header.size).unwrap_or(usize::MAX);
        if size > PAYLOAD_MAX {
            return Err(bad(header.request, format!("answer of {size} bytes")));
        }
        let mut payload = vec![0; size];
        self.fill(&mut payload, awaited, deadline)?;
        Ok((header, payload))
    }

    fn fill(&self, mut into: &mut [u8], awaited: &str, deadline: Instant) -> Result<(), Error> {
        while !into.is_empty() {
            match receive_some(&self.socket, into) {
                Ok(0) | Err(Errno::CONNRESET) => {
                    return Err(Error::Closed {
                        awaited: awaited.to_owned(),
                    });
                }
                Ok(got) => into = into.get_mut(got..).unwrap_or_default(),
                Err(Errno::AGAIN) => self.wait_until_readable(awaited, deadline)?,
                Err(Errno::INTR) => {}
                Err(error) => return Err(Error::system("recvmsg")(error)),
            }
        }
        Ok(())
    }

    fn wait_until_readable(&self, awaited: &str, deadline: Instant) -> Result<(), Error> {
        let left = self.left(awaited, deadline)?;
        readable(&[self.socket.as_fd()], left).map_err(Error::system("poll"))?;
        Ok(())
    }

    fn wait_until_writable(&self, deadline: Instant) -> Result<(), Error> {
        let left = self.left("room to send a message", deadline)?;
        writable(self.socket.as_fd(), left).map_err(Error::system("poll"))?;
        Ok(())
    }

    fn left(&self, awaited: &str, deadline: Instant) -> Result<Duration, Error> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Error::Deadline {
                awaited: awaited.to_owned(),
                limit: self.limit,
            });
        }
        Ok(left)
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// A complaint about an answer.
pub(crate) fn bad(request: u32, reason: String) -> Error {
    Error::BadReply {
        request: name(request),
        reason,
    }
}

fn send(socket: &OwnedFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<usize, Errno> {
    let rights = SendAncillaryMessage::ScmRights(fds);
    let mut space = vec![MaybeUninit::uninit(); rights.size()];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(rights) {
        return Err(Errno::TOOBIG);
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, flags)
}

/// Receives what there is. Descriptors of an answer are closed: no request that we make has any.
fn receive_some(socket: &OwnedFd, into: &mut [u8]) -> Result<usize, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let message = recvmsg(socket, &mut [IoSliceMut::new(into)], &mut ancillary, flags)?;
    for received in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = received {
            drop(descriptors.collect::<Vec<_>>());
        }
    }
    Ok(message.bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::long_words;
    use std::io::Write;

    #[test]
    fn an_answer_in_two_pieces_is_one_answer() {
        let (connection, mut peer) = Connection::pair().unwrap();
        let bytes = frame(request::GET_FEATURES, VERSION | REPLY, &long_words(&[42]));
        peer.write_all(&bytes[..5]).unwrap();
        peer.write_all(&bytes[5..]).unwrap();
        let payload = connection.ask(request::GET_FEATURES, &[], &[]).unwrap();
        assert_eq!(u64_at(&payload, 0), Some(42));
    }

    #[test]
    fn a_wait_without_an_answer_ends_and_names_the_request() {
        let (mut connection, _peer) = Connection::pair().unwrap();
        connection.set_limit(Duration::from_millis(10));
        let error = connection
            .ask(request::GET_QUEUE_NUM, &[], &[])
            .unwrap_err();
        assert!(error.to_string().contains("GET_QUEUE_NUM"), "{error}");
    }

    #[test]
    fn a_peer_that_takes_nothing_is_given_up() {
        let (mut connection, _peer) = Connection::pair().unwrap();
        connection.set_limit(Duration::from_millis(10));
        let error = connection.raw(&vec![0; 16 << 20], &[]).unwrap_err();
        assert!(matches!(error, Error::Deadline { .. }), "{error}");
    }

    #[test]
    fn a_refusal_is_told_from_success() {
        let (mut connection, mut peer) = Connection::pair().unwrap();
        connection.set_acknowledge(true);
        for (code, succeeds) in [(0, true), (1, false)] {
            let bytes = frame(request::SET_OWNER, VERSION | REPLY, &long_words(&[code]));
            peer.write_all(&bytes).unwrap();
            assert_eq!(
                connection.tell(request::SET_OWNER, &[], &[]).is_ok(),
                succeeds
            );
        }
    }

    #[test]
    fn the_answer_to_another_request_is_an_error() {
        let (connection, mut peer) = Connection::pair().unwrap();
        peer.write_all(&frame(request::GET_CONFIG, VERSION | REPLY, &[]))
            .unwrap();
        assert!(connection.ask(request::GET_FEATURES, &[], &[]).is_err());
        drop(peer);
        assert!(connection.outcome().unwrap().is_refusal());
    }
}
