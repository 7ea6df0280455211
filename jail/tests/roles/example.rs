//! The example for authors of other daemons, as it is shown in its document.

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use crate::{Test, shout};

/// `argv[0]` of the example itself; its daemon has a name of its own.
pub(crate) const SHOUT: &str = "shout";

pub(crate) const TESTS: &[Test] = &[
    (
        "a_daemon_is_jailed_by_the_example",
        a_daemon_is_jailed_by_the_example,
    ),
    (
        "the_document_shows_the_example",
        the_document_shows_the_example,
    ),
];

/// The processes of the example.
pub(crate) fn run() -> ExitCode {
    match shout::main() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

const DOCUMENT: &str = include_str!("../../../docs/jailing-a-daemon.md");

fn a_daemon_is_jailed_by_the_example() {
    let demo = Command::new("/proc/self/exe")
        .arg0(SHOUT)
        .arg("--demo")
        .output()
        .unwrap();
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
