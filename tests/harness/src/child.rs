//! A process with a deadline that does not outlive its owner. It is not for processes that are
//! simply run to their end: `std::process::Command::output` does that.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{ChildStdin, ChildStdout, Command, ExitStatus};
use std::time::{Duration, Instant};
use std::{fs, io};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// How long a process that was told to end may take, before it is killed.
const PATIENCE: Duration = Duration::from_secs(5);

/// A running process. Dropped, it is killed and reaped.
#[derive(Debug)]
pub struct Child {
    name: String,
    process: std::process::Child,
    pidfd: OwnedFd,
}

impl Child {
    /// Starts `command`, which errors then call `name`. The kernel ends it if this thread ends
    /// first, however that happens.
    pub fn start(name: &str, command: &Command) -> Result<Self> {
        Self::start_with(name, command, |_| ())
    }

    /// As [`Child::start`]; `set_up` says where standard input, output and error go.
    pub fn start_with(
        name: &str,
        command: &Command,
        set_up: impl FnOnce(&mut Command),
    ) -> Result<Self> {
        let mut command = bound_to_parent(command);
        set_up(&mut command);
        let process = command
            .spawn()
            .with_context(|| format!("{name} does not start"))?;
        let pid = i32::try_from(process.id()).ok().and_then(Pid::from_raw);
        let pid = pid.context("a process id out of range")?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).context("pidfd_open")?;
        Ok(Self {
            name: name.to_owned(),
            process,
            pidfd,
        })
    }

    /// What errors call this process.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// The writing end of its standard input, if that was piped and not taken yet.
    pub fn take_stdin(&mut self) -> Option<ChildStdin> {
        self.process.stdin.take()
    }

    /// The reading end of its standard output, if that was piped and not taken yet.
    pub fn take_stdout(&mut self) -> Option<ChildStdout> {
        self.process.stdout.take()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        Ok(pidfd_send_signal(&self.pidfd, signal)?)
    }

    /// Its exit status, if it has ended.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.process.try_wait()?)
    }

    /// Waits at most this long; `None` if it is still running then.
    pub fn wait_at_most(&mut self, limit: Duration) -> Result<Option<ExitStatus>> {
        let deadline = Instant::now() + limit;
        readable_before(&self.pidfd, deadline)?;
        self.ended()
    }

    /// Waits for its end; an error if that has not come in time.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        match self.wait_at_most(limit)? {
            Some(status) => Ok(status),
            None => bail!("{} has not ended within {limit:?}", self.name),
        }
    }

    /// Asks it to end by SIGTERM, and kills it if it does not. Its exit status says which it was.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        if let Some(status) = self.ended()? {
            return Ok(status);
        }
        self.signal(Signal::TERM)?;
        if let Some(status) = self.wait_at_most(PATIENCE)? {
            return Ok(status);
        }
        self.process.kill()?;
        Ok(self.process.wait()?)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // Nobody is left to tell; a process that is gone already is what was wanted.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// How a process ended, in words.
pub(crate) fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "an unknown end".to_owned(),
    }
}

/// Waits until `fd` can be read (or its other end is gone); false if the deadline came first.
pub(crate) fn readable_before(fd: impl AsFd, deadline: Instant) -> io::Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
        let mut polled = [PollFd::new(&fd, PollFlags::IN)];
        match poll(&mut polled, Some(&timeout)) {
            Ok(0) if Instant::now() >= deadline => return Ok(false),
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Ok(_) => return Ok(true),
            Err(error) => return Err(error.into()),
        }
    }
}

/// The same command, run by `setpriv --pdeathsig` where that exists, which keeps the process id.
fn bound_to_parent(command: &Command) -> Command {
    // Busybox has a program of that name as well, and it is another: a link to all of busybox.
    let is_itself = |path: &&str| {
        let found = fs::canonicalize(path);
        found.is_ok_and(|path| path.ends_with("setpriv"))
    };
    let Some(setpriv) = ["/usr/bin/setpriv", "/bin/setpriv"]
        .into_iter()
        .find(is_itself)
    else {
        return copy(command, Command::new(command.get_program()));
    };
    let mut bound = Command::new(setpriv);
    bound
        .args(["--pdeathsig", "TERM", "--"])
        .arg(command.get_program());
    copy(command, bound)
}

fn copy(from: &Command, mut to: Command) -> Command {
    to.args(from.get_args());
    for (name, value) in from.get_envs() {
        match value {
            Some(value) => to.env(name, value),
            None => to.env_remove(name),
        };
    }
    if let Some(folder) = from.get_current_dir() {
        to.current_dir(folder);
    }
    to
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_takes_too_long_is_an_error_that_names_it() {
        let mut command = Command::new("sleep");
        command.arg("60");
        let mut child = Child::start("sleeper", &command).unwrap();
        let error = child
            .wait(Duration::from_millis(10))
            .unwrap_err()
            .to_string();
        assert!(error.contains("sleeper"), "{error}");
    }

    #[test]
    fn a_dropped_process_is_gone() {
        let mut command = Command::new("sleep");
        command.arg("60");
        let child = Child::start("sleeper", &command).unwrap();
        let pidfd = child.pidfd.try_clone().unwrap();
        drop(child);
        assert!(pidfd_send_signal(&pidfd, Signal::TERM).is_err());
    }

    #[test]
    fn the_exit_status_is_the_programs_own() {
        let mut command = Command::new("sh");
        command.args(["-c", "exit 7"]);
        let mut child = Child::start("sh", &command).unwrap();
        assert_eq!(child.wait(Duration::from_secs(5)).unwrap().code(), Some(7));
    }
}
