//! Starts processes on trial and hears what they say. Each is over before the next begins.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, recv, socketpair};
use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};
use vudev_jail::{Child, Namespace, Spawn, SpawnError};

use super::ROLE;
use super::facts::{FACT_MAX, Fact};
use super::role::{JAIL, NAMESPACES, PLAIN};
use crate::channel::CHANNEL;

/// How long a process on trial may be silent. It has a few dozen system calls to make.
const SILENCE_MAX: Duration = Duration::from_secs(5);

/// Whether each kind of namespace could be made.
pub(super) type NamespaceTrials = [(Namespace, Result<(), NotStarted>); 6];

/// A process on trial could not even be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NotStarted {
    /// The step, as [`SpawnError::step`] has it.
    pub(super) step: &'static str,
    pub(super) errno: Errno,
}

impl From<SpawnError> for NotStarted {
    fn from(error: SpawnError) -> Self {
        let (step, errno) = (error.step(), error.errno());
        Self { step, errno }
    }
}

/// Our own binary, which every process on trial is.
pub(super) fn program() -> Result<OwnedFd, NotStarted> {
    vudev_jail::own_program().map_err(|error| NotStarted {
        step: STEP_PROGRAM,
        // Its kind is all that it keeps of this one, beside a text.
        errno: match error.kind() {
            io::ErrorKind::NotFound => Errno::NOENT,
            _ => Errno::from_io_error(&error).unwrap_or(Errno::IO),
        },
    })
}

/// See [`program`].
pub(super) const STEP_PROGRAM: &str = "open /proc/self/exe";

/// What a process said, and how it ended.
pub(super) struct Trial {
    pub(super) heard: Vec<Fact>,
    /// `None` if it ended by itself, with status 0.
    pub(super) death: Option<String>,
}

/// Whether one kind of namespace can be made, inside a user namespace as a device's are.
pub(super) fn of_namespace(program: &OwnedFd, namespace: Namespace) -> Result<(), NotStarted> {
    let child = Spawn::new(program.as_fd(), ROLE)
        .and_then(|spawn| spawn.argument(NAMESPACES))
        .expect("our own names have no NUL")
        .only(&[Namespace::User, namespace])
        .spawn()?;
    end(&child);
    Ok(())
}

/// The whole way of a device, with namespaces or what can be gone without.
pub(super) fn of_jail(program: &OwnedFd, namespaces: bool) -> Result<Trial, NotStarted> {
    let (ours, theirs) = channel().map_err(|errno| NotStarted {
        step: "socketpair",
        errno,
    })?;
    let part = if namespaces { JAIL } else { PLAIN };
    let child = Spawn::new(program.as_fd(), ROLE)
        .and_then(|spawn| spawn.argument(part))
        .expect("our own names have no NUL")
        .keep(theirs.as_fd(), CHANNEL)
        .namespaces(namespaces)
        .spawn()?;
    drop(theirs);
    let heard = hear(&ours);
    Ok(Trial {
        heard,
        death: end(&child),
    })
}

fn channel() -> Result<(OwnedFd, OwnedFd), Errno> {
    let kind = SocketType::SEQPACKET;
    let (ours, theirs) = socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
    set_socket_timeout(&ours, Timeout::Recv, Some(SILENCE_MAX))?;
    Ok((ours, theirs))
}

/// Until the process closes its end, or is silent for too long.
fn hear(channel: &OwnedFd) -> Vec<Fact> {
    let mut heard = Vec::new();
    let mut packet = vec![0; FACT_MAX];
    while let Ok((_, length)) =
        rustix::io::retry_on_intr(|| recv(channel, &mut *packet, RecvFlags::empty()))
    {
        match serde_json::from_slice(&packet[..length]) {
            Ok(fact) => heard.push(fact),
            // Nothing, at its end; or the report of a forbidden call, after which it ends.
            Err(_) => break,
        }
    }
    heard
}

/// Waits for its end, and kills it if that does not come; how it ended, if not well.
fn end(child: &Child) -> Option<String> {
    let mut polled = [PollFd::new(&child.pidfd, PollFlags::IN)];
    let limit = Timespec::try_from(SILENCE_MAX).ok();
    if rustix::io::retry_on_intr(|| poll(&mut polled, limit.as_ref())) == Ok(0) {
        let _ = pidfd_send_signal(&child.pidfd, Signal::KILL);
    }
    let process = WaitId::PidFd(child.pidfd.as_fd());
    let ended = rustix::io::retry_on_intr(|| waitid(process.clone(), WaitIdOptions::EXITED));
    let status = ended.ok().flatten()?;
    match (status.exit_status(), status.terminating_signal()) {
        (Some(0), _) | (None, None) => None,
        (Some(code), _) => Some(format!("it ended with status {code}")),
        (None, Some(signal)) => Some(format!("it was killed by signal {signal}")),
    }
}
