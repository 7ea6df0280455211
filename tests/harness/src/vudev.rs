//! A running `vudev`, as a user would start it. It knows the command line and the exit status, and
//! nothing of what goes on inside.

use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::Signal;

use crate::Child;
use crate::child::describe;

/// Points to the program to test, if it is not the one beside the running test.
const PROGRAM_VARIABLE: &str = "VUDEV";

/// Starting takes milliseconds; this is for a machine that is very busy.
const START_LIMIT: Duration = Duration::from_secs(20);

/// How often a socket that is not there yet is looked for.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// A `vudev` command line that is being described.
#[derive(Debug)]
pub struct VudevCommand {
    program: PathBuf,
    arguments: Vec<OsString>,
    devices: usize,
    sockets: Vec<PathBuf>,
    input: Stdio,
    output: Stdio,
    errors: Option<Stdio>,
}

impl VudevCommand {
    /// The program that was built together with the running test.
    pub fn new() -> Result<Self> {
        Ok(Self::of(&program()?))
    }

    /// This program.
    pub fn of(program: &Path) -> Self {
        Self {
            program: program.to_owned(),
            arguments: Vec::new(),
            devices: 0,
            sockets: Vec::new(),
            input: Stdio::null(),
            output: Stdio::null(),
            errors: None,
        }
    }

    /// Adds a device: `--kind options,vhost=wire`. The wire is a socket's absolute path, or the
    /// address of a PCI function.
    pub fn device(mut self, kind: &str, options: &str, wire: &Path) -> Self {
        self.arguments.push(format!("--{kind}").into());
        let comma = if options.is_empty() { "" } else { "," };
        self.arguments
            .push(format!("{options}{comma}vhost={}", wire.display()).into());
        self.devices += 1;
        if wire.is_absolute() {
            self.sockets.push(wire.to_owned());
        }
        self
    }

    /// Adds a console.
    pub fn serial(self, options: &str, socket: &Path) -> Self {
        self.device("serial", options, socket)
    }

    /// Adds a disk.
    pub fn block(self, options: &str, socket: &Path) -> Self {
        self.device("block", options, socket)
    }

    /// Adds an argument as it stands.
    pub fn argument(mut self, argument: impl Into<OsString>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Where standard input comes from; nothing by default.
    pub fn input(mut self, input: impl Into<Stdio>) -> Self {
        self.input = input.into();
        self
    }

    /// Where standard output goes; nowhere by default.
    pub fn output(mut self, output: impl Into<Stdio>) -> Self {
        self.output = output.into();
        self
    }

    /// Where standard error goes; [`Vudev::log`] by default.
    pub fn errors(mut self, errors: impl Into<Stdio>) -> Self {
        self.errors = Some(errors.into());
        self
    }

    /// Starts it and waits until all its sockets are listening and all its devices are started.
    pub fn start(self) -> Result<Vudev> {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments);
        let log = tempfile::tempfile()?;
        let errors = match self.errors {
            Some(errors) => errors,
            None => log.try_clone()?.into(),
        };
        let (input, output) = (self.input, self.output);
        let process = Child::start_with("vudev", &command, |command| {
            command.stdin(input).stdout(output).stderr(errors);
        })?;
        let mut vudev = Vudev { process, log };
        match vudev.wait_until_ready(&self.sockets, self.devices) {
            Ok(()) => Ok(vudev),
            Err(error) => bail!("{error:#}; vudev said:\n{}", vudev.log()?),
        }
    }
}

/// A `vudev` that was started. Dropped, it is killed, and its devices with it.
#[derive(Debug)]
pub struct Vudev {
    process: Child,
    log: File,
}

impl Vudev {
    /// The supervisor's process id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// The process ids of its devices: the supervisor's children, in the order of their start.
    pub fn devices(&self) -> Result<Vec<u32>> {
        let path = format!("/proc/{0}/task/{0}/children", self.id());
        let children = fs::read_to_string(&path).with_context(|| path.clone())?;
        children
            .split_whitespace()
            .map(|id| id.parse().context(path.clone()))
            .collect()
    }

    /// Sockets listen before there are processes behind them.
    fn wait_until_ready(&mut self, sockets: &[PathBuf], devices: usize) -> Result<()> {
        for socket in sockets {
            wait_until_listening(socket, &mut self.process, START_LIMIT)?;
        }
        self.wait_until(|vudev| Ok(vudev.devices()?.len() >= devices))?;
        // One on a function is ready when it says so: nothing can be seen of it.
        match devices > sockets.len() {
            true => self.wait_until_jailed(devices),
            false => Ok(()),
        }
    }

    /// Waits until so many devices have said that they are ready. Who changes a device's process
    /// from outside waits for this: before it, a device may not have looked at what it was given.
    pub fn wait_until_jailed(&mut self, devices: usize) -> Result<()> {
        let said = |log: &str| log.matches(": ready at ").count();
        self.wait_until(|vudev| Ok(said(&vudev.log()?) >= devices))
            .with_context(|| format!("it said: {}", self.log().unwrap_or_default()))
    }

    fn wait_until(&mut self, is_so: impl Fn(&Self) -> Result<bool>) -> Result<()> {
        let deadline = Instant::now() + START_LIMIT;
        while !is_so(self)? {
            if let Some(status) = self.process.wait_at_most(LOOK_AGAIN)? {
                bail!(
                    "vudev ended with {} before its devices started",
                    describe(status)
                );
            }
            if Instant::now() > deadline {
                bail!("not all devices have started");
            }
        }
        Ok(())
    }

    /// What it has written to standard error so far.
    pub fn log(&self) -> Result<String> {
        let mut bytes = vec![0; usize::try_from(self.log.metadata()?.len())?];
        self.log.read_exact_at(&mut bytes, 0)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Sends the supervisor a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(self.process.signal(signal)?)
    }

    /// Waits for the supervisor's end.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        self.process.wait(limit)
    }

    /// Ends it by SIGTERM, which must work.
    pub fn stop(mut self) -> Result<()> {
        let status = self.process.stop()?;
        if !status.success() {
            bail!(
                "vudev ended with {}; it said:\n{}",
                describe(status),
                self.log()?
            );
        }
        Ok(())
    }
}

/// Waits until a process listens at `socket`, without connecting to it: a back-end would take that
/// for a front-end.
pub fn wait_until_listening(socket: &Path, process: &mut Child, limit: Duration) -> Result<()> {
    let deadline = Instant::now() + limit;
    while !is_listening(socket)? {
        if let Some(status) = process.wait_at_most(LOOK_AGAIN)? {
            bail!(
                "{} ended with {} before it listened",
                process.name(),
                describe(status)
            );
        }
        if Instant::now() > deadline {
            bail!("{} does not listen at {}", process.name(), socket.display());
        }
    }
    Ok(())
}

/// Looks into the kernel's table of Unix sockets: the fourth column has flags, of which 0x10000
/// (`__SO_ACCEPTCON`) means listening; the last is the path.
fn is_listening(socket: &Path) -> Result<bool> {
    // Of this thread, which may have gone into another network.
    let table = "/proc/thread-self/net/unix";
    let table = fs::read_to_string(table).context(table)?;
    let wanted = socket.to_string_lossy();
    Ok(table.lines().any(|line| {
        let mut columns = line.split_whitespace();
        let flags = columns
            .nth(3)
            .and_then(|flags| u32::from_str_radix(flags, 16).ok());
        let path = columns.nth(3);
        path == Some(&*wanted) && flags.is_some_and(|flags| flags & 0x1_0000 != 0)
    }))
}

/// The `vudev` that was built together with the running program, which is in the same folder or
/// (a test) in its `deps`.
fn program() -> Result<PathBuf> {
    if let Some(program) = env::var_os(PROGRAM_VARIABLE) {
        return Ok(program.into());
    }
    let running = env::current_exe().context("where is the running program?")?;
    let found = running
        .ancestors()
        .skip(1)
        .take(2)
        .map(|folder| folder.join("vudev"))
        .find(|program| program.is_file());
    found.context("there is no `vudev` beside this test; `cargo build -p vudev` makes it")
}
