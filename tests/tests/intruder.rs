//! The table of [`vudev_tests::intruder`] against jails: whole ones under the real policies, one
//! without its filter, and ones without namespaces. An attempt may pass nowhere but where the
//! table says so, and why.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, recv, socketpair};
use rustix::process::{WaitId, WaitIdOptions, waitid};
use tempfile::TempDir;
use vudev_frontend::FrontEnd;
use vudev_jail::ring::{RingList, allow_list};
use vudev_jail::{Embedded, SigsysReport, Spawn};
use vudev_tests::intruder::{
    Attempt, BARE_NAME, BARE_TAG, FLAG, Filtered, Keyed, OPERATION, Outside, Unfiltered, attempts,
};
use vudev_tests::{Child, Lines, Terminal};

const LIMIT: Duration = Duration::from_secs(3);
const PROGRAM: &str = env!("CARGO_BIN_EXE_vudev-escape");

/// What has come of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// The process has ended with a report that names the right call.
    Killed,
    /// The result: 0 or more has passed.
    Result(i64),
}

/// One attempt, or one member of a family.
#[derive(Clone, Copy, Debug)]
struct Case {
    number: usize,
    attempt: &'static Attempt,
    member: u16,
}

/// `IOSQE_IO_DRAIN` is refused, and all the same holds up what comes after it: its ring is of no
/// more use, which harms nobody but the device. Only a process of its own is asked for it.
const DRAIN: u16 = 1;

/// Those after which a device can go on.
fn survivable(policy: &str) -> Result<Vec<Case>> {
    let mut cases = cases(policy)?;
    cases.retain(|case| case.attempt.name != FLAG || case.member != DRAIN);
    Ok(cases)
}

/// All of them for a ring of this list.
fn cases(policy: &str) -> Result<Vec<Case>> {
    let RingList { opcodes, flags } = allow_list(policy, &Embedded)?;
    let mut cases = Vec::new();
    for (number, attempt) in attempts().into_iter().enumerate() {
        let members: Vec<u16> = match attempt.name {
            OPERATION => (0..=u8::MAX)
                .filter(|number| !opcodes.contains(number))
                .map(u16::from)
                .collect(),
            FLAG => (0..8).filter(|bit| flags & 1 << bit == 0).collect(),
            _ => vec![0],
        };
        cases.extend(members.into_iter().map(|member| Case {
            number,
            attempt,
            member,
        }));
    }
    Ok(cases)
}

impl Case {
    fn is_as_filtered(&self, outcome: Outcome) -> bool {
        match (self.attempt.filtered, outcome) {
            (Filtered::Killed, outcome) => outcome == Outcome::Killed,
            (Filtered::Fails(errnos), Outcome::Result(result)) => fails_with(errnos, result),
            (Filtered::Fails(_), Outcome::Killed) => false,
        }
    }

    fn is_as_unfiltered(&self, outcome: Outcome) -> bool {
        match (self.attempt.unfiltered, outcome) {
            (Unfiltered::Fails(errnos), Outcome::Result(result)) => fails_with(errnos, result),
            // No longer true, and no longer to be said.
            (Unfiltered::SeccompAlone(_), Outcome::Result(result)) => result >= 0,
            (_, Outcome::Killed) => false,
        }
    }
}

fn fails_with(errnos: &[i32], result: i64) -> bool {
    errnos.iter().any(|errno| i64::from(-errno) == result)
}

/// What an intruder looks for: a process of the same user, a listener with an abstract name, and
/// memory and the like with a key.
struct Victim {
    process: Child,
    listener: UnixListener,
    _keyed: Keyed,
}

impl Victim {
    fn start() -> Result<Self> {
        let mut command = Command::new("sleep");
        command.arg("100").stdin(Stdio::null());
        let process = Child::start("victim", &command)?;
        let name = Outside(process.id()).abstract_name();
        let keyed = Keyed::make(Outside(process.id()));
        ensure!(keyed.is_made(), "System V IPC: {keyed:?}");
        let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(name)?)?;
        Ok(Self {
            process,
            listener,
            _keyed: keyed,
        })
    }

    fn number(&self) -> u32 {
        self.process.id()
    }

    /// Nothing has happened to it.
    fn end_well(mut self) -> Result<()> {
        ensure!(self.process.ended()?.is_none(), "the victim has ended");
        self.listener.set_nonblocking(true)?;
        ensure!(self.listener.accept().is_err(), "somebody has connected");
        Ok(())
    }
}

/// A host with one device, given a terminal.
struct Device {
    log: Lines,
    front: FrontEnd,
    outside: u32,
    supervisor: Child,
    _terminal: Terminal,
    _folder: TempDir,
}

impl Device {
    fn start(kind: &str, outside: u32) -> Result<Self> {
        let folder = TempDir::new()?;
        let socket = folder.path().join("vu-escape");
        let terminal = Terminal::open()?;
        let (lines, errors) = rustix::pipe::pipe()?;
        let mut command = Command::new(PROGRAM);
        command.args([&format!("--{kind}"), &format!("vhost={}", socket.display())]);
        let input = terminal.program_end()?;
        let supervisor = Child::start_with("vudev-escape", &command, |command| {
            command
                .stdin(input)
                .stdout(Stdio::null())
                .stderr::<OwnedFd>(errors);
        })?;
        let mut log = Lines::new(lines);
        log.until("1 device is ready", LIMIT)?;
        let front = FrontEnd::connect(&socket).queue_size(16).start()?;
        Ok(Self {
            log,
            front,
            outside,
            supervisor,
            _terminal: terminal,
            _folder: folder,
        })
    }

    fn make(&mut self, case: &Case) -> Result<Outcome> {
        let number = u16::try_from(case.number)?.to_le_bytes();
        let mut bytes = [0; 8];
        bytes[..2].copy_from_slice(&number);
        bytes[2..4].copy_from_slice(&case.member.to_le_bytes());
        bytes[4..].copy_from_slice(&self.outside.to_le_bytes());
        let connection = self.front.connection();
        if connection.set_config(8, 0, &bytes).is_ok() {
            let result = connection.config(1, 4)?;
            let result = i32::from_le_bytes(result.as_slice().try_into()?);
            return Ok(Outcome::Result(result.into()));
        }
        let line = self.log.until(": error: ", LIMIT)?;
        let named = format!("its policy forbids: {}(", case.attempt.call());
        ensure!(line.contains(&named), "{line}");
        ensure!(self.supervisor.wait(LIMIT)?.code() == Some(1), "{line}");
        Ok(Outcome::Killed)
    }
}

/// Complains of each case that came out otherwise; says how many there were.
fn judge(
    cases: &[Case],
    mut make: impl FnMut(&Case) -> Result<Outcome>,
    right: impl Fn(&Case, Outcome) -> bool,
) -> Result<()> {
    let mut wrong = Vec::new();
    for case in cases {
        match make(case) {
            Ok(outcome) if right(case, outcome) => {}
            Ok(outcome) => wrong.push(format!(
                "{} [{}]: {outcome:?}",
                case.attempt.name, case.member
            )),
            // A device that was to survive it is gone, and so are all further outcomes.
            Err(error) => {
                let Attempt { name, .. } = case.attempt;
                wrong.push(format!("{name} [{}]: {error:#}", case.member));
                break;
            }
        }
    }
    println!("{} attempts, {} wrong", cases.len(), wrong.len());
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// Those that a device survives are made by one device; each other has one of its own.
fn in_a_whole_jail(kind: &str, policy: &str) -> Result<()> {
    let victim = Victim::start()?;
    let mut survivor = Device::start(kind, victim.number())?;
    let make = |case: &Case| match case.attempt.filtered {
        Filtered::Killed => Device::start(kind, victim.number())?.make(case),
        Filtered::Fails(_) => survivor.make(case),
    };
    judge(&survivable(policy)?, make, Case::is_as_filtered)?;
    victim.end_well()
}

#[test]
fn no_attempt_passes_under_the_policy_of_block() -> Result<()> {
    in_a_whole_jail("as-block", "block_device_vhost_user")
}

#[test]
fn no_attempt_passes_under_the_policy_of_serial() -> Result<()> {
    in_a_whole_jail("as-serial", "serial_device_vhost_user")
}

#[test]
fn without_the_filter_every_other_layer_refuses() -> Result<()> {
    let victim = Victim::start()?;
    let mut device = Device::start("unfiltered", victim.number())?;
    let make = |case: &Case| device.make(case);
    judge(
        &survivable("block_device_vhost_user")?,
        make,
        Case::is_as_unfiltered,
    )?;
    victim.end_well()
}

/// A process with all layers but namespaces, and with or without its filter.
fn without_namespaces(case: &Case, policy: &str, filter: bool, outside: u32) -> Result<Outcome> {
    let program = File::open(PROGRAM)?;
    let file = tempfile::tempfile()?;
    let flags = SocketFlags::CLOEXEC;
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    let child = Spawn::new(program.as_fd(), BARE_NAME)?
        .argument(policy)?
        .argument(&filter.to_string())?
        .argument(&case.number.to_string())?
        .argument(&case.member.to_string())?
        .argument(&outside.to_string())?
        .namespaces(false)
        .keep(theirs.as_fd(), 3)
        .keep(file.as_fd(), 4)
        .spawn()?;
    drop(theirs);
    let mut packet = [0; 128];
    let received = recv(&ours, &mut packet, RecvFlags::empty());
    waitid(WaitId::PidFd(child.pidfd.as_fd()), WaitIdOptions::EXITED)?;
    let (_, length) = received?;
    if let Ok(result) = packet[..length].try_into() {
        return Ok(Outcome::Result(i64::from_ne_bytes(result)));
    }
    let report = packet[..length].strip_prefix(&[BARE_TAG]);
    let report = report.and_then(SigsysReport::from_bytes);
    let report = report.with_context(|| format!("{length} bytes are no report"))?;
    ensure!(report.name() == Some(case.attempt.call()), "{report}");
    Ok(Outcome::Killed)
}

#[test]
fn no_attempt_passes_without_namespaces() -> Result<()> {
    let victim = Victim::start()?;
    for policy in ["block_device_vhost_user", "serial_device_vhost_user"] {
        let make = |case: &Case| without_namespaces(case, policy, true, victim.number());
        judge(&cases(policy)?, make, Case::is_as_filtered)?;
    }
    victim.end_well()
}
