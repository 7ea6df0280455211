//! The feature bits that a transport adds to a device's. Not what they mean for a queue.

use vudev_virtio::Identity;
use vudev_virtio::spec::feature::FRAMEWORK;

/// `VHOST_USER_F_PROTOCOL_FEATURES`: a bit of vhost-user's in the word that is virtio's.
pub(crate) const PROTOCOL_FEATURES: u64 = 1 << 30;

/// What a driver may take: the device's features and those of every queue of ours.
pub(crate) fn offered(identity: &Identity) -> u64 {
    identity.features | FRAMEWORK
}
