//! How fast a disk over virtio-vhost-user is beside one over a socket, in the same driver VM: the
//! first has its back-end in a device VM, the second on this host. All guests run under software
//! emulation, and the first back-end with them, so that its figures are a lower bound. It also
//! prints how often the device VM trapped.
//!
//!     cargo build --release -p vudev && cargo xtask static --release
//!     cargo run --release -p vudev-tests --example vvu_speed

#![expect(
    clippy::unwrap_used,
    reason = "a measurement whose own set-up fails has nothing to measure"
)]

#[path = "../tests/support/two_vms.rs"]
mod two_vms;

use std::fs::File;
use std::time::Duration;

use vudev_tests::{Assets, VudevCommand};

use two_vms::Between;

/// Odd, so that there is a middle one.
const ROUNDS: usize = 5;
const LIMIT: Duration = Duration::from_secs(600);
const DISK: u64 = 16 << 20;

const DEVICE_VM: &str = "
    set -e
    give-to-vfio 00:10.0
    dd if=/dev/zero of=/tmp/disk bs=1M count=16 2>/dev/null
    vudev --block path=/tmp/disk,vhost=00:10.0 2>/tmp/log &
    read -r ended
    kill $!
    wait $! || cat /tmp/log
";

/// The disk over VVU comes first. Each line: the disk, the size, and the seconds before and after.
const DRIVER_VM: &str = "
    now() { cut -d ' ' -f 1 /proc/uptime; }
    one() {
        before=$(now)
        for time in 1 2 3 4; do
            dd if=/dev/$1 of=/dev/null iflag=direct bs=$2 count=$3 2>/dev/null
        done
        echo $1 $2 $before $(now)
    }
    for round in ROUNDS; do
        for disk in vda vdb; do one $disk 4k 500; one $disk 1M 16; done
    done
";

/// The size of a request, how many there are, and their MiB together.
const SIZES: [(&str, f64, f64); 2] = [("4k", 2000.0, 2000.0 / 256.0), ("1M", 64.0, 64.0)];

fn main() {
    let assets = Assets::find().unwrap();
    let between = Between::new(&["vu-block"], 256);
    let disk = File::create_new(between.path("disk")).unwrap();
    disk.set_len(DISK).unwrap();
    let options = format!("path={}", between.path("disk").display());
    let beside = VudevCommand::new().unwrap();
    let beside = beside.block(&options, &between.path("vu-beside"));
    let beside = beside.start().unwrap();
    let device_vm = between.device_vm(&assets).script(DEVICE_VM).deadline(LIMIT);
    let mut device_vm = device_vm.start().unwrap();
    let rounds: Vec<_> = (1..=ROUNDS).map(|round| round.to_string()).collect();
    let driver_vm = between
        .driver_vm(&assets)
        .block(&between.path("vu-block"), 1)
        .block(&between.path("vu-beside"), 1)
        .script(&DRIVER_VM.replace("ROUNDS", &rounds.join(" ")))
        .deadline(LIMIT);
    let driver = driver_vm.run().unwrap();
    device_vm.send("ended").unwrap();
    device_vm.finish().unwrap();
    table(&driver.output);
    let log = between.log();
    let traps = log.lines().filter(|line| line.contains("traps of"));
    traps.for_each(|line| println!("{line}"));
    beside.stop().unwrap();
    between.stop();
}

fn table(output: &str) {
    println!(
        "{:6} {:>12} {:>12} {:>8}",
        "reads", "VVU", "socket", "ratio"
    );
    for (size, count, mib) in SIZES {
        let vvu = median(output, "vda", size);
        let socket = median(output, "vdb", size);
        let ratio = vvu / socket;
        println!(
            "{size:6} {:>9.0} us {:>9.0} us {ratio:>8.2}   (each request)",
            vvu / count * 1e6,
            socket / count * 1e6
        );
        println!(
            "{:6} {:>7.1} MiB/s {:>6.1} MiB/s",
            "",
            mib / vvu,
            mib / socket
        );
    }
}

/// Of the seconds of all rounds.
fn median(output: &str, disk: &str, size: &str) -> f64 {
    let prefix = format!("{disk} {size} ");
    let lines = output.lines().filter_map(|line| line.strip_prefix(&prefix));
    let took = |line: &str| {
        let (before, after) = line.split_once(' ').unwrap();
        after.parse::<f64>().unwrap() - before.parse::<f64>().unwrap()
    };
    let mut seconds: Vec<f64> = lines.map(took).collect();
    seconds.sort_by(f64::total_cmp);
    assert_eq!(seconds.len(), ROUNDS, "{output}");
    seconds[ROUNDS / 2]
}
