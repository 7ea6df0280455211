//! The house rules that no other tool knows: lengths, module documentation, where `unsafe` may be,
//! reasons for exceptions, and names that must not be in the tree. What rustfmt and clippy check is
//! left to them.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process::{say, text};
use crate::source::{code_only, functions, words};
use crate::workspace;

/// A line that fits two side by side.
const COLUMNS_MAX: usize = 100;
/// A function that is read at once.
const FUNCTION_LINES_MAX: usize = 70;
/// A file that is read in one sitting.
const FILE_LINES_MAX: usize = 600;

/// The only files that may contain `unsafe`. A new one needs a reason that a reviewer accepts.
const UNSAFE_FILES: &[&str] = &[
    // The ring, and memory that the kernel reads and writes while an operation is in flight.
    "executor/src/at_once.rs",
    "executor/src/buffers.rs",
    "executor/src/completion.rs",
    "executor/src/driver.rs",
    "executor/src/file.rs",
    "executor/src/message.rs",
    "executor/src/op.rs",
    "executor/src/process.rs",
    "executor/src/registered.rs",
    "executor/src/ring.rs",
    "executor/src/simulation.rs",
    "executor/src/socket.rs",
    "executor/src/stream.rs",
    "executor/src/tasks.rs",
    "executor/src/watchdog.rs",
    // Memory that a guest shares with us, and the signal handler that guards it.
    "virtio/src/memory/buffers.rs",
    "virtio/src/memory/framed.rs",
    "virtio/src/memory/guard.rs",
    "virtio/src/memory/region.rs",
    "virtio/src/memory/ring_view.rs",
    "virtio/src/memory/run.rs",
    "frontend/src/memory.rs",
    // VFIO's system calls, and registers of a device that are mapped.
    "transports/src/vvu/ioctls.rs",
    "transports/src/vvu/mmio.rs",
    // The bare rings that the executor and the disk are measured against.
    "benches/benches/executor/bare.rs",
    "benches/src/bare/ring.rs",
    // The ioctls of a tap.
    "devices/src/net/tap.rs",
    // System calls that have no safe form: clone3, close_range, seccomp, signal handlers.
    "jail/src/listener.rs",
    "jail/src/probe.rs",
    "jail/src/role/descriptors.rs",
    "jail/src/role/filter.rs",
    "jail/src/role/signals.rs",
    "jail/src/spawn/child.rs",
    // Tests: a container's filter, a counting allocator, rings built by hand, and what a jail must
    // refuse.
    "bin/tests/support/filter.rs",
    "executor/tests/common/mod.rs",
    "executor/tests/events.rs",
    "executor/tests/operations.rs",
    "jail/examples/shout.rs",
    "jail/tests/roles/attempts.rs",
    "jail/tests/roles/container.rs",
    "jail/tests/roles/role.rs",
    "tests/src/bin/vudev-sockets.rs",
    "tests/src/intruder/hands.rs",
    "tests/src/intruder/ring.rs",
    "tests/tests/support/driver.rs",
    "tests/tests/support/network.rs",
    "virtio/src/testing/allocations.rs",
];

/// Marks of unfinished work. Written in two parts, so that this file does not contain them.
const UNFINISHED: &[&str] = &[
    concat!("todo", "!"),
    concat!("FIX", "ME"),
    concat!("XX", "X"),
];

/// Hosts of package registries, and folders of one machine only.
const FOREIGN: &[&str] = &[
    concat!("crates", ".io"),
    concat!("pypi", ".org"),
    concat!("npmjs", ".org"),
    concat!("deb.debian", ".org"),
    concat!("/wo", "rk/"),
    concat!("/fa", "rm/"),
    concat!("/ro", "ot/"),
];

/// Files that others write and that are as they are.
const FOREIGN_EXEMPT: &[&str] = &["Cargo.lock", "fuzz/Cargo.lock"];

/// Checks the whole tree.
pub(crate) fn run() -> Result<()> {
    say("tidy");
    let root = workspace::root();
    let mut faults = Vec::new();
    let files = tracked_files(&root)?;
    for path in &files {
        // A file that is no text has no style.
        let Ok(contents) = fs::read_to_string(root.join(path)) else {
            continue;
        };
        faults.extend(foreign_names(path, &contents));
        if path.extension().is_some_and(|end| end == "rs") {
            faults.extend(rust_file(path, &contents));
        }
    }
    faults.extend(stale_unsafe_files(&root));
    faults.extend(unnamed_policies(&root, &files));
    if faults.is_empty() {
        return Ok(());
    }
    let list = faults.iter().fold(String::new(), |mut list, fault| {
        let _ = write!(list, "\n  {fault}");
        list
    });
    bail!("tidy found {} faults:{list}", faults.len())
}

/// What git knows, and what it would take: a fault is found before the commit.
fn tracked_files(root: &Path) -> Result<Vec<PathBuf>> {
    let listed = text(
        Command::new("git")
            .args(["ls-files", "--cached", "--others", "--exclude-standard"])
            .current_dir(root),
    )
    .context("tidy needs the git repository")?;
    let mut files: Vec<_> = listed
        .lines()
        .map(PathBuf::from)
        .filter(|path| root.join(path).is_file())
        .collect();
    files.sort();
    Ok(files)
}

/// All rules for one Rust file.
fn rust_file(path: &Path, source: &str) -> Vec<String> {
    let code = code_only(source);
    let name = path.display();
    let mut faults = Vec::new();
    if !source.starts_with("//!") {
        faults.push(format!(
            "{name}: a module begins with `//!`: what it is for"
        ));
    }
    let lines = source.lines().count();
    if lines > FILE_LINES_MAX {
        faults.push(format!("{name}: {lines} lines; {FILE_LINES_MAX} at most"));
    }
    for (number, line) in (1..).zip(source.lines()) {
        let columns = line.chars().count();
        if columns > COLUMNS_MAX {
            faults.push(format!(
                "{name}:{number}: {columns} columns; {COLUMNS_MAX} at most"
            ));
        }
    }
    for function in functions(&code)
        .iter()
        .filter(|f| f.lines > FUNCTION_LINES_MAX)
    {
        let (line, function, lines) = (function.line, &function.name, function.lines);
        faults.push(format!(
            "{name}:{line}: `{function}` has {lines} lines; {FUNCTION_LINES_MAX} at most"
        ));
    }
    faults.extend(unfinished(path, source));
    faults.extend(exceptions_without_reason(path, source, &code));
    if has_unsafe(&code)
        && !UNSAFE_FILES
            .iter()
            .any(|allowed| Path::new(allowed) == path)
    {
        faults.push(format!(
            "{name}: `unsafe` outside the files that tidy.rs lists"
        ));
    }
    faults
}

fn unfinished(path: &Path, source: &str) -> Vec<String> {
    let marks = (1..).zip(source.lines()).flat_map(|(number, line)| {
        UNFINISHED
            .iter()
            .filter(move |mark| find_alone(line, mark))
            .map(move |mark| format!("{}:{number}: `{mark}`", path.display()))
    });
    marks.collect()
}

/// Whether `wanted` is in the line, not as a part of a longer word.
fn find_alone(line: &str, wanted: &str) -> bool {
    let in_word = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(wanted).any(|(at, _)| {
        let before = line[..at].chars().next_back().is_some_and(in_word);
        let after = line[at + wanted.len()..]
            .chars()
            .next()
            .is_some_and(in_word);
        !before && !after
    })
}

/// Every `#[allow(…)]` and `#[expect(…)]` says why.
fn exceptions_without_reason(path: &Path, source: &str, code: &str) -> Vec<String> {
    let mut faults = Vec::new();
    for start in ["[allow(", "[expect("] {
        for (at, _) in code.match_indices(start) {
            let end = code[at..].find(")]").map_or(code.len(), |end| at + end);
            // The reason itself is a string, which `code` has blanked out; offsets are the same.
            if !code[at..end].contains("reason") {
                let line = source
                    .bytes()
                    .take(at)
                    .filter(|byte| *byte == b'\n')
                    .count()
                    + 1;
                faults.push(format!(
                    "{}:{line}: an exception without a reason",
                    path.display()
                ));
            }
        }
    }
    faults
}

fn has_unsafe(code: &str) -> bool {
    words(code).any(|(_, word)| word == "unsafe")
}

/// A list with entries that are not needed would let `unsafe` come back unseen.
fn stale_unsafe_files(root: &Path) -> Vec<String> {
    let stale = UNSAFE_FILES.iter().filter(|path| {
        fs::read_to_string(root.join(path)).is_ok_and(|source| !has_unsafe(&code_only(&source)))
            || !root.join(path).exists()
    });
    stale
        .map(|path| format!("{path}: listed in tidy.rs, but has no `unsafe`"))
        .collect()
}

fn foreign_names(path: &Path, contents: &str) -> Vec<String> {
    if FOREIGN_EXEMPT
        .iter()
        .any(|exempt| Path::new(exempt) == path)
    {
        return Vec::new();
    }
    let found = (1..).zip(contents.lines()).flat_map(|(number, line)| {
        FOREIGN
            .iter()
            .filter(move |name| contains_foreign(line, name))
            .map(move |name| format!("{}:{number}: names `{name}`", path.display()))
    });
    found.collect()
}

/// A folder only counts where a path begins: `/proc/self/` may have one of that name in it.
fn contains_foreign(line: &str, name: &str) -> bool {
    line.match_indices(name).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        !name.starts_with('/')
            || !before.is_some_and(|c| c.is_alphanumeric() || "_-.}/~".contains(c))
    })
}

/// A policy that the README of the policies does not explain is one that nobody reviews.
fn unnamed_policies(root: &Path, files: &[PathBuf]) -> Vec<String> {
    let readme = fs::read_to_string(root.join("seccomp/README.md")).unwrap_or_default();
    let policies = files.iter().filter(|path| {
        path.extension()
            .is_some_and(|end| end == "policy" || end == "ring")
            && path.starts_with("seccomp")
    });
    policies
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            !readme.contains(&*name)
        })
        .map(|path| format!("{}: not named in seccomp/README.md", path.display()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(source: &str) -> Vec<String> {
        rust_file(Path::new("a.rs"), source)
    }

    #[test]
    fn a_file_that_keeps_all_rules_has_no_fault() {
        assert!(faults("//! For tests.\n\nfn f() {}\n").is_empty());
    }

    #[test]
    fn a_module_says_first_what_it_is_for() {
        assert_eq!(faults("fn f() {}\n").len(), 1);
    }

    #[test]
    fn long_lines_functions_and_files_are_found() {
        let long_line = format!("//! A.\n// {}\n", "x".repeat(100));
        assert!(faults(&long_line)[0].contains("103 columns"));
        let long_function = format!("//! A.\nfn f() {{\n{}}}\n", "g();\n".repeat(69));
        assert!(faults(&long_function)[0].contains("`f` has 71 lines"));
        let long_file = format!("//! A.\n{}", "\n".repeat(600));
        assert!(faults(&long_file)[0].contains("601 lines"));
    }

    #[test]
    fn unsafe_code_is_found_but_not_the_word() {
        let safe =
            "//! Not unsafe.\n#![deny(unsafe_code)] // unsafe\nconst A: &str = \"unsafe\";\n";
        assert!(faults(safe).is_empty());
        assert_eq!(faults("//! A.\nunsafe fn f() {}\n").len(), 1);
    }

    #[test]
    fn marks_of_unfinished_work_are_found() {
        let mark = UNFINISHED[1];
        assert_eq!(faults(&format!("//! A.\n// {mark}: later\n")).len(), 1);
        assert!(faults("//! A.\n// a name like fileXXXXXX\n").is_empty());
    }

    #[test]
    fn an_exception_gives_its_reason() {
        let with = "//! A.\n#[expect(\n    dead_code,\n    reason = \"later\"\n)]\nfn f() {}\n";
        assert!(faults(with).is_empty());
        assert_eq!(faults("//! A.\n#[allow(dead_code)]\nfn f() {}\n").len(), 1);
    }

    #[test]
    fn a_folder_of_one_machine_is_found_only_where_a_path_begins() {
        let folder = FOREIGN[6];
        assert!(contains_foreign(&format!("cd {folder}x"), folder));
        assert!(!contains_foreign(&format!("/proc/self{folder}x"), folder));
    }
}
