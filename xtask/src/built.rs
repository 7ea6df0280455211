//! What cargo has built, as its messages name it. It runs none of it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// `RUSTFLAGS` of a program that needs no file beside itself. With `--target`, which keeps them
/// away from build scripts and macros: those cannot be static.
pub(crate) const STATIC_FLAGS: &str = "-C target-feature=+crt-static";

/// A program that cargo has built.
pub(crate) struct Executable {
    /// The name of its target.
    pub(crate) name: String,
    /// The kind of its target: `bin`, `test`, …
    pub(crate) kind: String,
    /// The first source file of its target.
    pub(crate) source: PathBuf,
    /// Where it is.
    pub(crate) path: PathBuf,
    /// Its package's folder, where cargo would start it.
    pub(crate) folder: PathBuf,
    /// Whether it runs the target's tests.
    pub(crate) is_suite: bool,
}

/// Runs a cargo command that only builds; what it says goes to the terminal.
pub(crate) fn build(cargo: &mut Command) -> Result<Vec<Executable>> {
    let output = cargo
        .args(["--message-format", "json-render-diagnostics"])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("cargo")?;
    ensure!(output.status.success(), "cargo: {}", output.status);
    let messages = String::from_utf8(output.stdout)?;
    let found = messages.lines().map(executable);
    found.filter_map(Result::transpose).collect()
}

/// The executable that a message is about, if it is about one.
fn executable(message: &str) -> Result<Option<Executable>> {
    let message: Value = serde_json::from_str(message).context("cargo's message")?;
    let Some(path) = message["executable"].as_str() else {
        return Ok(None);
    };
    let target = &message["target"];
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let field = |value: &Value| text(value).with_context(|| format!("cargo on {path}: {message}"));
    let manifest = PathBuf::from(field(&message["manifest_path"])?);
    Ok(Some(Executable {
        name: field(&target["name"])?,
        kind: field(&target["kind"][0])?,
        source: field(&target["src_path"])?.into(),
        path: path.into(),
        folder: manifest.parent().map(Path::to_owned).unwrap_or_default(),
        is_suite: message["profile"]["test"] == Value::Bool(true),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_messages_about_programs_name_one() {
        let message = r#"{"reason":"compiler-artifact","manifest_path":"/w/bin/Cargo.toml",
            "target":{"kind":["test"],"name":"usage","src_path":"/w/bin/tests/usage.rs"},
            "profile":{"test":true},"executable":"/t/debug/deps/usage-0123"}"#;
        let found = executable(message).unwrap().unwrap();
        assert_eq!((&*found.name, &*found.kind), ("usage", "test"));
        assert_eq!(found.folder, Path::new("/w/bin"));
        assert!(found.is_suite);
        let library = message.replace("\"/t/debug/deps/usage-0123\"", "null");
        assert!(executable(&library).unwrap().is_none());
        assert!(executable(&message.replace("src_path", "path")).is_err());
    }
}
