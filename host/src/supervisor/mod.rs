//! The supervisor: starts the devices' processes, prints what they say, and sees to it that they
//! end. It stays outside of the jails, on one thread and an executor of its own, and never waits
//! for a device or for the reader of its log.
//!
//! A device that hangs is found when it is asked to stop: it is killed at [`STOP_LIMIT`] and
//! named. There is no heartbeat on purpose. One would wake every idle device for ever, and could
//! only kill a device whose front-end may be content; an idle device costs nothing here.

mod alias;
mod child;
mod denied;
mod ending;
mod log_lines;
mod pace;
mod packets;
mod reach;
mod signals;
mod start;
mod terminal;
mod windows;
mod wire;

use std::ffi::OsString;
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::pin;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::{Duration, Instant};

use futures_util::future::{Either, select};
use futures_util::stream::{FuturesUnordered, StreamExt};
use log::Level;
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use vudev_executor::{Executor, File, Handle, Notify, Task};

use crate::Registry;
use crate::options::{Command, CommandLine, RunOptions, USAGE_STATUS};
use crate::policies::check_directory;
use child::{Child, Progress};
use ending::{Ending, Patience, signal_name};
use log_lines::LogLines;
pub(crate) use log_lines::say;
use signals::{Change, Heard, HeardSignals};
use start::{Everything, Prepared};
use terminal::RawTerminal;

/// How long devices may take to be ready. A hundred of them take 0.2 s on two cores.
const READY_LIMIT: Duration = Duration::from_secs(10);

/// How long devices may take to end after they were asked to: their own limit for requests in
/// flight, and some.
const STOP_LIMIT: Duration = Duration::from_millis(1500);

/// Signals this close together are one wish: timeout(1) sends each of its own twice, to the process
/// and to its group.
const SAME_WISH: Duration = Duration::from_millis(200);

/// How long the kernel may take to end a process that was killed. Longer only if it is stuck in
/// the kernel, where nobody can end it.
const KILL_LIMIT: Duration = Duration::from_millis(300);

/// The exit status when a device did not end as asked, or did not start.
pub(crate) const FAILED: u8 = 1;

/// The whole program but the roles.
pub(crate) fn main(registry: &Registry, program: &str, arguments: Vec<OsString>) -> ExitCode {
    log_lines::name(program);
    let tables: Vec<_> = registry.entries().iter().map(crate::Entry::table).collect();
    let command_line = CommandLine {
        program,
        tables: &tables,
    };
    match command_line.parse(arguments) {
        Ok(Command::Run(options)) => run(registry, &options),
        Ok(Command::Check { json, jail }) => {
            let directory = jail.seccomp_policy_dir.as_ref();
            match directory.map_or(Ok(()), check_directory) {
                Ok(()) => crate::check::main(registry, program, json, &jail),
                Err(error) => usage(&error),
            }
        }
        Ok(Command::Help(topic)) => print(&command_line.help(topic)),
        Ok(Command::Version) => print(&command_line.version()),
        Err(error) => usage(&error),
    }
}

/// A closed pipe is its reader's choice.
pub(crate) fn print(text: &str) -> ExitCode {
    use io::Write;
    match writeln!(io::stdout(), "{}", text.trim_end()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            say(Level::Error, &format!("standard output: {error}"));
            ExitCode::from(FAILED)
        }
        _ => ExitCode::SUCCESS,
    }
}

fn usage(error: &dyn std::error::Error) -> ExitCode {
    say(Level::Error, &error.to_string());
    ExitCode::from(USAGE_STATUS)
}

fn run(registry: &Registry, options: &RunOptions) -> ExitCode {
    log_lines::install(options.log_level);
    raise_limits();
    vudev_jail::spawn::keep_exit_statuses();
    let everything = match start::prepare(registry, options) {
        Ok(everything) => everything,
        Err(error) => return usage(&error),
    };
    match supervise(options, everything) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(FAILED),
        Err(error) => {
            say(Level::Error, &error.to_string());
            ExitCode::from(FAILED)
        }
    }
}

/// Each device costs the supervisor some descriptors (see `check`); the roles set their own limit
/// of them. And some kernels (6.18 say) count each ring as locked memory of its user: the usual 8
/// MiB are twenty disks (see `check`), root's devices included, since they are not root.
///
/// Limits that cannot be raised still do for some devices; which one they did not do for is told.
pub(crate) fn raise_limits() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let _ = raise(Resource::Nofile, maximum);
    // No limit at all can be had by root only.
    if raise(Resource::Memlock, None).is_err() {
        let Rlimit { maximum, .. } = getrlimit(Resource::Memlock);
        let _ = raise(Resource::Memlock, maximum);
    }
}

/// Soft and hard; `None` is no limit.
fn raise(resource: Resource, limit: Option<u64>) -> rustix::io::Result<()> {
    setrlimit(
        resource,
        Rlimit {
            current: limit,
            maximum: limit,
        },
    )
}

/// The supervisor itself could not run.
#[derive(Debug, thiserror::Error)]
#[error("{step}: {source}{}", remedy(step, source))]
struct SupervisorError {
    step: &'static str,
    source: io::Error,
}

/// What may help, behind a colon.
fn remedy(step: &str, error: &io::Error) -> String {
    let errno = Errno::from_io_error(error);
    let hint = errno.and_then(|errno| crate::remedy::of_step(step, errno));
    hint.map_or_else(String::new, |hint| format!(": {hint}"))
}

impl SupervisorError {
    fn at<E: Into<io::Error>>(step: &'static str) -> impl Fn(E) -> Self {
        move |source| Self {
            step,
            source: source.into(),
        }
    }
}

/// Runs all devices to their end; whether each ended as asked.
fn supervise(options: &RunOptions, everything: Everything) -> Result<bool, SupervisorError> {
    let Everything {
        devices,
        terminals,
        notes,
        made,
    } = everything;
    // Four operations a device (its channel both ways, its end, its denied calls), the signals,
    // stderr.
    let operations = u32::try_from(devices.len())
        .unwrap_or(u32::MAX)
        .saturating_mul(4);
    let executor = Executor::with_operations(operations.saturating_add(8)).map_err(|error| {
        SupervisorError::at("make the supervisor's own ring")(io::Error::other(error))
    })?;
    let handle = executor.handle();
    let lines = Rc::new(LogLines::default());
    log_lines::adopt(&lines);
    let stderr = io::stderr()
        .as_fd()
        .try_clone_to_owned()
        .map_err(SupervisorError::at("stderr"))?;
    // A write to a blocking terminal that somebody has stopped blocks the whole ring.
    let stderr = vudev_devices::console::detached(stderr);
    let writer = handle.spawn(Rc::clone(&lines).write_to(File::new(handle, stderr)));
    let program = vudev_jail::own_program().map_err(SupervisorError::at("/proc/self/exe"))?;
    let mut supervisor = Supervisor::new(handle, Rc::clone(&lines))?;

    for note in &notes {
        log::warn!("{note}");
    }
    for (name, text) in &made {
        lines.line(name, Level::Info, text);
    }
    let done = executor.run(async {
        let as_asked = supervisor.run(options, devices, program, terminals).await;
        lines.flush(handle).await;
        as_asked
    });
    drop((supervisor, writer));
    done.map_err(SupervisorError::at("io_uring_enter"))
}

/// What the supervisor waits for.
enum Event {
    /// A signal.
    Signal(Heard),
    /// A device is gone.
    Ended(Rc<Child>, Ending),
    /// A device has come further.
    Progress,
    /// The deadline has passed.
    Deadline,
}

/// All devices of a command.
struct Supervisor {
    handle: Handle,
    lines: Rc<LogLines>,
    children: Vec<Rc<Child>>,
    watches: FuturesUnordered<Task<(Rc<Child>, Ending)>>,
    changed: Rc<Notify>,
    signals: HeardSignals,
    as_asked: bool,
}

impl Supervisor {
    fn new(handle: &Handle, lines: Rc<LogLines>) -> Result<Self, SupervisorError> {
        let changed = Rc::new(Notify::new());
        let signals = HeardSignals::collect(handle, Rc::clone(&changed))
            .map_err(SupervisorError::at("signalfd"))?;
        Ok(Self {
            handle: handle.clone(),
            lines,
            children: Vec::new(),
            watches: FuturesUnordered::new(),
            changed,
            signals,
            as_asked: true,
        })
    }

    /// Start, serve, stop; whether every device ended as asked.
    async fn run(
        &mut self,
        options: &RunOptions,
        devices: Vec<Prepared>,
        program: OwnedFd,
        terminals: Vec<OwnedFd>,
    ) -> bool {
        if options.disable_sandbox {
            log::warn!("--disable-sandbox: the devices run WITHOUT A JAIL, with all your rights");
        }
        let started = self.start(options, devices, program.as_fd());
        drop(program);
        if started && self.until_ready().await {
            let _raw = self.raw_terminals(terminals);
            self.serve().await;
            self.stop().await;
        } else {
            self.stop().await;
        }
        self.as_asked
    }

    /// Starts all processes, one after another; false if one could not be.
    fn start(&mut self, options: &RunOptions, devices: Vec<Prepared>, program: impl AsFd) -> bool {
        for device in devices {
            let name = device.name.clone();
            match device.start(program.as_fd(), options) {
                Ok((process, channel, known)) => {
                    let surroundings = (&self.handle, &self.lines, &self.changed);
                    let child = Child::new(known, process, channel, surroundings);
                    let child = Rc::new(child);
                    let watch = Rc::clone(&child).watch(self.handle.clone());
                    self.watches.push(self.handle.spawn(watch));
                    self.children.push(child);
                }
                Err(error) => {
                    self.fail(&name, &format!("could not be started: {error}"));
                    return false;
                }
            }
        }
        true
    }

    /// Until all are ready; false if one will not be, or a signal came.
    async fn until_ready(&mut self) -> bool {
        let deadline = self.handle.now() + READY_LIMIT;
        let mut told = 0;
        while told < self.children.len() {
            match self.event(Some(deadline)).await {
                Event::Progress => told += self.tell_ready(),
                Event::Ended(child, ending) => {
                    self.fail(&child.name, &ending.text);
                    return false;
                }
                Event::Signal(Heard::Stop(signal)) => {
                    tell_signal(signal);
                    return false;
                }
                Event::Signal(Heard::Change(change)) => self.tell_change(change),
                Event::Deadline => {
                    self.fail_unready();
                    return false;
                }
            }
        }
        log::info!(
            "{told} {} ready",
            if told == 1 {
                "device is"
            } else {
                "devices are"
            }
        );
        true
    }

    /// How many have become ready since the last time.
    fn tell_ready(&self) -> usize {
        let ready: Vec<_> = self
            .children
            .iter()
            .filter(|child| child.has_become_ready())
            .collect();
        for child in &ready {
            let text = format!("ready at {} (process {})", child.place, child.pid);
            self.say(&child.name, Level::Info, &text);
        }
        ready.len()
    }

    fn fail_unready(&mut self) {
        let late: Vec<_> = self
            .children
            .iter()
            .filter(|child| child.progress() == Progress::Starting)
            .map(|child| child.name.clone())
            .collect();
        for name in late {
            self.fail(
                &name,
                &format!("is not ready after {} s", READY_LIMIT.as_secs()),
            );
        }
    }

    /// The guard is for as long as devices run; one that fails is no reason not to.
    fn raw_terminals(&self, terminals: Vec<OwnedFd>) -> Vec<RawTerminal> {
        let enter = |terminal| match RawTerminal::enter(terminal) {
            Ok(raw) => raw,
            Err(error) => {
                log::warn!("the terminal stays in line mode: {error}");
                None
            }
        };
        terminals.into_iter().filter_map(enter).collect()
    }

    /// Until a signal, or until the last device is gone.
    async fn serve(&mut self) {
        while !self.watches.is_empty() {
            match self.event(None).await {
                Event::Signal(Heard::Stop(signal)) => return tell_signal(signal),
                Event::Signal(Heard::Change(change)) => self.tell_change(change),
                Event::Ended(child, ending) => self.report(&child, &ending),
                Event::Progress | Event::Deadline => {}
            }
        }
    }

    /// Tells the devices of a change outside.
    fn tell_change(&self, change: Change) {
        for child in self.alive() {
            match change {
                Change::Refresh => child.refresh(),
                Change::Window => child.tell_windows(),
            }
        }
    }

    /// Asks all to stop and sees them gone, by force if need be.
    async fn stop(&mut self) {
        for child in self.alive() {
            child.ask_to_stop();
        }
        let patience = self.until_gone(STOP_LIMIT).await;
        for child in self.alive() {
            child.kill_overdue(patience);
        }
        let _ = self.until_gone(KILL_LIMIT).await;
        for child in self.alive() {
            child.remove_names();
            self.fail(
                &child.name,
                &format!("process {} cannot be killed", child.pid),
            );
        }
    }

    /// Until all are gone or `limit` has passed. A later signal is an impatient user's: it ends the
    /// wait.
    async fn until_gone(&mut self, limit: Duration) -> Patience {
        let begun = self.handle.now();
        let deadline = begun + limit;
        while !self.watches.is_empty() {
            match self.event(Some(deadline)).await {
                Event::Ended(child, ending) => self.report(&child, &ending),
                Event::Progress | Event::Signal(Heard::Change(_)) => {}
                Event::Signal(Heard::Stop(_)) if self.handle.now() < begun + SAME_WISH => {}
                Event::Signal(Heard::Stop(_)) => return Patience::SecondSignal,
                Event::Deadline => break,
            }
        }
        Patience::Limit(limit)
    }

    fn alive(&self) -> Vec<Rc<Child>> {
        let alive = |child: &&Rc<Child>| child.progress() != Progress::Ended;
        self.children.iter().filter(alive).cloned().collect()
    }

    fn report(&mut self, child: &Child, ending: &Ending) {
        if ending.as_asked {
            self.say(&child.name, Level::Info, &ending.text);
        } else {
            self.fail(&child.name, &ending.text);
        }
    }

    fn fail(&mut self, name: &str, text: &str) {
        self.as_asked = false;
        self.say(name, Level::Error, text);
    }

    fn say(&self, name: &str, level: Level, text: &str) {
        if level <= log::max_level() {
            self.lines.line(name, level, text);
        }
    }

    /// The next thing that happens. Nothing is lost between two calls: signals and progress are
    /// kept by others, endings by their tasks.
    async fn event(&mut self, deadline: Option<Instant>) -> Event {
        if let Some(signal) = self.signals.take() {
            return Event::Signal(signal);
        }
        let ended = pin!(next_ending(&mut self.watches));
        let changed = pin!(self.changed.notified());
        match before(&self.handle, deadline, select(ended, changed)).await {
            Some(Either::Left(((child, ending), _))) => Event::Ended(child, ending),
            Some(Either::Right(((), _))) => match self.signals.take() {
                Some(signal) => Event::Signal(signal),
                None => Event::Progress,
            },
            None => Event::Deadline,
        }
    }
}

/// Pending for ever when there is nobody left.
async fn next_ending(
    watches: &mut FuturesUnordered<Task<(Rc<Child>, Ending)>>,
) -> (Rc<Child>, Ending) {
    match watches.next().await {
        Some(ended) => ended,
        None => std::future::pending().await,
    }
}

async fn before<F: Future>(
    handle: &Handle,
    deadline: Option<Instant>,
    future: F,
) -> Option<F::Output> {
    match deadline {
        Some(deadline) => {
            let rest = deadline.saturating_duration_since(handle.now());
            handle.timeout(rest, future).await
        }
        None => Some(future.await),
    }
}

fn tell_signal(signal: i32) {
    log::info!("{}: stopping", signal_name(signal).unwrap_or("signal"));
}
