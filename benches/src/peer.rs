//! Peers: programs of others that do the same, where they are installed.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use vudev_harness::{Child, wait_until_listening};

/// How long one may take until it listens, on a machine that is very busy.
const START_LIMIT: Duration = Duration::from_secs(20);

/// Where a peer is: its variable (`VUDEV_` and its name) names it, else it is looked for in PATH.
/// None, and a line that says so, where it is not installed.
pub fn find(name: &str) -> Option<PathBuf> {
    let variable = format!("VUDEV_{}", name.to_uppercase().replace('-', "_"));
    if let Some(named) = env::var_os(&variable) {
        return Some(named.into());
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let mut places = env::split_paths(&path).map(|folder| folder.join(name));
    let found = places.find(|place| place.is_file());
    if found.is_none() {
        eprintln!("not measured: {name} is not installed ({variable}, or PATH)");
    }
    found
}

/// Starts a peer that will listen on `socket`.
///
/// # Errors
///
/// When it does not come to that, with what it said.
pub fn start(name: &str, command: &Command, socket: &Path) -> Result<Child> {
    let mut child = Child::start(name, command)?;
    wait_until_listening(socket, &mut child, START_LIMIT)?;
    Ok(child)
}
