//! Untrusted text made fit for a terminal and a log: bounded, on one line, without control
//! characters. It does not judge what the text says.

use std::fmt::Write as _;

/// The longest text of one log line, in bytes. Longer ones are cut.
pub(crate) const TEXT_MAX: usize = 1024;

/// `bytes` as one printable line of at most [`TEXT_MAX`] bytes.
///
/// A device may be taken over and must not be able to move the cursor of the terminal that
/// shows its log, or to forge a line of another device.
pub(crate) fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut line = String::new();
    for character in text.trim_end().chars() {
        if line.len() >= TEXT_MAX {
            line.push('…');
            break;
        }
        match character {
            '\t' => line.push(' '),
            _ if is_printable(character) => line.push(character),
            _ => {
                let _ = write!(line, "\\u{{{:x}}}", u32::from(character));
            }
        }
    }
    line
}

/// The longest prefix of `text` of at most `limit` bytes that ends between two characters.
pub(crate) fn prefix(text: &str, limit: usize) -> &str {
    if text.len() <= limit {
        return text;
    }
    let end = (0..=limit)
        .rev()
        .find(|end| text.is_char_boundary(*end))
        .unwrap_or(0);
    &text[..end]
}

/// Neither a control character nor one that reorders or hides what is around it.
fn is_printable(character: char) -> bool {
    let unseen = [
        '\u{61c}'..='\u{61c}',
        '\u{200b}'..='\u{200f}',
        '\u{2028}'..='\u{202e}',
        '\u{2060}'..='\u{206f}',
        '\u{feff}'..='\u{feff}',
        // Tags: letters that no terminal shows.
        '\u{e0000}'..='\u{e007f}',
    ];
    !character.is_control() && !unseen.iter().any(|range| range.contains(&character))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_shown_and_not_obeyed() {
        assert_eq!(
            printable(b"a\x1b[2Jb\nblock-1: c\n"),
            "a\\u{1b}[2Jb\\u{a}block-1: c"
        );
        for code in [
            0x61c, 0x200b, 0x202e, 0x2066, 0xfeff, 0xe0000, 0xe0041, 0xe007f,
        ] {
            let text = format!("a{}b", char::from_u32(code).unwrap());
            assert_eq!(printable(text.as_bytes()), format!("a\\u{{{code:x}}}b"));
        }
    }

    #[test]
    fn a_text_is_cut_at_its_limit_between_two_characters() {
        assert!(printable("é".repeat(5000).as_bytes()).len() <= TEXT_MAX + '…'.len_utf8());
        assert_eq!(prefix("éé", 3), "é");
        assert_eq!(prefix("abc", 3), "abc");
    }
}
