//! QEMU's block layer without a guest as the front-end of the real, jailed `vudev`
//! (`driver=virtio-blk-vhost-user`, by libblkio): its tools write, read, give back and compare.

#![allow(clippy::unwrap_used, reason = "a test that fails here says where")]

use std::{
    fs::{self, File},
    os::unix::fs::{FileExt, MetadataExt},
    path::PathBuf,
    process::Command,
};

use tempfile::TempDir;
use vudev_tests::{Assets, Vudev, VudevCommand, sums};

/// Bytes on the disk.
const SIZE: usize = 32 << 20;

/// A `vudev` with a disk whose contents no two sectors share.
struct Scene {
    folder: TempDir,
    vudev: Vudev,
    assets: Assets,
}

impl Scene {
    fn new(options: &str) -> Self {
        // On a real disk: a tmpfs has no zeroed ranges.
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let mut bytes = vec![0; SIZE];
        for (sector, bytes) in (0..).zip(bytes.chunks_mut(sums::SECTOR)) {
            sums::fill(sector, 1, bytes);
        }
        fs::write(folder.path().join("disk"), bytes).unwrap();
        let socket = folder.path().join("socket");
        let options = format!("path={}{options}", folder.path().join("disk").display());
        let vudev = VudevCommand::new().unwrap();
        Self {
            vudev: vudev.block(&options, &socket).start().unwrap(),
            assets: Assets::find().unwrap(),
            folder,
        }
    }

    fn disk(&self) -> PathBuf {
        self.folder.path().join("disk")
    }

    /// Our socket as QEMU's tools name a disk, behind `--image-opts`.
    fn named(&self) -> String {
        let socket = self.folder.path().join("socket");
        format!(
            "driver=virtio-blk-vhost-user,path={},cache.direct=on",
            socket.display()
        )
    }

    /// What a tool printed, which must succeed, or `None` if it knows no such front-end.
    fn run(&self, mut tool: Command, arguments: &[&str]) -> Option<String> {
        let output = tool.args(arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        if said.contains("Unknown driver") {
            println!("SKIPPED: needs QEMU's tools with libblkio (package qemu-block-extra)");
            return None;
        }
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success(),
            "{arguments:?}: {printed}{said}{}",
            self.vudev.log().unwrap()
        );
        Some(printed)
    }
}

#[test]
fn qemu_img_compares_our_disk_with_its_file_and_finds_a_difference() {
    for options in ["", ",queues=1,direct"] {
        let scene = Scene::new(options);
        let copy = scene.folder.path().join("copy");
        fs::copy(scene.disk(), &copy).unwrap();
        let named = scene.named();
        let other = format!(
            "driver=raw,file.driver=file,file.filename={}",
            copy.display()
        );
        let arguments = ["compare", "--image-opts", &named, &other];
        let Some(said) = scene.run(scene.assets.qemu_img().unwrap(), &arguments) else {
            return;
        };
        assert_eq!(said, "Images are identical.\n");
        let file = File::options().write(true).open(&copy).unwrap();
        file.write_all_at(b"another", 20 << 20).unwrap();
        let mut tool = scene.assets.qemu_img().unwrap();
        let output = tool.args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(
            said.contains("Content mismatch at offset 20971520"),
            "{said}"
        );
        scene.vudev.stop().unwrap();
    }
}

#[test]
fn qemu_img_bench_writes_and_reads_many_requests_at_once() {
    let scene = Scene::new("");
    let named = scene.named();
    for (more, count, size) in [
        (
            &["-w", "--pattern", "0x5a", "--flush-interval", "256"][..],
            "4000",
            "4096",
        ),
        (&[], "4000", "4096"),
        (&[], "200", "1048576"),
    ] {
        let usual = [
            "bench",
            "-d",
            "32",
            "-c",
            count,
            "-s",
            size,
            "--image-opts",
            &named,
        ];
        let arguments = [&usual[..1], more, &usual[1..]].concat();
        let Some(said) = scene.run(scene.assets.qemu_img().unwrap(), &arguments) else {
            return;
        };
        assert!(said.contains("Run completed"), "{said}");
        println!("{arguments:?}: {}", said.lines().last().unwrap_or_default());
    }
    let bytes = fs::read(scene.disk()).unwrap();
    let (written, rest) = bytes.split_at(4000 * 4096);
    assert!(written.iter().all(|byte| *byte == 0x5a));
    let mut right = [0; sums::SECTOR];
    sums::fill(4000 * 8, 1, &mut right);
    assert_eq!(rest[..sums::SECTOR], right);
    scene.vudev.stop().unwrap();
}

#[test]
fn qemu_io_discards_and_zeroes_and_what_it_gives_back_is_free() {
    let scene = Scene::new("");
    let taken = || {
        let file = File::open(scene.disk()).unwrap();
        file.sync_all().unwrap();
        file.metadata().unwrap().blocks()
    };
    let before = taken();
    let commands = [
        "write -P 0x11 0 8M",
        "discard 0 1M",
        "write -z 1M 1M",
        "write -zu 2M 1M",
        "write -P 0x22 3584 512",
        "flush",
        "read -P 0 1M 2M",
        "read -P 0x11 3M 5M",
        "read -P 0x22 3584 512",
    ];
    let named = scene.named();
    let mut arguments = vec!["--image-opts"];
    arguments.extend(commands.iter().flat_map(|command| ["-c", *command]));
    arguments.push(&named);
    let Some(said) = scene.run(scene.assets.qemu_io().unwrap(), &arguments) else {
        return;
    };
    assert!(!said.contains("failed"), "{said}");
    let after = taken();
    // 1 MiB discarded but for a block, 1 MiB unmapped; what was zeroed alone is kept.
    let freed = before.saturating_sub(after) * 512;
    assert!(((2 << 20) - 65_536..3 << 20).contains(&freed), "{freed}");
    scene.vudev.stop().unwrap();
}
