//! What a process on trial says over its channel, one packet a fact.

use serde::{Deserialize, Serialize};

/// The longest packet: names of some thirty kernel features, and an error.
pub(super) const FACT_MAX: usize = 4096;

/// What was tried. The names are those of the report's layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Tried {
    Ring,
    RingFlags,
    RingFeatures,
    RingOpcodes,
    RingRestrictions,
    Identity,
    EmptyRoot,
    Landlock,
    Capabilities,
    Process,
    Filter,
}

impl Tried {
    const ALL: [Self; 11] = [
        Self::Ring,
        Self::RingFlags,
        Self::RingFeatures,
        Self::RingOpcodes,
        Self::RingRestrictions,
        Self::Identity,
        Self::EmptyRoot,
        Self::Landlock,
        Self::Capabilities,
        Self::Process,
        Self::Filter,
    ];
}

/// How it went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Found {
    /// As needed; what exactly.
    There(String),
    /// Some of it is not there, by name.
    Lacks(Vec<String>),
    /// A step failed, with its errno.
    Failed(String, i32),
}

/// One packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Fact {
    pub(super) tried: Tried,
    pub(super) found: Found,
}

/// What was heard, the first word on each.
#[derive(Debug, Default)]
pub(super) struct Facts(Vec<Fact>);

impl Facts {
    pub(super) fn add(&mut self, heard: &[Fact]) {
        for fact in heard {
            if self.of(fact.tried).is_none() {
                self.0.push(fact.clone());
            }
        }
    }

    pub(super) fn of(&self, tried: Tried) -> Option<&Found> {
        let fact = self.0.iter().find(|fact| fact.tried == tried);
        fact.map(|fact| &fact.found)
    }

    pub(super) fn complete(&self) -> bool {
        Tried::ALL.iter().all(|tried| self.of(*tried).is_some())
    }
}
