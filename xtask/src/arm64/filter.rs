//! Refuses a filter that no test can have in its line, before minutes go by in the machine: what
//! the filters then leave out is decided there.

use std::fs;

use anyhow::{Context, Result, ensure};

use super::build::Suite;

/// The error names the first filter that is neither in the name of a suite nor in a program's text,
/// where the names of its tests are. Other texts are there as well, so a filter may still find
/// nothing.
pub(super) fn check(filters: &[&str], suites: &[Suite]) -> Result<()> {
    let mut unknown = filters.to_vec();
    for suite in suites {
        unknown.retain(|filter| !suite.name.contains(filter));
        if unknown.is_empty() {
            return Ok(());
        }
        let path = &suite.program;
        let program = fs::read(path).with_context(|| path.display().to_string())?;
        let program = String::from_utf8_lossy(&program);
        unknown.retain(|filter| !may_have(&suite.name, &program, filter));
    }
    let names: Vec<_> = suites.iter().map(|suite| suite.name.as_str()).collect();
    ensure!(
        unknown.is_empty(),
        "{} is in the name of no suite and no test; the suites are {}",
        unknown.join(", "),
        names.join(", ")
    );
    Ok(())
}

/// Whether `SUITE TEST` may have a filter in it that `SUITE` has not.
fn may_have(suite: &str, program: &str, filter: &str) -> bool {
    match filter.split_once(' ') {
        Some((end, test)) => suite.ends_with(end) && program.contains(test),
        None => program.contains(filter),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_that_is_in_no_suite_and_no_test_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let suite = |name: &str, tests: &[u8]| {
            let program = folder.path().join(name.replace('/', "-"));
            fs::write(&program, tests).unwrap();
            Suite {
                name: name.to_owned(),
                program,
                folder: folder.path().to_owned(),
            }
        };
        let suites = [
            suite("bin/tests/check", b"\0of_a_checkin_order"),
            suite("tests/tests/modes", b"\x7fa::mode_is_named"),
        ];
        for good in [
            "check",
            "tests/",
            "in_order",
            "mode_is",
            "a::mode",
            "check in_o",
            "modes a::mode",
            "check ",
        ] {
            check(&[good], &suites).unwrap();
        }
        check(&[], &suites).unwrap();
        check(&["bin/", "mode"], &suites).unwrap();
        for bad in ["polices", "check mode_is", "mode_is_named ", "in order"] {
            let error = check(&["check", bad], &suites).unwrap_err().to_string();
            let expected =
                "is in the name of no suite and no test; the suites are bin/tests/check, ";
            assert!(error.starts_with(&format!("{bad} {expected}")), "{error}");
        }
    }
}
