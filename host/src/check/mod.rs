//! `check`: what this host has of a device's jail, layer by layer, with the remedy for what is
//! missing. It believes no version and no setting where it can try: a process goes through a
//! device's own steps ([`role`]) and says how far it came.
//!
//! The exit status is 0 only if every layer that a device needs is there, so that `vudev` would
//! start its devices fully jailed.

mod facts;
mod layer;
mod layers;
mod policies;
pub(crate) mod role;
mod trial;

use std::fs;
use std::process::ExitCode;

use vudev_jail::Namespace;

use crate::Registry;
use crate::options::{JailOptions, SeccompMode};
use crate::supervisor::{FAILED, print, raise_limits};
use facts::Facts;
use layer::{Layer, Report};
use trial::{NamespaceTrials, Trial};

/// `argv[0]` of the process that goes through the steps.
pub(crate) const ROLE: &str = "vudev-check";

/// Prints the report on standard output, whatever is found: one object, as JSON.
pub(crate) fn main(registry: &Registry, program: &str, json: bool, jail: &JailOptions) -> ExitCode {
    // As before devices are started: what a process may lock is one of the layers.
    raise_limits();
    vudev_jail::spawn::keep_exit_statuses();
    let mut layers = examine();
    if let Some(directory) = &jail.seccomp_policy_dir {
        layers.extend(policies::layers(registry, &directory.path));
    }
    if jail.seccomp_mode == SeccompMode::Log {
        layers::require_listener(&mut layers);
    }
    let devices = registry.entries().iter().map(|entry| entry.name());
    let report = Report::new(layers, devices.collect());
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

fn examine() -> Vec<Layer> {
    let program = match trial::program() {
        Ok(program) => program,
        Err(error) => return vec![layers::start(Err(&error))],
    };
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
    layers::all(&facts, &namespaces, jailed.as_ref())
}

/// A setting of the kernel, without its newline; `None` where there is none.
fn setting(path: &str) -> Option<String> {
    fs::read_to_string(path)
        .ok()
        .map(|text| text.trim().to_owned())
}
