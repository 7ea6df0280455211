//! The keys of `--jail` and what they come to. Pure.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::error::OptionError;
use super::table::{Choice, Key, Kind, Table};
use super::values::Values;

/// The values of `--jail`.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct JailOptions {
    /// Policies are read from here instead of the embedded ones.
    pub(crate) seccomp_policy_dir: Option<PolicyDirectory>,
    /// What a system call that they deny comes to.
    pub(crate) seccomp_mode: SeccompMode,
}

/// A directory of policies, and where it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PolicyDirectory {
    /// The directory.
    pub(crate) path: PathBuf,
    column: Option<usize>,
}

impl PolicyDirectory {
    /// An error about it.
    pub(crate) fn error(&self, problem: impl std::fmt::Display) -> OptionError {
        let error = OptionError::new(JAIL.device, problem);
        error.key(POLICY_DIR).column(self.column)
    }
}

/// What a system call that its policy denies comes to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum SeccompMode {
    /// The device reports it and ends.
    #[default]
    Trap,
    /// The kernel ends the device.
    Kill,
    /// The supervisor reports it, and the device goes on.
    Log,
}

const POLICY_DIR: &str = "seccomp-policy-dir";
const MODE: &str = "seccomp-mode";
const LOG_FAILURES: &str = "seccomp-log-failures";

impl SeccompMode {
    /// The word on the command line.
    fn word(self) -> &'static str {
        match self {
            Self::Trap => "trap",
            Self::Kill => "kill",
            Self::Log => "log",
        }
    }
}

/// All but `seccomp-mode` are crosvm's.
pub(super) static JAIL: Table = Table {
    device: "jail",
    about: "how the jails of all devices are made",
    keys: &[
        Key::new(
            POLICY_DIR,
            Kind::Path,
            "read the policies from this directory, not the ones in the program. It is laid out as \
             seccomp/ of the source (x86_64/*.policy, ring/*.ring), or holds these files without \
             the folders, and has for each device that is given its NAME_device_vhost_user.policy \
             and .ring, and all that they include. check --jail tries them",
        ),
        Key::new(
            MODE,
            Kind::Choice(&[Choice::new("trap"), Choice::new("kill"), Choice::new("log")]),
            "what a system call that the policy forbids comes to. trap: the device names it and \
             ends; kill: the kernel ends the device, which has no say in it; log: the call is \
             named once for each device and carried out all the same, which is for writing \
             policies and no jail",
        )
        .default("trap"),
        Key::flag(LOG_FAILURES, "the same as seccomp-mode=log"),
        Key::new("pivot-root", Kind::Path, "the root of the jail")
            .refused("each jail makes an empty read-only root of its own"),
    ],
    front_ends: &[],
    joins: false,
    example: "seccomp-policy-dir=/etc/vudev/seccomp",
};

impl JailOptions {
    /// Of the argument of `--jail`.
    pub(super) fn parse(argument: &str) -> Result<Self, OptionError> {
        let values = Values::parse(&JAIL, argument)?;
        let directory = |path| PolicyDirectory {
            path: PathBuf::from(path),
            column: values.error(POLICY_DIR, "").at(),
        };
        Ok(Self {
            seccomp_policy_dir: values.optional_path(POLICY_DIR).map(directory),
            seccomp_mode: mode(&values)?,
        })
    }
}

/// Two keys can say it, if they say the same.
fn mode(values: &Values) -> Result<SeccompMode, OptionError> {
    let word = values.choice(MODE);
    let modes = [SeccompMode::Trap, SeccompMode::Kill, SeccompMode::Log];
    let mode = modes.into_iter().find(|mode| mode.word() == word);
    let mode = mode.expect("the table has just these words");
    if !values.is_given(LOG_FAILURES) {
        return Ok(mode);
    }
    let log = values.flag(LOG_FAILURES);
    if values.is_given(MODE) && log != (mode == SeccompMode::Log) {
        let problem = format!("contradicts {MODE}={word}");
        return Err(values.error(LOG_FAILURES, problem).remedy("leave it out"));
    }
    Ok(if log { SeccompMode::Log } else { mode })
}
