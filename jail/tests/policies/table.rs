//! Which files there must be: one table, for every test here. A new device is a line of `DEVICES`.

use vudev_jail::policy::{self, Arch, Policy};
use vudev_jail::{Embedded, Program};

/// What each kind of device calls its policies.
pub(crate) const DEVICES: [&str; 5] = ["block", "net", "rng", "serial", "vsock"];

/// Parts beside those of the devices.
const SHARED_PARTS: [&str; 3] = ["common_device", "vhost_user", "vvu"];

/// What is loaded of each device, and the transport's part that it includes.
pub(crate) const VARIANTS: [(&str, Option<&str>); 3] = [
    ("_device", None),
    ("_device_vhost_user", Some("vhost_user")),
    ("_device_vvu", Some("vvu")),
];

/// The names of all parts, sorted.
pub(crate) fn parts() -> Vec<String> {
    let mut names: Vec<_> = SHARED_PARTS.into_iter().chain(DEVICES).collect();
    names.sort_unstable();
    names.into_iter().map(str::to_owned).collect()
}

/// The names of all that is loaded, sorted.
pub(crate) fn loaded() -> Vec<String> {
    let variants = |device| VARIANTS.map(|(ending, _)| format!("{device}{ending}"));
    let mut names: Vec<_> = DEVICES.into_iter().flat_map(variants).collect();
    names.sort_unstable();
    names
}

/// Every loaded policy of every architecture.
pub(crate) fn policies() -> impl Iterator<Item = (String, Policy)> {
    each().map(|(arch, name)| {
        let policy = policy::read(&name, arch, &Embedded).expect("embedded");
        (format!("{arch}/{name}"), policy)
    })
}

/// Every loaded program of every architecture.
pub(crate) fn programs() -> impl Iterator<Item = (String, Arch, Program)> {
    each().map(|(arch, name)| {
        let program = policy::compile(&name, arch, &Embedded).expect("embedded");
        (format!("{arch}/{name}"), arch, program)
    })
}

fn each() -> impl Iterator<Item = (Arch, String)> {
    Arch::ALL
        .into_iter()
        .flat_map(|arch| loaded().into_iter().map(move |name| (arch, name)))
}
