//! One device's process, from the first line of `main` to its event loop: it learns over the
//! control channel what it is to be, takes what it needs, and closes its jail behind itself. The
//! jail's steps are `vudev-jail`'s; their order among the host's own is here.

mod outside;
pub(crate) mod serve;
pub(crate) mod wire;

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
use std::rc::Rc;

use rustix::process::Signal;
use vudev_executor::{Config, Executor, Handle, Latch, Ring, RingError, Signals, Socket};
use vudev_jail::role::Step;
use vudev_jail::{BeginError, Begun, Denials, Jail, Limits, StepError};

use crate::Registry;
use crate::broker::Broker;
use crate::channel::device::{Channel, ChannelError};
use crate::channel::{CHANNEL, LISTENER, SIGSYS, Start, Up, logger};
use crate::kind::{CreateError, Given};
use crate::options::SeccompMode;
use crate::policies::{Policies, PoliciesError};
use serve::{ServeError, Served};
use wire::{Wire, WireError};

/// Ring operations that are not the device's: the channel and signals of this process, the
/// wire's accept, and a session's message and its kicks, which use the ring's reserve as well.
const OPERATIONS_OF_HOST: u32 = 16;

/// Descriptors a device may hold: its own, and of a front-end two or three for each of 256 queues
/// and one for each of 509 memory regions.
const OPEN_FILES_MAX: u64 = 4096;

/// Bytes of memory of its own that a device may have, so that one that was taken over cannot take
/// the host's. An idle one has some hundred KiB; guest memory is not counted.
const DATA_MAX: u64 = 512 << 20;

/// Why a role ended before its time. Everything that can be told goes to the supervisor.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RoleError {
    /// It could not learn what to be.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// The binary's registry has no such kind: the supervisor is another binary.
    #[error("no device kind is called {0:?}")]
    Kind(String),
    /// What front-ends are to come through cannot be used.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// A policy is missing or malformed.
    #[error(transparent)]
    Policies(#[from] PoliciesError),
    /// The ring could not be made.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// The device could not be made.
    #[error(transparent)]
    Create(#[from] CreateError),
    /// The kind promised fewer ring operations than its device declares.
    #[error("the device needs {needed} ring operations, its kind promised {promised}")]
    Operations {
        /// What the device declares.
        needed: u32,
        /// What the ring was made for.
        promised: u32,
    },
    /// A system call of the host's own failed.
    #[error("{source}")]
    System {
        /// What was being done.
        step: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// A step of the jail failed.
    #[error(transparent)]
    Jail(#[from] StepError),
    /// It stopped serving in another way than was asked for.
    #[error(transparent)]
    Serve(#[from] ServeError),
}

impl RoleError {
    fn at(step: &'static str) -> impl Fn(std::io::Error) -> Self {
        move |source| Self::System { step, source }
    }

    /// What the supervisor is told: the step, its errno and the rest.
    fn report(&self) -> Up {
        let (step, errno) = match self {
            Self::Channel(_) => ("receive the start", 0),
            Self::Serve(ServeError::NoSocket)
            | Self::Kind(_)
            | Self::Wire(WireError::Descriptors { .. }) => ("read the start", 0),
            Self::Wire(WireError::Function(_) | WireError::Unfit(_)) => ("map the VVU device", 0),
            Self::Policies(_) => ("read the policies", 0),
            Self::Ring(_) => ("make the ring", 0),
            Self::Create(CreateError::Io { step, source }) => (*step, errno_of(source)),
            Self::Create(_) | Self::Operations { .. } => ("make the device", 0),
            Self::System { step, source } => (*step, errno_of(source)),
            Self::Jail(error) => (error.step, error.errno.raw_os_error()),
            Self::Serve(ServeError::Undrained) => ("finish the requests", 0),
        };
        Up::StepFailed {
            step: step.to_owned(),
            errno,
            text: self.to_string(),
        }
    }
}

fn errno_of(error: &std::io::Error) -> i32 {
    error.raw_os_error().unwrap_or(0)
}

/// The role's whole life. Its exit status is 0 if it ended because it was asked to.
pub(crate) fn main(registry: &Registry) -> ExitCode {
    let (begun, socket) = match Jail::begin([CHANNEL]) {
        Ok((begun, [socket])) => (Ok(begun), Some(socket)),
        Err(BeginError { step, mut kept }) => (Err(step), kept.pop()),
    };
    let channel = match (socket.map(Channel::new), &begun) {
        // The logger and the panic hook need it until the process ends.
        (Some(Ok(channel)), _) => &*Box::leak(Box::new(channel)),
        (Some(Err(error)), _) => return typed(registry, &error),
        (None, Err(step)) => return typed(registry, step),
        (None, Ok(_)) => unreachable!("who has begun has the channel"),
    };
    let lived = match begun {
        Ok(begun) => live(registry, begun, channel),
        Err(step) => Err(step.into()),
    };
    match lived {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody to tell it to is no reason for another status.
            let _ = channel.tell(&error.report());
            ExitCode::FAILURE
        }
    }
}

/// Somebody has typed our role's name: the one case in which stderr is a person's.
fn typed(registry: &Registry, error: &dyn std::error::Error) -> ExitCode {
    let program = registry.program(None);
    let text = "this is no command, but the name of a device's process";
    let _ = writeln!(std::io::stderr(), "{program}: {text}: {error}");
    ExitCode::from(crate::options::USAGE_STATUS)
}

fn live(registry: &Registry, begun: Begun, channel: &'static Channel) -> Result<(), RoleError> {
    let (start, descriptors) = channel.receive_start()?;
    logger::install(channel, start.verbosity.into());
    let role = Role::prepare(registry, channel, start, descriptors)?;
    role.close_jail(begun, channel)?;
    channel
        .tell(&Up::Ready)
        .map_err(RoleError::at("say that it is ready"))?;
    role.run()
}

/// A device that has all it will ever get.
struct Role {
    executor: Executor,
    device: Rc<dyn Served>,
    broker: Broker,
    wire: Wire,
    control: Socket,
    signals: Signals,
    policies: Option<Policies>,
    seccomp_mode: SeccompMode,
}

impl Role {
    /// Everything that needs a right which the jail takes away.
    fn prepare(
        registry: &Registry,
        channel: &'static Channel,
        start: Start,
        mut descriptors: Vec<OwnedFd>,
    ) -> Result<Self, RoleError> {
        let entry = registry
            .find(&start.kind)
            .ok_or_else(|| RoleError::Kind(start.kind.clone()))?;
        let policies = match start.sandbox {
            true => {
                let (texts, denials) = (start.policies.as_ref(), denials(start.seccomp_mode));
                let transport = start.transport;
                Some(Policies::of_role(
                    registry, entry, transport, texts, denials,
                )?)
            }
            false => None,
        };
        let promised = entry.operations(&start.description)?;
        let allowed = policies.as_ref().map(|policies| policies.ring.clone());
        let of_host = OPERATIONS_OF_HOST + wire::operations(start.transport);
        let config = Config {
            allowed,
            ..Config::new(promised.saturating_add(of_host))
        };
        let executor = Executor::new(Ring::new(&config)?);
        executor.set_polling(start.poll.on(processors()));
        // A wire's come first; too few of them are its error.
        let own = descriptors.split_off(wire::descriptors(start.transport).min(descriptors.len()));
        let broker = Broker::new(channel);
        let device = entry.create(Given {
            handle: executor.handle().clone(),
            description: start.description,
            descriptors: own,
            broker: broker.clone(),
        })?;
        let handle = executor.handle();
        let wire = Wire::new(handle, start.transport, descriptors, device.queues())?;
        let needed = device.operations();
        if needed > promised {
            return Err(RoleError::Operations { needed, promised });
        }
        // Asked of the kernel once (PR_GET_AUXV, which no policy allows) and remembered; memory
        // that comes with a front-end needs it.
        let _ = rustix::param::page_size();
        vudev_virtio::install_sigbus_guard().map_err(RoleError::at("install the SIGBUS guard"))?;
        let signals = signals(executor.handle())?;
        let control = channel
            .try_clone()
            .map_err(RoleError::at("copy the channel"))?;
        let control = Socket::new(executor.handle(), control);
        Ok(Self {
            executor,
            device,
            broker,
            wire,
            control,
            signals,
            policies,
            seccomp_mode: start.seccomp_mode,
        })
    }

    /// From here on there is only what the policies allow.
    fn close_jail(&self, begun: Begun, channel: &Channel) -> Result<(), RoleError> {
        let channel = channel.as_fd();
        let enable_ring = || self.executor.enable();
        let Some(Policies { program, .. }) = &self.policies else {
            return Ok(begun.stay_outside(channel, enable_ring)?);
        };
        let jail = begun.policy(program).limits(Limits {
            open_files: OPEN_FILES_MAX,
            // The ring has been made, and what it counted stays counted.
            locked_memory: Some(0),
            data: Some(DATA_MAX),
        });
        let jail = match self.seccomp_mode {
            SeccompMode::Trap | SeccompMode::Kill => jail,
            SeccompMode::Log => jail.listen(LISTENER),
        };
        jail.enter_step_by_step(channel, SIGSYS, enable_ring, |step| {
            if let Step::Landlock(landlock) = step {
                match landlock.abi {
                    0 => log::warn!("no Landlock here: the jail has one layer less"),
                    abi => log::debug!("landlock interface {abi}"),
                }
            }
        })?;
        Ok(())
    }

    /// Front-ends, until the supervisor says stop.
    fn run(self) -> Result<(), RoleError> {
        let Self {
            executor,
            device,
            broker,
            wire,
            control,
            signals,
            policies: _,
            seccomp_mode: _,
        } = self;
        let handle = executor.handle().clone();
        let stop = Rc::new(Latch::new());
        let told = outside::watch_channel(control, Rc::clone(&device), broker, Rc::clone(&stop));
        let watch = handle.spawn(told);
        let listen = handle.spawn(outside::watch_signals(signals, Rc::clone(&stop)));
        let served = executor
            .run(device.serve(handle.clone(), wire, stop))
            .map_err(RoleError::at("io_uring_enter"))?;
        drop((watch, listen));
        Ok(served?)
    }
}

/// How many processors this process may run on. One if the kernel does not say.
pub(crate) fn processors() -> u32 {
    rustix::thread::sched_getaffinity(None).map_or(1, |set| set.count())
}

/// What the user's choice asks of the policies.
fn denials(mode: SeccompMode) -> Denials {
    match mode {
        SeccompMode::Trap => Denials::AsWritten,
        SeccompMode::Kill => Denials::Kill,
        SeccompMode::Log => Denials::Notify { channel: CHANNEL },
    }
}

/// PID 1 of a namespace ignores what it does not handle: these are how a person stops a device.
fn signals(handle: &Handle) -> Result<Signals, RoleError> {
    Signals::new(handle, &[Signal::TERM, Signal::INT]).map_err(RoleError::at("signalfd"))
}
