//! `check`: what this host has of a device's jail, layer by layer, with the remedy for what is
//! missing. It believes no version and no setting where it can try: a process goes through a
//! device's own steps ([`role`]) and says how far it came.
//!
//! The exit status is 0 only if every layer that a device needs is there, so that `vudev` would
//! start its devices fully jailed.

mod facts;
mod layer;
mod layers;
pub(crate) mod role;
mod trial;

use std::fs;
use std::process::ExitCode;

use vudev_jail::Namespace;

use crate::Registry;
use crate::supervisor::{FAILED, print, raise_limits};
use facts::Facts;
use layer::Report;
use trial::{NamespaceTrials, Trial};

/// `argv[0]` of the process that goes through the steps.
pub(crate) const ROLE: &str = "vudev-check";

/// Prints the report on standard output.
pub(crate) fn main(registry: &Registry, program: &str, json: bool) -> ExitCode {
    // As before devices are started: what a process may lock is one of the layers.
    raise_limits();
    vudev_jail::spawn::keep_exit_statuses();
    let report = match examine(registry) {
        Ok(report) => report,
        Err(error) => {
            let text = format!("own program: {error}");
            crate::supervisor::say(log::Level::Error, &text);
            return ExitCode::from(FAILED);
        }
    };
    let text = match json {
        true => report.json(),
        false => report.text(program),
    };
    let printed = print(&text);
    match report.jailed() {
        true => printed,
        false => ExitCode::from(FAILED),
    }
}

fn examine(registry: &Registry) -> std::io::Result<Report> {
    let program = vudev_jail::own_program()?;
    let namespaces: NamespaceTrials =
        Namespace::ALL.map(|namespace| (namespace, trial::of_namespace(&program, namespace)));
    let jailed = trial::of_jail(&program, true);
    let mut facts = Facts::default();
    if let Ok(Trial { heard, .. }) = &jailed {
        facts.add(heard);
    }
    // What a failed step has hidden can still be told of the layers that need no namespaces.
    if !facts.complete()
        && let Ok(Trial { heard, .. }) = trial::of_jail(&program, false)
    {
        facts.add(&heard);
    }
    let layers = layers::all(&facts, &namespaces, jailed.as_ref());
    let devices = registry.entries().iter().map(|entry| entry.name());
    Ok(Report::new(layers, devices.collect()))
}

/// A setting of the kernel, without its newline; `None` where there is none.
fn setting(path: &str) -> Option<String> {
    fs::read_to_string(path)
        .ok()
        .map(|text| text.trim().to_owned())
}
