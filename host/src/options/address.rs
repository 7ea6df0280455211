//! Where a front-end finds a device: `vhost=` is a socket path or a PCI address.
//! Binding the socket is [`crate::listen`]'s, and opening the function `vudev-transports`'.

use std::path::Path;

use serde::{Deserialize, Serialize};
use vudev_transports::vvu::{AddressError, PciAddress};

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

/// Whether a path could be taken for a PCI address: a typing error in one must not silently become
/// a socket of that name. `./` in front makes it none.
pub(crate) fn is_like_pci_address(path: &str) -> bool {
    path.parse::<PciAddress>() != Err(AddressError::Shape)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_of_memory_means_something() {
        for word in VVU_MEMORY_WORDS {
            assert!(VvuMemory::of_word(word.name).is_some(), "{}", word.name);
        }
    }
}
