//! The keys of `--net` that need a tap, each by what it does: in the jail, seen by a front-end and
//! from the host. Needs root.

#![expect(
    clippy::unwrap_used,
    reason = "a suite whose own set-up fails has nothing to test"
)]

#[path = "support/card.rs"]
mod card;
#[path = "support/network.rs"]
mod network;

use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Command;

use rustix::io::{FdFlags, fcntl_setfd};
use vudev_devices::net::tap;
use vudev_frontend::net::feature;
use vudev_tests::VudevCommand;

use card::{CONTROL, Card, OURS, comes_in, frame, goes_out};
use network::{Wire, ip};

/// What `ip` says of an interface.
fn shown(interface: &str) -> String {
    let mut command = Command::new("ip");
    let output = command.args(["addr", "show", interface]).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// A tap's queue that what is started inherits.
fn inheritable(name: &str, several: bool) -> OwnedFd {
    let tap = tap::open(name, several).unwrap();
    fcntl_setfd(&tap, FdFlags::empty()).unwrap();
    tap
}

/// Why `vudev` does not start.
fn refusal(options: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let command = VudevCommand::new().unwrap();
    let started = command
        .device("net", options, &folder.path().join("s"))
        .start();
    started.map(drop).unwrap_err().to_string()
}

#[test]
fn mac_mtu_and_mrg_rxbuf_are_really_offered() {
    if !network::enter() {
        return;
    }
    network::tap("tap0", false);
    let card = Card::new("tap-name=tap0,mac=02:00:00:00:00:01,mtu=9000");
    let wanted = feature::MAC | feature::MTU | feature::MRG_RXBUF | feature::SPEED_DUPLEX;
    let mut net = card.driver(wanted | CONTROL, 4, 16_384);
    let config = net.config().unwrap();
    assert_eq!((config.mac, config.mtu, config.pairs), (OURS, 9000, 1));
    assert_eq!((config.status, config.speed, config.duplex), (1, 10_000, 1));
    assert_eq!(net.front().offered() & feature::MQ, 0);
    assert!(shown("tap0").contains("mtu 9000"));
    // A packet of 9000 bytes comes in whole.
    let wire = Wire::on("tap0");
    let mut long = frame(OURS, 1);
    long.resize(9014, 1);
    assert!(card::passes(&mut net, &wire, &long));
    drop(net);
    card.vudev.stop().unwrap();

    let card = Card::new("tap-name=tap0,mrg-rxbuf=false");
    let mut net = card.driver(CONTROL, 4, 16_384);
    let offered = net.front().offered();
    assert_eq!(offered & (feature::MAC | feature::MRG_RXBUF), 0);
    assert_eq!(net.config().unwrap().mtu, 9000, "as the tap has it");
}

#[test]
fn a_tap_is_made_from_an_address_and_a_netmask_and_goes_with_vudev() {
    if !network::enter() {
        return;
    }
    let card = Card::new("host-ip=10.9.8.1,netmask=255.255.255.0,mtu=4000,mac=02:00:00:00:00:01");
    let made = shown("vmtap0");
    assert!(made.contains("inet 10.9.8.1/24"), "{made}");
    assert!(made.contains("mtu 4000") && made.contains("UP"), "{made}");
    let wire = Wire::on("vmtap0");
    let mut net = card.driver(feature::MAC | feature::MTU, 4, 16_384);
    goes_out(&mut net, &wire, 1);
    let config = net.config().unwrap();
    assert_eq!((config.mac, config.mtu), (OURS, 4000));
    drop(net);
    card.vudev.stop().unwrap();
    assert!(!shown("vmtap0").contains("vmtap0"), "it is gone");
    // And with several queues.
    let card = Card::new("host-ip=10.9.8.1,netmask=255.255.255.0,vq-pairs=4");
    let mut net = card.driver(feature::MQ | CONTROL, 0, 64);
    assert_eq!(net.config().unwrap().pairs, 4);
}

#[test]
fn a_tap_that_is_open_already_is_taken_by_its_number() {
    if !network::enter() {
        return;
    }
    let tap = inheritable("tap0", false);
    ip("link set tap0 up");
    let card = Card::new(&format!("tap-fd={}", tap.as_raw_fd()));
    drop(tap);
    let wire = Wire::on("tap0");
    let mut net = card.driver(0, 4, 2048);
    goes_out(&mut net, &wire, 1);
    comes_in(&mut net, &wire, 1);
    drop(net);
    card.vudev.stop().unwrap();

    let queues = [inheritable("tap1", true), inheritable("tap1", true)];
    let [first, second] = [queues[0].as_raw_fd(), queues[1].as_raw_fd()];
    let card = Card::new(&format!("tap-fd=[{first},{second}]"));
    let mut net = card.driver(feature::MQ | CONTROL, 0, 64);
    assert_eq!(net.config().unwrap().pairs, 2, "as many as descriptors");
    drop(net);
    card.vudev.stop().unwrap();

    let other = inheritable("tap2", true);
    let error = refusal(&format!("tap-fd=[{first},{}]", other.as_raw_fd()));
    assert!(error.contains("is no further queue of tap1"), "{error}");
}

#[test]
fn a_tap_of_one_queue_has_one_pair_and_one_of_several_has_as_many_as_are_asked_for() {
    if !network::enter() {
        return;
    }
    network::tap("tap0", false);
    network::tap("tap1", true);
    let error = refusal("tap-name=tap0,vq-pairs=2");
    assert!(
        error.contains("\"tap0\" is no tap of several queues"),
        "{error}"
    );
    let card = Card::new("tap-name=tap1");
    assert_eq!(card.driver(CONTROL, 0, 64).config().unwrap().pairs, 1);
    card.vudev.stop().unwrap();
    let card = Card::new("tap-name=tap1,vq-pairs=32");
    let mut net = card.driver(CONTROL | feature::MQ, 0, 64);
    assert_eq!(net.config().unwrap().pairs, 32);
    assert_eq!(net.front().connection().queue_count().unwrap(), 65);
}

#[test]
fn a_tap_that_cannot_be_had_is_told_with_the_reason() {
    if !network::enter() {
        return;
    }
    network::tap("tap0", false);
    let _taken = tap::open("tap0", false).unwrap();
    let error = refusal("tap-name=tap0");
    assert!(
        error.contains("cannot open \"tap0\": Device or resource busy"),
        "{error}"
    );
    let error = refusal("tap-name=lo");
    assert!(
        error.contains("cannot open \"lo\": Invalid argument"),
        "{error}"
    );
    ip("link add dummy0 type bridge");
    let error = refusal("tap-name=dummy0");
    assert!(error.contains("write the name of a tap"), "{error}");
}

#[test]
fn an_interface_that_is_down_is_noted_when_vudev_starts() {
    if !network::enter() {
        return;
    }
    ip("tuntap add tap0 mode tap");
    let card = Card::new("tap-name=tap0,pci-address=00:05.0");
    let log = card.log();
    assert!(log.contains("tap0 is down"), "{log}");
    assert!(
        log.contains("pci-address: accepted, but changes nothing here"),
        "{log}"
    );
}
