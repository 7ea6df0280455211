//! A network of a test's own: a namespace, taps in it, and a raw socket on one that sends and
//! receives frames as the kernel has them, their offloads included. Needs root.

#![allow(dead_code, reason = "each suite uses its part of what they share")]
#![allow(
    clippy::unwrap_used,
    reason = "a suite whose own set-up fails has nothing to test"
)]

use std::ffi::CString;
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// linux/if_packet.h
const PACKET_VNET_HDR: libc::c_int = 15;
const PACKET_IGNORE_OUTGOING: libc::c_int = 23;

/// The header that a raw socket has: virtio's without `num_buffers`.
const HEADER_SIZE: usize = 10;

/// Puts this thread, and what it starts, into a network with nothing in it. False, and says why,
/// where that is not allowed: the test has nothing to do then.
pub(crate) fn enter() -> bool {
    // SAFETY: it takes no pointer, and changes nothing but what this thread sees.
    #[expect(unsafe_code, reason = "a system call without a safe form")]
    let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    let tun = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun");
    if let (0, Ok(_)) = (result, tun) {
        // The kernel's own frames would come between those of the test.
        std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").unwrap();
        ip("link set lo up");
        return true;
    }
    println!("SKIPPED: needs root, /dev/net/tun and a network namespace");
    false
}

/// Runs `ip` with these words.
pub(crate) fn ip(words: &str) {
    let status = Command::new("ip").args(words.split_whitespace()).status();
    assert!(status.unwrap().success(), "ip {words}");
}

/// What this network has carried and dropped, for whoever misses a frame.
pub(crate) fn counters() -> String {
    let of = |file| std::fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap();
    let told = ["Icmp:", "Tcp:", "tap"];
    let (protocols, interfaces) = (of("snmp"), of("dev"));
    let lines = protocols.lines().chain(interfaces.lines());
    let lines = lines.filter(|line| told.iter().any(|name| line.trim_start().starts_with(name)));
    lines.collect::<Vec<_>>().join("\n")
}

/// Makes a tap and puts it up.
pub(crate) fn tap(name: &str, several_queues: bool) {
    let several = if several_queues { "multi_queue" } else { "" };
    ip(&format!("tuntap add {name} mode tap {several}"));
    ip(&format!("link set {name} up"));
}

/// A raw socket on an interface.
pub(crate) struct Wire {
    socket: OwnedFd,
    header: usize,
}

impl Wire {
    /// All frames that come from the interface, from now on.
    pub(crate) fn on(interface: &str) -> Self {
        let wire = Self::plain(interface, HEADER_SIZE);
        wire.set(PACKET_VNET_HDR);
        wire
    }

    /// The same without their headers, which a raw socket cannot say for all: the frames alone.
    pub(crate) fn without_headers(interface: &str) -> Self {
        Self::plain(interface, 0)
    }

    fn plain(interface: &str, header: usize) -> Self {
        let all = libc::c_int::from(ETH_P_ALL.to_be());
        // SAFETY: the descriptor that it makes is nobody else's.
        #[expect(unsafe_code, reason = "a raw socket has no safe form")]
        let socket = unsafe {
            let raw = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, all);
            assert!(raw >= 0, "{}", io::Error::last_os_error());
            OwnedFd::from_raw_fd(raw)
        };
        let wire = Self { socket, header };
        wire.set(PACKET_IGNORE_OUTGOING);
        wire.bind(interface);
        wire
    }

    /// Sends a frame into the interface, with what a virtio header says of it.
    pub(crate) fn send(&self, header: &[u8], frame: &[u8]) {
        let bytes = [&header[..self.header], frame].concat();
        let sent = rustix::net::send(&self.socket, &bytes, rustix::net::SendFlags::empty());
        assert_eq!(sent.unwrap(), bytes.len());
    }

    /// The next frame, with its header.
    pub(crate) fn receive(&self, limit: Duration) -> Option<(Vec<u8>, Vec<u8>)> {
        let deadline = Instant::now() + limit;
        let mut bytes = vec![0; 1 << 17];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = Timespec::try_from(left).unwrap();
            let mut ready = [PollFd::new(&self.socket, PollFlags::IN)];
            if poll(&mut ready, Some(&timeout)).unwrap_or(0) > 0 {
                let flags = rustix::net::RecvFlags::DONTWAIT;
                let (count, _) = rustix::net::recv(&self.socket, &mut bytes[..], flags).unwrap();
                bytes.truncate(count);
                let frame = bytes.split_off(self.header);
                return Some((bytes, frame));
            }
            if left.is_zero() {
                return None;
            }
        }
    }

    fn set(&self, option: libc::c_int) {
        let on: libc::c_int = 1;
        let size = libc::socklen_t::try_from(size_of_val(&on)).unwrap();
        // SAFETY: the pointer is to a live local of that size.
        #[expect(unsafe_code, reason = "an option that nobody has wrapped")]
        let result = unsafe {
            let value = std::ptr::from_ref(&on).cast();
            libc::setsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_PACKET,
                option,
                value,
                size,
            )
        };
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
    }

    fn bind(&self, interface: &str) {
        let name = CString::new(interface).unwrap();
        // SAFETY: all zero is a lawful address, its fields are set; both pointers are to live
        // locals, one ends with NUL, the other is of that size.
        #[expect(unsafe_code, reason = "an address that nobody has wrapped")]
        let result = unsafe {
            let mut address: libc::sockaddr_ll = mem::zeroed();
            address.sll_family = u16::try_from(libc::AF_PACKET).unwrap();
            address.sll_protocol = ETH_P_ALL.to_be();
            address.sll_ifindex = i32::try_from(libc::if_nametoindex(name.as_ptr())).unwrap();
            let size = libc::socklen_t::try_from(size_of_val(&address)).unwrap();
            libc::bind(
                self.socket.as_raw_fd(),
                std::ptr::from_ref(&address).cast(),
                size,
            )
        };
        assert_eq!(result, 0, "{interface}: {}", io::Error::last_os_error());
    }
}

impl AsFd for Wire {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Every protocol.
const ETH_P_ALL: u16 = 3;

/// Ethernet, IPv4 and TCP or UDP headers before data, with addresses that mean nothing and
/// checksums that are still to be computed; and the virtio header for it.
pub(crate) fn large(
    protocol: Protocol,
    size: usize,
    segment: u16,
) -> (vudev_frontend::net::Header, Vec<u8>) {
    let Protocol {
        gso_type,
        version,
        number,
        header,
        checksum,
    } = protocol;
    let mut frame = vec![0xaa; 14];
    frame[..6].copy_from_slice(&OTHER);
    frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 9]);
    let transport = size - 14 - version.header();
    frame[12..14].copy_from_slice(&version.ethertype().to_be_bytes());
    frame.extend(version.packet(transport, number));
    let start = frame.len();
    let mut after = vec![0; header];
    after[..4].copy_from_slice(&[0x30, 0x39, 0, 9]);
    match number {
        // Data offset of five words; ACK.
        6 => (after[12], after[13]) = (0x50, 0x10),
        _ => after[4..6].copy_from_slice(&u16::try_from(transport).unwrap().to_be_bytes()),
    }
    frame.extend(after);
    frame.extend((0..=250_u8).cycle().take(size - frame.len()));
    // The sum of the pseudo header stands where the checksum goes.
    let pseudo = version.pseudo_sum(transport, number);
    frame[start + checksum..start + checksum + 2].copy_from_slice(&pseudo.to_be_bytes());
    let as_u16 = |n: usize| u16::try_from(n).unwrap();
    let header = vudev_frontend::net::Header {
        flags: 1,
        gso_type,
        hdr_len: as_u16(start + header),
        gso_size: segment,
        csum_start: as_u16(start),
        csum_offset: as_u16(checksum),
        num_buffers: 0,
    };
    (header, frame)
}

/// Where large frames go: nobody.
pub(crate) const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 8];

/// A kind of large frame.
#[derive(Clone, Copy)]
pub(crate) struct Protocol {
    gso_type: u8,
    version: Version,
    number: u8,
    header: usize,
    checksum: usize,
}

impl Protocol {
    pub(crate) const TCP4: Self = Self::tcp(1, Version::V4);
    pub(crate) const TCP4_ECN: Self = Self::tcp(0x81, Version::V4);
    pub(crate) const TCP6: Self = Self::tcp(4, Version::V6);
    pub(crate) const UDP4_FRAGMENTS: Self = Self::udp(3, Version::V4);
    pub(crate) const UDP4_SEGMENTS: Self = Self::udp(5, Version::V4);
    pub(crate) const UDP6_SEGMENTS: Self = Self::udp(5, Version::V6);

    const fn tcp(gso_type: u8, version: Version) -> Self {
        Self {
            gso_type,
            version,
            number: 6,
            header: 20,
            checksum: 16,
        }
    }

    const fn udp(gso_type: u8, version: Version) -> Self {
        Self {
            gso_type,
            version,
            number: 17,
            header: 8,
            checksum: 6,
        }
    }
}

#[derive(Clone, Copy)]
enum Version {
    V4,
    V6,
}

impl Version {
    fn header(self) -> usize {
        match self {
            Self::V4 => 20,
            Self::V6 => 40,
        }
    }

    fn ethertype(self) -> u16 {
        match self {
            Self::V4 => 0x0800,
            Self::V6 => 0x86dd,
        }
    }

    fn addresses(self) -> Vec<u8> {
        match self {
            Self::V4 => vec![192, 0, 2, 1, 192, 0, 2, 2],
            Self::V6 => [[0x20; 16], [0x21; 16]].concat(),
        }
    }

    fn packet(self, payload: usize, number: u8) -> Vec<u8> {
        let mut packet = match self {
            Self::V4 => {
                let total = u16::try_from(payload + 20).unwrap().to_be_bytes();
                vec![0x45, 0, total[0], total[1], 0, 1, 0, 0, 64, number, 0, 0]
            }
            Self::V6 => {
                let length = u16::try_from(payload).unwrap().to_be_bytes();
                vec![0x60, 0, 0, 0, length[0], length[1], number, 64]
            }
        };
        packet.extend(self.addresses());
        if matches!(self, Self::V4) {
            let sum = !sum(&packet);
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        packet
    }

    fn pseudo_sum(self, payload: usize, number: u8) -> u16 {
        let mut bytes = self.addresses();
        bytes.extend(u32::try_from(payload).unwrap().to_be_bytes());
        bytes.extend([0, number]);
        sum(&bytes)
    }
}

/// The Internet checksum's sum, not inverted.
fn sum(bytes: &[u8]) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap()
}
