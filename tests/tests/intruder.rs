//! The table of [`vudev_tests::intruder`] against jails: whole ones under the real policies, one
//! without its filter, ones without namespaces, and ones with neither. An attempt may pass nowhere
//! but where the table says so, and why.

use std::fs::File;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags,
    SocketType, recv, sendmsg, socketpair,
};
use rustix::process::{WaitId, WaitIdOptions, waitid};
use vudev_jail::report::SIGSYS_EXIT_STATUS;
use vudev_jail::ring::{RingList, allow_list};
use vudev_jail::{Embedded, SigsysReport, Spawn};
use vudev_tests::intruder::leaks::{LEAKED_RING, leaks, ring};
use vudev_tests::intruder::{
    Attempt, BARE_NAME, BARE_TAG, Death, FLAG, Filtered, Keyed, OPERATION, Outside, REGISTER,
    Refusals, Unfiltered, attempts,
};
use vudev_tests::{Child, Terminal};

#[path = "support/escape.rs"]
mod support;

use support::{Escape, PROGRAM};

/// What has come of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// The process has ended with a report that names the right call.
    Killed,
    /// The process has ended without a report.
    Died(Death),
    /// The result: 0 or more has passed.
    Result(i64),
}

/// One attempt, or one member of a family.
#[derive(Clone, Copy, Debug)]
struct Case {
    number: usize,
    attempt: &'static Attempt,
    member: u16,
    /// What a member of a family is refused with.
    strict: Option<&'static [i32]>,
}

/// `IOSQE_IO_DRAIN` is refused, and all the same holds up what comes after it: its ring is of no
/// more use, which harms nobody but the device. Only a process of its own is asked for it.
const DRAIN: u16 = 1;

/// What a device can be asked for that goes on afterwards, and that the control channel brings
/// what it takes to.
fn survivable(policy: &str) -> Result<Vec<Case>> {
    let mut cases = cases(policy)?;
    cases.retain(|case| case.attempt.name != FLAG || case.member != DRAIN);
    cases.retain(|case| case.attempt.name != LEAKED_RING);
    // Each of them is the same call to a filter.
    cases.retain(|case| case.attempt.name != REGISTER || case.member == 0);
    Ok(cases)
}

/// What `io_uring_register` is asked for: `IORING_REGISTER_*` end long before.
const REGISTRATIONS: u16 = 48;

/// All of them for a ring of this list.
fn cases(policy: &str) -> Result<Vec<Case>> {
    let RingList { opcodes, flags } = allow_list(policy, &Embedded)?;
    let refusals = Refusals::of_this_kernel()?;
    let mut cases = Vec::new();
    for (number, attempt) in attempts().into_iter().enumerate() {
        let case = |member, strict| Case {
            number,
            attempt,
            member,
            strict,
        };
        match attempt.name {
            OPERATION => cases.extend(
                (0..=u8::MAX)
                    .filter(|number| !opcodes.contains(number))
                    .map(u16::from)
                    .map(|number| case(number, Some(refusals.operation(number)))),
            ),
            FLAG => cases.extend(
                (0..8)
                    .filter(|bit| flags & 1 << bit == 0)
                    .map(|bit| case(bit, Some(refusals.flag(bit)))),
            ),
            REGISTER => cases.extend(
                (0..REGISTRATIONS).map(|number| case(number, Some(refusals.registration(number)))),
            ),
            _ => cases.push(case(0, None)),
        }
    }
    Ok(cases)
}

impl Case {
    fn is_as_filtered(&self, outcome: Outcome) -> bool {
        match (self.attempt.filtered, outcome) {
            (Filtered::Killed, outcome) => outcome == Outcome::Killed,
            (Filtered::Dies(death), outcome) => outcome == Outcome::Died(death),
            (Filtered::Fails(errnos), outcome) => self.fails(errnos, outcome),
        }
    }

    fn is_as_unfiltered(&self, outcome: Outcome) -> bool {
        self.is_as(self.attempt.unfiltered, outcome)
    }

    fn is_as_alone(&self, outcome: Outcome) -> bool {
        self.is_as(self.attempt.alone(), outcome)
    }

    fn is_as(&self, unfiltered: Unfiltered, outcome: Outcome) -> bool {
        let passes = matches!(outcome, Outcome::Result(0..));
        match unfiltered {
            Unfiltered::Fails(errnos) => self.fails(errnos, outcome),
            // That it no longer passes is no longer to be said.
            Unfiltered::Passes(_) => passes,
            Unfiltered::PassesOrLacks(_, errnos) => passes || self.fails(errnos, outcome),
        }
    }

    /// With one of these errnos, or of those that its member is refused with.
    fn fails(&self, errnos: &[i32], outcome: Outcome) -> bool {
        let mut errnos = self.strict.unwrap_or(errnos).iter();
        errnos.any(|errno| outcome == Outcome::Result(i64::from(-errno)))
    }
}

/// What root's devices are, outside.
const NOBODY: u32 = 65_534;

/// A command whose standard input becomes its controlling terminal.
fn on_a_terminal(program: &str) -> Command {
    let mut command = Command::new("setsid");
    command.args(["-c", program]);
    command
}

/// What an intruder looks for: a process of the same user, a listener with an abstract name,
/// memory and the like with a key, and a terminal that is somebody's.
struct Victim {
    process: Child,
    terminal: Terminal,
    listener: UnixListener,
    _keyed: Keyed,
}

impl Victim {
    fn start() -> Result<Self> {
        let terminal = Terminal::open()?;
        let mut command = on_a_terminal("sleep");
        command.arg("100");
        let input = terminal.program_end()?;
        let process = Child::start_with("victim", &command, |command| {
            command.stdin(input);
            if rustix::process::geteuid().is_root() {
                command.uid(NOBODY).gid(NOBODY);
            }
        })?;
        let name = Outside(process.id()).abstract_name();
        let keyed = Keyed::make(Outside(process.id()));
        ensure!(keyed.is_made(), "System V IPC: {keyed:?}");
        let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(name)?)?;
        Ok(Self {
            process,
            terminal,
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

/// A device of a host that was given a terminal.
struct Device {
    escape: Escape,
    outside: u32,
    _terminal: Terminal,
}

impl Device {
    fn start(kind: &str, outside: u32) -> Result<Self> {
        let terminal = Terminal::open()?;
        let input = terminal.program_end()?;
        let escape = Escape::start(on_a_terminal(PROGRAM), kind, |command| {
            command.stdin(input);
        })?;
        Ok(Self {
            escape,
            outside,
            _terminal: terminal,
        })
    }

    fn make(&mut self, case: &Case) -> Result<Outcome> {
        let number = u16::try_from(case.number)?.to_le_bytes();
        let mut bytes = [0; 8];
        bytes[..2].copy_from_slice(&number);
        bytes[2..4].copy_from_slice(&case.member.to_le_bytes());
        bytes[4..].copy_from_slice(&self.outside.to_le_bytes());
        let connection = self.escape.front.connection();
        if connection.set_config(8, 0, &bytes).is_ok() {
            return Ok(Outcome::Result(self.escape.result()?.into()));
        }
        let line = self.escape.death()?;
        if line.contains(&format!("its policy forbids: {}(", case.attempt.call())) {
            return Ok(Outcome::Killed);
        }
        let deaths = [
            ("killed by signal SIGSYS", Death::Signal(libc::SIGSYS)),
            ("killed by signal SIGSEGV", Death::Signal(libc::SIGSEGV)),
            ("exit status 159", Death::Status(SIGSYS_EXIT_STATUS)),
        ];
        let (_, how) = line.split_once(": error: has died: ").context("no death")?;
        let death = deaths.iter().find(|(told, _)| how.starts_with(told));
        Ok(Outcome::Died(death.with_context(|| line.clone())?.1))
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
    let number = victim.number();
    let survives = |case: &Case| matches!(case.attempt.filtered, Filtered::Fails(_));
    let (surviving, ending): (Vec<_>, Vec<_>) = survivable(policy)?.into_iter().partition(survives);
    let mut survivor = Device::start(kind, number)?;
    judge(&surviving, |case| survivor.make(case), Case::is_as_filtered)?;
    let make = |case: &Case| Device::start(kind, number)?.make(case);
    thread::scope(|scope| {
        let (half, other) = ending.split_at(ending.len() / 2);
        let half = scope.spawn(|| judge(half, make, Case::is_as_filtered));
        judge(other, make, Case::is_as_filtered)?;
        half.join().unwrap_or_else(|_| bail!("a panic"))
    })?;
    victim.end_well()
}

#[test]
fn no_attempt_passes_under_the_policy_of_block() -> Result<()> {
    in_a_whole_jail("as-block", BLOCK)
}

#[test]
fn no_attempt_passes_under_the_policy_of_serial() -> Result<()> {
    in_a_whole_jail("as-serial", SERIAL)
}

/// What a device VM that has taken over its proxy could do.
#[test]
fn no_attempt_passes_under_the_policy_of_the_proxy() -> Result<()> {
    in_a_whole_jail("as-vvu-proxy", VVU_PROXY)
}

/// Which layers a process without a host has, beside those that each has.
#[derive(Clone, Copy, Debug)]
struct Layers {
    namespaces: bool,
    filter: bool,
}

/// Makes the attempt in a process of its own, which has no host.
fn in_a_part(layers: Layers, case: &Case, policy: &str, victim: &Victim) -> Result<Outcome> {
    let program = File::open(PROGRAM)?;
    let terminal = victim.terminal.program_end()?;
    let file = tempfile::tempfile()?;
    let mut leaked = leaks(victim.number())?;
    leaked.push(ring()?);
    let flags = SocketFlags::CLOEXEC;
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    let spawn = Spawn::new(program.as_fd(), BARE_NAME)?
        .argument(policy)?
        .argument(&layers.namespaces.to_string())?
        .argument(&layers.filter.to_string())?
        .argument(&case.number.to_string())?
        .argument(&case.member.to_string())?
        .argument(&victim.number().to_string())?
        .namespaces(layers.namespaces)
        .keep(theirs.as_fd(), 3)
        .keep(file.as_fd(), 4)
        .keep(terminal.as_fd(), 5);
    let spawn = (6..).zip(&leaked).fold(spawn, |spawn, (number, leak)| {
        spawn.keep(leak.as_fd(), number)
    });
    let child = spawn.spawn()?;
    drop(theirs);
    let mut packet = [0; 128];
    let received = recv(&ours, &mut packet, RecvFlags::empty());
    let status = waitid(WaitId::PidFd(child.pidfd.as_fd()), WaitIdOptions::EXITED)?;
    let (_, length) = received?;
    if let Ok(result) = packet[..length].try_into() {
        return Ok(Outcome::Result(i64::from_ne_bytes(result)));
    }
    if length == 0 {
        let status = status.context("it has not ended")?;
        let by_signal = status.terminating_signal().map(Death::Signal);
        let death = by_signal.or_else(|| status.exit_status().map(Death::Status));
        return Ok(Outcome::Died(death.context("it was stopped")?));
    }
    let report = packet[..length].strip_prefix(&[BARE_TAG]);
    let report = report.and_then(SigsysReport::from_bytes);
    let report = report.with_context(|| format!("{length} bytes are no report"))?;
    ensure!(report.name() == Some(case.attempt.call()), "{report}");
    Ok(Outcome::Killed)
}

const BLOCK: &str = "block_device_vhost_user";
const SERIAL: &str = "serial_device_vhost_user";
const VVU_PROXY: &str = "vvu_proxy_device_vhost_user";

#[test]
fn without_the_filter_every_other_layer_refuses() -> Result<()> {
    let victim = Victim::start()?;
    let layers = Layers {
        namespaces: true,
        filter: false,
    };
    let make = |case: &Case| in_a_part(layers, case, BLOCK, &victim);
    judge(&cases(BLOCK)?, make, Case::is_as_unfiltered)?;
    victim.end_well()
}

#[test]
fn no_attempt_passes_without_namespaces() -> Result<()> {
    let victim = Victim::start()?;
    let layers = Layers {
        namespaces: false,
        filter: true,
    };
    for policy in [BLOCK, SERIAL, VVU_PROXY] {
        let make = |case: &Case| in_a_part(layers, case, policy, &victim);
        judge(&cases(policy)?, make, Case::is_as_filtered)?;
    }
    victim.end_well()
}

#[test]
fn with_neither_namespaces_nor_filter_only_what_is_listed_passes() -> Result<()> {
    let victim = Victim::start()?;
    let layers = Layers {
        namespaces: false,
        filter: false,
    };
    let make = |case: &Case| in_a_part(layers, case, BLOCK, &victim);
    judge(&cases(BLOCK)?, make, Case::is_as_alone)?;
    victim.end_well()
}

/// Neither a front-end nor a supervisor can give a device a second ring, by mistake or on purpose.
#[test]
fn the_kernel_sends_nobody_a_ring() -> Result<()> {
    let ring = ring()?;
    let flags = SocketFlags::CLOEXEC;
    let (ours, _theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    let descriptors = [ring.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&descriptors));
    let flags = SendFlags::empty();
    let sent = sendmsg(&ours, &[IoSlice::new(b"ring")], &mut control, flags);
    assert_eq!(sent, Err(Errno::INVAL));
    Ok(())
}

/// Other architectures lack some of the calls that are attempted.
#[cfg(target_arch = "x86_64")]
#[test]
fn each_exception_is_that_of_one_attempt() {
    let attempts: Vec<_> = attempts().iter().map(|attempt| attempt.name).collect();
    let mut exceptions: Vec<_> = vudev_tests::intruder::names_alone().collect();
    let count = exceptions.len();
    exceptions.sort_unstable();
    exceptions.dedup();
    assert_eq!(exceptions.len(), count, "one is there twice");
    for exception in exceptions {
        let named = attempts.iter().filter(|name| **name == exception).count();
        assert_eq!(named, 1, "{exception}");
    }
}
