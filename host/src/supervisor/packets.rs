//! The supervisor's end of one device's channel: packets are looked at where they are, taken off
//! one by one, and answered. What they mean is not known here.
//!
//! The kernel drops a packet's files in the thread that takes the packet, whether that has room
//! for them or not, and in the one that closes the channel. To drop the last reference to a file
//! is to close it, and closing may sleep for as long as whoever made the file likes: a TCP socket
//! that lingers, say. So a packet is taken only when a look has shown that it has no files (a look
//! takes references and drops them again, never the last), and the channel is never closed. What
//! is left in it goes with the supervisor's own exit, where sockets do not linger. The one packet
//! that is taken with a file is the listener's under `seccomp-mode=log`, from a device that has
//! read nothing foreign yet.

use std::io::{IoSlice, IoSliceMut};
use std::mem::{ManuallyDrop, MaybeUninit};
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::{Errno, retry_on_intr};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, Shutdown, recv, recvmsg, sendmsg, shutdown,
};
use vudev_executor::{File, Handle};

use crate::channel::{PacketError, UP_MAX, Up};

/// The most descriptors that are taken from a packet: those of the greatest that is due, and one
/// to tell that there were more.
const TAKEN_MAX: usize = 2;

/// The supervisor's end. There is one a device for the supervisor's life: it is never closed.
pub(super) struct Packets(ManuallyDrop<File>);

/// The oldest packet, still in its place.
pub(super) struct Packet {
    /// What it says.
    pub(super) up: Up,
    /// Whether it brings descriptors.
    pub(super) descriptors: bool,
}

/// What there is to be seen.
enum Seen {
    Packet(Packet),
    /// The other end is closed, or an empty packet says so.
    End,
    Nothing,
}

impl Packets {
    pub(super) fn new(handle: &Handle, channel: OwnedFd) -> Self {
        Self(ManuallyDrop::new(File::new(&handle.reserved(), channel)))
    }

    /// Waits for the next packet and looks at it; `None` when the other end is closed. Dropped, it
    /// has lost nothing.
    pub(super) async fn look(&self) -> Result<Option<Packet>, PacketError> {
        loop {
            // Before each: a device that fills its channel must not keep the loop from others.
            if self.0.readable().await.is_err() {
                return Ok(None);
            }
            match self.seen()? {
                Seen::Packet(packet) => return Ok(Some(packet)),
                Seen::End => return Ok(None),
                Seen::Nothing => {}
            }
        }
    }

    /// Looks at the next packet if there is one; one with descriptors is an error.
    pub(super) fn look_now(&self) -> Result<Option<Up>, PacketError> {
        match self.seen()? {
            Seen::Packet(packet) => packet.plain().map(Some),
            Seen::End | Seen::Nothing => Ok(None),
        }
    }

    /// Takes off the packet that was looked at, which has no descriptors.
    pub(super) fn take(&self) {
        // It is there, and nobody else takes any.
        let _ = retry_on_intr(|| recv(&*self.0, &mut [0_u8; 0][..], RecvFlags::DONTWAIT));
    }

    /// Takes off the packet that was looked at, and its descriptors: of a sender that is believed.
    pub(super) fn take_descriptors(&self) -> Vec<OwnedFd> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(TAKEN_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let _ = retry_on_intr(|| recvmsg(&*self.0, &mut [], &mut control, flags));
        let descriptors = |message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => descriptors.collect(),
            _ => Vec::new(),
        };
        control.drain().flat_map(descriptors).collect()
    }

    /// Ends it both ways: nothing comes after what has come, not even from somebody whom the
    /// device gave a copy of its end.
    pub(super) fn shut(&self) {
        // ENOTCONN: the other end is closed already.
        let _ = shutdown(&*self.0, Shutdown::Both);
    }

    /// Sends if there is room: it is never waited for.
    pub(super) fn send_now(&self, packet: &[u8]) -> Result<(), Errno> {
        self.send_with(packet, None)
    }

    /// Sends, and waits for room.
    pub(super) async fn send(&self, packet: &[u8], socket: Option<&OwnedFd>) -> Result<(), Errno> {
        loop {
            match self.send_with(packet, socket) {
                Err(Errno::AGAIN) => self.0.writable().await.map_err(|_| Errno::IO)?,
                sent => return sent,
            }
        }
    }

    fn send_with(&self, packet: &[u8], socket: Option<&OwnedFd>) -> Result<(), Errno> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let descriptor = socket.map(|socket| [socket.as_fd()]);
        if let Some(descriptor) = &descriptor {
            let pushed = control.push(SendAncillaryMessage::ScmRights(descriptor));
            assert!(pushed, "there is room for one");
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        retry_on_intr(|| sendmsg(&*self.0, &[IoSlice::new(packet)], &mut control, flags))?;
        Ok(())
    }

    fn seen(&self) -> Result<Seen, PacketError> {
        let mut bytes = [0; UP_MAX];
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        let looked = loop {
            // Without room for control messages, nothing is installed here.
            let mut control = RecvAncillaryBuffer::default();
            match recvmsg(
                &*self.0,
                &mut [IoSliceMut::new(&mut bytes)],
                &mut control,
                flags,
            ) {
                // The other end was closed with packets unread; what it has sent comes now.
                Err(Errno::INTR | Errno::CONNRESET) => {}
                Err(Errno::AGAIN) => return Ok(Seen::Nothing),
                Err(_) => return Ok(Seen::End),
                Ok(looked) => break looked,
            }
        };
        let descriptors = looked.flags.contains(ReturnFlags::CTRUNC);
        if looked.bytes == 0 && !descriptors {
            return Ok(Seen::End);
        }
        if looked.flags.contains(ReturnFlags::TRUNC) {
            return Err(PacketError::TooLarge);
        }
        match Up::decode(&bytes[..looked.bytes]) {
            Ok(up) => Ok(Seen::Packet(Packet { up, descriptors })),
            Err(_) if descriptors => Err(PacketError::Descriptors),
            Err(error) => Err(error),
        }
    }
}

impl Packet {
    /// What it says, if it brings no descriptors.
    pub(super) fn plain(self) -> Result<Up, PacketError> {
        if self.descriptors {
            return Err(PacketError::Descriptors);
        }
        Ok(self.up)
    }
}
