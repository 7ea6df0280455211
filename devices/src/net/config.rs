//! What a network device is told to be, and what follows from it: features and configuration
//! space. Plain data that crosses from the supervisor; nothing is opened here.

use serde::{Deserialize, Serialize};

use super::filter::Mac;
use super::spec::feature;

/// Bytes of `struct virtio_net_config` (5.1.4), its fields for RSS among them, which are zero.
pub(super) const CONFIG_SIZE: usize = 24;

/// Pairs of queues, at most: each has a descriptor of the tap, and a device is given 64.
pub const PAIRS_MAX: u16 = 32;

/// The greatest size of a queue for frames.
const QUEUE_SIZE: u16 = 1024;
/// And of the control queue.
const CONTROL_QUEUE_SIZE: u16 = 1024;

/// What a pair has on the ring: for each way a read or a write, or a wait for readiness, and one
/// that was cancelled and has not ended yet.
const OPERATIONS_PER_PAIR: u32 = 4;

/// Linux's taps say so since 6.6: megabits a second.
const SPEED: u32 = 10_000;
const FULL_DUPLEX: u8 = 1;

/// The MTU of a device, at least (5.1.4.2) and at most.
pub const MTU_MIN: u16 = 68;
/// The other end: what an IP packet can be.
pub const MTU_MAX: u16 = 65_535;

/// A network device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetConfig {
    /// The address for the driver; without one it makes its own.
    pub mac: Option<Mac>,
    /// The greatest packet on the link: what the driver is told.
    pub mtu: u16,
    /// Pairs of queues, one descriptor each.
    pub pairs: u16,
    /// Whether the tap is one of several queues, even if only one is used.
    pub multi_queue: bool,
    /// Whether a frame may lie in several receive buffers.
    pub mergeable: bool,
    /// What the tap can do, by [`super::tap::offloads`].
    pub offloads: u64,
}

/// A value that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NetError {
    /// None, too many, or several on a tap of one queue.
    #[error("{0} pairs of queues")]
    Pairs(u16),
    /// Not as many queues of the tap as there are pairs.
    #[error("{taps} queues of the tap for {pairs} pairs")]
    Taps {
        /// How many came.
        taps: usize,
        /// How many are needed.
        pairs: u16,
    },
    /// A broadcast or group address, or none.
    #[error("no machine has the address {0:x?}")]
    Mac(Mac),
    /// Smaller than IPv4 allows.
    #[error("an MTU of {0}")]
    Mtu(u16),
}

impl NetConfig {
    /// Whether a device can be this.
    ///
    /// # Errors
    ///
    /// The first value that cannot be.
    pub fn check(&self) -> Result<(), NetError> {
        let Self {
            mac,
            mtu,
            pairs,
            multi_queue,
            mergeable: _,
            offloads: _,
        } = self;
        if !(1..=PAIRS_MAX).contains(pairs) || *pairs > 1 && !multi_queue {
            return Err(NetError::Pairs(*pairs));
        }
        if let Some(mac) = mac.filter(|mac| !super::tap::is_unicast(*mac)) {
            return Err(NetError::Mac(mac));
        }
        if *mtu < MTU_MIN {
            return Err(NetError::Mtu(*mtu));
        }
        Ok(())
    }

    /// Ring operations that the device has in flight at most.
    pub fn operations(&self) -> u32 {
        u32::from(self.pairs) * OPERATIONS_PER_PAIR
    }

    pub(super) fn queue_sizes(&self) -> Vec<u16> {
        let mut sizes = vec![QUEUE_SIZE; 2 * usize::from(self.pairs)];
        sizes.push(CONTROL_QUEUE_SIZE);
        sizes
    }

    /// What is offered.
    pub(super) fn features(&self) -> u64 {
        use feature as f;
        let known = f::GUEST_OFFLOADS
            | f::CSUM
            | f::HOST_TSO4
            | f::HOST_TSO6
            | f::HOST_ECN
            | f::HOST_UFO
            | f::HOST_USO;
        let optional = [
            (self.mac.is_some(), f::MAC),
            (self.mergeable, f::MRG_RXBUF),
            (self.pairs > 1, f::MQ),
            (self.offloads & f::GUEST_CSUM != 0, f::CTRL_GUEST_OFFLOADS),
        ];
        let always = f::MTU
            | f::STATUS
            | f::SPEED_DUPLEX
            | f::CTRL_VQ
            | f::CTRL_RX
            | f::CTRL_RX_EXTRA
            | f::CTRL_VLAN
            | f::CTRL_MAC_ADDR
            | f::GUEST_ANNOUNCE;
        optional
            .into_iter()
            .filter(|(offered, _)| *offered)
            .fold(always | self.offloads & known, |bits, (_, bit)| bits | bit)
    }

    /// The configuration space; `mac` is what the driver has set, or what it was given.
    pub(super) fn space(&self, mac: Mac, status: u16) -> [u8; CONFIG_SIZE] {
        let mut space = [0; CONFIG_SIZE];
        space[..6].copy_from_slice(&mac);
        space[6..8].copy_from_slice(&status.to_le_bytes());
        space[8..10].copy_from_slice(&self.pairs.to_le_bytes());
        space[10..12].copy_from_slice(&self.mtu.to_le_bytes());
        space[12..16].copy_from_slice(&SPEED.to_le_bytes());
        space[16] = FULL_DUPLEX;
        space
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> NetConfig {
        NetConfig {
            mac: Some([2, 0, 0, 0, 0, 1]),
            mtu: 9000,
            pairs: 4,
            multi_queue: true,
            mergeable: true,
            offloads: feature::GUEST_CSUM | feature::CSUM,
        }
    }

    #[test]
    fn values_that_cannot_be_are_named() {
        assert_eq!(config().check(), Ok(()));
        for pairs in [0, PAIRS_MAX + 1] {
            let config = NetConfig { pairs, ..config() };
            assert_eq!(config.check(), Err(NetError::Pairs(pairs)));
        }
        let single = NetConfig {
            multi_queue: false,
            ..config()
        };
        assert_eq!(single.check(), Err(NetError::Pairs(4)));
        for mac in [[0; 6], [0xff; 6], [1, 0, 0x5e, 0, 0, 1]] {
            let mac = Some(mac);
            assert!(NetConfig { mac, ..config() }.check().is_err());
        }
        assert_eq!(
            NetConfig {
                mtu: 67,
                ..config()
            }
            .check(),
            Err(NetError::Mtu(67))
        );
    }

    #[test]
    fn what_is_not_there_is_not_offered() {
        let features = config().features();
        let wanted = feature::MAC | feature::MRG_RXBUF | feature::MQ | feature::CTRL_GUEST_OFFLOADS;
        assert_eq!(features & wanted, wanted);
        assert_eq!(features & (feature::HOST_TSO4 | feature::GUEST_USO4), 0);
        let least = NetConfig {
            mac: None,
            mergeable: false,
            pairs: 1,
            offloads: 0,
            ..config()
        };
        assert_eq!(least.features() & (wanted | feature::CSUM), 0);
    }

    #[test]
    fn the_configuration_space_is_laid_out_as_the_specification_says() {
        let space = config().space([2, 0, 0, 0, 0, 1], 3);
        let expected = [
            2, 0, 0, 0, 0, 1, 3, 0, 4, 0, 0x28, 0x23, 0x10, 0x27, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0,
        ];
        assert_eq!(space, expected);
    }
}
