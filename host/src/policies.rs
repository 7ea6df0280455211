//! The two halves of a device's policy, read and compiled: its seccomp filter and its ring's
//! allow-list. What is in them is `vudev-jail`'s and the files' matter; where they come from is
//! decided here.
//!
//! The supervisor reads an operator's files and sends their texts to the role: the role's
//! unprivileged id may not be able to read them. Embedded files need no sending.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use vudev_executor::Allowed;
use vudev_jail::policy::{self, Policy, ProgramError};
use vudev_jail::ring::{RingList, allow_list};
use vudev_jail::{Arch, Denials, Directory, Embedded, PolicyError, Program, Source};

use crate::channel::Transport;
use crate::options::{OptionError, PolicyDirectory, reason, shown};
use crate::{Entry, Registry};

/// Policy files by name, as they cross the channel.
pub(crate) type Texts = BTreeMap<String, String>;

/// Both halves of one device's policy.
#[derive(Debug)]
pub(crate) struct Policies {
    /// What seccomp allows.
    pub(crate) program: Program,
    /// What the ring allows.
    pub(crate) ring: Allowed,
}

/// There is no usable policy.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PoliciesError {
    /// One half is missing or malformed.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// It is too long.
    #[error("{policy}: {source}")]
    Program {
        /// The policy's file.
        policy: String,
        /// By how much.
        source: ProgramError,
    },
    /// Its process would die at once and could not say why, or would not get anything done.
    #[error(
        "{policy}: {} not allowed, which every device's process needs: does it \
         `@include ./{part}`?",
        missing.join(", ")
    )]
    Missing {
        /// The policy's file, or the ring list's.
        policy: String,
        /// The calls or operations.
        missing: Vec<&'static str>,
        /// The file that allows them.
        part: String,
    },
    /// No policies exist for what this program runs on.
    #[error("there are no policies for this processor")]
    Arch,
}

impl Policies {
    /// The policies of a kind of device behind a transport.
    fn read(
        entry: &Entry,
        transport: Transport,
        source: &dyn Source,
        denials: Denials,
    ) -> Result<Self, PoliciesError> {
        let written = Written::read(&name(entry, transport), source)?;
        let RingList { opcodes, flags } = written.ring;
        let program = denials.apply(written.policy).compile();
        let program = program.map_err(|source| PoliciesError::Program {
            policy: written.file,
            source,
        })?;
        Ok(Self {
            program,
            ring: Allowed { opcodes, flags },
        })
    }

    /// In a role: of the texts that came, or of the embedded files.
    pub(crate) fn of_role(
        registry: &Registry,
        entry: &Entry,
        transport: Transport,
        texts: Option<&Texts>,
        denials: Denials,
    ) -> Result<Self, PoliciesError> {
        match texts {
            Some(texts) => Self::read(entry, transport, texts, denials),
            None => Self::read(entry, transport, &Built { registry }, denials),
        }
    }
}

/// Both halves as their files have them.
struct Written {
    /// The policy's file.
    file: String,
    policy: Policy,
    /// The ring list's file.
    ring_file: String,
    ring: RingList,
}

impl Written {
    fn read(name: &str, source: &dyn Source) -> Result<Self, PoliciesError> {
        let arch = Arch::HOST.ok_or(PoliciesError::Arch)?;
        Ok(Self {
            ring: allow_list(name, source)?,
            policy: policy::read(name, arch, source)?,
            file: format!("{arch}/{name}.policy"),
            ring_file: format!("ring/{name}.ring"),
        })
    }

    /// What no process can live without, and does not die without either: an operation that the
    /// ring refuses fails, again and again.
    fn check_ring(&self, transport: Transport) -> Result<(), PoliciesError> {
        for part in ["common_device", transport.policy_part()] {
            let missing = self.ring.missing(part)?;
            if !missing.is_empty() {
                return Err(PoliciesError::Missing {
                    policy: self.ring_file.clone(),
                    missing,
                    part: format!("{part}.ring"),
                });
            }
        }
        Ok(())
    }
}

/// The policies of a device behind a transport.
fn name(entry: &Entry, transport: Transport) -> String {
    format!("{}_device_{}", entry.policy(), transport.policy_part())
}

/// What a role's policies are made of, and what its user should know of them.
#[derive(Clone, Debug)]
pub(crate) struct ForRole {
    /// The texts that it must be sent.
    pub(crate) texts: Option<Texts>,
    /// A line for the log.
    pub(crate) warning: Option<String>,
}

/// An operator's directory that is not even there, with the remedy.
pub(crate) fn check_directory(directory: &PolicyDirectory) -> Result<(), OptionError> {
    let path = &directory.path;
    let shown = shown(path);
    let problem = match std::fs::metadata(path) {
        Ok(found) if found.is_dir() => return Ok(()),
        Ok(_) => format!("{shown} is no directory"),
        Err(error) => format!("cannot look at {shown}: {}", reason(error)),
    };
    let arch = Arch::HOST.map_or("ARCHITECTURE", Arch::name);
    let remedy = format!("give a directory that holds {arch}/*.policy and ring/*.ring");
    Err(directory.error(problem).remedy(remedy))
}

/// Whether an operator's directory has one of a kind's own two files.
pub(crate) fn has_any(entry: &Entry, transport: Transport, directory: &Path) -> bool {
    let name = name(entry, transport);
    let arch = Arch::HOST.map_or("", Arch::name);
    let files = [format!("{arch}/{name}.policy"), format!("ring/{name}.ring")];
    let directory = Directory::new(directory);
    let missing = |error: io::Error| error.kind() == io::ErrorKind::NotFound;
    files
        .iter()
        .any(|file| !directory.read(file).is_err_and(missing))
}

/// In the supervisor: finds out whether a role will have its policies, and can live with them.
pub(crate) fn for_role(
    registry: &Registry,
    entry: &Entry,
    transport: Transport,
    directory: Option<&Path>,
) -> Result<ForRole, PoliciesError> {
    let name = name(entry, transport);
    let Some(directory) = directory else {
        let built = Built { registry };
        return Ok(ForRole {
            texts: None,
            warning: judge(Written::read(&name, &built)?, transport)?,
        });
    };
    let recorder = Recorder {
        directory: Directory::new(directory),
        texts: RefCell::default(),
    };
    let warning = judge(Written::read(&name, &recorder)?, transport)?;
    Ok(ForRole {
        warning,
        texts: Some(recorder.texts.into_inner()),
    })
}

/// Refuses a policy that no process can live with; a warning about one that undoes the jail.
fn judge(written: Written, transport: Transport) -> Result<Option<String>, PoliciesError> {
    let missing = policy::missing(&written.policy);
    if !missing.is_empty() {
        return Err(PoliciesError::Missing {
            policy: written.file,
            missing,
            part: "common_device.policy".to_owned(),
        });
    }
    written.check_ring(transport)?;
    let Written {
        file,
        ring_file,
        policy,
        ring,
    } = written;
    if let Err(source) = policy.compile() {
        return Err(PoliciesError::Program {
            policy: file,
            source,
        });
    }
    let calls = policy::violations(&policy);
    let calls: Vec<_> = calls.iter().map(ToString::to_string).collect();
    let halves = [
        (file, calls.join(", ")),
        (ring_file, ring.forbidden().join(", ")),
    ];
    let found = halves.iter().filter(|(_, found)| !found.is_empty());
    let warnings: Vec<_> = found
        .map(|(file, found)| {
            format!("{file}, or a file that it includes, allows what no device may: {found}")
        })
        .collect();
    Ok((!warnings.is_empty()).then(|| warnings.join("; ")))
}

/// What the author of a kind without policies is told.
const NOT_BUILT_IN: &str = "this program has no such file: neither seccomp/ as it was built nor \
                            Registry::with_policies() holds it";

/// The files in this binary: the workspace's, then those of the registry.
struct Built<'a> {
    registry: &'a Registry,
}

impl Source for Built<'_> {
    fn read(&self, name: &str) -> io::Result<String> {
        Embedded.read(name).or_else(|error| {
            let mut added = self.registry.policies().iter();
            match added.find(|(known, _)| *known == name) {
                Some((_, text)) => Ok((*text).to_owned()),
                None => Err(io::Error::new(error.kind(), NOT_BUILT_IN)),
            }
        })
    }

    fn label(&self, name: &str) -> String {
        Embedded.label(name)
    }
}

/// An operator's directory, remembering what was read: just that is sent.
struct Recorder {
    directory: Directory,
    texts: RefCell<Texts>,
}

impl Source for Recorder {
    fn read(&self, name: &str) -> io::Result<String> {
        // What was judged is what is sent, whatever becomes of the file meanwhile.
        if let Some(text) = self.texts.borrow().get(name) {
            return Ok(text.clone());
        }
        let text = self.directory.read(name)?;
        self.texts
            .borrow_mut()
            .insert(name.to_owned(), text.clone());
        Ok(text)
    }

    fn label(&self, name: &str) -> String {
        self.directory.label(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RING: &str = "@include ./common_device.ring\n@include ./vhost_user.ring\n";

    fn judged(text: &str) -> Result<Option<String>, PoliciesError> {
        judged_with_ring(text, RING)
    }

    fn judged_with_ring(text: &str, ring: &str) -> Result<Option<String>, PoliciesError> {
        let registry = Registry::new();
        let arch = Arch::HOST.ok_or(PoliciesError::Arch)?;
        let name = "mine_device_vhost_user";
        let parts = ["common_device", "vhost_user"].map(|part| format!("ring/{part}.ring"));
        let built = Built {
            registry: &registry,
        };
        let mut texts = Texts::new();
        for part in parts
            .into_iter()
            .chain([format!("{arch}/common_device.policy")])
        {
            texts.insert(part.clone(), built.read(&part).unwrap_or_default());
        }
        texts.insert(format!("{arch}/{name}.policy"), text.to_owned());
        texts.insert(format!("ring/{name}.ring"), ring.to_owned());
        judge(Written::read(name, &texts)?, Transport::VhostUser)
    }

    #[test]
    fn a_policy_without_what_every_process_needs_is_refused_with_the_remedy() {
        let error = judged("io_uring_enter: 1\nread: 1\n").unwrap_err();
        let error = error.to_string();
        let expected =
            "mine_device_vhost_user.policy: sendto, exit_group, rt_sigreturn not allowed";
        assert!(error.contains(expected), "{error}");
        assert!(error.contains("@include ./common_device.policy"), "{error}");
    }

    #[test]
    fn a_ring_list_that_has_forgotten_a_part_is_refused_with_the_remedy() {
        let calls = "@include ./common_device.policy\n";
        for (ring, expected) in [
            (
                "@include ./common_device.ring\nIORING_OP_READV: 1\n",
                "ring/mine_device_vhost_user.ring: IORING_OP_ACCEPT not allowed, which every \
                 device's process needs: does it `@include ./vhost_user.ring`?",
            ),
            (
                "@include ./vhost_user.ring\nIORING_OP_READV: 1\n",
                "ring/mine_device_vhost_user.ring: IORING_OP_POLL_ADD, IORING_OP_ASYNC_CANCEL, \
                 IOSQE_CQE_SKIP_SUCCESS not allowed, which every device's process needs: does it \
                 `@include ./common_device.ring`?",
            ),
        ] {
            let error = judged_with_ring(calls, ring).unwrap_err();
            assert_eq!(error.to_string(), expected);
        }
    }

    #[test]
    fn a_policy_that_undoes_the_jail_is_warned_of_in_one_line() {
        let warning = judged("@include ./common_device.policy\n").unwrap();
        assert_eq!(warning, None);
        let text = "@include ./common_device.policy\nopenat: 1\nsocket: 1\n";
        let warning = judged(text).unwrap().unwrap_or_default();
        assert!(
            warning.contains("mine_device_vhost_user.policy, or a file that it includes, allows"),
            "{warning}"
        );
        assert!(!warning.contains(".ring"), "{warning}");
        assert!(warning.contains("`openat`"), "{warning}");
        assert!(warning.contains("`socket`"), "{warning}");
        let ring = format!("{RING}IORING_OP_OPENAT: 1\n");
        let warning = judged_with_ring("@include ./common_device.policy\n", &ring);
        let warning = warning.unwrap().unwrap_or_default();
        assert_eq!(
            warning,
            "ring/mine_device_vhost_user.ring, or a file that it includes, allows what no device \
             may: IORING_OP_OPENAT"
        );
    }

    #[test]
    fn a_policy_that_nobody_built_in_is_told_by_its_name_and_remedy() {
        let registry = Registry::new().with_policies(&[("ring/mine.ring", "text")]);
        let built = Built {
            registry: &registry,
        };
        assert_eq!(built.read("ring/mine.ring").ok().as_deref(), Some("text"));
        assert!(built.read("ring/block.ring").is_ok());
        let name = "other_device_vhost_user";
        let error = allow_list(name, &built)
            .err()
            .map(|error| error.to_string());
        let error = error.unwrap_or_default();
        assert!(
            error.contains("ring/other_device_vhost_user.ring"),
            "{error}"
        );
        assert!(
            error.contains("Registry::with_policies() holds it"),
            "{error}"
        );
    }
}
