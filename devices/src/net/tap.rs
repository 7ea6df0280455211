//! What a tap is asked by ioctl. Making and setting up one is for whoever opens it outside of the
//! jail; inside, a device only changes its offloads and lets a queue go or takes it again. Frames
//! are not moved here: they are read and written on the ring.

use std::ffi::CStr;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use libc::{Ioctl, c_int, c_short, c_uint, ifreq};
use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use super::filter::Mac;
use super::spec::{HEADER_SIZE, feature};

/// How a tap is named and what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Whether it has several queues, or could have.
    pub multi_queue: bool,
    /// Whether it passes Ethernet frames with a header each, and nothing else in front.
    pub fits: bool,
}

/// A new queue of the tap of this name, which is made if there is none. A `%d` in the name becomes
/// a number.
///
/// # Errors
///
/// The kernel's: EPERM, EBUSY when it is in use, EINVAL when it is of another kind.
pub fn open(name: &str, multi_queue: bool) -> io::Result<OwnedFd> {
    let tun = rustix::fs::open(
        c"/dev/net/tun",
        OFlags::RDWR | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let mut request = request(name)?;
    let several = if multi_queue {
        libc::IFF_MULTI_QUEUE
    } else {
        0
    };
    request.ifr_ifru.ifru_flags =
        flags(libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | several);
    interface_ioctl(&tun, libc::TUNSETIFF, &mut request)?;
    Ok(tun)
}

/// A copy of the descriptor with this number, close-on-exec.
///
/// # Errors
///
/// EBADF when there is none.
pub fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: the call looks a number up; the descriptor it makes is nobody else's.
    #[expect(unsafe_code, reason = "a descriptor that only its number names")]
    unsafe {
        match libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3) {
            -1 => Err(io::Error::last_os_error()),
            copy => Ok(OwnedFd::from_raw_fd(copy)),
        }
    }
}

/// What the tap behind a descriptor is.
///
/// # Errors
///
/// ENOTTY or EBADFD when it is none.
pub fn interface(tap: impl AsFd) -> io::Result<Interface> {
    let mut request = request("")?;
    interface_ioctl(tap, libc::TUNGETIFF, &mut request)?;
    // SAFETY: the kernel has written the flags; any bytes are numbers.
    #[expect(unsafe_code, reason = "reads a field of a C union")]
    let set = c_int::from(unsafe { request.ifr_ifru.ifru_flags });
    let has = |flag: c_int| set & flag != 0;
    Ok(Interface {
        name: name_of(&request),
        multi_queue: has(libc::IFF_MULTI_QUEUE),
        fits: has(libc::IFF_TAP) && has(libc::IFF_NO_PI) && has(libc::IFF_VNET_HDR),
    })
}

/// Gives frames the header that virtio has since version 1, of 12 bytes.
///
/// # Errors
///
/// The kernel's.
pub fn use_virtio_header(tap: impl AsFd) -> io::Result<()> {
    let mut size = c_int::try_from(HEADER_SIZE).unwrap_or(c_int::MAX);
    pointer_ioctl(tap.as_fd(), libc::TUNSETVNETHDRSZ, &mut size)
}

/// The offloads of drivers that this kernel's taps can have, as feature bits of both ways. The tap
/// is left with none.
///
/// # Errors
///
/// The kernel's.
pub fn offloads(tap: impl AsFd) -> io::Result<u64> {
    let tap = tap.as_fd();
    let usual = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
    let has = |more: c_uint| set_offload_flags(tap, usual | more).is_ok();
    let mut found = 0;
    if has(0) {
        found |= feature::GUEST_CSUM | feature::GUEST_TSO4 | feature::GUEST_TSO6;
        found |= feature::GUEST_ECN | feature::CSUM | feature::HOST_TSO4 | feature::HOST_TSO6;
        found |= feature::HOST_ECN;
    }
    if has(libc::TUN_F_UFO) {
        found |= feature::GUEST_UFO | feature::HOST_UFO;
    }
    // Since Linux 6.2.
    if has(libc::TUN_F_USO4 | libc::TUN_F_USO6) {
        found |= feature::GUEST_USO4 | feature::GUEST_USO6 | feature::HOST_USO;
    }
    set_offload_flags(tap, 0)?;
    Ok(found)
}

/// Tells the tap which frames its driver takes, by [`feature::GUEST_OFFLOADS`]; the kernel does the
/// rest. Of all queues at once.
///
/// # Errors
///
/// The kernel's.
pub fn set_offloads(tap: impl AsFd, offloads: u64) -> io::Result<()> {
    set_offload_flags(tap.as_fd(), offload_flags(offloads))
}

/// Lets frames come to this queue of a tap that has several, or no more: what waits in it is lost
/// then.
pub(super) fn attach(tap: impl AsFd, attached: bool) -> io::Result<()> {
    let mut request = request("")?;
    request.ifr_ifru.ifru_flags = flags(match attached {
        true => libc::IFF_ATTACH_QUEUE,
        false => libc::IFF_DETACH_QUEUE,
    });
    interface_ioctl(tap, libc::TUNSETQUEUE, &mut request)
}

/// The interface's MTU.
///
/// # Errors
///
/// The kernel's.
pub fn mtu(name: &str) -> io::Result<u32> {
    let mut request = request(name)?;
    interface_ioctl(any_socket()?, libc::SIOCGIFMTU, &mut request)?;
    // SAFETY: the kernel has written the MTU; any bytes are numbers.
    #[expect(unsafe_code, reason = "reads a field of a C union")]
    let mtu = unsafe { request.ifr_ifru.ifru_mtu };
    u32::try_from(mtu).map_err(io::Error::other)
}

/// Sets the interface's MTU.
///
/// # Errors
///
/// EPERM without CAP_NET_ADMIN, EINVAL out of its range.
pub fn set_mtu(name: &str, mtu: u32) -> io::Result<()> {
    let mut request = request(name)?;
    request.ifr_ifru.ifru_mtu = c_int::try_from(mtu).map_err(io::Error::other)?;
    interface_ioctl(any_socket()?, libc::SIOCSIFMTU, &mut request)
}

/// Whether the interface is up.
///
/// # Errors
///
/// The kernel's.
pub fn is_up(name: &str) -> io::Result<bool> {
    let mut request = request(name)?;
    interface_ioctl(any_socket()?, libc::SIOCGIFFLAGS, &mut request)?;
    // SAFETY: the kernel has written the flags; any bytes are numbers.
    #[expect(unsafe_code, reason = "reads a field of a C union")]
    let set = unsafe { request.ifr_ifru.ifru_flags };
    Ok(c_int::from(set) & libc::IFF_UP != 0)
}

/// Gives the interface an address and a netmask, and puts it up.
///
/// # Errors
///
/// EPERM without CAP_NET_ADMIN, EINVAL for what is no address or netmask.
pub fn set_address(name: &str, address: Ipv4Addr, netmask: Ipv4Addr) -> io::Result<()> {
    let socket = any_socket()?;
    for (code, value) in [
        (libc::SIOCSIFADDR, address),
        (libc::SIOCSIFNETMASK, netmask),
    ] {
        let mut request = request(name)?;
        request.ifr_ifru.ifru_addr = socket_address(value);
        interface_ioctl(&socket, code, &mut request)?;
    }
    let mut request = request(name)?;
    request.ifr_ifru.ifru_flags = flags(libc::IFF_UP | libc::IFF_RUNNING);
    interface_ioctl(&socket, libc::SIOCSIFFLAGS, &mut request)
}

/// Whether an address is one that a single machine may have.
pub fn is_unicast(address: Mac) -> bool {
    address != [0; 6] && address[0] & 1 == 0
}

/// The kernel wants USO for both families or none, and ECN only beside TSO.
fn offload_flags(offloads: u64) -> c_uint {
    let has = |wanted: u64| offloads & wanted == wanted;
    if !has(feature::GUEST_CSUM) {
        return 0;
    }
    let tso = offloads & (feature::GUEST_TSO4 | feature::GUEST_TSO6) != 0;
    let uso = feature::GUEST_USO4 | feature::GUEST_USO6;
    [
        (has(feature::GUEST_TSO4), libc::TUN_F_TSO4),
        (has(feature::GUEST_TSO6), libc::TUN_F_TSO6),
        (has(feature::GUEST_ECN) && tso, libc::TUN_F_TSO_ECN),
        (has(feature::GUEST_UFO), libc::TUN_F_UFO),
        (has(uso), libc::TUN_F_USO4 | libc::TUN_F_USO6),
    ]
    .into_iter()
    .filter(|(wanted, _)| *wanted)
    .fold(libc::TUN_F_CSUM, |flags, (_, flag)| flags | flag)
}

fn set_offload_flags(tap: BorrowedFd<'_>, flags: c_uint) -> io::Result<()> {
    // SAFETY: this request takes a number, and no pointer.
    #[expect(unsafe_code, reason = "an ioctl that nobody has wrapped")]
    let result = unsafe {
        libc::ioctl(
            tap.as_raw_fd(),
            libc::TUNSETOFFLOAD,
            libc::c_ulong::from(flags),
        )
    };
    checked(result)
}

/// An ioctl about an interface.
fn interface_ioctl(fd: impl AsFd, code: Ioctl, request: &mut ifreq) -> io::Result<()> {
    pointer_ioctl(fd.as_fd(), code, request)
}

/// An ioctl of this module, whose argument is what it points at: an `ifreq`, or for
/// TUNSETVNETHDRSZ an int.
fn pointer_ioctl<T>(fd: BorrowedFd<'_>, code: Ioctl, argument: &mut T) -> io::Result<()> {
    // SAFETY: `argument` is a live local of the type that the request reads and writes.
    #[expect(unsafe_code, reason = "an ioctl that nobody has wrapped")]
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), code, std::ptr::from_mut(argument)) };
    checked(result)
}

fn checked(result: c_int) -> io::Result<()> {
    match result {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Zeros and a name.
fn request(name: &str) -> io::Result<ifreq> {
    // SAFETY: all zero is a lawful value of each of its fields.
    #[expect(unsafe_code, reason = "a C structure with a union")]
    let mut request: ifreq = unsafe { std::mem::zeroed() };
    // One byte is left for the NUL.
    let fits = name.len() < request.ifr_name.len() && !name.contains('\0');
    if !fits {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (place, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *place = libc::c_char::from_ne_bytes([byte]);
    }
    Ok(request)
}

fn name_of(request: &ifreq) -> String {
    let bytes = request.ifr_name.map(|c| c.to_ne_bytes()[0]);
    CStr::from_bytes_until_nul(&bytes)
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default()
}

fn flags(set: c_int) -> c_short {
    // IFF_NO_PI and IFF_MULTI_QUEUE have no sign to lose: the field is as wide as they are.
    let [low, high, ..] = set.to_le_bytes();
    c_short::from_le_bytes([low, high])
}

fn socket_address(address: Ipv4Addr) -> libc::sockaddr {
    let mut data = [0; 14];
    for (place, byte) in data[2..].iter_mut().zip(address.octets()) {
        *place = libc::c_char::from_ne_bytes([byte]);
    }
    libc::sockaddr {
        sa_family: libc::sa_family_t::try_from(libc::AF_INET).unwrap_or_default(),
        sa_data: data,
    }
}

/// Interfaces are asked through any socket of their network.
fn any_socket() -> io::Result<OwnedFd> {
    let kind = SocketType::DGRAM;
    Ok(socket_with(
        AddressFamily::INET,
        kind,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_is_asked_only_for_what_it_takes_together() {
        use feature as f;
        let tcp = libc::TUN_F_CSUM | libc::TUN_F_TSO4;
        for (offloads, expected) in [
            (f::GUEST_TSO4, 0),
            (f::GUEST_CSUM, libc::TUN_F_CSUM),
            (f::GUEST_CSUM | f::GUEST_ECN, libc::TUN_F_CSUM),
            (
                f::GUEST_CSUM | f::GUEST_TSO4 | f::GUEST_ECN,
                tcp | libc::TUN_F_TSO_ECN,
            ),
            (f::GUEST_CSUM | f::GUEST_TSO4 | f::GUEST_USO4, tcp),
            (f::GUEST_OFFLOADS, 0x7f),
        ] {
            assert_eq!(offload_flags(offloads), expected, "{offloads:#x}");
        }
    }

    #[test]
    fn a_name_that_no_interface_can_have_is_refused_before_the_kernel_is_asked() {
        for name in ["sixteen-bytes-xx", "a\0b"] {
            assert_eq!(mtu(name).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        }
    }

    #[test]
    fn what_is_no_tap_is_told_from_one() {
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(interface(&file).is_err() && offloads(&file).is_err());
        assert!(inherited(-1).is_err());
        let copy = inherited(file.as_raw_fd()).unwrap();
        assert!(
            rustix::io::fcntl_getfd(&copy)
                .unwrap()
                .contains(rustix::io::FdFlags::CLOEXEC)
        );
    }
}
