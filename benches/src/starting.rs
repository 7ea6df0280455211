//! Commands of many idle devices: how long one takes until each of them is jailed and in its event
//! loop, and what memory they cost. No device at work.
//!
//! The clock begins before the supervisor's process is made and ends at its line that all devices
//! are ready: their sockets have been listening for some time then.

use std::fs;
use std::io::{BufRead, BufReader, PipeReader, Read, pipe};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

/// Devices of the largest command that something is promised of.
pub const MANY: usize = 100;

/// Promised for the start of all of them together, on two processors.
pub const MANY_WITHIN: Duration = Duration::from_millis(600);

/// Promised for the memory of an idle device, shared pages divided by who shares them.
pub const PSS_MAX_KIB: u64 = 640;

/// One command, from nothing until all is ready.
///
/// # Errors
///
/// What `vudev` says.
pub fn start(program: &Path, count: usize) -> Result<Duration> {
    let folder = tempfile::tempdir()?;
    let before = Instant::now();
    let running = Running::start(program, count, folder.path())?;
    let time = before.elapsed();
    running.stop()?;
    Ok(time)
}

/// A `vudev` whose devices, consoles of nothing, are all ready.
#[derive(Debug)]
pub struct Running {
    process: Child,
    log: BufReader<PipeReader>,
}

impl Running {
    /// A command with so many, whose sockets are in `folder`.
    ///
    /// # Errors
    ///
    /// What it says.
    pub fn start(program: &Path, count: usize, folder: &Path) -> Result<Self> {
        let mut command = Command::new(program);
        for number in 0..count {
            let socket = folder.join(number.to_string());
            let options = format!("type=sink,vhost={}", socket.display());
            command.args(["--serial", &options]);
        }
        let (log, errors) = pipe()?;
        // Cargo's own, which would have the dynamic linker look into more folders.
        command.env_remove("LD_LIBRARY_PATH");
        let process = command.stdin(Stdio::null()).stderr(errors).spawn()?;
        // It holds the writing end of the log.
        drop(command);
        let mut running = Self {
            process,
            log: BufReader::new(log),
        };
        let mut line = String::new();
        while !(line.ends_with(" is ready\n") || line.ends_with(" are ready\n")) {
            line.clear();
            if running.log.read_line(&mut line)? == 0 {
                bail!("vudev has ended");
            }
            if line.contains("error: ") {
                bail!("vudev says: {line}");
            }
        }
        Ok(running)
    }

    /// The memory of each device, in KiB: none as an ordinary user, who may not look at processes
    /// that cannot be dumped.
    ///
    /// # Errors
    ///
    /// When it has ended.
    pub fn memory(&self) -> Result<Vec<u64>> {
        let children = format!("/proc/{0}/task/{0}/children", self.process.id());
        let children = fs::read_to_string(&children).context(children)?;
        let devices = children.split_whitespace();
        Ok(devices.filter_map(|device| pss(device).ok()).collect())
    }

    /// Ends it, by SIGTERM.
    ///
    /// # Errors
    ///
    /// When it does not end well.
    pub fn stop(mut self) -> Result<()> {
        kill_process(Pid::from_child(&self.process), Signal::TERM)?;
        // To its end: the log of a hundred devices' ends has to go somewhere.
        let mut said = String::new();
        self.log.read_to_string(&mut said)?;
        let status = self.process.wait()?;
        if !status.success() {
            bail!("vudev ended with {status}; it said:\n{said}");
        }
        Ok(())
    }
}

impl Drop for Running {
    /// A benchmark that fails leaves no process behind; its devices end with it.
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn pss(process: &str) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{process}/smaps_rollup"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    Ok(kib.context("no Pss")?.parse()?)
}

/// The middle one of some values; of an even number the upper of the two.
pub fn median<T: Copy + Ord>(values: &[T]) -> Option<T> {
    let mut values = values.to_vec();
    values.sort_unstable();
    values.get(values.len() / 2).copied()
}
