//! What the network card's kind promises without a tap: each mistake as one line with its column,
//! and what to do. What needs a tap is in `tests/tests/net_options.rs`.

use super::Scene;
use crate::kind::{CreateError, DeviceKind as _, Given};
use crate::kinds::Net;

/// A name that no interface has.
const NAME: &str = "tap-name=vudev-none";

#[track_caller]
fn refused(argument: &str, expected: &str) {
    let error = Scene::new().open::<Net>(argument).expect_err(argument);
    assert_eq!(error, expected, "{argument}");
}

#[test]
fn one_key_says_which_tap_it_is() {
    refused(
        "mtu=1500",
        "--net: tap-name: column 17: nothing says which tap it is: add tap-name=NAME, \
         tap-fd=NUMBER, or host-ip= and netmask=",
    );
    refused(
        "tap-name=tap0,tap-fd=3",
        "--net: tap-fd: column 22: another tap than that of tap-name: leave one of them out",
    );
    refused(
        "tap-fd=3,host-ip=10.0.0.1",
        "--net: host-ip: column 18: another tap than that of tap-fd: leave one of them out",
    );
    refused(
        "tap-name=tap0,netmask=255.0.0.0",
        "--net: netmask: column 23: goes with host-ip: add host-ip=ADDRESS, or leave it out",
    );
}

#[test]
fn a_name_that_no_interface_has_makes_none() {
    refused(
        NAME,
        "--net: tap-name: column 10: cannot open \"vudev-none\": No such device: make it: ip \
         tuntap add vudev-none mode tap user USER",
    );
    assert!(vudev_devices::net::tap::is_up("vudev-none").is_err());
}

#[test]
fn a_descriptor_that_is_no_tap_is_named() {
    refused(
        "tap-fd=99999",
        "--net: tap-fd: column 8: there is no descriptor 99999: start vudev with the tap open, \
         not close-on-exec, at this number",
    );
    refused(
        "tap-fd=0",
        "--net: tap-fd: column 8: descriptor 0 is no tap: start vudev with the tap open, not \
         close-on-exec, at this number",
    );
    refused(
        "tap-fd=[3,4],vq-pairs=3",
        "--net: tap-fd: column 8: 2 descriptors for 3 pairs: write one for each pair: \
         tap-fd=[3,4]",
    );
}

#[test]
fn addresses_are_checked_before_anything_is_made() {
    for (argument, expected) in [
        (
            "host-ip=10.0.0.256,netmask=255.0.0.0",
            "--net: host-ip: column 9: \"10.0.0.256\" is no IPv4 address: write four numbers: \
             192.168.10.1",
        ),
        (
            "host-ip=10.0.0.1",
            "--net: netmask: column 25: is missing beside host-ip: add netmask=255.255.255.0, say",
        ),
        (
            "host-ip=10.0.0.1,netmask=255.0.255.0",
            "--net: netmask: column 26: 255.0.255.0 is no netmask: write ones, then zeros: \
             255.255.255.0",
        ),
        (
            "mac=02:00:00:00:00,tap-name=x",
            "--net: mac: column 5: \"02:00:00:00:00\" is no hardware address: write six bytes: \
             02:00:00:00:00:01",
        ),
        (
            "mac=02:00:00:00:00:0g,tap-name=x",
            "--net: mac: column 5: \"02:00:00:00:00:0g\" is no hardware address: write six bytes: \
             02:00:00:00:00:01",
        ),
        (
            "mac=01:00:5e:00:00:01,tap-name=x",
            "--net: mac: column 5: \"01:00:5e:00:00:01\" is no address of a single machine: write \
             six bytes: 02:00:00:00:00:01",
        ),
    ] {
        refused(argument, expected);
    }
}

#[test]
fn what_cannot_be_had_is_refused_with_the_reason() {
    for (key, reason) in [
        ("vhost-net", "outside of the device's jail"),
        ("packed-queue", "packed rings are not built yet"),
    ] {
        let error = Scene::new().open::<Net>(&format!("{NAME},{key}"));
        let error = error.expect_err(key);
        assert!(error.contains(&format!("{key}: column 21: ")), "{error}");
        assert!(
            error.contains("is not available") && error.contains(reason),
            "{error}"
        );
        // What holds anyway may be said.
        let said = Scene::new().open::<Net>(&format!("{NAME},{key}=false"));
        assert!(said.expect_err(key).contains("No such device"));
    }
    for (argument, problem) in [
        ("vq-pairs=0", "1 to 32"),
        ("vq-pairs=33", "1 to 32"),
        ("mtu=67", "68 to 65535"),
    ] {
        let error = Scene::new().open::<Net>(&format!("{NAME},{argument}"));
        let error = error.expect_err(argument);
        assert!(error.contains(problem), "{error}");
    }
}

#[test]
fn a_place_on_the_bus_is_noted() {
    let argument = format!("{NAME},pci-address=00:05.0,vhost=s");
    let values = crate::options::Values::parse(Net::table(), &argument).expect("parsed");
    assert!(
        values.notes()[0].contains("pci-address"),
        "{:?}",
        values.notes()
    );
}

#[test]
fn a_description_that_does_not_fit_its_descriptors_makes_no_device() {
    let config = vudev_devices::NetConfig {
        mac: None,
        mtu: 1500,
        pairs: 1,
        multi_queue: false,
        mergeable: true,
        offloads: 0,
    };
    let executor = vudev_executor::Executor::with_operations(8).expect("a ring");
    let given = Given::new(executor.handle(), config, Vec::new());
    let made = Net::create(given).map(drop).expect_err("no descriptor");
    assert!(matches!(made, CreateError::Description(text) if text.contains("0 queues of the tap")));
}
