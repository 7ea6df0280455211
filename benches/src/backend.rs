//! A back-end at work, ours or a peer's, as a user would start it. Not what device it is, and not
//! what is asked of it.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};
use vudev_harness::{Child, Terminal, Vudev, VudevCommand, wait_until_listening};

/// Starting takes milliseconds; this is for a machine that is very busy.
const START_LIMIT: Duration = Duration::from_secs(20);

/// A build of ours, and options that its device gets besides those that it is measured with.
#[derive(Clone, Debug)]
pub struct Build {
    /// The program.
    pub program: PathBuf,
    /// `poll-us=0`, say; empty for none.
    pub options: String,
}

impl Build {
    /// One without such options.
    pub fn plain(program: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            options: String::new(),
        }
    }
}

/// A device's back-end; ends when dropped.
#[derive(Debug)]
pub struct Backend {
    name: &'static str,
    process: Process,
    socket: PathBuf,
    works: u32,
}

/// What is kept for its end.
#[derive(Debug)]
enum Process {
    Ours(Vudev),
    Peer {
        #[expect(dead_code, reason = "dropped at the end")]
        child: Child,
        log: File,
        #[expect(dead_code, reason = "dropped at the end")]
        terminal: Option<Terminal>,
    },
}

impl Backend {
    /// A build of ours, `name` in figures, with one device, jailed as always.
    ///
    /// # Errors
    ///
    /// What it says.
    pub fn vudev(
        name: &'static str,
        build: &Build,
        device: &str,
        options: &str,
        socket: PathBuf,
    ) -> Result<Self> {
        let mut all = vec![options, &build.options];
        all.retain(|options| !options.is_empty());
        let command = VudevCommand::of(&build.program).device(device, &all.join(","), &socket);
        let mut vudev = command.start()?;
        // A device polls where it was started on several processors, and looks at that itself.
        vudev.wait_until_jailed(1)?;
        let works = *vudev.devices()?.first().context("vudev has no device")?;
        Ok(Self {
            name,
            process: Process::Ours(vudev),
            socket,
            works,
        })
    }

    /// A program of others that will listen on `socket`. Its output goes nowhere, and its input
    /// comes from a terminal if it wants one.
    ///
    /// # Errors
    ///
    /// When it does not come to that, with what it said.
    pub fn peer(
        name: &'static str,
        command: &Command,
        socket: PathBuf,
        terminal: Option<Terminal>,
    ) -> Result<Self> {
        let log = tempfile::tempfile()?;
        let input = match &terminal {
            Some(terminal) => terminal.program_end()?.into(),
            None => Stdio::null(),
        };
        let errors = log.try_clone()?;
        let mut child = Child::start_with(name, command, |command| {
            command.stdin(input).stdout(Stdio::null()).stderr(errors);
        })?;
        wait_until_listening(&socket, &mut child, START_LIMIT).with_context(|| said(&log))?;
        Ok(Self {
            name,
            works: child.id(),
            process: Process::Peer {
                child,
                log,
                terminal,
            },
            socket,
        })
    }

    /// What it has said.
    pub fn log(&self) -> String {
        match &self.process {
            Process::Ours(vudev) => vudev.log().unwrap_or_default(),
            Process::Peer { log, .. } => said(log),
        }
    }

    /// Where it listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The process that does the work.
    pub fn worker(&self) -> u32 {
        self.works
    }

    /// As it is called in figures.
    pub fn name(&self) -> &'static str {
        self.name
    }
}

/// What is in a log.
fn said(log: &File) -> String {
    let length = log.metadata().map_or(0, |log| log.len());
    let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
    // What cannot be read is missing from a message about something else.
    let _ = log.read_exact_at(&mut bytes, 0);
    String::from_utf8_lossy(&bytes).into_owned()
}
