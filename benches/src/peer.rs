//! Programs of others that do the same: where they are, and how they are installed. Not how they
//! are started.

use std::env;
use std::path::PathBuf;

/// Where a peer is: its variable (`VUDEV_` and its name) names it, else it is in the folder that
/// `cargo xtask compare --peers` installs into, or in PATH.
pub fn find(name: &str) -> Option<PathBuf> {
    if let Some(named) = env::var_os(variable(name)) {
        return Some(named.into());
    }
    let program = env::current_exe().unwrap_or_default();
    // Cargo builds programs and benchmarks into folders of its target folder.
    let installed = program.ancestors().skip(1).map(|it| it.join("peers/bin"));
    let path = env::var_os("PATH").unwrap_or_default();
    let mut places = installed.chain(env::split_paths(&path));
    places.find_map(|folder| Some(folder.join(name)).filter(|place| place.is_file()))
}

/// What to do where a peer is missing.
pub fn remedy(name: &str) -> String {
    format!(
        "{name} is not installed: `cargo xtask compare --peers` does it, or {} names it",
        variable(name)
    )
}

fn variable(name: &str) -> String {
    format!("VUDEV_{}", name.to_uppercase().replace('-', "_"))
}
