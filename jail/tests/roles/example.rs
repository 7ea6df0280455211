//! The example for authors of other daemons, as it is shown in its document.

use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::Test;

/// `argv[0]` of the example itself; its daemon has a name of its own.
pub(crate) const SHOUT: &str = "shout";

pub(crate) const TESTS: &[Test] = &[
    (
        "a_daemon_is_jailed_by_the_example",
        a_daemon_is_jailed_by_the_example,
    ),
    (
        "the_example_learns_its_daemons_end_though_signals_of_children_are_ignored",
        the_example_learns_its_daemons_end_though_signals_of_children_are_ignored,
    ),
    (
        "the_document_shows_the_example",
        the_document_shows_the_example,
    ),
];

const DOCUMENT: &str = include_str!("../../../docs/jailing-a-daemon.md");

fn a_daemon_is_jailed_by_the_example() {
    let mut demo = Command::new("/proc/self/exe");
    does_as_documented(demo.arg0(SHOUT).arg("--demo"));
}

fn the_example_learns_its_daemons_end_though_signals_of_children_are_ignored() {
    let folder = tempfile::tempdir().unwrap();
    symlink(std::env::current_exe().unwrap(), folder.path().join(SHOUT)).unwrap();
    let mut shell = Command::new("/bin/sh");
    shell.env("PATH", folder.path());
    // What is found by PATH keeps its name.
    does_as_documented(shell.args(["-c", "trap '' CHLD; exec \"$0\" --demo", SHOUT]));
}

fn does_as_documented(demo: &mut Command) {
    let demo = demo.output().unwrap();
    let printed = String::from_utf8(demo.stdout).unwrap();
    let errors = String::from_utf8(demo.stderr).unwrap();
    assert!(demo.status.success(), "{printed}{errors}");
    assert_eq!(printed, block("text"));
}

fn the_document_shows_the_example() {
    let example = include_str!("../../examples/shout.rs");
    assert!(
        block("rust") == example,
        "copy examples/shout.rs into the document"
    );
}

/// What is in the first block of the document of this kind.
fn block(kind: &str) -> &'static str {
    let (_, block) = DOCUMENT.split_once(&format!("```{kind}\n")).unwrap();
    block.split_once("```\n").unwrap().0
}
