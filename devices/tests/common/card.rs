//! A network card on a socket in place of a tap: it keeps frames apart, and answers no ioctl.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test panics where it fails, and its numbers are small"
)]

use std::os::unix::net::UnixDatagram;

use vudev_devices::Net;
use vudev_devices::net::NetConfig;
use vudev_executor::Handle;
use vudev_frontend::Buffer;

use super::Rig;

pub(crate) const RECEIVE: usize = 0;
pub(crate) const TRANSMIT: usize = 1;
pub(crate) const CONTROL: usize = 2;
pub(crate) const HEADER: usize = 12;

pub(crate) fn config() -> NetConfig {
    NetConfig {
        mac: None,
        mtu: 1500,
        pairs: 1,
        multi_queue: false,
        mergeable: true,
        offloads: 0,
    }
}

/// A card with this wire's other end.
pub(crate) fn start(handle: &Handle, features: u64) -> (Rig<Net>, UnixDatagram) {
    start_with(handle, features, false)
}

/// [`start`], of a tap that does not wait by itself.
pub(crate) fn start_with(
    handle: &Handle,
    features: u64,
    nonblocking: bool,
) -> (Rig<Net>, UnixDatagram) {
    let (wire, tap) = UnixDatagram::pair().unwrap();
    wire.set_nonblocking(true).unwrap();
    tap.set_nonblocking(nonblocking).unwrap();
    let net = Net::new(handle, config(), vec![tap.into()]).unwrap();
    (Rig::start(handle, net, features), wire)
}

pub(crate) fn frame(length: usize, mark: u8) -> Vec<u8> {
    vec![mark; length]
}

/// Puts a frame on the wire, as a tap does: behind its header.
pub(crate) fn come(wire: &UnixDatagram, frame: &[u8]) {
    let sent = wire.send(&[&[0; HEADER][..], frame].concat()).unwrap();
    assert_eq!(sent, HEADER + frame.len());
}

pub(crate) fn post(net: &mut Rig<Net>, count: usize, size: usize) -> Vec<Buffer> {
    let buffers: Vec<_> = (0..count).map(|_| net.allocate(size, 2)).collect();
    for buffer in &buffers {
        net.send(RECEIVE, &[], &[*buffer]);
    }
    buffers
}
