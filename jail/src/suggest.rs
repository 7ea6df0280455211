//! "Did you mean …": the nearest of the names that would have been right.

/// Names longer than this are not compared: the work is quadratic.
const LENGTH_MAX: usize = 64;

/// The nearest name, if a third or less of it is misspelt; else one that it abbreviates. Capitals
/// and small letters are the same to it, and so are `_` and `-`.
pub fn nearest<'a>(given: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if given.chars().count() > LENGTH_MAX {
        return None;
    }
    let plain = |name: &str| name.replace('_', "-").to_ascii_lowercase();
    let given = plain(given);
    let names: Vec<_> = names.into_iter().collect();
    let distances = names
        .iter()
        .map(|name| (distance(&given, &plain(name)), *name));
    let (distance, name) = distances.min_by_key(|(distance, _)| *distance)?;
    if distance <= (name.chars().count().max(given.chars().count()) / 3).max(1) {
        return Some(name);
    }
    names
        .into_iter()
        .find(|name| abbreviates(&given, &plain(name)))
}

/// Whether the letters stand in the name, in their order and beginning with its first: blk, block.
fn abbreviates(given: &str, name: &str) -> bool {
    let mut rest = name.chars();
    given.len() > 1
        && given.chars().next() == name.chars().next()
        && given
            .chars()
            .all(|letter| rest.any(|other| other == letter))
}

/// Insertions, removals, replacements and swaps of neighbours (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before_last = vec![0; b.len() + 1];
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for (i, &from) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, &to) in b.iter().enumerate() {
            let replaced = last[j] + usize::from(from != to);
            let mut best = replaced.min(last[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && from == b[j - 1] && a[i - 1] == to {
                best = best.min(before_last[j - 1] + 1);
            }
            row.push(best);
        }
        before_last = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_name_finds_its_neighbour_and_a_foreign_one_none() {
        let names = ["path", "block-size", "ro", "hardware"];
        assert_eq!(nearest("pth", names), Some("path"));
        assert_eq!(nearest("ptah", names), Some("path"));
        assert_eq!(nearest("Block_Sise", names), Some("block-size"));
        assert_eq!(nearest("hardwear", names), Some("hardware"));
        assert_eq!(nearest("r", names), Some("ro"));
        assert_eq!(nearest("bsize", names), Some("block-size"));
        assert_eq!(nearest("cache", names), None);
        assert_eq!(nearest("OPENT", ["open", "open_tree"]), Some("open"));
        assert_eq!(nearest(&"x".repeat(100_000), names), None);
    }
}
