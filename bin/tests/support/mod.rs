//! A `vudev` whose log lines a test waits for, and what `/proc` says about its devices.
#![allow(dead_code, reason = "each test program uses a part")]
#![allow(unreachable_pub, reason = "a module of several test programs")]

pub mod filter;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open};
use tempfile::TempDir;
use vudev_harness::{Child, Lines};

/// Long beside anything that happens here, short beside a test's limit.
pub const LIMIT: Duration = Duration::from_secs(5);

/// The program under test.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_vudev");

/// A running `vudev` and the folder of its sockets and images.
pub struct Running {
    pub child: Child,
    pub log: Lines,
    pub folder: TempDir,
}

/// A command in a folder of its own, with an image in it.
pub struct Setting {
    pub folder: TempDir,
    shell: Option<&'static str>,
    arguments: Vec<String>,
    stdin: Stdio,
    devices: usize,
}

impl Setting {
    pub fn new() -> Result<Self> {
        let folder = TempDir::new()?;
        Ok(Self {
            folder,
            shell: None,
            arguments: Vec::new(),
            stdin: Stdio::null(),
            devices: 0,
        })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn argument(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }

    /// Runs these commands of sh(1) first, in the process that becomes `vudev`.
    pub fn after(mut self, commands: &'static str) -> Self {
        self.shell = Some(commands);
        self
    }

    pub fn stdin(mut self, stdin: impl Into<Stdio>) -> Self {
        self.stdin = stdin.into();
        self
    }

    /// A console with these options, at `serial-N`.
    pub fn serial(mut self, options: &str) -> Self {
        let number = self.arguments.iter().filter(|a| *a == "--serial").count();
        let place = self.path(&format!("serial-{number}"));
        self.arguments.push("--serial".to_owned());
        self.arguments
            .push(format!("{options},vhost={}", place.display()));
        self.devices += 1;
        self
    }

    /// A disk of 1 MiB at `block-N`.
    pub fn block(mut self) -> Result<Self> {
        let number = self.arguments.iter().filter(|a| *a == "--block").count();
        let image = self.path(&format!("disk-{number}"));
        fs::File::create(&image)?.set_len(1 << 20)?;
        let place = self.path(&format!("block-{number}"));
        self.arguments.push("--block".to_owned());
        self.arguments.push(format!(
            "path={},vhost={}",
            image.display(),
            place.display()
        ));
        self.devices += 1;
        Ok(self)
    }

    /// Starts it and waits until it says that all devices are ready.
    pub fn start(self) -> Result<Running> {
        let (lines, errors) = rustix::pipe::pipe()?;
        let all = if self.devices == 1 {
            "1 device is ready"
        } else {
            "devices are ready"
        };
        let (child, folder) = self.start_with(errors)?;
        let mut running = Running {
            child,
            log: Lines::new(lines),
            folder,
        };
        running.log.until(all, LIMIT)?;
        Ok(running)
    }

    /// Starts it with this standard error, and waits for nothing.
    pub fn start_with(self, errors: impl Into<Stdio>) -> Result<(Child, TempDir)> {
        let Self {
            folder,
            shell,
            arguments,
            stdin,
            devices: _,
        } = self;
        let mut command = match shell {
            Some(commands) => {
                let mut shell = Command::new("sh");
                shell.args(["-c", &format!("{commands}; exec \"$0\" \"$@\""), PROGRAM]);
                shell
            }
            None => Command::new(PROGRAM),
        };
        command.args(arguments);
        let errors = errors.into();
        let child = Child::start_with("vudev", &command, |command| {
            command.stdin(stdin).stdout(Stdio::null()).stderr(errors);
        })?;
        Ok((child, folder))
    }
}

impl Running {
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The process ids of its devices, in the order of their start.
    pub fn devices(&self) -> Result<Vec<i32>> {
        children_of(self.child.id())
    }

    /// Asks it to stop; its exit status.
    pub fn stop(&mut self) -> Result<Option<i32>> {
        self.child.signal(Signal::TERM)?;
        Ok(self.child.wait(LIMIT)?.code())
    }

    /// The sockets in its folder.
    pub fn sockets(&self) -> Result<Vec<PathBuf>> {
        use std::os::unix::fs::FileTypeExt;
        let mut found = Vec::new();
        for entry in fs::read_dir(self.folder.path())? {
            let entry = entry?;
            if entry.file_type()?.is_socket() {
                found.push(entry.path());
            }
        }
        Ok(found)
    }
}

pub fn children_of(process: u32) -> Result<Vec<i32>> {
    let children = fs::read_to_string(format!("/proc/{process}/task/{process}/children"))?;
    children
        .split_whitespace()
        .map(|id| Ok(id.parse()?))
        .collect()
}

/// Runs to its end.
pub fn output(arguments: &[&str], folder: &Path) -> Result<Output> {
    Ok(Command::new(PROGRAM)
        .args(arguments)
        .current_dir(folder)
        .output()?)
}

/// A descriptor that becomes readable when the process ends.
pub fn pidfd(process: i32) -> Result<rustix::fd::OwnedFd> {
    let pid = Pid::from_raw(process).context("a process id")?;
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

pub fn kill(process: i32, signal: Signal) -> Result<()> {
    Ok(rustix::process::kill_process(
        Pid::from_raw(process).context("a process id")?,
        signal,
    )?)
}

/// Waits until the process behind it has ended.
pub fn wait_for_end(pidfd: &rustix::fd::OwnedFd) -> Result<()> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let limit = Timespec {
        tv_sec: 5,
        tv_nsec: 0,
    };
    let ended = poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&limit))?;
    ensure!(ended == 1, "the process still runs");
    Ok(())
}
