//! Which files there must be: one table, for every test here. A new device is a line of `DEVICES`,
//! and what is no device one of `OTHERS`.

use vudev_jail::policy::{self, Arch, Policy};
use vudev_jail::{Embedded, Program};

/// What each kind of device calls its policies.
pub(crate) const DEVICES: [&str; 5] = ["block", "net", "rng", "serial", "vsock"];

/// What is no device, and has front-ends by the socket transport alone.
pub(crate) const OTHERS: [&str; 1] = ["vvu_proxy"];

/// Parts beside those of each kind.
const SHARED_PARTS: [&str; 3] = ["common_device", "vhost_user", "vvu"];

/// What a name ends in, and the transport's part that such a file includes.
pub(crate) type Variant = (&'static str, Option<&'static str>);

/// What is loaded of each device.
pub(crate) const VARIANTS: [Variant; 3] = [
    ("_device", None),
    ("_device_vhost_user", Some("vhost_user")),
    ("_device_vvu", Some("vvu")),
];

/// Each kind, and its variants.
pub(crate) fn kinds() -> impl Iterator<Item = (&'static str, &'static [Variant])> {
    let devices = DEVICES.into_iter().map(|name| (name, &VARIANTS[..]));
    let socket = &VARIANTS[1..2];
    devices.chain(OTHERS.into_iter().map(move |name| (name, socket)))
}

/// The names of all parts, sorted.
pub(crate) fn parts() -> Vec<String> {
    let mut names: Vec<_> = SHARED_PARTS
        .into_iter()
        .chain(kinds().map(|(name, _)| name))
        .collect();
    names.sort_unstable();
    names.into_iter().map(str::to_owned).collect()
}

/// The names of all that is loaded, sorted.
pub(crate) fn loaded() -> Vec<String> {
    let variants = |(name, variants): (_, &'static [Variant])| {
        let named = move |(ending, _): &Variant| format!("{name}{ending}");
        variants.iter().map(named)
    };
    let mut names: Vec<_> = kinds().flat_map(variants).collect();
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
