//! What a test run came to: counts, failures and skips, read from what the runners write. It runs
//! nothing.

use std::ops::AddAssign;

/// How a test says that it could not show what it promises, on a line of its own.
const SKIP_MARK: &str = "SKIPPED:";

/// The counts of one or several runs.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// Tests that passed, without those that skipped themselves.
    pub(crate) passed: usize,
    /// Tests that failed, timeouts among them.
    pub(crate) failed: usize,
    /// Why tests were skipped, one entry a test.
    pub(crate) skips: Vec<String>,
}

impl Outcome {
    /// Reads nextest's JUnit report. Its configuration stores the output of passed tests there.
    pub(crate) fn from_junit(report: &str) -> Self {
        let mut outcome = Self::default();
        for case in report.split("<testcase ").skip(1) {
            let case = case.split("</testcase>").next().unwrap_or_default();
            let skips = skips(case);
            if case.contains("<failure") || case.contains("<error") {
                outcome.failed += 1;
            } else if skips.is_empty() {
                outcome.passed += 1;
            } else {
                outcome.skips.extend(skips);
            }
        }
        outcome
    }

    /// Reads what `cargo test -- --show-output` prints. An ignored test is none that was skipped:
    /// here it is a part of another test, which runs it in a process of its own.
    pub(crate) fn from_cargo_test(printed: &str) -> Self {
        let mut outcome = Self {
            skips: skips(printed),
            ..Self::default()
        };
        for line in printed.lines() {
            let Some(counts) = line.trim().strip_prefix("test result: ") else {
                continue;
            };
            let counts = counts.split_once(". ").map_or(counts, |(_, counts)| counts);
            for count in counts.split(';') {
                let mut words = count.split_whitespace();
                let number = words.next().and_then(|word| word.parse().ok()).unwrap_or(0);
                match words.next() {
                    Some("passed") => outcome.passed += number,
                    Some("failed") => outcome.failed += number,
                    _ => {}
                }
            }
        }
        outcome.passed = outcome.passed.saturating_sub(skips(printed).len());
        outcome
    }

    /// The closing line, in the form that any reader of logs understands.
    pub(crate) fn closing_line(&self) -> String {
        format!(
            "{} passed, {} failed, {} skipped",
            self.passed,
            self.failed,
            self.skips.len()
        )
    }
}

impl AddAssign for Outcome {
    fn add_assign(&mut self, other: Self) {
        let Self {
            passed,
            failed,
            skips,
        } = other;
        self.passed += passed;
        self.failed += failed;
        self.skips.extend(skips);
    }
}

fn skips(text: &str) -> Vec<String> {
    let reasons = text.lines().filter_map(|line| {
        // The first line of a stored output follows its tag directly.
        let line = line.rsplit('>').next().unwrap_or(line).trim();
        line.strip_prefix(SKIP_MARK)
            .map(|reason| reason.trim().to_owned())
    });
    reasons.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_that_skipped_itself_did_not_pass() {
        let report = r#"<testsuites><testsuite name="a">
            <testcase name="one"/>
            <testcase name="two"><system-err>SKIPPED: no FUSE here
</system-err></testcase>
            <testcase name="three"><failure message="panicked"/></testcase>
            </testsuite></testsuites>"#;
        let outcome = Outcome::from_junit(report);
        assert_eq!(outcome.closing_line(), "1 passed, 1 failed, 1 skipped");
        assert_eq!(outcome.skips, ["no FUSE here"]);
    }

    #[test]
    fn the_results_of_all_binaries_of_cargo_test_are_added_up() {
        let printed = "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out\n\
            SKIPPED: no user namespaces\n\
            test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured";
        let outcome = Outcome::from_cargo_test(printed);
        assert_eq!(outcome.closing_line(), "3 passed, 2 failed, 1 skipped");
    }
}
