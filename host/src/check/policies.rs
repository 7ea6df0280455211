//! The layers of an operator's own policies: the files of each kind of device, read and judged as
//! they are before one of it is started.

use std::path::Path;

use super::layer::Layer;
use crate::channel::Transport;
use crate::options::VvuMemory;
use crate::policies::{ForRole, for_role, has_any};
use crate::{Entry, Registry};

const SOCKET: Transport = Transport::VhostUser;

/// Where memory is says nothing of policies.
const FUNCTION: Transport = Transport::Vvu(VvuMemory::Files);

/// One for each kind, and one more for each that has files for virtio-vhost-user. A directory may
/// leave out what nobody wants to start, but not all.
pub(super) fn layers(registry: &Registry, directory: &Path) -> Vec<Layer> {
    let entries = registry.entries();
    let has = |entry: &&Entry, transport| has_any(entry, transport, directory);
    let behind_functions = entries.iter().filter(|entry| has(entry, FUNCTION));
    let none = !entries
        .iter()
        .any(|entry| has(&entry, SOCKET) || has(&entry, FUNCTION));
    let sockets = entries.iter().map(|entry| {
        let name = format!("policies.{}", entry.name());
        let layer = layer(registry, entry, SOCKET, directory, name);
        match none || has(&entry, SOCKET) {
            true => layer,
            false => layer.optional(),
        }
    });
    let functions = behind_functions.map(|entry| {
        let name = format!("policies.{}.vvu", entry.name());
        layer(registry, entry, FUNCTION, directory, name)
    });
    sockets.chain(functions).collect()
}

fn layer(
    registry: &Registry,
    entry: &Entry,
    transport: Transport,
    directory: &Path,
    name: String,
) -> Layer {
    match for_role(registry, entry, transport, Some(directory)) {
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
