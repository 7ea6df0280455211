//! The `key=value,…` grammar of `crosvm run`: splits one argument into elements and remembers the
//! column of each. It knows no key and no type; [`super::values`] gives the elements a meaning.
//!
//! ```text
//! argument := [ element ("," element)* ]
//! element  := identifier "=" value | value        # bare: a flag, or the positional value
//! value    := "[" [ scalar ("," scalar)* ] "]" | scalar
//! scalar   := '"' (char | "\" char)* '"' | "'" (char | "\" char)* "'" | text
//! ```
//!
//! Text without quotes runs to the next comma (in a list also to `]`) and takes every other
//! character as it stands, so `path=a=b[1].img` needs no quotes.

/// Elements of one list; no key of any device takes more.
const LIST_LENGTH_MAX: usize = 64;

/// Something at a place: the column counts characters from 1 in the argument as it was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct At<T> {
    pub(super) column: usize,
    pub(super) what: T,
}

/// A value before anybody has said which type it is to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Raw {
    Text { text: String, quoted: bool },
    List(Vec<At<String>>),
}

/// What stands between two commas.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Element {
    Pair { key: At<String>, value: At<Raw> },
    Bare(At<Raw>),
}

/// An argument that the grammar does not know; the caller adds device and key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct GrammarError {
    pub(super) column: usize,
    pub(super) problem: &'static str,
    pub(super) remedy: &'static str,
    /// The key whose value is wrong, where it is known.
    pub(super) key: Option<String>,
}

/// Splits one argument into its elements; an empty argument has none.
pub(super) fn split(argument: &str) -> Result<Vec<Element>, GrammarError> {
    let mut cursor = Cursor {
        rest: argument,
        column: 1,
    };
    let mut elements = Vec::new();
    if argument.is_empty() {
        return Ok(elements);
    }
    loop {
        elements.push(element(&mut cursor)?);
        match cursor.peek() {
            None => return Ok(elements),
            Some(_) => cursor.bump(),
        }
    }
}

/// The column just behind the argument: where a missing key would be written.
pub(super) fn end_column(argument: &str) -> usize {
    argument.chars().count() + 1
}

/// Quotes a value so that the grammar gives it back unchanged, whatever is in it.
#[cfg(test)]
pub(crate) fn quote(value: &str) -> String {
    let mut quoted = String::with_capacity(value.len() + 2);
    quoted.push('"');
    for character in value.chars() {
        if matches!(character, '"' | '\\') {
            quoted.push('\\');
        }
        quoted.push(character);
    }
    quoted.push('"');
    quoted
}

fn element(cursor: &mut Cursor<'_>) -> Result<Element, GrammarError> {
    let column = cursor.column;
    let identifier = cursor.leading(is_identifier);
    if identifier.is_empty() || cursor.after(identifier) != Some('=') {
        return bare(cursor).map(Element::Bare);
    }
    let key = At {
        column,
        what: identifier.to_owned(),
    };
    cursor.skip(identifier);
    cursor.bump();
    let value = value(cursor).map_err(|error| GrammarError {
        key: Some(key.what.clone()),
        ..error
    });
    value.map(|value| Element::Pair { key, value })
}

fn bare(cursor: &mut Cursor<'_>) -> Result<At<Raw>, GrammarError> {
    if matches!(cursor.peek(), None | Some(',')) {
        return Err(cursor.error("nothing stands between the commas", "remove one comma"));
    }
    value(cursor)
}

fn value(cursor: &mut Cursor<'_>) -> Result<At<Raw>, GrammarError> {
    let column = cursor.column;
    let what = match cursor.peek() {
        Some('[') => Raw::List(list(cursor)?),
        Some(quote @ ('"' | '\'')) => Raw::Text {
            text: quoted(cursor, quote)?,
            quoted: true,
        },
        None | Some(',') => {
            return Err(cursor.error("the value is empty", "write a value behind the `=`"));
        }
        Some(_) => Raw::Text {
            text: cursor.take(|c| c != ','),
            quoted: false,
        },
    };
    match cursor.peek() {
        None | Some(',') => Ok(At { column, what }),
        Some(_) => Err(cursor.error(
            "a value goes on behind its closing quote or bracket",
            "put a comma there, or quote the whole value",
        )),
    }
}

fn list(cursor: &mut Cursor<'_>) -> Result<Vec<At<String>>, GrammarError> {
    const OPEN: (&str, &str) = ("a list is not closed", "write `]` behind its last element");
    let mut elements = Vec::new();
    let start = cursor.clone();
    cursor.bump();
    if cursor.peek() == Some(']') {
        cursor.bump();
        return Ok(elements);
    }
    loop {
        if elements.len() == LIST_LENGTH_MAX {
            return Err(cursor.error("a list is longer than 64 elements", "shorten it"));
        }
        let column = cursor.column;
        let what = match cursor.peek() {
            Some(quote @ ('"' | '\'')) => quoted(cursor, quote)?,
            Some(_) => cursor.take(|c| c != ',' && c != ']'),
            None => return Err(start.error(OPEN.0, OPEN.1)),
        };
        elements.push(At { column, what });
        match cursor.peek() {
            Some(',') => cursor.bump(),
            Some(']') => {
                cursor.bump();
                return Ok(elements);
            }
            Some(_) => {
                return Err(cursor.error(
                    "a list element goes on behind its quote",
                    "put a comma there",
                ));
            }
            None => return Err(start.error(OPEN.0, OPEN.1)),
        }
    }
}

fn quoted(cursor: &mut Cursor<'_>, quote: char) -> Result<String, GrammarError> {
    let start = cursor.clone();
    let unclosed = || {
        start.error(
            "a quote is not closed",
            "write the same quote behind the value",
        )
    };
    let mut text = String::new();
    cursor.bump();
    loop {
        let character = cursor.peek().ok_or_else(unclosed)?;
        cursor.bump();
        match character {
            _ if character == quote => return Ok(text),
            '\\' => {
                text.push(cursor.peek().ok_or_else(unclosed)?);
                cursor.bump();
            }
            _ => text.push(character),
        }
    }
}

fn is_identifier(character: char) -> bool {
    character.is_ascii_alphanumeric() || matches!(character, '-' | '_')
}

/// Where we are in the argument. Always on a character boundary.
#[derive(Clone)]
struct Cursor<'a> {
    rest: &'a str,
    column: usize,
}

impl<'a> Cursor<'a> {
    fn peek(&self) -> Option<char> {
        self.rest.chars().next()
    }

    fn bump(&mut self) {
        let mut characters = self.rest.chars();
        if characters.next().is_some() {
            self.rest = characters.as_str();
            self.column += 1;
        }
    }

    /// The longest prefix of such characters; moves nothing.
    fn leading(&self, belongs: impl Fn(char) -> bool) -> &'a str {
        let end = self.rest.find(|c| !belongs(c)).unwrap_or(self.rest.len());
        self.rest.split_at(end).0
    }

    /// The character behind a prefix.
    fn after(&self, prefix: &str) -> Option<char> {
        self.rest
            .strip_prefix(prefix)
            .and_then(|rest| rest.chars().next())
    }

    fn skip(&mut self, prefix: &str) {
        if let Some(rest) = self.rest.strip_prefix(prefix) {
            self.rest = rest;
            self.column += prefix.chars().count();
        }
    }

    fn take(&mut self, belongs: impl Fn(char) -> bool) -> String {
        let text = self.leading(belongs);
        self.skip(text);
        text.to_owned()
    }

    fn error(&self, problem: &'static str, remedy: &'static str) -> GrammarError {
        GrammarError {
            column: self.column,
            problem,
            remedy,
            key: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(column: usize, text: &str) -> At<Raw> {
        At {
            column,
            what: Raw::Text {
                text: text.to_owned(),
                quoted: false,
            },
        }
    }

    fn pair(column: usize, key: &str, value: At<Raw>) -> Element {
        Element::Pair {
            key: At {
                column,
                what: key.to_owned(),
            },
            value,
        }
    }

    #[test]
    fn elements_are_split_at_commas_and_keep_their_columns() {
        assert_eq!(
            split("disk.img,ro,id=x").expect("good"),
            [
                Element::Bare(text(1, "disk.img")),
                Element::Bare(text(10, "ro")),
                pair(13, "id", text(16, "x")),
            ]
        );
    }

    #[test]
    fn columns_count_characters_and_not_bytes() {
        assert_eq!(
            split("id=äöü,x").expect("good")[1],
            Element::Bare(text(8, "x"))
        );
    }

    #[test]
    fn quotes_hide_commas_and_a_backslash_hides_a_quote() {
        let quoted = |column, text: &str| At {
            column,
            what: Raw::Text {
                text: text.to_owned(),
                quoted: true,
            },
        };
        assert_eq!(
            split(r#"path="a,\"b",id='it\'s'"#).expect("good"),
            [
                pair(1, "path", quoted(6, "a,\"b")),
                pair(14, "id", quoted(17, "it's"))
            ]
        );
    }

    #[test]
    fn text_without_quotes_takes_equal_signs_brackets_and_backslashes_as_they_stand() {
        assert_eq!(
            split(r"path=a=b[1]\x").expect("good"),
            [pair(1, "path", text(6, r"a=b[1]\x"))]
        );
    }

    #[test]
    fn what_is_no_identifier_before_an_equal_sign_belongs_to_the_value() {
        assert_eq!(
            split("./a=b").expect("good"),
            [Element::Bare(text(1, "./a=b"))]
        );
    }

    #[test]
    fn lists_keep_the_column_of_each_element() {
        let at = |column, what: &str| At {
            column,
            what: what.to_owned(),
        };
        let list = At {
            column: 3,
            what: Raw::List(vec![at(4, "1"), at(6, "a,]"), at(12, "b=c")]),
        };
        assert_eq!(
            split(r#"q=[1,"a,]",b=c]"#).expect("good"),
            [pair(1, "q", list)]
        );
        let empty = At {
            column: 3,
            what: Raw::List(Vec::new()),
        };
        assert_eq!(split("q=[]").expect("good"), [pair(1, "q", empty)]);
    }

    #[test]
    fn each_mistake_is_found_at_its_column() {
        let found = |argument: &str| {
            let error = split(argument).expect_err("bad");
            (error.column, error.problem)
        };
        assert_eq!(found("a,,b"), (3, "nothing stands between the commas"));
        assert_eq!(found("a,"), (3, "nothing stands between the commas"));
        assert_eq!(found("path="), (6, "the value is empty"));
        assert_eq!(found("a,path=,b"), (8, "the value is empty"));
        assert_eq!(found("path=\"x"), (6, "a quote is not closed"));
        assert_eq!(found("path='x\\"), (6, "a quote is not closed"));
        assert_eq!(
            found("path='x'y"),
            (9, "a value goes on behind its closing quote or bracket")
        );
        assert_eq!(found("q=[1,2"), (3, "a list is not closed"));
        assert_eq!(
            found("q=[1]2"),
            (6, "a value goes on behind its closing quote or bracket")
        );
        assert_eq!(
            found("q=['1'2]"),
            (7, "a list element goes on behind its quote")
        );
        assert_eq!(found("q=["), (3, "a list is not closed"));
        let long = format!("q=[{}]", "1,".repeat(64));
        assert_eq!(found(&long).1, "a list is longer than 64 elements");
    }

    proptest! {
        #[test]
        fn no_argument_panics_and_each_error_has_a_column_within_it(argument in ".*") {
            if let Err(error) = split(&argument) {
                prop_assert!((1..=end_column(&argument)).contains(&error.column));
            }
        }

        #[test]
        fn no_soup_of_separators_panics(argument in "[a=,\\[\\]\"'\\\\ ]{0,40}") {
            if let Err(error) = split(&argument) {
                prop_assert!((1..=end_column(&argument)).contains(&error.column));
            }
        }

        #[test]
        fn what_is_quoted_comes_back_unchanged(values in prop::collection::vec(".*", 1..5)) {
            let argument: Vec<_> = values.iter().map(|v| format!("key={}", quote(v))).collect();
            let elements = split(&argument.join(",")).expect("quoted");
            let back: Vec<_> = elements.into_iter().map(|element| match element {
                Element::Pair { key: _, value: At { column: _, what: Raw::Text { text, .. } } } => {
                    text
                }
                other => panic!("{other:?}"),
            }).collect();
            prop_assert_eq!(back, values);
        }
    }
}
