//! A running `vudev` with one network card, for the suites about it.

#![allow(dead_code, reason = "each suite uses its part of what they share")]
#![allow(
    clippy::unwrap_used,
    reason = "a suite whose own set-up fails has nothing to test"
)]

use std::path::PathBuf;
use std::time::{Duration, Instant};

use vudev_frontend::net::{Header, feature};
use vudev_frontend::{Builder, FrontEnd, LIMIT, Net};
use vudev_tests::{Vudev, VudevCommand};

use crate::network::Wire;

/// A virtio header that says nothing.
pub(crate) const PLAIN: [u8; 10] = [0; 10];
/// Everybody.
pub(crate) const ALL: [u8; 6] = [0xff; 6];
/// The address that the suites give to a card.
pub(crate) const OURS: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// Features that every suite's driver wants.
pub(crate) const CONTROL: u64 = feature::CTRL_VQ
    | feature::CTRL_RX
    | feature::CTRL_RX_EXTRA
    | feature::CTRL_VLAN
    | feature::CTRL_MAC_ADDR
    | feature::CTRL_GUEST_OFFLOADS
    | feature::GUEST_ANNOUNCE
    | feature::STATUS;
/// Offloads of frames to the card.
pub(crate) const HOST: u64 = feature::CSUM
    | feature::HOST_TSO4
    | feature::HOST_TSO6
    | feature::HOST_ECN
    | feature::HOST_UFO
    | feature::HOST_USO;
/// Offloads of frames from the card.
pub(crate) const GUEST: u64 = feature::GUEST_CSUM
    | feature::GUEST_TSO4
    | feature::GUEST_TSO6
    | feature::GUEST_ECN
    | feature::GUEST_UFO
    | feature::GUEST_USO4
    | feature::GUEST_USO6;

/// All features of a card.
const ANY: u64 = CONTROL
    | HOST
    | GUEST
    | feature::MTU
    | feature::MAC
    | feature::MRG_RXBUF
    | feature::MQ
    | feature::SPEED_DUPLEX;

/// A `vudev` with one network card.
pub(crate) struct Card {
    pub(crate) vudev: Vudev,
    directory: tempfile::TempDir,
}

impl Card {
    pub(crate) fn new(options: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let command = VudevCommand::new().unwrap();
        let vudev = command
            .device("net", options, &directory.path().join("socket"))
            .start()
            .unwrap();
        let card = Self { vudev, directory };
        card.wait_for("device is ready");
        card
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    /// A front-end that takes these features of the card's, and no others.
    pub(crate) fn front(&self, features: u64) -> Builder {
        FrontEnd::connect(self.socket())
            .memory(16 << 20)
            .features(features)
            .without_features(ANY & !features)
    }

    /// A driver of one pair with receive buffers of so many bytes.
    pub(crate) fn driver(&self, features: u64, buffers: u16, size: u32) -> Net {
        Net::start(self.front(features), 1, buffers, size).unwrap()
    }

    pub(crate) fn log(&self) -> String {
        self.vudev.log().unwrap()
    }

    pub(crate) fn wait_for(&self, words: &str) {
        let deadline = Instant::now() + LIMIT;
        while !self.log().contains(words) {
            assert!(
                Instant::now() < deadline,
                "{words:?} awaited: {}",
                self.log()
            );
            std::thread::yield_now();
        }
    }

    /// The threads of the device's process, workers of its ring included.
    pub(crate) fn threads(&self) -> usize {
        let device = self.vudev.devices().unwrap()[0];
        let tasks = std::fs::read_dir(format!("/proc/{device}/task"));
        tasks.unwrap().count()
    }
}

/// A small frame of no protocol.
pub(crate) fn frame(to: [u8; 6], mark: u8) -> Vec<u8> {
    let mut frame = vec![mark; 60];
    frame[..6].copy_from_slice(&to);
    frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 9]);
    frame[12..14].copy_from_slice(&[0x88, 0xb5]);
    frame
}

/// A frame in a VLAN.
pub(crate) fn tagged(to: [u8; 6], vlan: u16, mark: u8) -> Vec<u8> {
    let mut tagged = frame(to, mark);
    tagged.splice(12..12, [0x81, 0].into_iter().chain(vlan.to_be_bytes()));
    tagged
}

/// Whether the driver gets a frame: a second one, for everybody, tells when the first would have
/// come.
pub(crate) fn passes(net: &mut Net, wire: &Wire, sent: &[u8]) -> bool {
    wire.send(&PLAIN, sent);
    let last = frame(ALL, 0xee);
    wire.send(&PLAIN, &last);
    let first = net.receive(0, LIMIT).unwrap().bytes;
    if first == last {
        return false;
    }
    assert_eq!(first, sent);
    assert_eq!(net.receive(0, LIMIT).unwrap().bytes, last);
    true
}

/// Sends a frame out, and sees that it comes out.
pub(crate) fn goes_out(net: &mut Net, wire: &Wire, mark: u8) {
    let out = frame(ALL, mark);
    net.send(0, &Header::default(), &out).unwrap();
    assert_eq!(wire.receive(LIMIT).unwrap().1, out);
}

/// Sends a frame in, and sees that it comes in.
pub(crate) fn comes_in(net: &mut Net, wire: &Wire, mark: u8) {
    let back = frame(ALL, mark);
    wire.send(&PLAIN, &back);
    assert_eq!(net.receive(0, LIMIT).unwrap().bytes, back);
}

/// How long something that must not happen is waited for, at most.
pub(crate) const SHORTLY: Duration = Duration::from_millis(100);
