//! One real guest with all five devices of one `vudev`, used at the same time: what goes in on one
//! side comes out on the other, for each. What one device alone does is in the other suites.

#[path = "support/network.rs"]
mod network;

use std::path::Path;

use vudev_tests::five::{HOST, Scene, Wires, assert_same, with_devices};
use vudev_tests::{Assets, Guest, VudevCommand};

use network::{ip, tap};

#[test]
fn all_five_devices_of_one_command_serve_one_guest_at_the_same_time() {
    let net = network::enter().then(|| {
        tap("tap0", false);
        ip(&format!("addr add {HOST}/24 dev tap0"));
        "tap-name=tap0".to_owned()
    });
    let folder = tempfile::Builder::new().prefix("vudev-").tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let wires = Wires {
        serial: path("vu-serial"),
        block: path("vu-block"),
        rng: path("vu-rng"),
        vsock: path("vu-vsock"),
        net: net.map(|options| (options, path("vu-net"))),
    };
    let mut scene = Scene::start(VudevCommand::new().unwrap(), folder.path(), &wires);
    let awaiting = scene.await_guest();
    let guest = Guest::new(&Assets::find().unwrap())
        .program(Path::new(env!("CARGO_BIN_EXE_vudev-verify")))
        .program(Path::new(env!("CARGO_BIN_EXE_vudev-sockets")));
    let guest = with_devices(guest, folder.path(), wires.net.is_some());
    let mut guest = guest.start().unwrap();
    scene.talk_to_the_console();
    guest.wait_for("listening").unwrap();
    let called = scene.call_the_guest(awaiting);
    let report = guest.finish().unwrap();
    println!("{}", report.output);
    if wires.net.is_some() {
        println!("{}", network::counters());
    }
    assert_eq!(report.status, Some(0), "{}", report.output);
    let seen = scene.seen(called);
    println!("{}", scene.stop());
    assert_same(&report.output, &seen);
}
