//! A real device VM: an unmodified QEMU takes our proxy as a PCI function, and a stock Debian
//! kernel in it gives that to our driver over VFIO, behind an IOMMU. The driver VM is played by the
//! test.

#![expect(
    clippy::unwrap_used,
    reason = "a suite whose own set-up fails has nothing to test"
)]

use std::path::Path;

use vudev_frontend::{Buffer, FrontEnd, LIMIT};
use vudev_proxy::SharedMemory;
use vudev_proxy::testing::Running;
use vudev_tests::{Assets, Guest};

/// Gives VFIO the function, and drives that.
const SCRIPT: &str = "
    vudev-vvu 00:10.0 1
    give-to-vfio 00:10.0
    vudev-vvu 00:10.0 SESSIONS || exit 11
    vudev-vvu 00:10.0 2 &
    read -r go_on
    kill -9 $!
    wait $!
    vudev-vvu 00:10.0 1
";

/// Front-ends that come and go.
const SESSIONS: u64 = 5;

/// Sends a chain through a ring and checks the answer.
fn complemented(front: &mut FrontEnd, ring: u16, bytes: [u8; 8]) {
    let memory = front.memory().clone();
    let (there, back) = (
        memory.allocate(8, 1).unwrap(),
        memory.allocate(8, 1).unwrap(),
    );
    memory.write(there, &bytes).unwrap();
    let (question, answer) = ([Buffer::new(there, 8)], [Buffer::new(back, 8)]);
    let token = front.ring(ring).add(&question, &answer).unwrap();
    front.ring(ring).kick().unwrap();
    let used = front.ring(ring).wait_used(LIMIT).unwrap();
    assert_eq!((used.token, used.written), (token, 8));
    let mut answered = [0; 8];
    memory.read(back, &mut answered).unwrap();
    assert_eq!(answered, bytes.map(|byte| !byte));
}

#[test]
fn a_device_vm_serves_front_ends_through_a_function_of_stock_qemu_and_kernel() {
    let assets = Assets::find().unwrap();
    let folder = tempfile::Builder::new().prefix("vudev-").tempdir().unwrap();
    let front_ends = FrontEnd::connect(folder.path().join("vhost")).queues(2);
    let mut parked = front_ends.prepare().unwrap();
    let ram = parked
        .memory()
        .with_region(0, |_, file| file.try_clone_to_owned());
    let _proxy = Running::start_in(folder.path(), SharedMemory::RamFile(ram.unwrap()));
    let script = SCRIPT.replace("SESSIONS", &SESSIONS.to_string());
    let mut guest = Guest::new(&assets)
        .vfio_user(&folder.path().join("vfio"))
        .program(Path::new(env!("CARGO_BIN_EXE_vudev-vvu")))
        .script(&script)
        .start()
        .unwrap();
    // Before it is given to VFIO it is refused, with the remedy.
    guest.wait_for("in /sys/bus/pci/devices/").unwrap();
    guest.wait_for("ready").unwrap();
    for session in 0..SESSIONS {
        let mut front = parked.resume().unwrap();
        for round in 0..50_u64 {
            let bytes = (session << 32 | round).to_le_bytes();
            complemented(&mut front, 0, bytes);
            complemented(&mut front, 1, bytes);
        }
        parked = front.leave().unwrap();
        guest.wait_for("session: left").unwrap();
    }
    // Its driver dies, so the kernel resets the function; the front-end is told at once, and goes
    // on with the next driver.
    guest.wait_for("ready").unwrap();
    let mut front = parked.resume().unwrap();
    complemented(&mut front, 0, *b"a driver");
    guest.send("go on").unwrap();
    front.connection().wait_closed().unwrap();
    let parked = front.vanish().unwrap();
    guest.wait_for("ready").unwrap();
    let mut front = parked.resume().unwrap();
    complemented(&mut front, 0, *b"the next");
    drop(front);
    let report = guest.finish().unwrap();
    assert_eq!(report.status, Some(0), "{}", report.output);
}
