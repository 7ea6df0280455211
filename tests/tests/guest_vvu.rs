//! Real device VMs: an unmodified QEMU takes our proxies as PCI functions, and in a stock Debian
//! kernel the real `vudev`, jailed, drives them over VFIO, behind an IOMMU. The driver VMs are
//! played by the tests.

#![expect(
    clippy::unwrap_used,
    reason = "a suite whose own set-up fails has nothing to test"
)]

#[path = "support/device_vm.rs"]
mod device_vm;

use device_vm::{DeviceVm, Function};
use vudev_frontend::{Block, Console, FrontEnd, LIMIT, Rng};
use vudev_tests::{Assets, Guest, static_vudev};

/// Bytes of the disk.
const DISK: usize = 1 << 20;

/// The devices of the first test.
const DEVICES: &str = "--block path=/disk,vhost=00:10.0 \
                       --serial type=file,path=/said,vhost=00:11.0 \
                       --rng vhost=0000:00:12.0";

fn pattern(seed: u8) -> Vec<u8> {
    let bytes = (0..=250_u8).cycle().map(|byte| byte.wrapping_mul(7) ^ seed);
    bytes.take(4096).collect()
}

/// Writes, and reads that and a part that nobody has written.
fn disk_works(front: FrontEnd, seed: u8) -> FrontEnd {
    let mut block = Block::over(front, 1, 4096).unwrap();
    assert_eq!(block.config().capacity, DISK as u64 / 512);
    block.write(8192, &pattern(seed)).unwrap();
    block.flush().unwrap();
    let mut back = vec![0xff; 4096];
    block.read(8192, &mut back).unwrap();
    assert_eq!(back, pattern(seed));
    block.read(0, &mut back).unwrap();
    assert_eq!(back, vec![0; 4096]);
    block.into_front()
}

fn entropy_works(front: FrontEnd) -> Rng {
    let mut rng = Rng::over(front);
    let (first, second) = (rng.read(64, LIMIT).unwrap(), rng.read(64, LIMIT).unwrap());
    assert_eq!((first.len(), second.len()), (64, 64));
    assert_ne!(first, second);
    rng
}

#[test]
fn jailed_devices_serve_by_pci_address_and_a_function_outlives_whoever_drives_it() {
    let disk = Function::new(|front| front.memory(2 << 20));
    let port = Function::new(|front| front.queues(2));
    let entropy = Function::new(|front| front.queue_size(16));
    let mut guest = Guest::new(&Assets::find().unwrap());
    for (function, _) in [&disk, &port, &entropy] {
        guest = function.plug(guest);
    }
    let mut vm = DeviceVm::start(guest, &[&static_vudev().unwrap()]);
    let (_disk, disk) = disk;
    let (_port, port) = port;
    let (_entropy, entropy) = entropy;
    vm.refuses(
        "--rng vhost=00:12.0",
        "--rng: vhost: column 7: PCI function 0000:00:12.0 (1af4:107d) is bound to virtio-pci: \
         in /sys/bus/pci/devices/0000:00:12.0, write vfio-pci into driver_override",
    );
    vm.refuses(
        "--rng vhost=00:1e.0",
        "--rng: vhost: column 7: there is no PCI function 0000:00:1e.0: lspci lists them",
    );
    vm.run("give-to-vfio 00:10.0 00:11.0 00:12.0");
    vm.run(&format!("truncate -s {DISK} /disk"));
    vm.fails(
        "--block path=/disk,queues=65,vhost=00:10.0",
        "the VVU device forwards 64 queues, and this device has 65: give it fewer",
    );

    vm.start_vudev(DEVICES, 3);
    vm.logged("ready at 0000:00:11.0 (process");
    // It can be had once.
    vm.refuses(
        "--rng vhost=00:12.0",
        "it can be opened once: another process has it",
    );
    let mut rng = entropy_works(entropy.resume().unwrap());
    let mut console = Console::over(port.resume().unwrap(), 4).unwrap();
    console.send(b"through a function\n").unwrap();
    vm.run("until grep -q 'through a function' /said; do usleep 10000; done");
    let mut disk = disk.resume().unwrap();
    for seed in 0..3 {
        disk = disk_works(disk, seed).leave().unwrap().resume().unwrap();
    }

    // A device dies, so the kernel resets its function; its front-end is told at once, the others
    // go on, and the next device has the function.
    vm.run(r"kill -9 $(sed -n 's/^block-0.*(process \([0-9]*\))/\1/p' /log)");
    disk.connection().wait_closed().unwrap();
    vm.logged("block-0: error: ");
    assert_eq!(rng.read(64, LIMIT).unwrap().len(), 64);
    console.send(b"and on\n").unwrap();
    vm.run("until grep -q 'and on' /said; do usleep 10000; done");
    vm.run("rest=$vudev");
    vm.start_vudev("--block path=/disk,vhost=00:10.0", 1);
    let disk = disk.vanish().unwrap().resume().unwrap();
    let mut disk = disk_works(disk, 4);

    // A vudev dies, and its devices with it.
    vm.run("kill -9 $vudev $rest; wait $vudev $rest || :");
    disk.connection().wait_closed().unwrap();
    rng.front().connection().wait_closed().unwrap();
    console.front().connection().wait_closed().unwrap();

    // One that is asked to stop leaves its front-ends, and says so.
    vm.start_vudev(DEVICES, 3);
    let mut disk = disk_works(disk.vanish().unwrap().resume().unwrap(), 5);
    vm.run("kill $vudev; wait $vudev");
    disk.connection().wait_closed().unwrap();
    vm.end();
}

#[test]
fn a_user_who_is_not_root_serves_a_direct_file_whose_blocks_cannot_go_straight_to_a_bar() {
    let assets = Assets::find().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    assets.make_ext4(&image, 16).unwrap();
    let (function, front) = Function::new(|front| front.memory(2 << 20));
    let guest = function.plug(Guest::new(&assets)).own_disk(&image);
    let mut vm = DeviceVm::start(guest, &[&static_vudev().unwrap()]);
    vm.run("give-to-vfio 00:10.0 && chown 65534 /dev/vfio/[0-9]*");
    vm.run("mkdir -p /ext /etc && mount -t ext4 /dev/vda /ext");
    vm.run(&format!(
        "truncate -s {DISK} /ext/disk && chown 65534 /ext/disk"
    ));
    vm.run("echo nobody:x:65534:65534::/:/bin/sh >/etc/passwd");
    let command = "'exec vudev --block path=/ext/disk,direct=true,vhost=00:10.0'";
    vm.start_program("su nobody -s /bin/sh -c", command, 1);
    // Of the jailed process itself: O_DIRECT is 040000 on x86_64; and its ring has one registered
    // buffer, for what cannot go straight to the bar.
    vm.run(
        "device=$(sed -n 's/^block-0.*(process \\([0-9]*\\))/\\1/p' /log); flags=none; \
         for number in $(ls /proc/$device/fd); do \
         [ $(readlink /proc/$device/fd/$number) != /ext/disk ] || \
         flags=$(awk '/^flags/ {print $2}' /proc/$device/fdinfo/$number); done; \
         echo $flags of the disk; [ $((flags & 040000)) = 16384 ] && \
         cat /proc/$device/fdinfo/* | grep -q 'UserBufs:.*1'",
    );
    let mut front = disk_works(front.resume().unwrap(), 6);
    vm.run("kill $vudev; wait $vudev");
    front.connection().wait_closed().unwrap();
    vm.end();
}
