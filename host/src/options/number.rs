//! Numbers and sizes as crosvm spells them: decimal, `0x`, `0o`, `0b`; sizes with `k M G T`.
//! Ranges are the caller's.

/// A number, or why it is none.
pub(super) fn number(text: &str) -> Result<u64, &'static str> {
    let (digits, radix) = match text.get(..2) {
        Some("0x" | "0X") => (&text[2..], 16),
        Some("0o" | "0O") => (&text[2..], 8),
        Some("0b" | "0B") => (&text[2..], 2),
        Some(_) | None => (text, 10),
    };
    // `from_str_radix` alone would also take a sign.
    if digits.is_empty() || !digits.chars().all(|digit| digit.is_digit(radix)) {
        return Err("is not a number in decimal, 0x, 0o or 0b");
    }
    u64::from_str_radix(digits, radix).map_err(|_| "is too large for any number here")
}

/// A number of bytes, or why it is none. `b` is a digit of 0x, so sizes have no suffix `B`.
pub(super) fn size(text: &str) -> Result<u64, &'static str> {
    const WRONG: &str = "is not a size such as 4096, 0x1000, 4k, 1M or 2G";
    let shift = match text.chars().next_back() {
        Some('k' | 'K') => 10,
        Some('m' | 'M') => 20,
        Some('g' | 'G') => 30,
        Some('t' | 'T') => 40,
        Some(_) | None => 0,
    };
    let digits = if shift == 0 {
        text
    } else {
        &text[..text.len() - 1]
    };
    let too_large = "is too large for any size here";
    let count = number(digits).map_err(|why| {
        if why.contains("large") {
            too_large
        } else {
            WRONG
        }
    })?;
    count.checked_mul(1 << shift).ok_or(too_large)
}

/// A size as a user would write it.
pub(super) fn show_size(bytes: u64) -> String {
    for (shift, suffix) in [(40, "T"), (30, "G"), (20, "M"), (10, "k")] {
        if bytes >= 1 << shift && bytes.is_multiple_of(1 << shift) {
            return format!("{}{suffix}", bytes >> shift);
        }
    }
    bytes.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers_come_in_four_bases() {
        for text in ["1026", "0x402", "0X402", "0o2002", "0b10000000010"] {
            assert_eq!(number(text), Ok(0x402), "{text}");
        }
    }

    #[test]
    fn what_is_no_number_is_refused() {
        for text in [
            "", "-1", "+1", "0x", "0x-1", "0b2", "1 ", "1_000", "4k", "ä", "0ä",
        ] {
            assert!(number(text).is_err(), "{text}");
        }
        assert_eq!(
            number("18446744073709551616"),
            Err("is too large for any number here")
        );
    }

    #[test]
    fn sizes_take_a_suffix_of_1024() {
        assert_eq!(size("512"), Ok(512));
        assert_eq!((size("4k"), size("4K")), (Ok(4096), Ok(4096)));
        assert_eq!(
            (size("1M"), size("2G"), size("1T")),
            (Ok(1 << 20), Ok(2 << 30), Ok(1 << 40))
        );
        assert_eq!(size("0x10k"), Ok(16384));
        for text in ["", "k", "4kB", "4 k", "20000000T", "ä"] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_shown_size_reads_back(bytes in any::<u64>()) {
            prop_assert_eq!(size(&show_size(bytes)), Ok(bytes));
        }

        #[test]
        fn no_text_panics(text in ".*") {
            let _ = (number(&text), size(&text));
        }
    }
}
