//! Where a front-end finds a device: `vhost=` is a socket path or a PCI address.
//! Binding the socket is [`crate::listen`]'s, and opening the function `vudev-transports`'.

use std::path::Path;

use serde::{Deserialize, Serialize};
use vudev_transports::vvu::PciAddress;

use super::table::Choice;

pub(super) const VHOST_MEANING: &str = "where front-ends connect: the path of the Unix socket to \
     listen on, or in a device VM the PCI address of a virtio-vhost-user device that is bound to \
     vfio-pci";

pub(super) const VVU_MEMORY_MEANING: &str = "where the virtio-vhost-user device at vhost= shows \
     the front-end's regions of memory: each file from its beginning (files: vudev's own, and \
     QEMU's), one region after the other (regions: the specification's draft), or each at its \
     offset in its file (offsets: what crosvm expects)";

pub(super) const VVU_MEMORY_WORDS: &[Choice] = &[
    Choice::new("files"),
    Choice::new("regions"),
    Choice::new("offsets"),
];

/// Where a front-end finds a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vhost<'a> {
    /// At a Unix socket of this path.
    Socket(&'a Path),
    /// Behind a virtio-vhost-user function, which it has in its own VM.
    Function(PciAddress),
}

/// Where a virtio-vhost-user function shows regions of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum VvuMemory {
    /// Each file from its beginning.
    Files,
    /// One region after the other.
    Regions,
    /// Each region at its offset in its file.
    Offsets,
}

impl VvuMemory {
    /// Of one of [`VVU_MEMORY_WORDS`].
    pub(super) fn of_word(word: &str) -> Option<Self> {
        match word {
            "files" => Some(Self::Files),
            "regions" => Some(Self::Regions),
            "offsets" => Some(Self::Offsets),
            _ => None,
        }
    }
}

/// What a text is, seen as a PCI address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    Address(PciAddress),
    /// It has the shape of one, but a field is out of its range.
    OutOfRange(&'static str),
    Other,
}

/// Whether a path could be taken for a PCI address. `./` in front makes it none.
pub(crate) fn is_like_pci_address(path: &str) -> bool {
    pci_shape(path) != Shape::Other
}

/// A typing error in an address must not silently become a socket of that name: what has the shape
/// of one is one. `./` in front makes it a path.
pub(super) fn pci_shape(text: &str) -> Shape {
    let Some((front, function)) = text.rsplit_once('.') else {
        return Shape::Other;
    };
    let mut fields = front.rsplit(':');
    let (device, bus, domain) = (fields.next(), fields.next(), fields.next());
    let (Some(device), Some(bus), None) = (device, bus, fields.next()) else {
        return Shape::Other;
    };
    let all = [domain.unwrap_or("0"), bus, device, function].map(hexadecimal);
    let [Some(domain), Some(bus), Some(device), Some(function)] = all else {
        return Shape::Other;
    };
    let Ok(bus) = u8::try_from(bus) else {
        return Shape::OutOfRange("its bus is over ff");
    };
    match (u8::try_from(device), u8::try_from(function)) {
        (Ok(device @ ..=0x1f), Ok(function @ ..=7)) => Shape::Address(PciAddress {
            domain,
            bus,
            device,
            function,
        }),
        (Ok(..=0x1f), _) => Shape::OutOfRange("its function is over 7"),
        (_, _) => Shape::OutOfRange("its device is over 1f"),
    }
}

fn hexadecimal(field: &str) -> Option<u32> {
    let digits = !field.is_empty() && field.bytes().all(|byte| byte.is_ascii_hexdigit());
    digits
        .then(|| u32::from_str_radix(field, 16).ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn addresses_come_with_and_without_a_domain() {
        let address = PciAddress {
            domain: 0,
            bus: 0,
            device: 5,
            function: 0,
        };
        assert_eq!(pci_shape("0000:00:05.0"), Shape::Address(address));
        assert_eq!(pci_shape("00:05.0"), Shape::Address(address));
        let address = PciAddress {
            domain: 0x10000,
            bus: 0xff,
            device: 0x1f,
            function: 7,
        };
        assert_eq!(pci_shape("10000:FF:1f.7"), Shape::Address(address));
    }

    #[test]
    fn an_address_out_of_range_is_not_taken_for_a_path() {
        assert_eq!(
            pci_shape("00:20.0"),
            Shape::OutOfRange("its device is over 1f")
        );
        assert_eq!(
            pci_shape("00:1f.8"),
            Shape::OutOfRange("its function is over 7")
        );
        assert_eq!(
            pci_shape("100:1f.0"),
            Shape::OutOfRange("its bus is over ff")
        );
    }

    #[test]
    fn paths_are_not_addresses() {
        for path in [
            "/tmp/vu",
            "./00:05.0",
            "a.sock",
            "05.0",
            "1:2:3:4.0",
            "00:05.",
            "g:05.0",
            "",
        ] {
            assert_eq!(pci_shape(path), Shape::Other, "{path}");
        }
    }

    #[test]
    fn every_word_of_memory_means_something() {
        for word in VVU_MEMORY_WORDS {
            assert!(VvuMemory::of_word(word.name).is_some(), "{}", word.name);
        }
    }

    proptest! {
        #[test]
        fn a_shown_address_reads_back(
            domain in any::<u32>(), bus in any::<u8>(), device in 0u8..32, function in 0u8..8,
        ) {
            let address = PciAddress { domain, bus, device, function };
            prop_assert_eq!(pci_shape(&address.to_string()), Shape::Address(address));
        }
    }
}
