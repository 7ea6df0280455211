//! The process on trial: it goes through the steps of a device's process, tells each outcome, and
//! ends where a device would begin to serve.

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;

use rustix::net::SendFlags;
use vudev_executor::{Allowed, Config, Executor, OPCODES, Ring, RingError};
use vudev_jail::ring::opcode_name;
use vudev_jail::role::Step;
use vudev_jail::{BeginError, Begun, Denials, Jail, Limits, StepError};

use super::facts::{FACT_MAX, Fact, Found, Tried};
use crate::Registry;
use crate::channel::{CHANNEL, SIGSYS, Transport};
use crate::options::USAGE_STATUS;
use crate::policies::Policies;

/// Argument: live just long enough to have been started.
pub(super) const NAMESPACES: &str = "namespaces";
/// Argument: every step.
pub(super) const JAIL: &str = "jail";
/// Argument: every step that needs no namespaces.
pub(super) const PLAIN: &str = "plain";

/// Descriptors left after the jail is closed; the ring, the channel and some.
const OPEN_FILES_MAX: u64 = 64;

/// The process's whole life.
pub(crate) fn main(registry: &Registry, argument: Option<&str>) -> ExitCode {
    let namespaces = match argument {
        Some(NAMESPACES) => return ExitCode::SUCCESS,
        Some(JAIL) => true,
        Some(PLAIN) => false,
        _ => return typed(registry),
    };
    let (begun, channel) = match Jail::begin([CHANNEL]) {
        Ok((begun, [channel])) => (begun, channel),
        Err(BeginError { step, mut kept }) => {
            let Some(channel) = kept.pop() else {
                return typed(registry);
            };
            Role { channel }.tell(Tried::Process, step_failed(step));
            return ExitCode::FAILURE;
        }
    };
    let role = Role { channel };
    match role.live(registry, begun, namespaces) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Told) => ExitCode::FAILURE,
    }
}

/// Somebody has typed our role's name: the one case in which stderr is a person's.
fn typed(registry: &Registry) -> ExitCode {
    let program = registry.program(None);
    let text = "this is no command, but the name of a process of `check`";
    let _ = writeln!(std::io::stderr(), "{program}: {text}");
    ExitCode::from(USAGE_STATUS)
}

/// A step failed after which nothing else can be tried, and the supervisor knows.
struct Told;

struct Role {
    channel: OwnedFd,
}

impl Role {
    fn live(&self, registry: &Registry, begun: Begun, namespaces: bool) -> Result<(), Told> {
        let executor = self.ring();
        if namespaces {
            self.identity();
        }
        let policies = registry.entries().first().map(|entry| {
            let wire = Transport::VhostUser;
            Policies::of_role(registry, entry, wire, None, Denials::AsWritten)
        });
        let Some(Ok(policies)) = policies else {
            self.enter(begun.without_policy(), executor.as_ref(), namespaces)?;
            let text = "no device has a policy for this processor".to_owned();
            return self.must(Tried::Filter, Err(Found::Failed(text, 0)));
        };
        let jail = begun.policy(&policies.program);
        self.enter(jail, executor.as_ref(), namespaces)
    }

    /// Tells what io_uring has; the ring as a device's is made.
    fn ring(&self) -> Option<Executor> {
        let support = match vudev_executor::support() {
            Ok(support) => support,
            Err(error) => {
                self.tell(Tried::Ring, ring_failed(&error));
                return None;
            }
        };
        self.tell(Tried::RingFlags, all(&support.flags));
        self.tell(Tried::RingFeatures, all(&support.features));
        let name = |opcode| opcode_name(opcode).unwrap_or("an operation without a name");
        let named: Vec<_> = support
            .opcodes
            .iter()
            .map(|(opcode, there)| (name(*opcode), *there))
            .collect();
        self.tell(Tried::RingOpcodes, all(&named));
        let restrictions = [("IORING_REGISTER_RESTRICTIONS", support.restrictions)];
        self.tell(Tried::RingRestrictions, all(&restrictions));
        let config = Config {
            allowed: Some(Allowed {
                opcodes: OPCODES.to_vec(),
                flags: 0,
            }),
            ..Config::new(1)
        };
        match Ring::new(&config) {
            Ok(ring) => {
                self.tell(
                    Tried::Ring,
                    Found::There("a restricted ring can be made".to_owned()),
                );
                Some(Executor::new(ring))
            }
            Err(error) => {
                self.tell(Tried::Ring, ring_failed(&error));
                None
            }
        }
    }

    /// Who we are outside of our namespace.
    fn identity(&self) {
        let outside = |map: &str| {
            let text = std::fs::read_to_string(format!("/proc/self/{map}")).unwrap_or_default();
            text.split_whitespace().nth(1).unwrap_or("?").to_owned()
        };
        let (user, group) = (outside("uid_map"), outside("gid_map"));
        let text = format!("devices run as user {user}, group {group}");
        self.tell(Tried::Identity, Found::There(text));
    }

    fn enter(
        &self,
        jail: Jail<'_>,
        executor: Option<&Executor>,
        namespaces: bool,
    ) -> Result<(), Told> {
        let mut next = if namespaces {
            Tried::EmptyRoot
        } else {
            Tried::Landlock
        };
        let jail = jail.namespaces(namespaces).limits(Limits {
            open_files: OPEN_FILES_MAX,
            locked_memory: Some(0),
            data: None,
        });
        let enable_ring = || executor.map_or(Ok(()), Executor::enable);
        let entered = jail.enter_step_by_step(self.channel.as_fd(), SIGSYS, enable_ring, |step| {
            let (tried, found, then) = outcome(step, namespaces);
            if let Some(found) = found {
                self.tell(tried, found);
            }
            next = then;
        });
        self.must(next, entered.map_err(step_failed))
    }

    fn must(&self, tried: Tried, outcome: Result<(), Found>) -> Result<(), Told> {
        outcome.map_err(|found| {
            self.tell(tried, found);
            Told
        })
    }

    /// A supervisor that has left does not need to know.
    fn tell(&self, tried: Tried, found: Found) {
        let packet = serde_json::to_vec(&Fact { tried, found }).unwrap_or_default();
        debug_assert!(packet.len() <= FACT_MAX, "the names are ours");
        let flags = SendFlags::NOSIGNAL;
        let _ = rustix::io::retry_on_intr(|| rustix::net::send(&self.channel, &packet, flags));
    }
}

/// What is told of a step that has succeeded, and what a failure of the next one is told of.
fn outcome(step: Step, namespaces: bool) -> (Tried, Option<Found>, Tried) {
    let there = |text: &str| Some(Found::There(text.to_owned()));
    match step {
        Step::EmptyRoot => {
            let text = "an empty read-only root, the host's is out of reach";
            (Tried::EmptyRoot, there(text), Tried::Landlock)
        }
        Step::Landlock(landlock) => {
            let text = match (landlock.abi, landlock.complete) {
                (abi, true) => format!("interface {abi}, all restrictions in force"),
                (abi, false) => format!("interface {abi}, all that it has in force"),
            };
            let found = match landlock.abi {
                0 => Found::Lacks(vec!["landlock".to_owned()]),
                _ => Found::There(text),
            };
            let then = if namespaces {
                Tried::Capabilities
            } else {
                Tried::Process
            };
            (Tried::Landlock, Some(found), then)
        }
        Step::Capabilities => (Tried::Capabilities, there("none is left"), Tried::Process),
        Step::Limits => (Tried::Process, None, Tried::Process),
        Step::Process => {
            let text = "limits, no dumps, no new privileges, an end with the supervisor's";
            (Tried::Process, there(text), Tried::Ring)
        }
        Step::Ring => (Tried::Ring, None, Tried::Filter),
        Step::Filter => {
            let text = "a device's policy is in force";
            (Tried::Filter, there(text), Tried::Filter)
        }
    }
}

/// All of them, or which are not there.
fn all(parts: &[(&str, bool)]) -> Found {
    let names = |there: bool| {
        let named = parts.iter().filter(move |part| part.1 == there);
        named
            .map(|(name, _)| (*name).to_owned())
            .collect::<Vec<_>>()
    };
    match names(false) {
        none if none.is_empty() => Found::There(names(true).join(" ")),
        missing => Found::Lacks(missing),
    }
}

fn ring_failed(error: &RingError) -> Found {
    let source = std::error::Error::source(error);
    let source = source.and_then(|source| source.downcast_ref::<std::io::Error>());
    let errno = source.and_then(std::io::Error::raw_os_error).unwrap_or(0);
    Found::Failed("io_uring_setup".to_owned(), errno)
}

fn step_failed(error: StepError) -> Found {
    Found::Failed(error.step.to_owned(), error.errno.raw_os_error())
}
