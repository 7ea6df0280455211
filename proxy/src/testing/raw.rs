//! A client of vfio-user by hand: what it sends is exactly what it was given, also when that is
//! wrong.

use std::io::{self, IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use super::messages::{command, version};

/// How long an answer may take before the test fails.
const LIMIT: Duration = Duration::from_secs(5);

/// One connection.
pub struct Raw(pub UnixStream);

/// An answer: its flags, its error, its payload.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    /// The command's own.
    pub id: u16,
    /// The command's number.
    pub number: u16,
    /// 1 for an answer, 0x20 for an error.
    pub flags: u32,
    /// An errno.
    pub error: u32,
    /// What follows the header.
    pub payload: Vec<u8>,
}

impl Raw {
    /// Takes a connected socket.
    pub fn new(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.set_write_timeout(Some(LIMIT)).unwrap();
        Self(stream)
    }

    /// The same, with versions agreed upon.
    pub fn agreed(stream: UnixStream) -> Self {
        let mut this = Self::new(stream);
        assert_eq!(this.ask(1, &version(0, 0, &[])), [0; 4]);
        this
    }

    /// Sends bytes and descriptors as they are.
    pub fn send(&self, bytes: &[u8], files: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !files.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(files)));
        }
        let sent = sendmsg(
            &self.0,
            &[IoSlice::new(bytes)],
            &mut control,
            SendFlags::NOSIGNAL,
        )?;
        match sent < bytes.len() {
            true => self.send(&bytes[sent..], &[]),
            false => Ok(()),
        }
    }

    /// The next answer.
    pub fn answer(&mut self) -> io::Result<Answer> {
        let mut header = [0; 16];
        self.0.read_exact(&mut header)?;
        Ok(self.rest(header))
    }

    /// The next answer, and the descriptors that come with it.
    pub fn answer_with_files(&mut self) -> (Answer, Vec<OwnedFd>) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut header = [0; 16];
        let mut pieces = [IoSliceMut::new(&mut header)];
        let received = recvmsg(&self.0, &mut pieces, &mut control, RecvFlags::CMSG_CLOEXEC);
        assert_eq!(received.unwrap().bytes, 16);
        let mut files = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                files.extend(rights);
            }
        }
        (self.rest(header), files)
    }

    fn rest(&mut self, header: [u8; 16]) -> Answer {
        let word = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().unwrap());
        let mut payload = vec![0; word(4) as usize - 16];
        self.0.read_exact(&mut payload).unwrap();
        Answer {
            id: u16::from_ne_bytes(header[..2].try_into().unwrap()),
            number: u16::from_ne_bytes(header[2..4].try_into().unwrap()),
            flags: word(8),
            error: word(12),
            payload,
        }
    }

    /// A command and what becomes of it: the payload of the answer, or the errno.
    pub fn outcome(
        &mut self,
        number: u16,
        payload: &[u8],
        files: &[BorrowedFd<'_>],
    ) -> Result<Vec<u8>, u32> {
        self.send(&command(77, number, payload), files).unwrap();
        let answer = self.answer().unwrap();
        assert_eq!((answer.id, answer.number), (77, number));
        match answer.flags {
            0x01 => Ok(answer.payload),
            0x21 => {
                assert!(answer.payload.is_empty(), "an error is a header alone");
                Err(answer.error)
            }
            flags => panic!("flags {flags:#x}"),
        }
    }

    /// A command that must be done.
    pub fn ask(&mut self, number: u16, payload: &[u8]) -> Vec<u8> {
        self.outcome(number, payload, &[]).expect("to be done")
    }

    /// Whether the server has ended the connection.
    pub fn is_closed(&mut self) -> bool {
        let mut byte = [0];
        match self.0.read(&mut byte) {
            Ok(0) => true,
            Ok(_) => false,
            Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
        }
    }
}
