//! Two real VMs of stock QEMU and kernel: `vudev` runs jailed in one of them and has the devices of
//! the other, over virtio-vhost-user. What the other does with them is what a guest does whose
//! devices come over sockets (`guest_all`).

#![expect(
    clippy::unwrap_used,
    reason = "a suite whose own set-up fails has nothing to test"
)]

#[path = "support/two_vms.rs"]
mod two_vms;

use std::path::Path;

use vudev_tests::five::{Seen, assert_same, with_devices};
use vudev_tests::{Assets, Guest};

use two_vms::Between;

/// Memory of the driver VM.
const MEMORY_MIB: u32 = 256;

/// The functions have the order of the proxies.
const NAMES: [&str; 5] = ["vu-serial", "vu-block", "vu-rng", "vu-vsock", "vu-net"];
const DEVICE_VM: &str = "
    set -e
    functions='00:10.0 00:11.0 00:12.0 00:13.0 00:14.0'
    give-to-vfio $functions
    vudev-peers $functions
";

fn with_programs(guest: Guest) -> Guest {
    guest
        .program(Path::new(env!("CARGO_BIN_EXE_vudev-verify")))
        .program(Path::new(env!("CARGO_BIN_EXE_vudev-sockets")))
}

#[test]
fn all_five_devices_of_a_vudev_in_a_device_vm_serve_a_driver_vm_at_the_same_time() {
    let assets = Assets::find().unwrap();
    let between = Between::new(&NAMES, MEMORY_MIB);
    let device_vm = between.device_vm(&assets).script(DEVICE_VM);
    let peers = Path::new(env!("CARGO_BIN_EXE_vudev-peers"));
    let mut device_vm = device_vm.program(peers).start().unwrap();
    let driver_vm = with_programs(between.driver_vm(&assets));
    let driver_vm = with_devices(driver_vm, between.folder(), true);
    let mut driver_vm = driver_vm.start().unwrap();
    device_vm.wait_for("ready").unwrap();
    driver_vm.wait_for("listening").unwrap();
    device_vm.send("listening").unwrap();
    let driver = driver_vm.finish().unwrap();
    println!("{}", driver.output);
    assert_eq!(driver.status, Some(0), "{}", driver.output);
    device_vm.send("ended").unwrap();
    let device = device_vm.finish().unwrap();
    println!("{}", device.output);
    assert_eq!(device.status, Some(0), "{}", device.output);
    assert_same(&driver.output, &Seen::from_lines(&device.output));
}
