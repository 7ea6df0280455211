//! Real guests: an unmodified QEMU with a stock Debian kernel on our consoles and disks. What can
//! be shown without a guest is tested elsewhere, faster.

#![expect(
    clippy::unwrap_used,
    reason = "a suite whose own set-up fails has nothing to test"
)]

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use vudev_tests::{Assets, Child, Guest, Terminal, Vudev, VudevCommand, wait_until_listening};

/// A guest's shell answers within a second; a machine that runs all tests at once is slower.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// How long vudev may take from SIGTERM to its end.
const STOP_LIMIT: Duration = Duration::from_secs(2);

#[test]
fn the_harness_returns_what_a_script_printed_and_its_exit_status() {
    let report = Guest::new(&assets())
        .script("echo one; echo two >&2; exit 7")
        .run()
        .unwrap();
    assert_eq!(report.output, "one\ntwo\n");
    assert_eq!(report.status, Some(7));
}

#[test]
fn the_harness_works_with_a_back_end_that_is_not_ours() {
    let folder = Folder::new();
    let (image, socket) = (folder.ext4("disk.img"), folder.path("block.sock"));
    let mut command = Command::new("qemu-storage-daemon");
    let node = format!("driver=file,node-name=disk,filename={}", image.display());
    let export = format!(
        "type=vhost-user-blk,id=e,node-name=disk,writable=on,addr.type=unix,addr.path={}",
        socket.display()
    );
    command.args(["--blockdev", &node, "--export", &export]);
    let mut daemon = Child::start("qemu-storage-daemon", &command).unwrap();
    wait_until_listening(&socket, &mut daemon, Duration::from_secs(20)).unwrap();
    let script = "set -e; mount -t ext4 /dev/vda /mnt; echo kept >/mnt/file; cat /mnt/file";
    let guest = Guest::new(&assets()).block(&socket, 1).script(script);
    assert_eq!(run(guest), "kept\n");
}

#[test]
fn a_guest_boots_on_our_console_and_reads_back_what_it_wrote_to_our_disk() {
    let folder = Folder::new();
    let (image, screen) = (folder.ext4("disk.img"), folder.path("screen"));
    let (console, block) = (folder.path("console.sock"), folder.path("block.sock"));
    let vudev = vudev()
        .serial(&to_file(&screen), &console)
        .block(&format!("path={}", image.display()), &block)
        .start()
        .unwrap();
    let script = "
        set -e
        cat /sys/class/tty/console/active
        echo 'the guest says hello' >/dev/hvc0
        mount -t ext4 /dev/vda /mnt
        dd if=/dev/urandom bs=1M count=8 2>/dev/null | tee /mnt/data | sha256sum >/tmp/written
        sync
        echo 3 >/proc/sys/vm/drop_caches
        sha256sum </mnt/data | cmp - /tmp/written
        cat /tmp/written
        umount /mnt";
    let guest = Guest::new(&assets())
        .console(&console)
        .block(&block, 1)
        .script(script);
    let output = run(guest);
    let (active, sum) = output.split_once('\n').unwrap();
    assert_eq!(active, "hvc0");
    stop(vudev, &[&console, &block]);
    let screen = fs::read_to_string(screen).unwrap();
    assert!(screen.contains("the guest says hello"), "{screen}");
    assert_eq!(sum, checksum_in_image(&folder, &image, "data"));
}

#[test]
fn the_example_of_crosvm_echoes_what_is_typed_and_leaves_the_terminal_as_it_was() {
    let folder = Folder::new();
    let socket = folder.path("vu-serial");
    let mut terminal = Terminal::open().unwrap();
    let vudev = vudev()
        .serial(
            "hardware=virtio-console,console,stdin,type=stdout,earlycon",
            &socket,
        )
        .input(terminal.program_end().unwrap())
        .output(terminal.program_end().unwrap())
        .start()
        .unwrap();
    let mut guest = Guest::new(&assets()).console(&socket).start().unwrap();
    terminal.until("guest# ", ANSWER_LIMIT).unwrap();
    assert!(
        !terminal.echoes().unwrap(),
        "the host's terminal is in raw mode"
    );
    terminal
        .type_text("echo $((6 * 7)) is the answer\r")
        .unwrap();
    terminal
        .until("echo $((6 * 7)) is the answer", ANSWER_LIMIT)
        .unwrap();
    terminal.until("42 is the answer", ANSWER_LIMIT).unwrap();
    terminal.type_text("exit\r").unwrap();
    guest.wait(ANSWER_LIMIT).unwrap();
    stop(vudev, &[&socket]);
    assert!(
        terminal.echoes().unwrap(),
        "the host's terminal is as it was"
    );
}

#[test]
fn two_consoles_and_three_different_disks_serve_one_guest() {
    let folder = Folder::new();
    let screens = ["first", "second"].map(|name| folder.path(name));
    let images = ["a.img", "b.img", "c.img"].map(|name| folder.raw(name));
    let sockets = ["s0", "s1", "s2", "s3", "s4"].map(|name| folder.path(name));
    let path = |image: &PathBuf| format!("path={}", image.display());
    let vudev = vudev()
        .serial(&to_file(&screens[0]), &sockets[0])
        .serial(&to_file(&screens[1]), &sockets[1])
        .block(&path(&images[0]), &sockets[2])
        .block(&format!("{},ro", path(&images[1])), &sockets[3])
        .block(
            &format!("{},block-size=4096", path(&images[2])),
            &sockets[4],
        )
        .start()
        .unwrap();
    assert_eq!(vudev.devices().unwrap().len(), 5);
    let script = "
        for disk in vda vdb vdc; do
            echo $disk $(head -c 5 /dev/$disk) ro=$(cat /sys/block/$disk/ro) \\
                block=$(blockdev --getss /dev/$disk)
        done
        echo written | dd of=/dev/vda bs=4096 seek=1 conv=sync,fsync 2>/dev/null
        echo written | dd of=/dev/vdc bs=4096 seek=1 conv=sync,fsync 2>/dev/null
        dd if=/dev/zero of=/dev/vdb bs=512 count=1 2>/dev/null || echo vdb refuses
        echo one >/dev/hvc0
        echo two >/dev/hvc1";
    let mut guest = Guest::new(&assets())
        .console(&sockets[0])
        .console(&sockets[1]);
    for socket in &sockets[2..] {
        guest = guest.block(socket, 1);
    }
    let expected = "vda a.img ro=0 block=512\nvdb b.img ro=1 block=512\n\
                    vdc c.img ro=0 block=4096\nvdb refuses\n";
    assert_eq!(run(guest.script(script)), expected);
    stop(vudev, &sockets.each_ref().map(PathBuf::as_path));
    assert!(fs::read_to_string(&screens[0]).unwrap().contains("one\r\n"));
    assert!(fs::read_to_string(&screens[1]).unwrap().contains("two\r\n"));
    let second_block = |image: &PathBuf| {
        let mut bytes = [0; 7];
        File::open(image)
            .unwrap()
            .read_exact_at(&mut bytes, 4096)
            .unwrap();
        bytes
    };
    assert_eq!(second_block(&images[0]), *b"written");
    assert_eq!(second_block(&images[1]), [0; 7]);
    assert_eq!(second_block(&images[2]), *b"written");
}

#[test]
fn a_guest_with_two_processors_uses_a_queue_for_each() {
    let folder = Folder::new();
    let (image, socket) = (folder.ext4("disk.img"), folder.path("block.sock"));
    let options = format!("path={},queues=2", image.display());
    let vudev = vudev().block(&options, &socket).start().unwrap();
    let script = "
        set -e
        ls /sys/block/vda/mq | wc -l
        mount -t ext4 /dev/vda /mnt
        write() { taskset $1 dd if=/dev/urandom of=/mnt/$1 bs=64k count=32 2>/dev/null; }
        write 1 & write 2 & wait
        cat /mnt/1 /mnt/2 | sha256sum >/tmp/written
        sync
        echo 3 >/proc/sys/vm/drop_caches
        taskset 1 cat /mnt/1 >/tmp/1 &
        taskset 2 cat /mnt/2 >/tmp/2 &
        wait
        cat /tmp/1 /tmp/2 | sha256sum | cmp - /tmp/written
        umount /mnt";
    let guest = Guest::new(&assets())
        .block(&socket, 2)
        .processors(2)
        .script(script);
    assert_eq!(run(guest), "2\n");
    stop(vudev, &[&socket]);
}

#[test]
fn a_guest_that_reboots_finds_its_console_and_its_data_again() {
    let folder = Folder::new();
    let (image, screen) = (folder.ext4("disk.img"), folder.path("screen"));
    let (console, block) = (folder.path("console.sock"), folder.path("block.sock"));
    let vudev = vudev()
        .serial(&to_file(&screen), &console)
        .block(&format!("path={}", image.display()), &block)
        .start()
        .unwrap();
    let devices = vudev.devices().unwrap();
    let deadline = Instant::now() + ANSWER_LIMIT;
    while !vudev.log().unwrap().contains("2 devices are ready") {
        assert!(Instant::now() < deadline, "{}", vudev.log().unwrap());
        std::thread::yield_now();
    }
    let at_rest = descriptors(&devices);
    let script = "
        mount -t ext4 /dev/vda /mnt || exit 1
        [ -e /mnt/data ] || dd if=/dev/urandom of=/mnt/data bs=1M count=2 2>/dev/null
        [ -e /mnt/sum ] || sha256sum </mnt/data >/mnt/sum
        sha256sum </mnt/data | cmp - /mnt/sum || exit 1
        echo boot >>/mnt/boots
        boots=$(wc -l </mnt/boots)
        echo boot $boots >/dev/hvc0
        echo boot $boots
        umount /mnt
        [ $boots = 3 ] || reboot -f";
    let guest = Guest::new(&assets())
        .console(&console)
        .block(&block, 1)
        .reboots();
    assert_eq!(run(guest.script(script)), "boot 1\nboot 2\nboot 3\n");
    assert_eq!(
        vudev.devices().unwrap(),
        devices,
        "the same processes served all three boots"
    );
    // The devices see their front-end leave a moment after it has.
    let deadline = Instant::now() + ANSWER_LIMIT;
    while descriptors(&devices) != at_rest {
        assert!(
            Instant::now() < deadline,
            "descriptors: {at_rest:?} at rest"
        );
        std::thread::yield_now();
    }
    stop(vudev, &[&console, &block]);
    let screen = fs::read_to_string(screen).unwrap();
    assert_eq!(screen.matches("boot 3\r\n").count(), 1, "{screen}");
}

#[test]
fn sigterm_during_a_guests_io_ends_everything_in_time() {
    let folder = Folder::new();
    let (image, screen) = (folder.ext4("disk.img"), folder.path("screen"));
    let (console, block) = (folder.path("console.sock"), folder.path("block.sock"));
    let vudev = vudev()
        .serial(&to_file(&screen), &console)
        .block(&format!("path={}", image.display()), &block)
        .start()
        .unwrap();
    let devices = vudev.devices().unwrap();
    let guest = Guest::new(&assets())
        .console(&console)
        .block(&block, 1)
        .script(BUSY_SCRIPT);
    let mut guest = guest.start().unwrap();
    guest.wait_for("busy 3").unwrap();
    stop(vudev, &[&console, &block]);
    for device in devices {
        assert!(
            !Path::new(&format!("/proc/{device}")).exists(),
            "{device} is still there"
        );
    }
}

#[test]
fn a_device_that_is_killed_is_named_and_the_guests_other_devices_go_on() {
    let folder = Folder::new();
    let images = ["a.img", "b.img"].map(|name| folder.ext4(name));
    let sockets = ["a.sock", "b.sock"].map(|name| folder.path(name));
    let mut command = vudev();
    for (image, socket) in images.iter().zip(&sockets) {
        command = command.block(&format!("path={}", image.display()), socket);
    }
    let mut vudev = command.start().unwrap();
    let script = format!("{BUSY_SCRIPT}\necho still here");
    let mut guest = Guest::new(&assets());
    for socket in &sockets {
        guest = guest.block(socket, 1);
    }
    let mut guest = guest.script(&script).start().unwrap();
    guest.wait_for("busy 1").unwrap();
    let victim = vudev.devices().unwrap()[1];
    let victim = Pid::from_raw(i32::try_from(victim).unwrap()).unwrap();
    kill_process(victim, Signal::KILL).unwrap();
    let report = guest.finish().unwrap();
    assert!(
        report.output.ends_with("busy 5\nstill here\n"),
        "{}",
        report.output
    );
    vudev.signal(Signal::TERM).unwrap();
    let status = vudev.wait(STOP_LIMIT).unwrap();
    let log = vudev.log().unwrap();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("signal 9") || log.contains("SIGKILL"), "{log}");
}

/// Writes and reads its first disk in five rounds.
const BUSY_SCRIPT: &str = "
    mount -t ext4 /dev/vda /mnt || exit 1
    for round in 1 2 3 4 5; do
        dd if=/dev/zero of=/mnt/data bs=1M count=16 conv=fsync 2>/dev/null
        echo 3 >/proc/sys/vm/drop_caches
        cat /mnt/data >/dev/null
        echo busy $round
    done";

/// The guest's parts; `cargo xtask guest` gets them.
/// How many descriptors each process holds; `None` where the kernel does not show it.
fn descriptors(processes: &[u32]) -> Vec<Option<usize>> {
    let count = |process| Some(fs::read_dir(format!("/proc/{process}/fd")).ok()?.count());
    processes.iter().map(count).collect()
}

fn assets() -> Assets {
    Assets::find().unwrap()
}

fn vudev() -> VudevCommand {
    VudevCommand::new().unwrap()
}

/// The options of a console whose output goes to a file.
fn to_file(screen: &Path) -> String {
    format!("type=file,path={}", screen.display())
}

/// Runs a guest whose script must succeed, and returns what that printed.
fn run(guest: Guest) -> String {
    let report = guest.run().unwrap();
    assert_eq!(report.status, Some(0), "{}", report.output);
    report.output
}

/// Stops vudev, which must end in time, with status 0 and without leaving a socket.
fn stop(mut vudev: Vudev, sockets: &[&Path]) {
    vudev.signal(Signal::TERM).unwrap();
    let status = vudev.wait(STOP_LIMIT).unwrap();
    assert!(status.success(), "{status}: {}", vudev.log().unwrap());
    for socket in sockets {
        assert!(!socket.exists(), "{} is left", socket.display());
    }
}

/// The checksum of a file in an ext4 image, taken without a guest.
fn checksum_in_image(folder: &Folder, image: &Path, name: &str) -> String {
    let copy = folder.path("copy");
    let request = format!("dump /{name} {}", copy.display());
    let mut debugfs = assets().debugfs().unwrap();
    assert!(
        debugfs
            .args(["-R", &request])
            .arg(image)
            .output()
            .unwrap()
            .status
            .success()
    );
    let output = Command::new("sha256sum")
        .stdin(File::open(copy).unwrap())
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// A folder of the test's own, short enough for socket paths in it.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::Builder::new().prefix("vudev-").tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// An image with an empty ext4 file system.
    fn ext4(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        assets().make_ext4(&path, 64).unwrap();
        path
    }

    /// An image of 1 MiB that begins with its own name, and zeros after it.
    fn raw(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        let file = File::create(&path).unwrap();
        file.set_len(1 << 20).unwrap();
        file.write_all_at(name.as_bytes(), 0).unwrap();
        path
    }
}
