//! A device's process without a host, jailed by `vudev-jail` alone, so that a test can leave layers
//! out: the namespaces, the filter, or both. It makes one attempt and ends.
//!
//! Arguments: the policy, whether it was started with namespaces (`true`), whether the filter is
//! loaded, and attempt, member and number outside. Its result is one packet on its channel. With
//! neither it gives up root's ids first: what is left then is what an ordinary user has.

use std::os::fd::{AsFd, AsRawFd};
use std::process::ExitCode;

use rustix::net::{SendFlags, send};
use rustix::process::{Gid, Uid};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
use vudev_executor::{Allowed, Config, Executor, Ring};
use vudev_jail::{Arch, Embedded, Jail, Limits, policy, ring};
use vudev_tests::intruder::leaks::{self, Leaked};
use vudev_tests::intruder::vfio::Vfio;
use vudev_tests::intruder::{self, Hands, Outside, ring::RawRing};

/// `argv[0]` of such a process.
pub(crate) const NAME: &str = intruder::BARE_NAME;

const CHANNEL: i32 = 3;
const FILE: i32 = 4;
const TERMINAL: i32 = 5;
const LEAKS: i32 = 6;
/// The leaks, then a ring.
const NUMBERS: usize = 3 + leaks::LEAKS + 1;

pub(crate) fn main(arguments: impl Iterator<Item = String>) -> ExitCode {
    match attempt(&arguments.collect::<Vec<_>>()) {
        Some(()) => ExitCode::SUCCESS,
        None => ExitCode::FAILURE,
    }
}

fn attempt(arguments: &[String]) -> Option<()> {
    let [name, namespaces, filtered, attempt, member, outside] = arguments else {
        return None;
    };
    let attempt = *intruder::attempts().get(attempt.parse::<usize>().ok()?)?;
    let (begun, [channel, file, terminal, leaked @ .., another]) = Jail::begin(numbers()).ok()?;
    let list = ring::allow_list(name, &Embedded).ok()?;
    let program = policy::compile(name, Arch::HOST?, &Embedded).ok()?;
    let allowed = Some(Allowed {
        opcodes: list.opcodes,
        flags: list.flags,
    });
    let config = Config {
        allowed,
        ..Config::new(8)
    };
    let executor = Executor::new(Ring::new(&config).ok()?);
    let another = Some(another.as_raw_fd());
    let hands = Hands {
        ring: RawRing::of_this_process(another).ok()?,
        file: file.as_raw_fd(),
        terminal: Some(terminal.as_raw_fd()),
        vfio: Vfio::NONE,
        outside: Outside(outside.parse().ok()?),
        leaked: Leaked::of(&leaked, another)?,
        member: member.parse().ok()?,
    };
    let (namespaces, filtered) = (namespaces == "true", filtered == "true");
    if !namespaces && !filtered {
        become_nobody().ok()?;
    }
    let jail = match filtered {
        true => begun.policy(&program),
        false => begun.without_policy(),
    };
    jail.namespaces(namespaces)
        .limits(Limits {
            open_files: 4096,
            locked_memory: None,
            data: None,
        })
        .enter(channel.as_fd(), intruder::BARE_TAG, || executor.enable())
        .ok()?;
    let result = attempt.make(&hands);
    send(&channel, &result.to_ne_bytes(), SendFlags::NOSIGNAL).ok()?;
    Some(())
}

fn numbers() -> [i32; NUMBERS] {
    const {
        assert!(TERMINAL + 1 == LEAKS && FILE + 1 == TERMINAL);
    }
    let mut number = CHANNEL - 1;
    [(); NUMBERS].map(|()| {
        number += 1;
        number
    })
}

/// Of root: the kernel's overflow id, no groups and, by that, no capabilities.
fn become_nobody() -> rustix::io::Result<()> {
    const NOBODY: u32 = 65_534;
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let (user, group) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
    set_thread_groups(&[])?;
    set_thread_res_gid(group, group, group)?;
    set_thread_res_uid(user, user, user)
}
