//! The header of a packet (virtio 1.3, 5.10.6), as it is on the wire and as a type. Not its
//! meaning: see `state`.

/// Bytes of `struct virtio_vsock_hdr`.
pub(super) const HEADER_BYTES: usize = 44;
/// The same, as lengths in packets are.
pub(super) const HEADER_LENGTH: u32 = 44;

/// The host's context identifier (5.10.4).
pub(super) const HOST_CID: u64 = 2;

/// `VIRTIO_VSOCK_TYPE_STREAM` (5.10.6.2).
pub(super) const STREAM: u16 = 1;

/// Bits of a SHUTDOWN's flags (5.10.6.6).
pub(super) mod shutdown {
    /// The sender of the packet will receive no more.
    pub(in super::super) const RECEIVE: u32 = 1;
    /// It will send no more.
    pub(in super::super) const SEND: u32 = 2;
    /// Neither.
    pub(in super::super) const BOTH: u32 = RECEIVE | SEND;
}

/// `enum virtio_vsock_op` (5.10.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Op {
    Request,
    Response,
    Reset,
    Shutdown,
    Data,
    CreditUpdate,
    CreditRequest,
    /// 0 and whatever there is no name for.
    Other(u16),
}

impl Op {
    fn parse(number: u16) -> Self {
        match number {
            1 => Self::Request,
            2 => Self::Response,
            3 => Self::Reset,
            4 => Self::Shutdown,
            5 => Self::Data,
            6 => Self::CreditUpdate,
            7 => Self::CreditRequest,
            other => Self::Other(other),
        }
    }

    fn number(self) -> u16 {
        match self {
            Self::Request => 1,
            Self::Response => 2,
            Self::Reset => 3,
            Self::Shutdown => 4,
            Self::Data => 5,
            Self::CreditUpdate => 6,
            Self::CreditRequest => 7,
            Self::Other(other) => other,
        }
    }
}

/// The two ports of a connection: its name here, for there is one guest and one host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Ports {
    pub(super) host: u32,
    pub(super) guest: u32,
}

/// A packet's header, `struct virtio_vsock_hdr` (5.10.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// `src_cid`, the sender's context identifier.
    pub(super) from: u64,
    /// `dst_cid`, the receiver's.
    pub(super) to: u64,
    /// `src_port`.
    pub(super) from_port: u32,
    /// `dst_port`.
    pub(super) to_port: u32,
    /// `len`: bytes of data behind the header.
    pub(super) length: u32,
    /// `type`.
    pub(super) kind: u16,
    /// `op`.
    pub(super) op: Op,
    /// Of a SHUTDOWN: [`shutdown`].
    pub(super) flags: u32,
    /// `buf_alloc`, the sender's buffer for this connection.
    pub(super) buffer: u32,
    /// `fwd_cnt`, what it has taken out of that, modulo 2^32.
    pub(super) forwarded: u32,
}

impl Header {
    /// Any bytes are a header.
    pub(super) fn parse(bytes: &[u8; HEADER_BYTES]) -> Self {
        let word = |at: usize| {
            let mut word = [0; 4];
            word.copy_from_slice(&bytes[at..at + 4]);
            u32::from_le_bytes(word)
        };
        let long = |at| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        Self {
            from: long(0),
            to: long(8),
            from_port: word(16),
            to_port: word(20),
            length: word(24),
            kind: half(28),
            op: Op::parse(half(30)),
            flags: word(32),
            buffer: word(36),
            forwarded: word(40),
        }
    }

    /// As it is on the wire.
    pub(super) fn bytes(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, &self.from.to_le_bytes());
        put(8, &self.to.to_le_bytes());
        put(16, &self.from_port.to_le_bytes());
        put(20, &self.to_port.to_le_bytes());
        put(24, &self.length.to_le_bytes());
        put(28, &self.kind.to_le_bytes());
        put(30, &self.op.number().to_le_bytes());
        put(32, &self.flags.to_le_bytes());
        put(36, &self.buffer.to_le_bytes());
        put(40, &self.forwarded.to_le_bytes());
        bytes
    }

    /// A packet to the guest.
    pub(super) fn to_guest(guest_cid: u64, ports: Ports, op: Op) -> Self {
        Self {
            from: HOST_CID,
            to: guest_cid,
            from_port: ports.host,
            to_port: ports.guest,
            length: 0,
            kind: STREAM,
            op,
            flags: 0,
            buffer: 0,
            forwarded: 0,
        }
    }

    /// The answer to a packet of the guest's that has no connection: a reset, of the same type
    /// (5.10.6.2: an unknown type is answered with a reset, which must name it).
    pub(super) fn reset_of(&self) -> Self {
        Self {
            kind: self.kind,
            ..Self::to_guest(self.from, self.ports(), Op::Reset)
        }
    }

    /// The connection that a packet of the guest's is of.
    pub(super) fn ports(&self) -> Ports {
        Ports {
            host: self.to_port,
            guest: self.from_port,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_the_specifications_bytes_and_back() {
        let header = Header {
            from: 0x0102_0304_0506_0708,
            to: 2,
            from_port: 0x1112_1314,
            to_port: 0x2122_2324,
            length: 0x3132_3334,
            kind: 1,
            op: Op::Data,
            flags: 3,
            buffer: 0x4142_4344,
            forwarded: 0x5152_5354,
        };
        let bytes = header.bytes();
        assert_eq!(bytes[..8], [8, 7, 6, 5, 4, 3, 2, 1]);
        assert_eq!(bytes[16..20], [0x14, 0x13, 0x12, 0x11]);
        assert_eq!(bytes[28..36], [1, 0, 5, 0, 3, 0, 0, 0]);
        assert_eq!(bytes[40..], [0x54, 0x53, 0x52, 0x51]);
        assert_eq!(Header::parse(&bytes), header);
    }

    #[test]
    fn every_operation_has_its_number() {
        for number in 0..=u16::MAX {
            assert_eq!(Op::parse(number).number(), number);
        }
    }
}
