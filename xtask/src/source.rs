//! Reads Rust source just well enough for tidy: where comments and strings are, and where each
//! function begins and ends. It is no parser; rustc has judged the syntax before.

/// The source with the contents of comments, strings and character literals blanked out, so that a
/// search finds code only. Lines and columns stay where they are.
pub(crate) fn code_only(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(first) = rest.chars().next() {
        let length = blank_length(rest, out.chars().next_back());
        let (blanked, after) = rest.split_at(length.unwrap_or_else(|| first.len_utf8()));
        if length.is_some() {
            out.extend(blanked.chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
        } else {
            out.push(first);
        }
        rest = after;
    }
    out
}

/// How long the comment or literal is that begins here, if one does.
fn blank_length(rest: &str, before: Option<char>) -> Option<usize> {
    let in_word = before.is_some_and(|c| c.is_alphanumeric() || c == '_');
    match rest.as_bytes() {
        [b'/', b'/', ..] => Some(rest.find('\n').unwrap_or(rest.len())),
        [b'/', b'*', ..] => Some(block_comment(rest)),
        [b'"', ..] => Some(string(rest, 1)),
        [b'r' | b'b' | b'c', ..] if !in_word => prefixed(rest),
        [b'\'', ..] => character(rest),
        _ => None,
    }
}

/// Block comments nest.
fn block_comment(rest: &str) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while at < rest.len() {
        let here = &rest.as_bytes()[at..];
        if here.starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if here.starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    rest.len()
}

/// The end of a string whose contents begin at `at`.
fn string(rest: &str, mut at: usize) -> usize {
    let bytes = rest.as_bytes();
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

/// `b"…"`, `c"…"`, `r"…"`, `br#"…"#` and the like; `r#name` is an identifier.
fn prefixed(rest: &str) -> Option<usize> {
    let prefix = rest
        .bytes()
        .take_while(|byte| b"brc".contains(byte))
        .count();
    let hashes = rest
        .bytes()
        .skip(prefix)
        .take_while(|byte| *byte == b'#')
        .count();
    let quote = prefix + hashes;
    match rest.as_bytes().get(quote)? {
        b'"' if rest[..prefix].contains('r') => {
            let end = format!("\"{}", "#".repeat(hashes));
            let after = rest[quote + 1..].find(&end)?;
            Some(quote + 1 + after + end.len())
        }
        b'"' if hashes == 0 => Some(string(rest, quote + 1)),
        b'\'' if rest.starts_with("b'") => character(&rest[1..]).map(|length| length + 1),
        _ => None,
    }
}

/// A character literal, which a lifetime is not.
fn character(rest: &str) -> Option<usize> {
    let mut chars = rest.char_indices().skip(1);
    match chars.next()? {
        (_, '\\') => {
            let (escaped, _) = chars.next()?;
            rest[escaped + 1..]
                .find('\'')
                .map(|end| escaped + 1 + end + 1)
        }
        (_, '\'') => None,
        _ => chars
            .next()
            .filter(|(_, c)| *c == '\'')
            .map(|(at, _)| at + 1),
    }
}

/// A function in a source file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Function {
    /// Its name.
    pub(crate) name: String,
    /// The line of its `fn`, counted from one.
    pub(crate) line: usize,
    /// How many lines it takes, from `fn` to the closing brace.
    pub(crate) lines: usize,
}

/// All functions with a body, nested ones too. `code` comes from [`code_only`].
pub(crate) fn functions(code: &str) -> Vec<Function> {
    words(code)
        .filter(|(_, word)| *word == "fn")
        .filter_map(|(at, _)| {
            let after = code[at + 2..].trim_start();
            let name: String = after
                .chars()
                .take_while(|c| c.is_alphanumeric() || *c == '_')
                .collect();
            let length = body_end(&code[at..]).filter(|_| !name.is_empty())?;
            let line = code[..at].matches('\n').count() + 1;
            let lines = code[at..at + length].matches('\n').count() + 1;
            Some(Function { name, line, lines })
        })
        .collect()
}

/// Every word of the code, with its offset.
pub(crate) fn words(code: &str) -> impl Iterator<Item = (usize, &str)> {
    code.split(|c: char| !c.is_alphanumeric() && c != '_')
        .filter(|word| !word.is_empty())
        .map(|word| (word.as_ptr() as usize - code.as_ptr() as usize, word))
}

/// The length up to the closing brace of a function; `None` if it has no body.
fn body_end(code: &str) -> Option<usize> {
    let (mut braces, mut others) = (0_usize, 0_usize);
    for (at, byte) in code.bytes().enumerate() {
        match byte {
            b'(' | b'[' => others += 1,
            b')' | b']' => others = others.saturating_sub(1),
            b';' if braces == 0 && others == 0 => return None,
            b'{' => braces += 1,
            b'}' => {
                braces = braces.checked_sub(1)?;
                if braces == 0 {
                    return Some(at + 1);
                }
            }
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_are_blanked_and_code_is_kept() {
        let source = r##"let a = "unsafe // \" {"; // unsafe
let b = r#"unsafe "quoted""#; /* unsafe /* nested */ still */ let c = '{';
fn f<'a>(x: &'a str) -> u8 { b'"' }
let r#type = '\'';
"##;
        let code = code_only(source);
        assert!(!code.contains("unsafe"), "{code}");
        assert!(
            code.contains("fn f<'a>(x: &'a str) -> u8 {      }"),
            "{code}"
        );
        assert!(code.contains("let r#type ="), "{code}");
        assert_eq!(code.lines().count(), source.lines().count());
        assert_eq!(code.matches('{').count(), 1);
    }

    #[test]
    fn functions_are_measured_from_their_name_to_their_closing_brace() {
        let code = "trait T {\n    fn declared(&self) -> [u8; 2];\n}\n\n\
            fn long(\n    a: u8,\n) {\n    if a > 0 {}\n}\n";
        let found = functions(&code_only(code));
        assert_eq!(
            found,
            [Function {
                name: "long".into(),
                line: 5,
                lines: 5
            }]
        );
    }

    #[test]
    fn a_type_that_is_a_function_is_none() {
        assert!(functions("struct S { call: fn(u8) -> u8 }").is_empty());
    }
}
