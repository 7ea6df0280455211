//! What the emulated machine says of its tests, line by line. It runs nothing.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};

use super::excluded;
use crate::outcome::Outcome;
use crate::process::say;

/// What all suites came to.
pub(super) struct Report {
    /// The kernel's name and version.
    pub(super) kernel: String,
    /// What each user's tests came to.
    pub(super) passes: Vec<(String, Outcome)>,
    /// Tests that were left out, each once.
    excluded: Vec<(String, String)>,
    ended: bool,
    suite: String,
    last: String,
}

impl Report {
    pub(super) fn new() -> Self {
        Self {
            kernel: String::new(),
            passes: Vec::new(),
            excluded: Vec::new(),
            ended: false,
            suite: String::new(),
            last: String::new(),
        }
    }

    /// Reads a line.
    pub(super) fn take(&mut self, line: &str) {
        line.clone_into(&mut self.last);
        let Some((what, rest)) = line
            .strip_prefix("@@")
            .map(|line| line.split_once(' ').unwrap_or((line, "")))
        else {
            eprintln!("{line}");
            return;
        };
        self.say_suite(what, rest);
        match (what, self.passes.last_mut()) {
            ("kernel", _) => rest.clone_into(&mut self.kernel),
            ("pass", _) => {
                say(&format!("tests as {rest}"));
                self.passes.push((rest.to_owned(), Outcome::default()));
            }
            ("end", _) => self.ended = true,
            ("passed", Some((_, outcome))) => outcome.passed += 1,
            ("failed", Some((_, outcome))) => {
                eprintln!("FAILED {rest}");
                outcome.failed += 1;
            }
            ("skipped", Some((_, outcome))) => outcome.skips.push(rest.to_owned()),
            ("excluded", _) => {
                let (suite, test) = rest.split_once(' ').unwrap_or((rest, ""));
                let test = (suite.to_owned(), test.to_owned());
                if !self.excluded.contains(&test) {
                    self.excluded.push(test);
                }
            }
            _ => eprintln!("{line}"),
        }
    }

    /// Shows that it goes on.
    fn say_suite(&mut self, what: &str, rest: &str) {
        let suite = rest.split(' ').next().unwrap_or_default();
        if matches!(what, "passed" | "failed" | "skipped") && suite != self.suite {
            suite.clone_into(&mut self.suite);
            let so_far = self.total().closing_line();
            say(&format!("{so_far}; {suite}"));
        }
    }

    /// The machine has switched itself off.
    pub(super) fn end(&self) -> Result<()> {
        ensure!(
            self.ended,
            "the machine ended before its tests did; its last line was {:?}",
            self.last
        );
        Ok(())
    }

    /// All passes together.
    pub(super) fn total(&self) -> Outcome {
        let mut total = Outcome::default();
        for (_, outcome) in &self.passes {
            total += outcome.clone();
        }
        total
    }

    /// What was left out, by the reason.
    pub(super) fn excluded(&self) -> BTreeMap<&'static str, Vec<String>> {
        let entries = excluded::all();
        let mut all: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (suite, test) in &self.excluded {
            let entry = entries.iter().find(|one| one.names(suite, test));
            let reason = entry.map_or("for no reason", |one| one.reason);
            all.entry(reason)
                .or_default()
                .push(format!("{suite} {test}"));
        }
        all
    }

    /// Entries that left nothing out.
    pub(super) fn stale_exclusions(&self) -> Vec<String> {
        let entries = excluded::all().into_iter();
        let stale = entries.filter(|one| {
            let mut left_out = self.excluded.iter();
            !left_out.any(|(suite, test)| one.names(suite, test))
        });
        stale
            .map(|one| format!("{} {}", one.suite, one.test))
            .collect()
    }
}
