//! The numbers of the network device (virtio 1.3, 5.1). Not what is done with them.

/// Feature bits (5.1.3), as masks.
pub mod feature {
    /// The device computes checksums that a frame lacks.
    pub const CSUM: u64 = 1 << 0;
    /// The driver takes frames whose checksum is not computed yet.
    pub const GUEST_CSUM: u64 = 1 << 1;
    /// The driver may change its offloads while it runs.
    pub const CTRL_GUEST_OFFLOADS: u64 = 1 << 2;
    /// The device tells an MTU.
    pub const MTU: u64 = 1 << 3;
    /// The device has a MAC address for the driver.
    pub const MAC: u64 = 1 << 5;
    /// The driver takes TCP over IPv4 in large pieces.
    pub const GUEST_TSO4: u64 = 1 << 7;
    /// The driver takes TCP over IPv6 in large pieces.
    pub const GUEST_TSO6: u64 = 1 << 8;
    /// The driver takes large TCP pieces with ECN.
    pub const GUEST_ECN: u64 = 1 << 9;
    /// The driver takes UDP in large pieces, to be fragmented.
    pub const GUEST_UFO: u64 = 1 << 10;
    /// The device takes TCP over IPv4 in large pieces.
    pub const HOST_TSO4: u64 = 1 << 11;
    /// The device takes TCP over IPv6 in large pieces.
    pub const HOST_TSO6: u64 = 1 << 12;
    /// The device takes large TCP pieces with ECN.
    pub const HOST_ECN: u64 = 1 << 13;
    /// The device takes UDP in large pieces, to be fragmented.
    pub const HOST_UFO: u64 = 1 << 14;
    /// A frame may lie in several receive buffers.
    pub const MRG_RXBUF: u64 = 1 << 15;
    /// The device tells the state of its link.
    pub const STATUS: u64 = 1 << 16;
    /// There is a control queue.
    pub const CTRL_VQ: u64 = 1 << 17;
    /// Receive modes, and tables of addresses.
    pub const CTRL_RX: u64 = 1 << 18;
    /// VLANs are filtered.
    pub const CTRL_VLAN: u64 = 1 << 19;
    /// More receive modes.
    pub const CTRL_RX_EXTRA: u64 = 1 << 20;
    /// The device may ask the driver to announce itself.
    pub const GUEST_ANNOUNCE: u64 = 1 << 21;
    /// Several pairs of queues.
    pub const MQ: u64 = 1 << 22;
    /// The driver may set its address.
    pub const CTRL_MAC_ADDR: u64 = 1 << 23;
    /// The driver takes UDP over IPv4 in large pieces, to be segmented.
    pub const GUEST_USO4: u64 = 1 << 54;
    /// The driver takes UDP over IPv6 in large pieces, to be segmented.
    pub const GUEST_USO6: u64 = 1 << 55;
    /// The device takes UDP in large pieces, to be segmented.
    pub const HOST_USO: u64 = 1 << 56;
    /// The device tells a speed and a duplex mode.
    pub const SPEED_DUPLEX: u64 = 1 << 63;

    /// What frames the driver takes: the features that CTRL_GUEST_OFFLOADS may change (5.1.6.5.6).
    pub const GUEST_OFFLOADS: u64 =
        GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | GUEST_ECN | GUEST_UFO | GUEST_USO4 | GUEST_USO6;
}

/// Bytes of the header in front of every frame, `num_buffers` included (5.1.6: always, with
/// VERSION_1).
pub(super) const HEADER_SIZE: usize = 12;

/// Flags of the header.
pub(super) mod flag {
    /// The checksum is to be computed.
    pub(crate) const NEEDS_CSUM: u8 = 1;
}

/// Kinds of large frames, `gso_type` (5.1.6).
pub(super) mod gso {
    pub(crate) const NONE: u8 = 0;
    pub(crate) const TCPV4: u8 = 1;
    pub(crate) const UDP: u8 = 3;
    pub(crate) const TCPV6: u8 = 4;
    pub(crate) const UDP_L4: u8 = 5;
    /// Beside one of TCP: the frame has ECN's mark.
    pub(crate) const ECN: u8 = 0x80;
}

/// Classes and commands of the control queue (5.1.6.5), `VIRTIO_NET_CTRL_…`.
pub(super) mod ctrl {
    pub(crate) const RX: u8 = 0;
    pub(crate) const RX_PROMISC: u8 = 0;
    pub(crate) const RX_ALLMULTI: u8 = 1;
    pub(crate) const RX_ALLUNI: u8 = 2;
    pub(crate) const RX_NOMULTI: u8 = 3;
    pub(crate) const RX_NOUNI: u8 = 4;
    pub(crate) const RX_NOBCAST: u8 = 5;

    pub(crate) const MAC: u8 = 1;
    pub(crate) const MAC_TABLE_SET: u8 = 0;
    pub(crate) const MAC_ADDR_SET: u8 = 1;

    pub(crate) const VLAN: u8 = 2;
    pub(crate) const VLAN_ADD: u8 = 0;
    pub(crate) const VLAN_DEL: u8 = 1;

    pub(crate) const ANNOUNCE: u8 = 3;
    pub(crate) const ANNOUNCE_ACK: u8 = 0;

    pub(crate) const MQ: u8 = 4;
    pub(crate) const MQ_VQ_PAIRS_SET: u8 = 0;

    pub(crate) const GUEST_OFFLOADS: u8 = 5;
    pub(crate) const GUEST_OFFLOADS_SET: u8 = 0;
}

/// The answers to them, `VIRTIO_NET_OK` and `VIRTIO_NET_ERR`.
pub(super) mod ack {
    pub(crate) const OK: u8 = 0;
    pub(crate) const ERR: u8 = 1;
}

/// Bits of `status` in the configuration space (5.1.4).
pub(super) mod status {
    pub(crate) const LINK_UP: u16 = 1;
    pub(crate) const ANNOUNCE: u16 = 2;
}

/// Bytes of an Ethernet header: two addresses and a type.
pub(super) const ETHERNET_HEADER: usize = 14;

/// Bytes of a VLAN tag, which may stand twice in a frame.
pub(super) const VLAN_TAG: usize = 4;

/// The longest IP packet.
pub(super) const PACKET_MAX: usize = 65_535;

/// The longest frame, large ones included.
pub(super) const FRAME_MAX: usize = PACKET_MAX + ETHERNET_HEADER + 2 * VLAN_TAG;
