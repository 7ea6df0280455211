//! A device's process without a host, jailed by `vudev-jail` alone, so that a test can leave layers
//! out: the namespaces, and the filter too. It makes one attempt and ends.
//!
//! Arguments: the policy, whether the filter is loaded (`true`), and attempt, member and number
//! outside. Its result is one packet on its channel.

use std::os::fd::{AsFd, AsRawFd};
use std::process::ExitCode;

use rustix::net::{SendFlags, send};
use vudev_executor::{Allowed, Config, Executor, Ring};
use vudev_jail::{Arch, Embedded, Jail, Limits, policy, ring};
use vudev_tests::intruder::{self, Hands, Outside, ring::RawRing};

/// `argv[0]` of such a process.
pub(crate) const NAME: &str = intruder::BARE_NAME;

const CHANNEL: i32 = 3;
const FILE: i32 = 4;

pub(crate) fn main(arguments: impl Iterator<Item = String>) -> ExitCode {
    match attempt(&arguments.collect::<Vec<_>>()) {
        Some(()) => ExitCode::SUCCESS,
        None => ExitCode::FAILURE,
    }
}

fn attempt(arguments: &[String]) -> Option<()> {
    let [name, filtered, attempt, member, outside] = arguments else {
        return None;
    };
    let attempt = *intruder::attempts().get(attempt.parse::<usize>().ok()?)?;
    let (begun, [channel, file]) = Jail::begin([CHANNEL, FILE]).ok()?;
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
    let hands = Hands {
        ring: RawRing::of_this_process().ok()?,
        file: file.as_raw_fd(),
        terminal: None,
        outside: Outside(outside.parse().ok()?),
        member: member.parse().ok()?,
    };
    let jail = match filtered.as_str() {
        "true" => begun.policy(&program),
        _ => begun.without_policy(),
    };
    jail.namespaces(false)
        .limits(Limits {
            open_files: 4096,
            locked_memory: None,
        })
        .enter(channel.as_fd(), intruder::BARE_TAG, || executor.enable())
        .ok()?;
    let result = attempt.make(&hands);
    send(&channel, &result.to_ne_bytes(), SendFlags::NOSIGNAL).ok()?;
    Some(())
}
