//! Plays the host's side of all five devices inside of a device VM, whose `vudev` has them on PCI
//! functions: what `guest_all` does on a host.
//!
//!     vudev-peers SERIAL BLOCK RNG VSOCK NET
//!
//! The arguments are the functions' addresses. It says `ready` when the driver VM may come; a line
//! on its standard input says that the guest there listens, another that it has ended. At last it
//! prints what was seen.

#![expect(
    clippy::unwrap_used,
    reason = "a suite whose own set-up fails has nothing to test"
)]

use std::env;
use std::io::stdin;
use std::path::{Path, PathBuf};

use vudev_tests::VudevCommand;
use vudev_tests::five::{HOST, Scene, Wires};

fn main() {
    let addresses: Vec<PathBuf> = env::args().skip(1).map(PathBuf::from).collect();
    let [serial, block, rng, vsock, net] = addresses.as_slice() else {
        panic!("usage: vudev-peers SERIAL BLOCK RNG VSOCK NET");
    };
    let [serial, block, rng, vsock, net] = [serial, block, rng, vsock, net].map(PathBuf::clone);
    let tap = format!("host-ip={HOST},netmask=255.255.255.0");
    let wires = Wires {
        serial,
        block,
        rng,
        vsock,
        net: Some((tap, net)),
    };
    let command = VudevCommand::of(Path::new("/bin/vudev"));
    let mut scene = Scene::start(command, Path::new("/tmp"), &wires);
    println!("ready");
    let awaiting = scene.await_guest();
    scene.talk_to_the_console();
    heard("listening");
    let called = scene.call_the_guest(awaiting);
    heard("ended");
    println!("{}", scene.seen(called).to_lines());
    eprintln!("{}", scene.stop_emulated());
}

/// The other side says that it is so far.
fn heard(what: &str) {
    let mut line = String::new();
    stdin().read_line(&mut line).unwrap();
    assert_eq!(line.trim(), what);
}
