//! Two real VMs of stock QEMU and kernel: `vudev` runs jailed in one of them and has the devices of
//! the other, over virtio-vhost-user. What the other does with them is what a guest does whose
//! devices come over sockets (`guest_all`).

#[path = "support/two_vms.rs"]
mod two_vms;

use std::path::Path;
use std::time::Duration;

use vudev_tests::five::{Seen, assert_same, with_devices};
use vudev_tests::{Assets, Guest};

use two_vms::Between;

/// Two guests on a machine that is busy with others.
const LIMIT: Duration = Duration::from_secs(200);

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
    let device_vm = between.device_vm(&assets).script(DEVICE_VM).deadline(LIMIT);
    let peers = Path::new(env!("CARGO_BIN_EXE_vudev-peers"));
    let mut device_vm = device_vm.program(peers).start().unwrap();
    let driver_vm = with_programs(between.driver_vm(&assets)).deadline(LIMIT);
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
    between.stop();
}

/// Serves a disk with a queue and a vector for each of four processors.
const FOUR_QUEUES: &str = "
    set -e
    give-to-vfio 00:10.0
    dd if=/dev/zero of=/tmp/disk bs=1M count=16 2>/dev/null
    vudev --block path=/tmp/disk,queues=4,vhost=00:10.0 2>/tmp/log &
    read -r ended
    grep -F 'vfio-msix[' /proc/interrupts
    kill $!
    wait $! || cat /tmp/log
    md5sum </tmp/disk
";

/// Uses all queues, with memory of the higher region and, once huge pages have taken all of that,
/// with the lower one's.
const TWO_REGIONS: &str = "
    set -e
    grep 'System RAM' /proc/iomem
    echo queues: $(ls /sys/block/vda/mq | wc -l)
    vudev-verify /dev/vda 20 1
    echo 600 >/proc/sys/vm/nr_hugepages
    grep HugePages_Total /proc/meminfo
    dd if=/dev/zero of=/dev/vda oflag=direct bs=1M count=16 2>/dev/null
    vudev-verify /dev/vda 20 2
    md5sum </dev/vda
";

/// From here on memory is above what a 32-bit device reaches: q35 puts there what is above 2 GiB.
const SECOND_REGION: &str = "100000000-13fffffff : System RAM";

#[test]
fn a_driver_vm_of_two_regions_has_four_queues_with_a_vector_each_of_a_smaller_device_vm() {
    let assets = Assets::find().unwrap();
    let between = Between::new(&["vu-block"], 3072);
    let device_vm = between.device_vm(&assets).script(FOUR_QUEUES);
    let device_vm = device_vm.deadline(LIMIT);
    let mut device_vm = device_vm.start().unwrap();
    let driver_vm = with_programs(between.driver_vm(&assets))
        .block(&between.path("vu-block"), 4)
        .processors(4)
        .deadline(LIMIT)
        .script(TWO_REGIONS);
    let driver = driver_vm.run().unwrap();
    device_vm.send("ended").unwrap();
    let device = device_vm.finish().unwrap();
    println!("{}{}", driver.output, device.output);
    assert_eq!((driver.status, device.status), (Some(0), Some(0)));
    assert!(driver.output.contains(SECOND_REGION));
    assert!(driver.output.contains("queues: 4"));
    let huge = line(&driver.output, "HugePages_Total:");
    assert!(
        huge.parse::<u32>().unwrap() >= 512,
        "{huge} do not fill 1 GiB"
    );
    assert_eq!(driver.output.matches("wrong sectors: 0").count(), 2);
    // The last line of both is the disk's.
    assert_eq!(driver.output.lines().last(), device.output.lines().last());
    let memory = between.memory_on_disk();
    assert!(memory < 3 << 30, "{memory} bytes: all of it was touched");
    for vector in FIRST_KICK..FIRST_KICK + 4 {
        let interrupts = interrupts(&device.output, vector);
        assert!(interrupts > 0, "vector {vector}: {}", device.output);
    }
    between.stop();
}

/// What is behind a word at the beginning of a line.
fn line<'o>(output: &'o str, word: &str) -> &'o str {
    let line = output.lines().find_map(|line| line.strip_prefix(word));
    line.unwrap_or_default().trim()
}

/// The vectors before are those of the receive queue, the transmit queue and the configuration.
const FIRST_KICK: usize = 3;

/// How often a vector has come, of a line of /proc/interrupts.
fn interrupts(output: &str, vector: usize) -> u64 {
    let name = format!("vfio-msix[{vector}](0000:00:10.0)");
    let line = output.lines().find(|line| line.contains(&name));
    let counts = line.unwrap_or_default().split_whitespace().skip(1);
    counts.map_while(|word| word.parse::<u64>().ok()).sum()
}
