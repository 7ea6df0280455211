//! Names and form of the files: none is missing, none is one too many, a part is never loaded, and
//! the README explains each.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use vudev_jail::policy::{self, Arch};
use vudev_jail::{Embedded, Source, ring};

use crate::table::{self, loaded, parts};

const README: &str = include_str!("../../../seccomp/README.md");

/// The directories of `seccomp/` and the extension of what is in them.
fn directories() -> impl Iterator<Item = (&'static str, &'static str)> {
    Arch::ALL
        .into_iter()
        .map(|arch| (arch.name(), "policy"))
        .chain([("ring", "ring")])
}

/// The names of the files of one directory, without their extension.
fn names(directory: &str, extension: &str) -> BTreeSet<String> {
    let name = |file: &'static str| {
        let (parent, name) = file.split_once('/')?;
        let name = name.strip_suffix(extension)?.strip_suffix('.')?;
        (parent == directory).then(|| name.to_owned())
    };
    Embedded.names().filter_map(name).collect()
}

#[test]
fn every_device_has_its_files_on_every_architecture_and_there_are_no_others() {
    let expected: BTreeSet<_> = parts().into_iter().chain(loaded()).collect();
    let mut count = 0;
    for (directory, extension) in directories() {
        assert_eq!(names(directory, extension), expected, "{directory}");
        count += expected.len();
    }
    assert_eq!(Embedded.names().count(), count);
}

/// The kinds are above this crate, so their sources are read: a kind that nobody wrote policies for
/// must not wait until it is started on another architecture.
#[test]
fn the_table_of_policies_is_that_of_the_kinds() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../host/src/kinds");
    let mut kinds = Vec::new();
    let mut sources = Vec::new();
    read_sources(&folder, &mut sources);
    for source in sources {
        let name = source.lines().find_map(|line| {
            let name = line
                .trim()
                .strip_prefix("const POLICY: &'static str = \"")?;
            name.strip_suffix("\";").map(str::to_owned)
        });
        kinds.extend(name);
    }
    kinds.sort_unstable();
    let mut expected: Vec<_> = table::kinds().map(|(name, _)| name).collect();
    expected.sort_unstable();
    assert_eq!(kinds, expected);
}

/// What the files of a folder and of those in it contain.
fn read_sources(folder: &Path, into: &mut Vec<String>) {
    for entry in fs::read_dir(folder).expect("the kinds are there") {
        let path = entry.expect("listed").path();
        if path.is_dir() {
            read_sources(&path, into);
        } else {
            into.push(fs::read_to_string(path).expect("text"));
        }
    }
}

#[test]
fn what_is_loaded_loads_and_a_part_is_refused_by_its_name() {
    for name in loaded() {
        for arch in Arch::ALL {
            let program = policy::compile(&name, arch, &Embedded).unwrap();
            assert!(program.instructions().len() <= 4096, "{arch}/{name}");
        }
        ring::allow_list(&name, &Embedded).unwrap();
    }
    for name in parts() {
        assert!(!policy::is_loadable(&name), "{name}");
        for arch in Arch::ALL {
            let error = policy::compile(&name, arch, &Embedded).unwrap_err();
            assert!(error.to_string().contains("is a part"), "{error}");
        }
        let error = ring::allow_list(&name, &Embedded).unwrap_err();
        assert!(error.to_string().contains("is a part"), "{error}");
    }
}

/// A row: `| system calls | ring | part or loaded: what |`.
#[test]
fn the_readme_has_a_row_for_each_file_and_says_whether_it_is_loaded() {
    let rows = README
        .lines()
        .filter_map(|line| line.strip_prefix("| `"))
        .filter(|row| row.contains(".policy` | `"));
    let mut seen = BTreeSet::new();
    for row in rows {
        let cells: Vec<_> = row.split(" | ").collect();
        let name = cells[0].strip_suffix(".policy`").unwrap();
        assert_eq!(cells[1], format!("`{name}.ring`"));
        let kind = if policy::is_loadable(name) {
            "loaded:"
        } else {
            "a part:"
        };
        assert!(cells[2].starts_with(kind), "{row}");
        assert!(seen.insert(name.to_owned()), "{name} has two rows");
    }
    let expected: BTreeSet<_> = parts().into_iter().chain(loaded()).collect();
    assert_eq!(seen, expected);
}

/// Order matters for same-name rules: what all devices do comes first, the device itself last.
#[test]
fn what_is_loaded_includes_its_parts_in_one_order_and_parts_include_nothing() {
    let includes = |file: &str| -> Vec<String> {
        let text = Embedded.read(file).unwrap();
        let path = |line: &str| line.strip_prefix("@include ./").map(str::to_owned);
        text.lines().filter_map(path).collect()
    };
    for (directory, extension) in directories() {
        for (kind, variants) in table::kinds() {
            for (ending, transport) in variants {
                let expected: Vec<_> = ["common_device"]
                    .into_iter()
                    .chain(*transport)
                    .chain([kind])
                    .map(|part| format!("{part}.{extension}"))
                    .collect();
                let file = format!("{directory}/{kind}{ending}.{extension}");
                assert_eq!(includes(&file), expected, "{file}");
            }
        }
        for part in parts() {
            let file = format!("{directory}/{part}.{extension}");
            assert!(includes(&file).is_empty(), "{file}");
        }
    }
}

#[test]
fn a_call_or_an_include_stands_once_in_a_file() {
    for file in Embedded.names() {
        let text = Embedded.read(file).unwrap();
        let mut seen = BTreeSet::new();
        for line in text
            .lines()
            .filter(|line| !line.starts_with('#') && !line.is_empty())
        {
            let key = line.split(':').next().unwrap();
            assert!(seen.insert(key), "{file}: {line}");
        }
        assert!(text.starts_with('#'), "{file} says what it is for");
        assert!(
            text.lines()
                .all(|line| line.len() <= 100 && line.trim_end() == line),
            "{file}"
        );
    }
}

/// The words and signs that every version of minijail reads (`tools/parser.py`, and its parser in
/// C): no groups, no `[arch=…]`, one line a rule, numbers without a base that one of them lacks.
#[test]
fn a_policy_is_written_in_what_every_minijail_reads() {
    let is_name = |word: &str| {
        word.chars()
            .all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-')
    };
    for file in Embedded.names().filter(|file| file.ends_with(".policy")) {
        let text = Embedded.read(file).unwrap();
        for line in text
            .lines()
            .filter(|line| !line.starts_with('#') && !line.is_empty())
        {
            if let Some(path) = line.strip_prefix("@include ./") {
                assert!(path.strip_suffix(".policy").is_some_and(is_name), "{file}");
                continue;
            }
            let (name, filter) = line.split_once(": ").unwrap();
            assert!(is_name(name), "{file}: {line}");
            let (condition, action) = match filter.split_once("; ") {
                Some((condition, action)) => (Some(condition), Some(action)),
                None if filter.starts_with("arg") => (Some(filter), None),
                None => (None, Some(filter)),
            };
            for atom in condition.into_iter().flat_map(|c| c.split(" || ")) {
                for atom in atom.split(" && ") {
                    assert!(is_atom(atom), "{file}: {line}");
                }
            }
            let errno = action.map(|action| action.strip_prefix("return ").unwrap_or(action));
            assert!(errno.is_none_or(is_name), "{file}: {line}");
        }
    }
}

/// Constants of our files: all are in the table of minijail 2026.05.18, whose compilers have read
/// these files. (No clock is in it.)
const CONSTANTS: [&str; 14] = [
    "ENOSYS",
    "F_DUPFD_CLOEXEC",
    "F_GETFD",
    "MADV_HUGEPAGE",
    "MREMAP_MAYMOVE",
    "PROT_READ",
    "PROT_WRITE",
    "SEEK_END",
    "SIGABRT",
    "SIGBUS",
    "SIGSEGV",
    "SOL_SOCKET",
    "SO_DOMAIN",
    "SO_TYPE",
];

/// `arg1 == CONSTANT|8`
fn is_atom(text: &str) -> bool {
    let words: Vec<_> = text.split(' ').collect();
    let [argument, operator, value] = words[..] else {
        return false;
    };
    let is_constant = |text: &str| {
        let leading_zero = text.len() > 1 && text.starts_with('0') && !text.starts_with("0x");
        let number = text.chars().next().is_some_and(|c| c.is_ascii_digit());
        let digits = text.chars().all(|c| c.is_ascii_alphanumeric());
        CONSTANTS.contains(&text) || number && digits && !leading_zero
    };
    argument
        .strip_prefix("arg")
        .is_some_and(|index| ["0", "1", "2", "3", "4", "5"].contains(&index))
        && ["==", "!=", "<", "<=", ">", ">=", "&", "in"].contains(&operator)
        && value.split('|').all(is_constant)
}
