//! The supervisor's side of a test: starts roles, hears them, waits for their end.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType,
    recv, recvmsg, socketpair,
};
use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};
use vudev_jail::{Child, Spawn, own_program};

use crate::role;

/// `argv[0]` of a supervisor that is to be killed.
pub(crate) const SUPERVISOR: &str = "test-supervisor";

/// `argv[0]` of a supervisor in a container of its own.
pub(crate) const CONTAINER: &str = "test-container";

/// How long anything may take before a test fails rather than hangs.
const DEADLINE: Timespec = Timespec {
    tv_sec: 8,
    tv_nsec: 0,
};

/// A started role and our end of its channel.
pub(crate) struct Role {
    pub(crate) child: Child,
    channel: Option<OwnedFd>,
}

/// How a role ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum End {
    Code(i32),
    Signal(i32),
}

pub(crate) fn channel() -> (OwnedFd, OwnedFd) {
    let flags = SocketFlags::CLOEXEC;
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap()
}

impl Role {
    /// Starts a role in its namespaces.
    pub(crate) fn start(scenario: &str, argument: &str) -> Self {
        Self::start_with(scenario, argument, true, &[])
    }

    pub(crate) fn start_with(
        scenario: &str,
        argument: &str,
        namespaces: bool,
        kept: &[(BorrowedFd<'_>, i32)],
    ) -> Self {
        let program = own_program().unwrap();
        let (ours, theirs) = channel();
        let stderr = std::io::stderr();
        let mut spawn = Spawn::new(program.as_fd(), role::NAME)
            .and_then(|spawn| spawn.argument(scenario)?.argument(argument))
            .unwrap()
            .namespaces(namespaces)
            .keep(stderr.as_fd(), 2)
            .keep(theirs.as_fd(), role::CHANNEL);
        for (descriptor, number) in kept {
            spawn = spawn.keep(*descriptor, *number);
        }
        let child = spawn.spawn().unwrap();
        Self {
            child,
            channel: Some(ours),
        }
    }

    /// The next message; empty when the role has closed its end.
    pub(crate) fn hear(&self) -> Vec<u8> {
        let channel = self.channel.as_ref().unwrap();
        wait(channel.as_fd(), "a message");
        let mut message = vec![0; 64 << 10];
        let length = match recv(channel, &mut *message, RecvFlags::empty()) {
            Ok((_, length)) => length,
            Err(rustix::io::Errno::CONNRESET) => 0,
            Err(errno) => panic!("{errno}"),
        };
        message.truncate(length);
        message
    }

    /// The next message, and the descriptor that came with it.
    pub(crate) fn hear_with_descriptor(&self) -> (Vec<u8>, Option<OwnedFd>) {
        let channel = self.channel.as_ref().unwrap();
        wait(channel.as_fd(), "a message");
        let mut message = vec![0; 64 << 10];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let pieces = &mut [IoSliceMut::new(&mut message)];
        let received = recvmsg(channel, pieces, &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
        let descriptor = control.drain().find_map(|part| match part {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        });
        message.truncate(received.bytes);
        (message, descriptor)
    }

    pub(crate) fn hear_text(&self) -> String {
        String::from_utf8(self.hear()).unwrap()
    }

    /// Closes our end of the channel.
    pub(crate) fn leave(&mut self) {
        self.channel = None;
    }

    pub(crate) fn end(&self) -> End {
        wait(self.child.pidfd.as_fd(), "the role's end");
        let status = waitid(
            WaitId::PidFd(self.child.pidfd.as_fd()),
            WaitIdOptions::EXITED,
        );
        let status = status.unwrap().unwrap();
        match status.exit_status() {
            Some(code) => End::Code(code),
            None => End::Signal(status.terminating_signal().unwrap()),
        }
    }

    /// A line of `/proc/PID/status`, without its name.
    pub(crate) fn status(&self, name: &str) -> String {
        let text = std::fs::read_to_string(self.proc("status")).unwrap();
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap_or_else(|| panic!("no {name}"))
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
    }

    pub(crate) fn proc(&self, file: &str) -> String {
        format!("/proc/{}/{file}", self.child.pid)
    }
}

impl Drop for Role {
    /// A test that failed leaves no process behind.
    fn drop(&mut self) {
        let _ = pidfd_send_signal(&self.child.pidfd, Signal::KILL);
        let _ = waitid(
            WaitId::PidFd(self.child.pidfd.as_fd()),
            WaitIdOptions::EXITED,
        );
    }
}

/// Until `descriptor` is readable or at its end.
pub(crate) fn wait(descriptor: BorrowedFd<'_>, what: &str) {
    let mut polled = [PollFd::from_borrowed_fd(descriptor, PollFlags::IN)];
    let ready = rustix::io::retry_on_intr(|| poll(&mut polled, Some(&DEADLINE))).unwrap();
    assert_eq!(ready, 1, "waited too long for {what}");
}
