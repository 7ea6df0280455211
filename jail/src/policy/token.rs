//! Splits a policy file into tokens, line by line; a `\` at the end of a line joins the next one.

use std::fmt;

/// A place in a file, both counted from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) line: u32,
    pub(crate) column: u32,
}

/// What can be wrong at a place.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct SyntaxError {
    pub(crate) at: Position,
    pub(crate) message: String,
}

impl SyntaxError {
    pub(crate) fn new(at: Position, message: impl Into<String>) -> Self {
        Self {
            at,
            message: message.into(),
        }
    }
}

/// A token's kind and text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind<'a> {
    /// A name, a key word or an action; may hold `-` as in `kill-process`.
    Word(&'a str),
    /// `@include` and the like, without the `@`.
    Directive(&'a str),
    /// As written, sign and base included.
    Number(&'a str),
    /// `./file` or `/file`.
    Path(&'a str),
    /// An operator or punctuation.
    Symbol(&'static str),
}

impl fmt::Display for Kind<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directive(text) => write!(f, "`@{text}`"),
            Self::Word(text) | Self::Number(text) | Self::Path(text) | Self::Symbol(text) => {
                write!(f, "`{text}`")
            }
        }
    }
}

/// A token and where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Token<'a> {
    pub(crate) kind: Kind<'a>,
    pub(crate) at: Position,
}

/// One statement's tokens, and the place after the last of them.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Line<'a> {
    pub(crate) tokens: Vec<Token<'a>>,
    pub(crate) end: Position,
}

/// Longer ones first, so that `||` is not two `|`.
const SYMBOLS: [&str; 21] = [
    "||", "&&", "==", "!=", "<=", ">=", "|", "&", "<", ">", "=", ":", ";", ",", "~", "(", ")", "{",
    "}", "[", "]",
];

/// The lines of a file that hold tokens.
pub(crate) fn lines(text: &str) -> Result<Vec<Line<'_>>, SyntaxError> {
    let mut lines = Vec::new();
    let mut tokens = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let (line, goes_on) = match line.strip_suffix('\\') {
            Some(line) => (line, true),
            None => (line, false),
        };
        let end = split(line, number, &mut tokens)?;
        if !goes_on && !tokens.is_empty() {
            lines.push(Line {
                tokens: std::mem::take(&mut tokens),
                end,
            });
        }
    }
    // A `\` on the last line joins nothing.
    if let Some(last) = tokens.last() {
        let end = last.at;
        lines.push(Line { tokens, end });
    }
    Ok(lines)
}

/// Appends one line's tokens; says where the line ends.
fn split<'a>(
    line: &'a str,
    number: u32,
    tokens: &mut Vec<Token<'a>>,
) -> Result<Position, SyntaxError> {
    let mut rest = line;
    loop {
        rest = rest.trim_start();
        let column = line[..line.len() - rest.len()].chars().count();
        let at = Position {
            line: number,
            column: u32::try_from(column + 1).unwrap_or(u32::MAX),
        };
        if rest.is_empty() || rest.starts_with('#') {
            return Ok(at);
        }
        let (kind, length) = first(rest).ok_or_else(|| {
            let found: String = rest.chars().take(1).collect();
            SyntaxError::new(at, format!("`{found}` begins nothing of this language"))
        })?;
        tokens.push(Token { kind, at });
        rest = &rest[length..];
    }
}

/// The token at the start of `text`, and its length in bytes.
fn first(text: &str) -> Option<(Kind<'_>, usize)> {
    let until = |end: &dyn Fn(char) -> bool, from: usize| {
        text[from..]
            .find(end)
            .map_or(text.len(), |length| from + length)
    };
    let not_in_word = |c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '-');
    let begin = text.chars().next()?;
    if begin == '@' {
        let end = until(&not_in_word, 1);
        return Some((Kind::Directive(&text[1..end]), end));
    }
    if begin == '/' || text.starts_with("./") {
        let end = until(&char::is_whitespace, 0);
        return Some((Kind::Path(&text[..end]), end));
    }
    let digits = text.strip_prefix('-').unwrap_or(text);
    if digits.starts_with(|c: char| c.is_ascii_digit()) {
        let end = until(
            &|c| !(c.is_ascii_alphanumeric() || c == '_'),
            text.len() - digits.len(),
        );
        return Some((Kind::Number(&text[..end]), end));
    }
    if begin.is_ascii_alphabetic() || begin == '_' {
        let end = until(&not_in_word, 0);
        return Some((Kind::Word(&text[..end]), end));
    }
    let symbol = SYMBOLS
        .into_iter()
        .find(|symbol| text.starts_with(symbol))?;
    Some((Kind::Symbol(symbol), symbol.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(text: &str) -> Vec<Vec<Kind<'_>>> {
        let lines = lines(text).unwrap();
        lines
            .iter()
            .map(|line| line.tokens.iter().map(|t| t.kind).collect())
            .collect()
    }

    #[test]
    fn a_statement_ends_with_its_line_unless_a_backslash_joins_the_next() {
        use Kind::{Number, Path, Symbol, Word};
        assert_eq!(
            kinds("read: 1 # why\n\n  # nothing\nkill-x: \\\n  arg0==-0x1||~3\n@include ./a.b\n"),
            [
                vec![Word("read"), Symbol(":"), Number("1")],
                vec![
                    Word("kill-x"),
                    Symbol(":"),
                    Word("arg0"),
                    Symbol("=="),
                    Number("-0x1"),
                    Symbol("||"),
                    Symbol("~"),
                    Number("3"),
                ],
                vec![Kind::Directive("include"), Path("./a.b")],
            ]
        );
    }

    #[test]
    fn a_stray_character_is_named_with_its_line_and_column() {
        let error = lines("read: 1\n  é").unwrap_err();
        assert_eq!(error.at, Position { line: 2, column: 3 });
        assert!(error.message.contains('é'), "{}", error.message);
    }
}
