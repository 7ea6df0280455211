//! The one-line error about an option: device, key, column, what is wrong, what to do.
//! It is the user's text and not a cause to program against, so it has no variants.

use std::fmt;
use std::io;
use std::path::Path;

use crate::text::printable;

/// Characters of the user's own text that an error repeats.
const REPEATED_MAX: usize = 80;

/// How the user has written the options of a device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Spelling {
    /// `--block path=disk.img,ro`: one argument, with columns.
    #[default]
    Argument,
    /// `block --path disk.img --ro`: each key is an argument of its own.
    Words,
}

impl Spelling {
    /// A key and what stands for its value, as the user would write them.
    pub(super) fn pair(self, key: &str, value: &str) -> String {
        match self {
            Self::Argument => format!("{key}={value}"),
            Self::Words => format!("--{key} {value}"),
        }
    }
}

/// An option that cannot be honoured. Shown as one line:
/// `--block: path: column 6: cannot be opened: …: give the path of an image`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OptionError {
    flag: &'static str,
    spelling: Spelling,
    number: usize,
    key: Option<String>,
    column: Option<usize>,
    problem: String,
    remedy: String,
}

impl OptionError {
    /// An error about a flag as a whole, `--block` say; the rest is added by the methods below.
    pub fn new(flag: &'static str, problem: impl fmt::Display) -> Self {
        Self {
            flag,
            spelling: Spelling::default(),
            number: 0,
            key: None,
            column: None,
            problem: problem.to_string(),
            remedy: String::new(),
        }
    }

    /// With the key it is about.
    #[must_use]
    pub fn key(self, key: &str) -> Self {
        Self {
            key: Some(key.to_owned()),
            ..self
        }
    }

    /// With the column, counted in characters from 1.
    #[must_use]
    pub fn column(self, column: Option<usize>) -> Self {
        Self { column, ..self }
    }

    /// With what to do about it, as an imperative.
    #[must_use]
    pub fn remedy(self, remedy: impl fmt::Display) -> Self {
        Self {
            remedy: remedy.to_string(),
            ..self
        }
    }

    /// Which use of the flag it was, from 0: told from the second on.
    #[must_use]
    pub fn of_device(self, number: usize) -> Self {
        Self { number, ..self }
    }

    /// As the user has written it.
    pub(super) fn spelled(self, spelling: Spelling) -> Self {
        Self { spelling, ..self }
    }

    /// The column in the argument, from 1, if the user wrote what is wrong.
    pub fn at(&self) -> Option<usize> {
        self.column
    }
}

impl std::error::Error for OptionError {}

impl fmt::Display for OptionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (before_flag, before_key) = match self.spelling {
            Spelling::Argument => ("--", ""),
            Spelling::Words => ("", "--"),
        };
        write!(f, "{before_flag}{}", self.flag)?;
        if self.number > 0 {
            write!(f, " (number {})", self.number + 1)?;
        }
        if let Some(key) = &self.key {
            write!(f, ": {before_key}{}", printable(key.as_bytes()))?;
        }
        if let (Some(column), Spelling::Argument) = (self.column, self.spelling) {
            write!(f, ": column {column}")?;
        }
        write!(f, ": {}", printable(self.problem.as_bytes()))?;
        if !self.remedy.is_empty() {
            write!(f, ": {}", printable(self.remedy.as_bytes()))?;
        }
        Ok(())
    }
}

/// The user's own text in quotes, shortened, with control characters escaped.
pub(crate) fn repeat(text: &str) -> String {
    let mut characters = text.chars();
    let head: String = characters.by_ref().take(REPEATED_MAX).collect();
    let more = if characters.next().is_some() {
        "…"
    } else {
        ""
    };
    format!("{head:?}{more}")
}

/// A path as [`repeat`] has it.
pub(crate) fn shown(path: &Path) -> String {
    repeat(&path.to_string_lossy())
}

/// The kernel's words without Rust's number behind them.
pub(crate) fn reason(error: impl Into<io::Error>) -> String {
    let text = error.into().to_string();
    let (words, _number) = text.rsplit_once(" (os error").unwrap_or((&text, ""));
    words.to_owned()
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

    #[test]
    fn an_error_is_one_line_of_flag_key_column_problem_and_remedy() {
        let error = OptionError::new("block", "cannot be\nopened")
            .key("path")
            .column(Some(6));
        assert_eq!(
            error.clone().remedy("check it").to_string(),
            "--block: path: column 6: cannot be\\u{a}opened: check it"
        );
        assert_eq!(
            error.clone().spelled(Spelling::Words).to_string(),
            "block: --path: cannot be\\u{a}opened"
        );
        assert_eq!(
            error.of_device(1).to_string(),
            "--block (number 2): path: column 6: cannot be\\u{a}opened"
        );
    }

    #[test]
    fn long_text_of_the_user_is_shortened() {
        assert_eq!(repeat("a\u{1b}b"), "\"a\\u{1b}b\"");
        assert!(repeat(&"x".repeat(1000)).chars().count() < 90);
    }
    #[test]
    fn a_reason_is_the_kernels_words_or_our_own() {
        assert_eq!(reason(Errno::NOENT), "No such file or directory");
        assert_eq!(reason(io::Error::other("too far")), "too far");
    }
}
