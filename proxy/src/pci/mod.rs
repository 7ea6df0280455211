//! The PCI side of the function: configuration space, BARs and MSI-X. Not virtio: where its
//! registers lie is written here, what they do is not.

mod configuration;
pub mod layout;
mod msix;

pub use configuration::{Configuration, Effect, Identity, WindowAccess};
pub use msix::{Msix, NO_VECTOR};
