//! The layers of an operator's own policies: the files of each kind of device, read and judged as
//! they are before one of it is started.

use std::path::Path;

use super::layer::Layer;
use crate::channel::Transport;
use crate::policies::{ForRole, for_role, has_any};
use crate::{Entry, Registry};

const TRANSPORT: Transport = Transport::VhostUser;

/// One for each kind. A directory may leave out kinds that nobody wants to start, but not all.
pub(super) fn layers(registry: &Registry, directory: &Path) -> Vec<Layer> {
    let entries = registry.entries();
    let none = !entries
        .iter()
        .any(|entry| has_any(entry, TRANSPORT, directory));
    let of = |entry| layer(registry, entry, directory);
    entries
        .iter()
        .map(|entry| match none || has_any(entry, TRANSPORT, directory) {
            true => of(entry),
            false => of(entry).optional(),
        })
        .collect()
}

fn layer(registry: &Registry, entry: &Entry, directory: &Path) -> Layer {
    let name = format!("policies.{}", entry.name());
    match for_role(registry, entry, TRANSPORT, Some(directory)) {
        Ok(ForRole { warning, texts: _ }) => {
            let good = || "its files can be used".to_owned();
            Layer::there(name, warning.unwrap_or_else(good))
        }
        Err(error) => {
            let remedy = "correct it, or start no such device with this directory";
            Layer::not_there(name, error.to_string(), remedy)
        }
    }
}
