//! From options to started processes: everything is opened, then everything bound, then one
//! process a device started and told what it is to be. Until the first process is started, an
//! error leaves nothing behind.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
    socketpair,
};
use serde_json::Value;
use vudev_jail::{Spawn, SpawnError};

use crate::channel::{CHANNEL, Down, PacketError, START_DESCRIPTORS_MAX, Start, Transport};
use crate::kind::{DESCRIPTORS_MAX, Listen, Opened};
use crate::listen::{Claim, Listening, SocketGuard};
use crate::options::{DeviceRequest, OptionError, Poll, RunOptions, Values};
use crate::policies::{ForRole, Texts, check_directory, for_role};
use crate::role::processors;
use crate::{ROLE, Registry};

use super::alias::AliasGuard;
use super::child::Known;
use super::reach::Reach;
use super::windows::Windows;
use super::wire::{Opening, Wire, transport};

/// A device that can be started.
pub(super) struct Prepared {
    pub(super) name: String,
    poll: Poll,
    kind: &'static str,
    policies: Option<Texts>,
    description: Value,
    /// The wire's, then the device's own.
    descriptors: Vec<OwnedFd>,
    transport: Transport,
    /// Where its front-end connects.
    place: String,
    /// What stays with the supervisor.
    reach: Reach,
    windows: Windows,
    names: Names,
}

/// What others find a device by in the file system: its sockets, and links to its terminals.
/// Dropped, they are removed.
#[derive(Default)]
pub(crate) struct Names {
    _sockets: Vec<SocketGuard>,
    _links: Vec<AliasGuard>,
}

/// All devices, and what the supervisor keeps of them.
pub(super) struct Everything {
    pub(super) devices: Vec<Prepared>,
    /// Terminals to be put into raw mode.
    pub(super) terminals: Vec<OwnedFd>,
    /// For the user, once.
    pub(super) notes: Vec<String>,
    /// The same, of the device whose name stands first.
    pub(super) made: Vec<(String, String)>,
}

/// A process could not be started.
#[derive(Debug, thiserror::Error)]
pub(super) enum StartError {
    /// Its channel could not be made.
    #[error("socketpair: {0}")]
    Channel(#[source] io::Error),
    /// It could not be made.
    #[error("{}", crate::remedy::told(.0))]
    Spawn(#[from] SpawnError),
    /// It could not be told what it is.
    #[error("send the start: {0}")]
    Send(#[source] io::Error),
    /// Its description does not fit.
    #[error("describe it: {0}")]
    Packet(#[from] PacketError),
}

/// Opens and binds everything, in the order of the command line.
pub(super) fn prepare(
    registry: &Registry,
    options: &RunOptions,
) -> Result<Everything, OptionError> {
    if !options.disable_sandbox
        && let Some(directory) = &options.jail.seccomp_policy_dir
    {
        check_directory(directory)?;
    }
    let mut policies = BTreeMap::new();
    let opened: Vec<_> = options
        .devices
        .iter()
        .map(|d| open(registry, options, &mut policies, d))
        .collect::<Result<_, _>>()?;
    let claims: Vec<_> = options
        .devices
        .iter()
        .zip(&opened)
        .map(|(request, (opened, _))| Claims::check(&request.values, &opened.listens))
        .collect::<Result<_, _>>()?;
    let bound: Vec<_> = claims
        .into_iter()
        .map(Claims::bind)
        .collect::<Result<_, _>>()?;

    let mut everything = Everything {
        devices: Vec::new(),
        terminals: Vec::new(),
        notes: options.notes(processors()),
        made: Vec::new(),
    };
    for ((request, (opened, policies)), bound) in options.devices.iter().zip(opened).zip(bound) {
        let links = opened
            .aliases
            .iter()
            .map(|alias| AliasGuard::make(part(&request.values, alias.part), alias))
            .collect::<Result<_, _>>()?;
        everything.add(request, opened, policies, bound, links);
    }
    Ok(everything)
}

/// All that a device is to be reached by.
struct Claims<'a> {
    wire: Opening<'a>,
    own: Vec<Claim<'a>>,
}

/// The same, bound.
struct Bound {
    wire: Wire,
    own: Vec<Listening>,
}

impl<'a> Claims<'a> {
    fn check(values: &'a Values, listens: &[Listen]) -> Result<Self, OptionError> {
        let check = |listen: &Listen| Claim::check(part(values, listen.part), listen.key);
        Ok(Self {
            wire: Opening::open(values)?,
            own: listens.iter().map(check).collect::<Result<_, _>>()?,
        })
    }

    fn bind(self) -> Result<Bound, OptionError> {
        let Self { wire, own } = self;
        Ok(Bound {
            wire: wire.finish()?,
            own: own.into_iter().map(Claim::bind).collect::<Result<_, _>>()?,
        })
    }
}

/// The argument of one of a device's flags.
fn part(values: &Values, part: usize) -> &Values {
    match part {
        0 => values,
        further => &values.further()[further - 1],
    }
}

/// Policies are read once for each kind and transport, however many devices there are of it.
fn open(
    registry: &Registry,
    options: &RunOptions,
    policies: &mut BTreeMap<(&'static str, &'static str), ForRole>,
    request: &DeviceRequest,
) -> Result<(Opened<Value>, Option<Texts>), OptionError> {
    let entry = registry
        .find(request.kind)
        .expect("the command line knows only our kinds");
    let mut opened = entry.open(&request.values)?;
    assert!(
        opened.descriptors.len() + opened.listens.len() <= DESCRIPTORS_MAX,
        "{} opens too much",
        entry.name()
    );
    if options.disable_sandbox {
        return Ok((opened, None));
    }
    let transport = transport(&request.values);
    let key = (request.kind, transport.policy_part());
    let ForRole { texts, warning } = match policies.get(&key) {
        Some(known) => known.clone(),
        None => {
            let directory = options.jail.seccomp_policy_dir.as_ref();
            let path = directory.map(|directory| directory.path.as_path());
            let read = for_role(registry, entry, transport, path);
            let read = read.map_err(|error| match directory {
                Some(directory) => directory.error(error),
                // The user can do nothing about what this program is made of.
                None => OptionError::new(entry.name(), error),
            })?;
            policies.insert(key, read.clone());
            read
        }
    };
    opened.notes.extend(warning);
    Ok((opened, texts))
}

impl Everything {
    fn add(
        &mut self,
        request: &DeviceRequest,
        opened: Opened<Value>,
        policies: Option<Texts>,
        bound: Bound,
        links: Vec<AliasGuard>,
    ) {
        let Opened {
            description,
            descriptors: own,
            listens,
            aliases: _,
            reach,
            terminals,
            windows,
            notes,
            made,
        } = opened;
        let made = made.into_iter().map(|text| (request.name(), text));
        self.made.extend(made);
        let Wire {
            transport,
            mut place,
            mut descriptors,
            guard,
        } = bound.wire;
        for listen in listens {
            let path = part(&request.values, listen.part).path(listen.key);
            place.push_str(&format!(", {} {path:?}", listen.key));
        }
        let split = |Listening { descriptor, guard }| (descriptor, guard);
        let (sockets, guards): (Vec<_>, Vec<_>) = bound.own.into_iter().map(split).unzip();
        descriptors.extend(own.into_iter().chain(sockets));
        self.devices.push(Prepared {
            name: request.name(),
            poll: request.values.poll(),
            kind: request.kind,
            policies,
            description,
            descriptors,
            transport,
            place,
            reach: Reach::new(reach),
            windows: Windows::new(windows),
            names: Names {
                _sockets: guard.into_iter().chain(guards).collect(),
                _links: links,
            },
        });
        self.terminals.extend(terminals);
        for note in notes {
            if !self.notes.contains(&note) {
                self.notes.push(note);
            }
        }
    }
}

impl Prepared {
    /// Starts its process and tells it what it is. The supervisor's copies of its descriptors
    /// are closed then.
    pub(super) fn start(
        self,
        program: BorrowedFd<'_>,
        options: &RunOptions,
    ) -> Result<(vudev_jail::Child, OwnedFd, Known), StartError> {
        let Self {
            name,
            poll,
            kind,
            policies,
            description,
            descriptors,
            transport,
            place,
            reach,
            windows,
            names,
        } = self;
        let mode = (!options.disable_sandbox).then_some(options.jail.seccomp_mode);
        let known = Known {
            name: name.clone(),
            place,
            mode,
            reach,
            windows,
            names,
        };
        let start = Down::Start(Box::new(Start {
            name,
            kind: kind.to_owned(),
            transport,
            poll,
            sandbox: !options.disable_sandbox,
            policies,
            seccomp_mode: options.jail.seccomp_mode,
            verbosity: options.log_level.into(),
            description,
        }));
        let packet = start.encode()?;
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .map_err(|errno| StartError::Channel(errno.into()))?;
        let child = Spawn::new(program, ROLE)
            .expect("the role's name has no NUL")
            .keep(theirs.as_fd(), CHANNEL)
            .namespaces(!options.disable_sandbox)
            .spawn()?;
        send(&ours, &packet, &descriptors).map_err(StartError::Send)?;
        Ok((child, ours, known))
    }
}

/// The channel is empty and takes a packet of this size at once; a process that is dead already
/// gives EPIPE.
fn send(channel: &OwnedFd, packet: &[u8], descriptors: &[OwnedFd]) -> io::Result<()> {
    let descriptors: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(START_DESCRIPTORS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(
        control.push(SendAncillaryMessage::ScmRights(&descriptors)),
        "there is room for all"
    );
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    rustix::net::sendmsg(channel, &[IoSlice::new(packet)], &mut control, flags)?;
    Ok(())
}
