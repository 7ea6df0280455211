//! What the disk's kind promises: each key's effect or its refusal, and what is no disk.

use std::fs::{File, FileTimes};
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::time::{Duration, UNIX_EPOCH};

use rustix::fs::{FlockOperation, OFlags};
use vudev_devices::block::BlockConfig;

use super::{Scene, flags, is_cloexec};
use crate::kinds::Block;
use crate::options::quote;

#[test]
fn a_disk_is_its_image_and_the_values_given() {
    let scene = Scene::new();
    scene.file("disk", 1 << 20);
    let argument = "DIR/disk,block-size=4k,id=x,queues=2,queue-size=64,root,sparse=false,\
                    cache=writethrough";
    let (config, file) = scene.disk(argument);
    let expected = BlockConfig {
        read_only: false,
        sparse: false,
        write_through: true,
        block_size: 4096,
        physical_block_size: 4096,
        capacity: 1 << 20,
        direct: false,
        direct_alignment: 512,
        id: Some("x".to_owned()),
        queues: 2,
        queue_size: 64,
    };
    assert_eq!(config, expected);
    assert!(is_cloexec(&file));
    assert!(flags(&file).contains(OFlags::RDWR) && !flags(&file).contains(OFlags::NONBLOCK));
}

#[test]
fn a_disk_of_defaults_has_the_devices_own() {
    let scene = Scene::new();
    scene.file("disk", 8192);
    let (config, _file) = scene.disk("path=DIR/disk");
    assert_eq!(
        config,
        BlockConfig {
            capacity: 8192,
            // What the file system tells.
            physical_block_size: config.physical_block_size,
            ..BlockConfig::default()
        }
    );
}

#[test]
fn a_read_only_disk_is_opened_to_read() {
    let scene = Scene::new();
    scene.file("disk", 8192);
    let (config, mut file) = scene.disk("DIR/disk,ro");
    assert!(config.read_only);
    file.write_all(b"x").expect_err("opened to read");
}

#[test]
fn reads_of_a_disk_change_no_access_time() {
    let scene = Scene::new();
    let path = scene.file("disk", 8192);
    let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
    for argument in ["DIR/disk", "DIR/disk,ro"] {
        let (_, file) = scene.disk(argument);
        // Older than the last change, which is when a read would note its time.
        let times = FileTimes::new().set_accessed(at(1)).set_modified(at(2));
        let other = File::options().write(true).open(&path).expect("open");
        other.set_times(times).expect("its owner may");
        file.read_exact_at(&mut [0; 512], 0).expect("read");
        let accessed = file.metadata().and_then(|it| it.accessed());
        assert_eq!(accessed.expect("a time"), at(1), "{argument}");
    }
}

#[test]
fn a_disk_keeps_others_from_writing() {
    let scene = Scene::new();
    let path = scene.file("disk", 8192);
    let other = File::open(path).expect("open");
    let tries = |operation| rustix::fs::flock(&other, operation).is_ok();
    {
        let (_, _file) = scene.disk("DIR/disk");
        assert!(!tries(FlockOperation::NonBlockingLockShared));
    }
    {
        let (_, _file) = scene.disk("DIR/disk,ro");
        let (_, _second) = scene.disk("DIR/disk,ro");
        assert!(!tries(FlockOperation::NonBlockingLockExclusive));
    }
    assert!(tries(FlockOperation::NonBlockingLockExclusive));
    assert_eq!(
        scene.refusal::<Block>("ro,path=DIR/disk"),
        "--block: path: column 9: \"DIR/disk\" is locked: another disk of this command or another \
         process has it open to write: end the other one; lock=false risks the data"
    );
    scene.disk("DIR/disk,lock=false");
}

#[test]
fn a_direct_disk_is_opened_so_or_refused_by_its_key() {
    let scene = Scene::new();
    scene.file("disk", 8192);
    match scene.open::<Block>("DIR/disk,o_direct") {
        Ok(opened) => {
            let BlockConfig {
                direct,
                direct_alignment,
                physical_block_size,
                ..
            } = opened.description;
            assert!(direct && direct_alignment <= physical_block_size);
            assert!(flags(&opened.descriptors[0]).contains(OFlags::DIRECT));
            // Coarser than the guest's blocks: that is possible, and worth a line.
            let notes = usize::from(direct_alignment > 512);
            assert_eq!(opened.notes.len(), notes, "{:?}", opened.notes);
        }
        // Not every file system has it.
        Err(error) => assert!(error.starts_with("--block: direct: column 10: "), "{error}"),
    }
}

#[test]
fn what_is_no_disk_is_one_line_with_the_cause() {
    let scene = Scene::new();
    scene.file("empty", 0);
    scene.file("odd", 1000);
    scene.file("half", 512);
    scene.fifo("fifo");
    let _socket = UnixListener::bind(scene.path("socket")).expect("bound");
    let remedy = "write the path of a raw image or a block device";
    let cases = [
        (
            "DIR/none",
            "cannot open \"DIR/none\": No such file or directory: \
            write the path of a file that exists"
                .to_owned(),
        ),
        ("DIR", format!("\"DIR\" is a directory: {remedy}")),
        ("DIR,ro", format!("\"DIR\" is a directory: {remedy}")),
        ("DIR/fifo", format!("\"DIR/fifo\" is a FIFO: {remedy}")),
        ("DIR/fifo,ro", format!("\"DIR/fifo\" is a FIFO: {remedy}")),
        (
            "DIR/socket",
            format!("\"DIR/socket\" is a socket: {remedy}"),
        ),
        (
            "/dev/null",
            format!("\"/dev/null\" is a character device: {remedy}"),
        ),
        (
            "/proc/self/mem",
            "cannot read \"/proc/self/mem\": Input/output error: \
            write the path of an image, or give format=raw"
                .to_owned(),
        ),
        (
            "DIR/empty",
            "\"DIR/empty\" is empty: \
            give it a size, by truncate -s 1G FILE say"
                .to_owned(),
        ),
        (
            "DIR/odd",
            "the size of \"DIR/odd\", 1000 bytes, is not a multiple of its block size 512: \
            fill it up with zeros by truncate -s %512 FILE"
                .to_owned(),
        ),
        (
            "DIR/half,block-size=4k",
            "the size of \"DIR/half\", 512 bytes, is not a multiple of its \
            block size 4096: fill it up with zeros by truncate -s %4096 FILE"
                .to_owned(),
        ),
    ];
    for (argument, text) in cases {
        let expected = format!("--block: path: column 1: {text}");
        assert_eq!(scene.refusal::<Block>(argument), expected, "{argument}");
    }
}

#[test]
fn a_disk_that_may_only_be_read_is_told_about_ro() {
    let scene = Scene::new();
    let path = scene.file("disk", 8192);
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o400)).expect("set");
    match scene.open::<Block>("DIR/disk") {
        // Root may write to everything.
        Ok(_) => assert!(rustix::process::geteuid().is_root()),
        Err(error) => assert!(
            error.contains("give ro for a disk that is only read"),
            "{error}"
        ),
    }
    scene.disk("DIR/disk,ro");
}

#[test]
fn sizes_of_a_disk_are_powers_of_two() {
    let scene = Scene::new();
    scene.file("disk", 8192);
    assert_eq!(
        scene
            .refusal::<Block>("DIR/disk,queue-size=100")
            .split_once("column")
            .expect("one")
            .0,
        "--block: queue-size: "
    );
    let refusal = scene.refusal::<Block>("block-size=1536,path=DIR/disk");
    assert_eq!(
        refusal,
        "--block: block-size: column 12: 1536 is not a power of two: write 1024 or 2048"
    );
}

#[test]
fn every_key_of_a_disk_is_honoured_noted_or_refused() {
    let scene = Scene::new();
    scene.file("disk", 8192);
    for refused in [
        "packed-queue",
        "dontcache",
        "async-executor=epoll",
        "cache=none",
        "cache=directsync",
        "cache=unsafe",
        "format=qcow2",
        "format=vmdk",
        "format=vhdx",
    ] {
        let error = scene.refusal::<Block>(&format!("DIR/disk,{refused}"));
        assert!(error.contains("is not available: "), "{refused}: {error}");
    }
    for noted in [
        "multiple-workers",
        "root",
        "bootindex=1",
        "pci-address=00:05.0",
    ] {
        let opened = scene
            .open::<Block>(&format!("DIR/disk,{noted}"))
            .expect(noted);
        assert_eq!(opened.notes.len(), 1, "{noted}");
    }
    let opened = scene.open::<Block>("DIR/disk,async-executor=uring,packed-queue=false");
    assert!(opened.expect("what holds anyway").notes.is_empty());
}

#[test]
fn a_path_with_a_comma_is_quoted() {
    let scene = Scene::new();
    let path = scene.file("a,b", 8192);
    scene.disk(&format!("path={}", quote(path.to_str().expect("UTF-8"))));
}

#[test]
fn an_image_of_another_format_is_refused_unless_raw_is_said() {
    let scene = Scene::new();
    let path = scene.file("disk", 8192);
    let magics: [(&str, u64, &[u8]); 12] = [
        ("qcow2", 0, b"QFI\xfb\0\0\0\x03"),
        ("QED", 0, b"QED\0"),
        ("VMDK", 0, b"KDMV\x01"),
        ("VMDK", 0, b"COWD"),
        ("VMDK", 0, b"# Disk DescriptorFile\n"),
        ("VHDX", 0, b"vhdxfile"),
        ("VHD", 0, b"conectix"),
        ("VHD", 8192 - 512, b"conectix"),
        ("VDI", 64, b"\x7f\x10\xda\xbe"),
        ("Parallels", 0, b"WithouFreSpacExt"),
        ("crosvm composite", 0, b"composite_disk\x1d"),
        ("Android sparse", 0, b"\x3a\xff\x26\xed"),
    ];
    for (name, at, magic) in magics {
        let file = File::create(&path).expect("made anew");
        file.set_len(8192).expect("sized");
        file.write_all_at(magic, at).expect("written");
        for other in ["", ",ro", ",format=raw"] {
            let argument = format!("DIR/disk{other}");
            if other == ",format=raw" {
                scene.disk(&argument);
                continue;
            }
            let expected = format!(
                "--block: path: column 1: \"DIR/disk\" looks like a {name} image: convert it by \
                 qemu-img convert -O raw, or give format=raw if the guest is to see it as it is"
            );
            assert_eq!(scene.refusal::<Block>(&argument), expected);
        }
    }
}

#[test]
fn an_image_is_recognised_through_direct_access_too_and_stays_open_so() {
    let scene = Scene::new();
    let path = scene.file("disk", 8192);
    let Ok(opened) = scene.open::<Block>("DIR/disk,direct") else {
        println!("SKIPPED: needs a temporary folder with direct access");
        return;
    };
    assert!(flags(&opened.descriptors[0]).contains(OFlags::DIRECT));
    drop(opened);
    let file = File::options().write(true).open(path).expect("open");
    file.write_all_at(b"QFI\xfb", 0).expect("written");
    let refusal = scene.refusal::<Block>("DIR/disk,direct");
    assert!(refusal.contains("looks like a qcow2 image"), "{refusal}");
}

#[test]
fn a_file_shorter_than_a_header_is_no_image_of_another_format() {
    let scene = Scene::new();
    let path = scene.file("disk", 512);
    std::fs::write(&path, [b"vhd".as_slice(), &[0; 509]].concat()).expect("written");
    scene.disk("DIR/disk");
}
