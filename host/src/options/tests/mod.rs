//! The promises of the options as a whole; each module's own are beside it.

mod command;
mod help;
mod values;

use super::{Choice, FRONT_ENDS, Key, Kind, Table};

/// A device with a key of each kind.
pub(super) static DISK: Table = Table {
    device: "disk",
    about: "a disk for tests",
    keys: &[
        Key::new("path", Kind::Path, "the image")
            .required()
            .positional(),
        Key::flag("ro", "read-only"),
        Key::flag("direct", "no cache").aliases(&["o-direct"]),
        Key::new(
            "block-size",
            Kind::Size {
                min: 512,
                max: 4096,
            },
            "in bytes",
        )
        .default("512"),
        Key::new("queues", Kind::Number { min: 1, max: 16 }, "how many").default("0x4"),
        Key::new("id", Kind::Text { max: 20 }, "its name"),
        Key::new("sizes", Kind::Numbers { min: 1, max: 9 }, "of the queues"),
        Key::new(
            "cache",
            Kind::Choice(&[
                Choice::new("write-back"),
                Choice::new("none"),
                Choice::refused("unsafe", "it loses data"),
            ]),
            "how it caches",
        )
        .default("write-back"),
        Key::flag("root", "the root").noted("a VMM's matter"),
        Key::new("pci-address", Kind::PciAddress, "the slot").noted("a VMM's matter"),
        Key::flag("packed", "packed rings").refused("they are not built"),
    ],
    front_ends: FRONT_ENDS,
    joins: false,
    example: "path=disk.img,vhost=/tmp/vu-disk",
};

/// A device without a positional key.
pub(super) static PORT: Table = Table {
    device: "port",
    about: "a port for tests",
    keys: &[Key::flag("stdin", "keys").exclusive()],
    front_ends: FRONT_ENDS,
    joins: true,
    example: "vhost=/tmp/vu-port",
};
