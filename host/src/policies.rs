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
use vudev_jail::ring::{RingList, allow_list};
use vudev_jail::{Arch, Directory, Embedded, PolicyError, Program, Source, policy};

use crate::channel::Transport;
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
    ) -> Result<Self, PoliciesError> {
        let arch = Arch::HOST.ok_or(PoliciesError::Arch)?;
        let name = format!("{}_{}", entry.policy(), transport.policy_suffix());
        let RingList { opcodes, flags } = allow_list(&name, source)?;
        let program = policy::compile(&name, arch, source)?;
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
    ) -> Result<Self, PoliciesError> {
        match texts {
            Some(texts) => Self::read(entry, transport, texts),
            None => Self::read(entry, transport, &Built { registry }),
        }
    }
}

/// In the supervisor: finds out whether a role will have its policies, and returns the texts that
/// it must be sent.
pub(crate) fn texts_for_role(
    registry: &Registry,
    entry: &Entry,
    transport: Transport,
    directory: Option<&Path>,
) -> Result<Option<Texts>, PoliciesError> {
    let Some(directory) = directory else {
        Policies::read(entry, transport, &Built { registry })?;
        return Ok(None);
    };
    let recorder = Recorder {
        directory: Directory::new(directory),
        texts: RefCell::default(),
    };
    Policies::read(entry, transport, &recorder)?;
    Ok(Some(recorder.texts.into_inner()))
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
