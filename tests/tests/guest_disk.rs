//! Real guests on our disks: every kind of request with its data verified, another size, the cache
//! mode. What can be shown without a guest is tested in `disk` and `data`, faster.

#![expect(
    clippy::unwrap_used,
    reason = "a suite whose own set-up fails has nothing to test"
)]

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::process::Signal;
use tempfile::TempDir;
use vudev_tests::sums::Sum;
use vudev_tests::{Assets, Guest, Vudev, VudevCommand};

/// Bytes on a disk.
const SIZE: u64 = 32 << 20;

/// A folder of the test's own, short enough for socket paths in it, with a disk of zeros.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("vudev-").tempdir().unwrap();
        let file = File::create(folder.path().join("disk")).unwrap();
        file.set_len(SIZE).unwrap();
        Self(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn disk(&self) -> PathBuf {
        self.path("disk")
    }

    fn socket(&self) -> PathBuf {
        self.path("socket")
    }

    fn start(&self, options: &str) -> Vudev {
        let options = format!("path={}{options}", self.disk().display());
        let command = VudevCommand::new().unwrap();
        command.block(&options, &self.socket()).start().unwrap()
    }
}

fn guest(folder: &Folder, queues: u16) -> Guest {
    Guest::new(&Assets::find().unwrap())
        .block(&folder.socket(), queues)
        .processors(queues.into())
}

#[test]
fn four_processors_mix_all_requests_of_all_sizes_and_find_what_they_wrote() {
    let folder = Folder::new();
    let vudev = folder.start(",queues=4");
    let script = "
        set -e
        ls /sys/block/vda/mq | wc -l
        vudev-verify /dev/vda 150 1";
    let guest = guest(&folder, 4)
        .program(Path::new(env!("CARGO_BIN_EXE_vudev-verify")))
        .script(script);
    let report = guest.run().unwrap();
    let output = &report.output;
    println!("{output}");
    assert_eq!(report.status, Some(0), "{output}");
    assert!(output.starts_with("4\n"), "{output}");
    assert!(output.contains("wrong sectors: 0\n"), "{output}");
    for kind in ["zeroed", "unmapped", "discarded", "flushes"] {
        assert!(!output.contains(&format!("{kind}: 0\n")), "{output}");
    }
    let mut sum = Sum::default();
    sum.add(&std::fs::read(folder.disk()).unwrap());
    let expected = format!("checksum: {:016x} of {} sectors\n", sum.value(), SIZE / 512);
    assert!(output.ends_with(&expected), "{output}{expected}");
    vudev.stop().unwrap();
}

#[test]
fn a_guest_sees_what_the_disk_is_gives_space_back_and_chooses_the_cache_mode() {
    let folder = Folder::new();
    let vudev = folder.start(",id=serial-7,queues=1,cache=writethrough");
    let script = "
        set -e
        cd /sys/block/vda
        cat serial queue/logical_block_size queue/discard_max_bytes queue/write_zeroes_max_bytes
        [ $(cat queue/physical_block_size) -ge 512 ]
        cat cache_type queue/write_cache
        echo 'write back' >cache_type
        cat cache_type queue/write_cache
        dd if=/dev/urandom of=/dev/vda bs=1M count=8 conv=fsync 2>/dev/null
        blkdiscard -o 1048576 -l 4194304 /dev/vda
        echo discarded";
    let report = guest(&folder, 1).script(script).run().unwrap();
    assert_eq!(report.status, Some(0), "{}", report.output);
    let expected = "serial-7512\n1073741824\n16777216\nwrite through\nwrite through\n\
                    write back\nwrite back\ndiscarded\n";
    assert_eq!(report.output, expected);
    let file = File::open(folder.disk()).unwrap();
    file.sync_all().unwrap();
    let taken = file.metadata().unwrap().blocks() * 512;
    assert!((4 << 20..5 << 20).contains(&taken), "{taken}");
    vudev.stop().unwrap();
}

#[test]
fn a_guest_sees_its_disk_grow_and_shrink() {
    let folder = Folder::new();
    let vudev = folder.start("");
    let script = "
        size() { cat /sys/block/vda/size; }
        changes() { old=$(size); echo at $old; while [ $(size) = $old ]; do :; done; }
        changes
        last=$(($(size) - 1))
        echo written | dd of=/dev/vda bs=512 seek=$last conv=sync,fsync 2>/dev/null || echo refused
        dd if=/dev/vda bs=512 skip=$last 2>/dev/null | head -c 7; echo
        changes
        echo at $(size)
        dmesg | grep -c 'vda. new size'";
    let mut guest = guest(&folder, 1).script(script).start().unwrap();
    let file = File::options().write(true).open(folder.disk()).unwrap();
    // The last line of the guest's that is awaited, since those before it are not kept.
    let grown = SIZE + 4096;
    let steps = [
        (format!("at {}", SIZE / 512), grown),
        ("written".to_owned(), grown),
        (format!("at {}", grown / 512), 1 << 20),
    ];
    for (line, size) in steps {
        guest.wait_for(&line).unwrap();
        file.set_len(size).unwrap();
        vudev.signal(Signal::USR1).unwrap();
    }
    let report = guest.finish().unwrap();
    let expected = format!(
        "at {}\nwritten\nat {}\nat 2048\n2\n",
        SIZE / 512,
        grown / 512
    );
    assert_eq!(report.output, expected);
    let log = vudev.log().unwrap();
    assert!(
        log.contains("the disk has 1048576 bytes now, 33558528 before"),
        "{log}"
    );
    vudev.stop().unwrap();
}
