//! Rules that no test uses and that stay, as their files say it: a comment right above the rule
//! that begins with [`MARK`], and goes on with the reason.

use anyhow::{Context, Result};

use super::rules::{Alternative, root};

/// How such a comment begins.
pub(super) const MARK: &str = "# Unused in tests:";

/// The reason that is given for an alternative: above its line, where comments and no empty line
/// are between. Of a rule with several alternatives, all are meant.
pub(super) fn reason(alternative: &Alternative) -> Result<Option<String>> {
    let path = root().join(&alternative.file);
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let lines: Vec<_> = text.lines().collect();
    let line = usize::try_from(alternative.line)?;
    Ok(above(&lines, line.saturating_sub(1)))
}

fn above(lines: &[&str], rule: usize) -> Option<String> {
    let comment: Vec<_> = lines[..rule]
        .iter()
        .rev()
        .take_while(|line| line.starts_with('#'))
        .collect();
    let begin = comment.iter().position(|line| line.starts_with(MARK))?;
    let words = comment[..=begin].iter().rev().flat_map(|line| {
        let line = line.strip_prefix(MARK).unwrap_or(line);
        line.trim_start_matches('#').split_whitespace()
    });
    Some(words.collect::<Vec<_>>().join(" "))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// What is wrong with the marks of one file: one without a reason, or above no rule.
    fn faults(file: &Path, text: &str) -> Vec<String> {
        let lines: Vec<_> = text.lines().collect();
        let marks = (0..lines.len()).filter(|index| lines[*index].contains(MARK));
        let faulty = marks.filter(|mark| {
            let rule = (*mark..lines.len()).find(|index| !lines[*index].starts_with('#'));
            let rule = rule.filter(|index| lines[*index].contains(':'));
            rule.and_then(|rule| above(&lines, rule))
                .is_none_or(|why| why.is_empty())
        });
        faulty
            .map(|mark| {
                format!(
                    "{}:{}: expected a reason and a rule",
                    file.display(),
                    mark + 1
                )
            })
            .collect()
    }

    #[test]
    fn a_reason_stands_right_above_its_rule() {
        let text = "# Unused in tests: the kernel\n# may want it.\nfoo: 1\nbar: 1\n\n\
                    # Unused in tests: lost\n\nbaz: 1\n# Unused in tests:\nqux: 1\n";
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(above(&lines, 2).as_deref(), Some("the kernel may want it."));
        assert_eq!(above(&lines, 3), None);
        assert_eq!(above(&lines, 7), None);
        assert_eq!(
            faults(Path::new("a"), text),
            [
                "a:6: expected a reason and a rule",
                "a:9: expected a reason and a rule"
            ]
        );
    }

    #[test]
    fn each_mark_in_the_policies_has_a_reason_and_a_rule() {
        let mut found = Vec::new();
        for folder in std::fs::read_dir(root()).unwrap() {
            let Ok(files) = std::fs::read_dir(folder.unwrap().path()) else {
                continue;
            };
            for file in files {
                let path = file.unwrap().path();
                found.extend(faults(&path, &std::fs::read_to_string(&path).unwrap()));
            }
        }
        assert!(found.is_empty(), "{}", found.join("\n"));
    }
}
