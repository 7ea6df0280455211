//! What is to be used: each alternative of each rule of a device's policy, and each line of its
//! ring list; and which of them allowed what was recorded.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use vudev_jail::Arch;
use vudev_jail::policy::{self, Call, Places, Policy};
use vudev_jail::ring::{self, Entry, Named};
use vudev_jail::source::Directory;

use super::record::Device;
use crate::workspace;

/// One way to be allowed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Alternative {
    /// Below `seccomp/`.
    pub(super) file: String,
    pub(super) line: u32,
    /// Its place among the line's alternatives.
    pub(super) clause: usize,
    /// `mmap: arg2 in PROT_READ|PROT_WRITE`
    pub(super) text: String,
}

/// How often each alternative was used.
#[derive(Default)]
pub(super) struct Uses {
    pub(super) counts: BTreeMap<Alternative, u64>,
    /// By name, what no rule allows: a test that provokes it, or a rule that was taken away.
    pub(super) denied: BTreeMap<String, u64>,
}

/// The policy and ring list of one kind of device as a vhost-user back-end, from the working tree.
pub(super) struct Rules {
    arch: Arch,
    policy: Policy,
    places: Places,
    entries: Vec<Entry>,
    files: BTreeMap<String, Vec<String>>,
}

/// The folder of the policies.
pub(super) fn root() -> PathBuf {
    workspace::root().join("seccomp")
}

impl Rules {
    pub(super) fn of(kind: &str) -> Result<Self> {
        let arch = Arch::HOST.context("this machine's architecture has no policies")?;
        let name = format!("{kind}_device_vhost_user");
        let source = Directory::new(root());
        let (policy, places) = policy::read_with_places(&name, arch, &source)?;
        let entries = ring::entries(&name, &source)?;
        let mut files = BTreeMap::new();
        let of_rules = places.values().flatten().map(|place| &place.file);
        for file in of_rules.chain(entries.iter().map(|entry| &entry.place.file)) {
            if !files.contains_key(file) {
                let text = fs::read_to_string(file).with_context(|| file.clone())?;
                files.insert(file.clone(), text.lines().map(str::to_owned).collect());
            }
        }
        Ok(Self {
            arch,
            policy,
            places,
            entries,
            files,
        })
    }

    /// All alternatives with what allowed these calls and submissions. Where several parts name
    /// an operation, each of them allowed it.
    pub(super) fn uses(&self, device: &Device) -> Uses {
        let mut uses = Uses::default();
        for (number, rule) in &self.policy.rules {
            for (index, filter) in rule.filters.iter().enumerate() {
                let clauses = filter.condition.as_ref().map_or(1, Vec::len);
                for clause in 0..clauses {
                    uses.counts
                        .insert(self.of_filter(*number, index, clause), 0);
                }
            }
        }
        for ((number, args), count) in &device.calls {
            let call = Call {
                number: *number,
                arch: self.arch.audit(),
                args: *args,
            };
            let decision = self.policy.decide(&call).filter(|it| it.action.permits());
            let used = match decision {
                Some(it) => uses
                    .counts
                    .entry(self.of_filter(*number, it.filter, it.clause))
                    .or_default(),
                None => uses.denied.entry(self.name(*number)).or_default(),
            };
            *used += count;
        }
        for entry in &self.entries {
            let submitted =
                device
                    .submissions
                    .iter()
                    .filter(|((opcode, flags), _)| match entry.names {
                        Named::Opcode(named) => named == *opcode,
                        Named::Flag(named) => named & flags != 0,
                    });
            let count = submitted.map(|(_, count)| count).sum();
            let Entry { names: _, place } = entry;
            uses.counts
                .insert(self.alternative(&place.file, place.line, 0), count);
        }
        uses
    }

    /// The name of a system call.
    pub(super) fn name(&self, number: u32) -> String {
        let name = self.arch.syscall_name(number);
        name.map_or_else(|| format!("system call {number}"), str::to_owned)
    }

    fn of_filter(&self, number: u32, filter: usize, clause: usize) -> Alternative {
        let place = &self.places[&number][filter];
        self.alternative(&place.file, place.line, clause)
    }

    fn alternative(&self, file: &str, line: u32, clause: usize) -> Alternative {
        let index = usize::try_from(line).unwrap_or_default();
        let text = self.files[file].get(index.saturating_sub(1));
        let file = Path::new(file);
        let short = file.strip_prefix(root()).unwrap_or(file);
        Alternative {
            file: short.display().to_string(),
            line,
            clause,
            text: text.map_or_else(String::new, |text| alternative_of(text, clause)),
        }
    }
}

/// `fcntl: arg1 == 1 || arg1 == 2` has `fcntl: arg1 == 1` and `fcntl: arg1 == 2`.
fn alternative_of(line: &str, clause: usize) -> String {
    let line = line.split('#').next().unwrap_or(line);
    let Some((name, condition)) = line.split_once(':') else {
        return line.trim().to_owned();
    };
    let alternative = condition.split("||").nth(clause).unwrap_or(condition);
    format!("{}: {}", name.trim(), alternative.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_counted_where_it_is_allowed_and_only_there() {
        let rules = Rules::of("block").unwrap();
        let number = |name| rules.arch.syscall_number(name).unwrap();
        let mut device = Device::default();
        let clock = |id| (number("clock_gettime"), [id, 0, 0, 0, 0, 0]);
        for (id, times) in [(0, 3), (1, 4), (7, 5)] {
            device.calls.insert(clock(id), times);
        }
        let uses = rules.uses(&device);
        let count = |text| {
            let found = uses.counts.iter().find(|(it, _)| it.text == text);
            *found.unwrap().1
        };
        assert_eq!(count("clock_gettime: arg0 == 0"), 3);
        assert_eq!(count("clock_gettime: arg0 == 1"), 4);
        assert_eq!(count("pread64: 1"), 0);
        assert_eq!(
            uses.denied,
            BTreeMap::from([("clock_gettime".to_owned(), 5)])
        );
    }

    #[test]
    fn an_alternative_is_named_by_its_own_condition() {
        assert_eq!(
            alternative_of("a: arg0 == 1 || arg1 in 3 # x", 1),
            "a: arg1 in 3"
        );
        assert_eq!(
            alternative_of("IORING_OP_READV: 1", 0),
            "IORING_OP_READV: 1"
        );
    }
}
