//! The device's end of the control channel. It sends by plain system calls, so that a line can be
//! logged from anywhere, and never waits longer than [`SEND_LIMIT`] for the supervisor to read.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use log::Level;
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout, socket_type};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendFlags, SocketType,
};

use super::{DOWN_MAX, Down, PacketError, START_DESCRIPTORS_MAX, Start, Up};

/// How long a device waits to tell what must be told: a supervisor that does not read for so
/// long is stuck, and will see the exit status.
const SEND_LIMIT: Duration = Duration::from_millis(500);

/// The device's end.
#[derive(Debug)]
pub(crate) struct Channel {
    socket: OwnedFd,
    /// Log lines lost since the last one that went through.
    dropped: AtomicU32,
}

/// The role could not learn what it is to be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChannelError {
    /// Descriptor 3 is not the control channel.
    #[error("not started by a supervisor: {0}")]
    Absent(#[source] io::Error),
    /// A system call on it failed.
    #[error("control channel: {0}")]
    Io(#[from] io::Error),
    /// What came is not what belongs there.
    #[error("control channel: {0}")]
    Packet(#[from] PacketError),
    /// The supervisor is gone.
    #[error("the supervisor has ended")]
    Closed,
    /// Something else came before the start.
    #[error("control channel: not a start")]
    NotAStart,
}

impl Channel {
    /// The descriptor that the supervisor put at [`super::CHANNEL`].
    pub(crate) fn new(socket: OwnedFd) -> Result<Self, ChannelError> {
        match socket_type(&socket).map_err(io::Error::from) {
            Ok(SocketType::SEQPACKET) => {}
            Ok(_) => return Err(ChannelError::Absent(Errno::PROTOTYPE.into())),
            Err(error) => return Err(ChannelError::Absent(error)),
        }
        set_socket_timeout(&socket, Timeout::Send, Some(SEND_LIMIT)).map_err(io::Error::from)?;
        Ok(Self {
            socket,
            dropped: AtomicU32::new(0),
        })
    }

    /// Waits for the start, which comes before everything else, and its descriptors.
    pub(crate) fn receive_start(&self) -> Result<(Start, Vec<OwnedFd>), ChannelError> {
        let mut bytes = vec![0; DOWN_MAX];
        let mut space =
            vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(START_DESCRIPTORS_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = rustix::io::retry_on_intr(|| {
            rustix::net::recvmsg(
                &self.socket,
                &mut [IoSliceMut::new(&mut bytes)],
                &mut control,
                RecvFlags::CMSG_CLOEXEC,
            )
        })
        .map_err(io::Error::from)?;
        let descriptors = control.drain().flat_map(descriptors_of).collect();
        if received
            .flags
            .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC)
        {
            return Err(PacketError::TooLarge.into());
        }
        if received.bytes == 0 {
            return Err(ChannelError::Closed);
        }
        match Down::decode(&bytes[..received.bytes])? {
            Down::Start(start) => Ok((*start, descriptors)),
            Down::Stop | Down::Notice(_) | Down::Connected { .. } => Err(ChannelError::NotAStart),
        }
    }

    /// Says what must be said, waiting [`SEND_LIMIT`] for room.
    pub(crate) fn tell(&self, up: &Up) -> io::Result<()> {
        self.send(up, SendFlags::NOSIGNAL)
    }

    /// Asks for something if there is room.
    ///
    /// # Errors
    /// EAGAIN when there is none: the supervisor is busy.
    pub(crate) fn ask(&self, up: &Up) -> io::Result<()> {
        self.send(up, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)
    }

    /// Logs a line if there is room for it, and counts it as lost if there is not.
    pub(crate) fn log(&self, level: Level, text: String) {
        let dropped = self.dropped.swap(0, Ordering::Relaxed);
        let line = Up::Log {
            level,
            dropped,
            text,
        };
        if self
            .send(&line, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)
            .is_err()
        {
            self.dropped
                .fetch_add(dropped.saturating_add(1), Ordering::Relaxed);
        }
    }

    /// The socket, for the event loop.
    pub(crate) fn try_clone(&self) -> io::Result<OwnedFd> {
        self.socket.try_clone()
    }

    fn send(&self, up: &Up, flags: SendFlags) -> io::Result<()> {
        let packet = up.encode();
        rustix::io::retry_on_intr(|| rustix::net::send(&self.socket, &packet, flags))?;
        Ok(())
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn descriptors_of(message: RecvAncillaryMessage<'_>) -> Vec<OwnedFd> {
    match message {
        RecvAncillaryMessage::ScmRights(descriptors) => descriptors.collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::IoSlice;

    use rustix::net::{
        AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SocketFlags, socketpair,
    };

    use super::*;

    fn pair() -> (OwnedFd, Channel) {
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        (ours, Channel::new(theirs).unwrap())
    }

    fn received(socket: &OwnedFd) -> Option<Up> {
        let mut packet = vec![0; 4096];
        match rustix::net::recv(socket, &mut packet[..], RecvFlags::DONTWAIT) {
            Ok((_, 0)) | Err(_) => None,
            Ok((_, length)) => Some(Up::decode(&packet[..length]).unwrap()),
        }
    }

    #[test]
    fn a_full_channel_loses_log_lines_without_waiting_and_counts_them() {
        let (supervisor, channel) = pair();
        let total = 5000;
        for number in 0..total {
            channel.log(Level::Info, format!("line {number}"));
        }
        let mut arrived = 0;
        while let Some(Up::Log { dropped: 0, .. }) = received(&supervisor) {
            arrived += 1;
        }
        assert!(arrived < total, "the channel took {total} lines");
        channel.log(Level::Info, "after".to_owned());
        let lost = u32::try_from(total - arrived).unwrap();
        let after = Up::Log {
            level: Level::Info,
            dropped: lost,
            text: "after".to_owned(),
        };
        assert_eq!(received(&supervisor), Some(after));
    }

    #[test]
    fn a_start_brings_as_many_descriptors_as_a_device_may_have() {
        let (supervisor, channel) = pair();
        let start = Down::Start(Box::new(Start {
            name: "block-0".to_owned(),
            kind: "block".to_owned(),
            transport: crate::channel::Transport::VhostUser,
            poll: crate::options::Poll::Auto,
            sandbox: true,
            policies: None,
            seccomp_mode: crate::options::SeccompMode::Trap,
            verbosity: log::LevelFilter::Info.into(),
            description: serde_json::Value::Null,
        }));
        let descriptors = [supervisor.as_fd(); START_DESCRIPTORS_MAX];
        let mut space =
            [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(START_DESCRIPTORS_MAX))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
        let packet = start.encode().unwrap();
        let pieces = [IoSlice::new(&packet)];
        rustix::net::sendmsg(&supervisor, &pieces, &mut control, SendFlags::empty()).unwrap();
        let (_, received) = channel.receive_start().unwrap();
        assert_eq!(received.len(), START_DESCRIPTORS_MAX);
    }

    #[test]
    fn a_start_without_a_supervisor_is_an_error() {
        let (supervisor, channel) = pair();
        drop(supervisor);
        assert!(matches!(channel.receive_start(), Err(ChannelError::Closed)));
    }

    #[test]
    fn what_comes_before_the_start_is_an_error() {
        for (packet, wanted) in [
            (Down::Stop.encode().unwrap(), "not a start"),
            (vec![77], "unknown kind 77"),
            (vec![1; DOWN_MAX + 1], "too large"),
        ] {
            let (supervisor, channel) = pair();
            rustix::net::sendmsg(
                &supervisor,
                &[IoSlice::new(&packet)],
                &mut SendAncillaryBuffer::default(),
                SendFlags::empty(),
            )
            .unwrap();
            let error = channel.receive_start().unwrap_err().to_string();
            assert!(error.contains(wanted), "{error}");
        }
    }
}
