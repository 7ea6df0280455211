//! `cargo xtask lint`: formatting, clippy, documentation and tidy, none of them with a warning. It
//! changes no file.

use anyhow::Result;

use crate::process::{run as run_loudly, say};
use crate::{tidy, workspace};

/// Runs all of them; the first that fails ends it.
pub(crate) fn run() -> Result<()> {
    let steps: [(&str, &[&str]); 3] = [
        ("formatting", &["fmt", "--all", "--check"]),
        (
            "clippy",
            &[
                "clippy",
                "--workspace",
                "--all-targets",
                "--",
                "-D",
                "warnings",
            ],
        ),
        (
            "documentation",
            &[
                "doc",
                "--workspace",
                "--no-deps",
                "--document-private-items",
            ],
        ),
    ];
    for (what, arguments) in steps {
        say(what);
        run_loudly(
            workspace::cargo()
                .args(arguments)
                .env("RUSTDOCFLAGS", "-D warnings"),
        )?;
    }
    tidy::run()
}
