//! The header in front of each frame (virtio 1.3, 5.1.6): what a guest says of a frame is checked
//! against the frame's length and the negotiated features before the kernel hears of it, and what
//! the kernel says against what the guest takes. Not the frame itself: that a checksum really
//! belongs where it is said to belong is for the kernel to find out, within the frame.

use super::spec::{ETHERNET_HEADER, FRAME_MAX, HEADER_SIZE, feature, flag, gso};

/// A header as it lies in memory.
pub(super) type Header = [u8; HEADER_SIZE];

/// Bytes between the beginning of a TCP or UDP header and its checksum, and the least the header
/// has.
const TCP: Transport = Transport {
    checksum: 16,
    header: 20,
};
const UDP: Transport = Transport {
    checksum: 6,
    header: 8,
};

/// The least bytes of IPv4 and IPv6 before what they carry.
const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;

/// The smallest segment that Linux's TCP ever makes (`TCP_MIN_GSO_SIZE`: 48 bytes less the longest
/// options). Smaller ones would have the host make tens of thousands of frames of one.
const SEGMENT_MIN: usize = 8;

/// Datagrams in one large frame of them (`UDP_MAX_SEGMENTS` of Linux).
const DATAGRAMS_MAX: usize = 128;

#[derive(Clone, Copy)]
struct Transport {
    checksum: usize,
    header: usize,
}

/// Why a frame is not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Malformed {
    /// No header at all.
    #[error("it is shorter than its header")]
    NoHeader,
    /// Too short for Ethernet, or too long for anything.
    #[error("a frame of {0} bytes")]
    Length(usize),
    /// An offload that was not negotiated, or is none.
    #[error("flags {flags:#x} and gso_type {gso_type:#x}, which were not negotiated")]
    NotNegotiated {
        /// The header's flags.
        flags: u8,
        /// Its `gso_type`.
        gso_type: u8,
    },
    /// A checksum outside of the frame, or within its Ethernet header.
    #[error("a checksum at {start}+{offset}, in a frame of {frame} bytes")]
    Checksum {
        /// `csum_start`.
        start: usize,
        /// `csum_offset`.
        offset: usize,
        /// Bytes of the frame.
        frame: usize,
    },
    /// A large frame without NEEDS_CSUM (5.1.6.2.1).
    #[error("gso_type {0:#x} without a checksum to compute")]
    LargeWithoutChecksum(u8),
    /// A large frame in absurdly small pieces.
    #[error("gso_size {size}, in a frame of {frame} bytes")]
    SegmentSize {
        /// `gso_size`.
        size: usize,
        /// Bytes of the frame.
        frame: usize,
    },
    /// Headers longer than the frame.
    #[error("hdr_len {header}, in a frame of {frame} bytes")]
    HeaderLength {
        /// `hdr_len`.
        header: usize,
        /// Bytes of the frame.
        frame: usize,
    },
    /// More pieces of memory than one operation takes.
    #[error("a frame in {0} pieces")]
    Pieces(usize),
}

/// Checks what a guest says of a frame of `frame` bytes. What comes back is for the kernel: made
/// anew of what was checked, with zeros in all that means nothing.
pub(super) fn check(header: &Header, frame: usize, features: u64) -> Result<Header, Malformed> {
    if !(ETHERNET_HEADER..=FRAME_MAX).contains(&frame) {
        return Err(Malformed::Length(frame));
    }
    // 5.1.6.2.2: flags that a device does not know are ignored, as those for the other way are.
    let flags = header[0] & flag::NEEDS_CSUM;
    let gso_type = header[1];
    let large = large_kind(gso_type, features);
    if large.is_none() && gso_type != gso::NONE || flags != 0 && features & feature::CSUM == 0 {
        let flags = header[0];
        return Err(Malformed::NotNegotiated { flags, gso_type });
    }
    let mut checked = [0; HEADER_SIZE];
    if flags != 0 {
        check_checksum(header, frame)?;
        checked[0] = flags;
        checked[6..10].copy_from_slice(&header[6..10]);
    }
    if let Some(kind) = large {
        if flags == 0 {
            return Err(Malformed::LargeWithoutChecksum(gso_type));
        }
        check_large(header, frame, kind)?;
        checked[1..6].copy_from_slice(&header[1..6]);
    }
    Ok(checked)
}

/// Of a frame from the kernel for a driver that takes `offloads`: the header for it, without
/// `num_buffers`. `None` if the driver cannot take the frame.
pub(super) fn fit(header: &Header, offloads: u64) -> Option<Header> {
    let mut fitted = *header;
    // A frame that asks for nothing, as most do.
    if header[..2] == [0, gso::NONE] {
        return Some(fitted);
    }
    // 5.1.6.4.1: no flags without GUEST_CSUM, and the kernel says DATA_VALID to everyone.
    if offloads & feature::GUEST_CSUM == 0 {
        if header[0] & flag::NEEDS_CSUM != 0 {
            return None;
        }
        fitted[0] = 0;
    }
    let needs = match header[1] & !gso::ECN {
        gso::NONE => 0,
        gso::TCPV4 => feature::GUEST_TSO4,
        gso::TCPV6 => feature::GUEST_TSO6,
        gso::UDP => feature::GUEST_UFO,
        gso::UDP_L4 => feature::GUEST_USO4 | feature::GUEST_USO6,
        _ => return None,
    };
    let ecn = if header[1] & gso::ECN != 0 {
        feature::GUEST_ECN
    } else {
        0
    };
    let needs = needs | ecn;
    (offloads & needs == needs).then_some(fitted)
}

/// A large frame that may be sent.
#[derive(Clone, Copy)]
struct Large {
    transport: Transport,
    /// The least bytes before the transport's header.
    before: usize,
    /// Segments that it may come to, at most.
    segments: usize,
}

fn large_kind(gso_type: u8, features: u64) -> Option<Large> {
    let ecn = gso_type & gso::ECN != 0;
    let (needs, transport, ip, segments) = match gso_type & !gso::ECN {
        gso::TCPV4 => (feature::HOST_TSO4, TCP, IPV4_HEADER, usize::MAX),
        gso::TCPV6 => (feature::HOST_TSO6, TCP, IPV6_HEADER, usize::MAX),
        gso::UDP if !ecn => (feature::HOST_UFO, UDP, IPV4_HEADER, usize::MAX),
        gso::UDP_L4 if !ecn => (feature::HOST_USO, UDP, IPV4_HEADER, DATAGRAMS_MAX),
        _ => return None,
    };
    let needs = needs | if ecn { feature::HOST_ECN } else { 0 };
    (features & needs == needs).then_some(Large {
        transport,
        before: ETHERNET_HEADER + ip,
        segments,
    })
}

fn check_checksum(header: &Header, frame: usize) -> Result<(), Malformed> {
    let (start, offset) = (field(header, 6), field(header, 8));
    if start < ETHERNET_HEADER || start + offset + 2 > frame {
        return Err(Malformed::Checksum {
            start,
            offset,
            frame,
        });
    }
    Ok(())
}

fn check_large(header: &Header, frame: usize, kind: Large) -> Result<(), Malformed> {
    let Large {
        transport,
        before,
        segments,
    } = kind;
    let (hdr_len, size) = (field(header, 2), field(header, 4));
    let (start, offset) = (field(header, 6), field(header, 8));
    if start < before || offset != transport.checksum || start + transport.header > frame {
        return Err(Malformed::Checksum {
            start,
            offset,
            frame,
        });
    }
    // 5.1.6.2.2 tells us not to rely on it; the kernel does as far as it is within the frame.
    if hdr_len > frame {
        return Err(Malformed::HeaderLength {
            header: hdr_len,
            frame,
        });
    }
    let data = frame - start - transport.header;
    let too_small = match segments {
        usize::MAX => size < SEGMENT_MIN,
        most => size == 0 || data.div_ceil(size) > most,
    };
    if too_small {
        return Err(Malformed::SegmentSize { size, frame });
    }
    Ok(())
}

/// A little-endian field of two bytes.
fn field(header: &Header, at: usize) -> usize {
    usize::from(u16::from_le_bytes([header[at], header[at + 1]]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: u64 = feature::CSUM
        | feature::HOST_TSO4
        | feature::HOST_TSO6
        | feature::HOST_ECN
        | feature::HOST_UFO
        | feature::HOST_USO;

    /// flags, gso_type, then hdr_len, gso_size, csum_start, csum_offset.
    fn header(flags: u8, gso_type: u8, fields: [u16; 4]) -> Header {
        let mut header = [0; HEADER_SIZE];
        (header[0], header[1]) = (flags, gso_type);
        for (at, value) in (2..).step_by(2).zip(fields) {
            header[at..at + 2].copy_from_slice(&value.to_le_bytes());
        }
        header
    }

    #[test]
    fn what_a_linux_driver_sends_passes_unchanged() {
        for (frame, sent) in [
            (60, header(0, 0, [0; 4])),
            (1514, header(1, 0, [0, 0, 34, 16])),
            (65_549, header(1, 1, [66, 1448, 34, 16])),
            (65_549, header(1, 0x81, [66, 1448, 34, 16])),
            (65_549, header(1, 4, [86, 1428, 54, 16])),
            (9000, header(1, 3, [42, 1480, 34, 6])),
            (14_042, header(1, 5, [42, 1400, 34, 6])),
        ] {
            assert_eq!(check(&sent, frame, ALL), Ok(sent), "{sent:?}");
        }
    }

    #[test]
    fn each_offload_needs_its_feature() {
        for (needs, sent) in [
            (feature::CSUM, header(1, 0, [0, 0, 34, 16])),
            (feature::HOST_TSO4, header(1, 1, [66, 1448, 34, 16])),
            (feature::HOST_TSO6, header(1, 4, [86, 1428, 54, 16])),
            (feature::HOST_ECN, header(1, 0x81, [66, 1448, 34, 16])),
            (feature::HOST_UFO, header(1, 3, [42, 1480, 34, 6])),
            (feature::HOST_USO, header(1, 5, [42, 1400, 34, 6])),
        ] {
            let refused = check(&sent, 9000, ALL & !needs);
            let (flags, gso_type) = (sent[0], sent[1]);
            assert_eq!(refused, Err(Malformed::NotNegotiated { flags, gso_type }));
        }
    }

    #[test]
    fn each_bad_field_is_named() {
        use Malformed as M;
        let checksum = |start, offset| M::Checksum {
            start,
            offset,
            frame: 100,
        };
        for (sent, expected) in [
            (header(1, 0, [0, 0, 13, 16]), checksum(13, 16)),
            (header(1, 0, [0, 0, 99, 0]), checksum(99, 0)),
            (header(1, 0, [0, 0, 34, 65]), checksum(34, 65)),
            (
                header(1, 0, [0, 0, u16::MAX, u16::MAX]),
                checksum(65_535, 65_535),
            ),
            (header(1, 1, [66, 1448, 20, 16]), checksum(20, 16)),
            (header(1, 1, [66, 1448, 34, 6]), checksum(34, 6)),
            (header(1, 1, [66, 1448, 81, 16]), checksum(81, 16)),
            (header(0, 1, [66, 1448, 34, 16]), M::LargeWithoutChecksum(1)),
            (
                header(1, 1, [66, 0, 34, 16]),
                M::SegmentSize {
                    size: 0,
                    frame: 100,
                },
            ),
            (
                header(1, 4, [66, 7, 54, 16]),
                M::SegmentSize {
                    size: 7,
                    frame: 100,
                },
            ),
            (
                header(1, 1, [101, 1448, 34, 16]),
                M::HeaderLength {
                    header: 101,
                    frame: 100,
                },
            ),
        ] {
            assert_eq!(check(&sent, 100, ALL), Err(expected), "{sent:?}");
        }
        for unknown in [2, 6, 0x80, 0x83, 0x85, 0xff] {
            let refused = check(&header(1, unknown, [66, 1448, 34, 16]), 100, ALL);
            assert!(matches!(refused, Err(M::NotNegotiated { .. })), "{unknown}");
        }
        for frame in [0, 13, FRAME_MAX + 1, usize::MAX] {
            let refused = check(&header(0, 0, [0; 4]), frame, ALL);
            assert_eq!(refused, Err(M::Length(frame)));
        }
        let many = check(&header(1, 5, [42, 10, 34, 6]), 42 + 1281, ALL);
        assert!(matches!(many, Err(M::SegmentSize { .. })));
        assert!(check(&header(1, 5, [42, 10, 34, 6]), 42 + 1280, ALL).is_ok());
    }

    #[test]
    fn flags_that_mean_nothing_on_this_way_do_not_reach_the_kernel() {
        let checked = check(&header(0xfe, 0, [1, 2, 3, 4]), 60, ALL);
        assert_eq!(checked, Ok([0; HEADER_SIZE]));
    }

    #[test]
    fn a_frame_that_the_driver_cannot_take_is_not_given_to_it() {
        let all = feature::GUEST_OFFLOADS;
        for (sent, needs) in [
            (header(1, 0, [0, 0, 34, 16]), feature::GUEST_CSUM),
            (header(1, 1, [66, 1448, 34, 16]), feature::GUEST_TSO4),
            (header(1, 4, [66, 1448, 34, 16]), feature::GUEST_TSO6),
            (header(1, 0x81, [66, 1448, 34, 16]), feature::GUEST_ECN),
            (header(1, 3, [66, 1448, 34, 6]), feature::GUEST_UFO),
            (header(1, 5, [66, 1448, 34, 6]), feature::GUEST_USO6),
        ] {
            assert_eq!(fit(&sent, all), Some(sent));
            assert_eq!(fit(&sent, all & !needs), None);
        }
        let valid = header(2, 0, [0; 4]);
        assert_eq!(fit(&valid, all), Some(valid));
        assert_eq!(fit(&valid, 0), Some(header(0, 0, [0; 4])));
        assert_eq!(fit(&header(0, 9, [0; 4]), all), None);
    }

    proptest! {
        /// Whatever a guest writes: what the kernel gets keeps the rules, or it gets nothing.
        #[test]
        fn what_reaches_the_kernel_keeps_the_rules(
            sent in any::<Header>(),
            gso_type in prop::sample::select(vec![0_u8, 1, 3, 4, 5, 0x81, 0x84, 0x85, 9]),
            small in any::<bool>(),
            frame in 0..FRAME_MAX + 64,
            features in any::<u64>(),
        ) {
            let mut sent = sent;
            sent[1] = gso_type;
            if small {
                // Fields of one byte hit frames more often.
                (3..10).step_by(2).for_each(|at| sent[at] = 0);
            }
            if let Ok(checked) = check(&sent, frame, features) {
                prop_assert!((ETHERNET_HEADER..=FRAME_MAX).contains(&frame));
                prop_assert_eq!(checked[0] & !1, 0);
                prop_assert_eq!(&checked[10..], &[0, 0]);
                if checked[0] == 1 {
                    prop_assert!(features & feature::CSUM != 0);
                    let (start, offset) = (field(&checked, 6), field(&checked, 8));
                    prop_assert!(start >= ETHERNET_HEADER && start + offset + 2 <= frame);
                } else {
                    prop_assert_eq!(checked, [0; HEADER_SIZE]);
                }
                if checked[1] != 0 {
                    prop_assert_eq!(checked[0], 1);
                    prop_assert!(field(&checked, 4) > 0 && field(&checked, 2) <= frame);
                    prop_assert!(large_kind(checked[1], features).is_some());
                } else {
                    prop_assert_eq!(&checked[2..6], &[0; 4]);
                }
            }
        }
    }
}
