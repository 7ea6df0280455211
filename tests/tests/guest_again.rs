//! Two real VMs of which one goes away and comes again, or what it runs does, while the driver VM
//! uses its disk all the time: what was there is still there, and what was begun is done.
//!
//! The disk is an image that the device VM's QEMU has, and that `vudev` in it has in turn.

#![expect(
    clippy::unwrap_used,
    reason = "a suite whose own set-up fails has nothing to test"
)]

#[path = "support/two_vms.rs"]
mod two_vms;

use std::env;
use std::fs::{self, File};
use std::time::{Duration, Instant};

use vudev_tests::streams::md5;
use vudev_tests::{Assets, RunningGuest};

use two_vms::Between;

const DISK: u64 = 16 << 20;
const MEMORY_MIB: u32 = 256;

/// How often each thing happens, if the environment does not say how often: a boot under software
/// emulation takes seconds.
const TIMES: u32 = 1;
/// Says another number; 20 is what was promised.
const TIMES_VARIABLE: &str = "VUDEV_TIMES";

/// Serves the disk from each boot on, and does as it is told. What a killed process leaves behind
/// has gone when all of it has.
///
/// A reboot is as if the power failed, and the driver VM does not notice it: what it was told is
/// written must not be in this VM's page cache alone. So the disk is `direct`.
const DEVICE_VM: &str = "
    give-to-vfio 00:10.0 || exit 10
    serve() {
        vudev --block path=/dev/vda,direct,vhost=00:10.0 2>>/tmp/log &
        until grep -q 'ready at' /tmp/log; do usleep 20000; done
        device=$(cat /proc/$!/task/$!/children)
        echo serving
    }
    fall() {
        wait $!
        while [ -e /proc/${device% } ]; do usleep 20000; done
        rm /tmp/log
        serve
    }
    serve
    while read -r word; do
        case $word in
            kill-device) kill -9 $device; fall ;;
            kill-all) kill -9 $!; fall ;;
            reboot) reboot -n -f ;;
            end) break ;;
        esac
    done
    kill $!
    wait $! || cat /tmp/log
";

/// The first MiB is written at the first boot, with its checksum behind it, and compared at each
/// later one and in each round. In a round 256 KiB are written to one of eight places after that,
/// and read. Rounds follow each other without a pause; a word that has come is answered after the
/// next whole round.
const DRIVER_VM: &str = "
    set -e
    exec 3<&0
    mib() { dd if=/dev/vda iflag=direct bs=64k count=16 2>/dev/null | md5sum; }
    part() { dd bs=64k count=4 \"$@\" 2>/dev/null; }
    part if=/dev/vda iflag=direct skip=16 | head -n 1 >/tmp/sum
    if ! grep -q -- - /tmp/sum; then
        dd if=/dev/urandom of=/dev/vda oflag=direct bs=64k count=16 2>/dev/null
        mib >/tmp/sum
        part if=/tmp/sum of=/tmp/block conv=sync
        dd if=/tmp/block of=/dev/vda oflag=direct bs=64k seek=16 2>/dev/null
    fi
    round=0
    one() {
        head -c 262144 /dev/urandom >/tmp/data
        place=$((20 + round % 8 * 4))
        part if=/tmp/data of=/dev/vda oflag=direct seek=$place
        part if=/dev/vda iflag=direct skip=$place | cmp - /tmp/data
        mib | cmp - /tmp/sum
        round=$((round + 1))
    }
    listen() { ( read -r word; echo $word >/tmp/new; mv /tmp/new /tmp/word ) <&3 & }
    listen
    echo booted
    while true; do
        word=
        [ -e /tmp/word ] && word=$(cat /tmp/word) && rm /tmp/word && listen
        [ \"$word\" = reboot ] && reboot -f
        [ \"$word\" = end ] && break
        one
        [ -z \"$word\" ] || echo $word: round $round
    done
    md5sum </dev/vda
";

/// Both VMs, at work.
struct Scene {
    between: Between,
    device_vm: RunningGuest,
    driver_vm: RunningGuest,
}

impl Scene {
    fn start(limit: Duration) -> Self {
        let assets = Assets::find().unwrap();
        let between = Between::new(&["vu-block"], MEMORY_MIB);
        let disk = File::create_new(between.path("disk")).unwrap();
        disk.set_len(DISK).unwrap();
        let device_vm = between.device_vm(&assets).own_disk(&between.path("disk"));
        let device_vm = device_vm.script(DEVICE_VM).deadline(limit).reboots();
        let driver_vm = between.driver_vm(&assets).reconnects();
        let driver_vm = driver_vm
            .block(&between.path("vu-block"), 1)
            .script(DRIVER_VM)
            .deadline(limit)
            .reboots();
        let (device_vm, driver_vm) = (device_vm.start().unwrap(), driver_vm.start().unwrap());
        let mut this = Self {
            between,
            device_vm,
            driver_vm,
        };
        this.device_vm.wait_for("serving").unwrap();
        this.driver_vm.wait_for("booted").unwrap();
        this.goes_on("begin");
        this
    }

    /// A whole round is done from now on.
    fn goes_on(&mut self, word: &str) {
        self.driver_vm.send(word).unwrap();
        self.driver_vm.wait_for(&format!("{word}: round")).unwrap();
    }

    fn end(mut self) {
        self.driver_vm.send("end").unwrap();
        let driver = self.driver_vm.finish().unwrap();
        assert_eq!(driver.status, Some(0), "{}", driver.output);
        self.device_vm.send("end").unwrap();
        let device = self.device_vm.finish().unwrap();
        assert_eq!(device.status, Some(0), "{}", device.output);
        let image = fs::read(self.between.path("disk")).unwrap();
        assert_eq!(driver.output.lines().last(), Some(&*md5(&image)));
        self.between.stop();
    }
}

#[test]
fn a_disk_goes_on_when_vudev_is_killed_and_when_either_vm_reboots() {
    let times = env::var(TIMES_VARIABLE).map_or(TIMES, |text| text.parse().unwrap());
    let limit = Duration::from_secs(180 + 60 * u64::from(times));
    let mut scene = Scene::start(limit);
    let told = |what: &str, started: Instant| {
        println!(
            "{what} {times} times: {:.1} s",
            started.elapsed().as_secs_f64()
        );
    };

    let started = Instant::now();
    for _ in 0..times {
        for word in ["kill-device", "kill-all"] {
            scene.device_vm.send(word).unwrap();
            scene.device_vm.wait_for("serving").unwrap();
            scene.goes_on(word);
        }
    }
    told("a device killed, and all of vudev", started);

    let started = Instant::now();
    for _ in 0..times {
        scene.device_vm.send("reboot").unwrap();
        scene.device_vm.wait_for("serving").unwrap();
        scene.goes_on("device-vm");
    }
    told("device VM rebooted", started);

    let started = Instant::now();
    for _ in 0..times {
        scene.driver_vm.send("reboot").unwrap();
        scene.driver_vm.wait_for("booted").unwrap();
        scene.goes_on("driver-vm");
    }
    told("driver VM rebooted", started);
    scene.end();
}
