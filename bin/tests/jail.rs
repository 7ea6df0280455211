//! What the jail of a running device looks like from outside. What it feels like from inside is
//! tested by `vudev-escape` in `tests/`.

mod support;

use std::collections::HashMap;
use std::fs;
use std::io::ErrorKind;

use anyhow::{Context, Result};
use support::{Running, Setting};
use vudev_frontend::{Block, Console, FrontEnd};

/// `PF_IO_WORKER` (`linux/sched.h`): a thread that the kernel made for a ring.
const PF_IO_WORKER: u64 = 0x10;

fn five_devices() -> Result<Running> {
    let setting = Setting::new()?.serial("type=sink").serial("type=sink");
    setting.block()?.block()?.block()?.start()
}

fn status(process: i32) -> Result<HashMap<String, String>> {
    let text = fs::read_to_string(format!("/proc/{process}/status"))?;
    let fields = text.lines().filter_map(|line| line.split_once(":\t"));
    Ok(fields
        .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
        .collect())
}

/// What only root may look at, since a device cannot be dumped: `None` for an ordinary user.
fn privileged<T>(result: std::io::Result<T>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            assert!(!rustix::process::geteuid().is_root());
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

#[test]
fn each_device_has_no_rights_and_an_id_that_is_not_the_real_root() -> Result<()> {
    let running = five_devices()?;
    let devices = running.devices()?;
    assert_eq!(devices.len(), 5);
    for device in devices {
        let status = status(device)?;
        assert_eq!(status["Seccomp"], "2");
        assert_eq!(status["NoNewPrivs"], "1");
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(status[set], "0000000000000000", "{set}");
        }
        for ids in ["Uid", "Gid"] {
            assert!(
                !status[ids].split_whitespace().any(|id| id == "0"),
                "{ids} {}",
                status[ids]
            );
        }
        if rustix::process::geteuid().is_root() {
            assert_eq!(status["Groups"], "");
        }
        // Its own process id namespace, in which it is the first.
        assert!(status["NSpid"].ends_with("\t1"), "{}", status["NSpid"]);
        assert_eq!(status["Threads"], "1");
    }
    Ok(())
}

#[test]
fn each_device_has_namespaces_of_its_own() -> Result<()> {
    let running = five_devices()?;
    let devices = running.devices()?;
    for namespace in ["user", "pid", "mnt", "net", "ipc", "uts"] {
        let of = |process: &dyn std::fmt::Display| {
            fs::read_link(format!("/proc/{process}/ns/{namespace}"))
        };
        let mut seen = vec![of(&"self")?];
        for device in &devices {
            let Some(its) = privileged(of(device))? else {
                return Ok(());
            };
            assert!(!seen.contains(&its), "{namespace} is shared");
            seen.push(its);
        }
    }
    Ok(())
}

#[test]
fn a_device_sees_an_empty_directory_and_no_ring_but_its_own() -> Result<()> {
    let running = five_devices()?;
    for device in running.devices()? {
        let root = format!("/proc/{device}/root/");
        let Some(root) = privileged(fs::read_dir(root))? else {
            return Ok(());
        };
        assert_eq!(root.count(), 0);
        let maps = fs::read_to_string(format!("/proc/{device}/maps"))?;
        // A ring is two mappings: its indices with the completions, and the entries.
        let rings = maps
            .lines()
            .filter(|line| line.contains("io_uring"))
            .count();
        assert_eq!(rings, 2, "{maps}");
    }
    Ok(())
}

/// What each descriptor is, numbers and inodes left out.
fn descriptors(process: i32) -> std::io::Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(format!("/proc/{process}/fd"))? {
        let target = fs::read_link(entry?.path())?.to_string_lossy().into_owned();
        let kind = target
            .split_once(":[")
            .map_or(target.as_str(), |(kind, rest)| match kind {
                "anon_inode" => rest.trim_end_matches(']'),
                kind => kind,
            });
        found.push(kind.rsplit('/').next().unwrap_or(kind).to_owned());
    }
    found.sort();
    Ok(found)
}

#[test]
fn a_device_holds_the_descriptors_that_it_needs_and_no_more() -> Result<()> {
    let running = five_devices()?;
    let devices = running.devices()?;
    // The channel twice (for the log and for the event loop), and the listener.
    let common = [
        "io_uring", "null", "null", "null", "signalfd", "socket", "socket", "socket",
    ];
    let Some(console) = privileged(descriptors(devices[0]))? else {
        return Ok(());
    };
    assert_eq!(console, common);
    let mut with_image = vec!["disk-0".to_owned()];
    with_image.extend(common.map(str::to_owned));
    let disk = devices[2];
    assert_eq!(descriptors(disk)?, with_image);

    // Of a front-end it keeps the connection and eventfds, and gives them back.
    let mut first = None;
    for _ in 0..5 {
        let mut driver = Block::start(FrontEnd::connect(running.path("block-0")), 4, 512)?;
        driver.write(0, &[1; 512])?;
        // It answers, so whatever the last one left behind is here beside it.
        let connected = descriptors(disk)?;
        let added = |kind: &str| connected.iter().filter(|found| *found == kind).count();
        assert_eq!(added("socket"), 4, "{connected:?}");
        assert_eq!(
            connected.len() - added("eventfd"),
            with_image.len() + 1,
            "{connected:?}"
        );
        assert_eq!(first.get_or_insert_with(|| connected.clone()), &connected);
        let _ = driver.into_front().leave()?;
    }
    Ok(())
}

#[test]
fn a_device_is_one_user_thread_whatever_the_kernel_adds_for_its_ring() -> Result<()> {
    let running = five_devices()?;
    let mut disk = Block::start(FrontEnd::connect(running.path("block-0")), 4, 4096)?;
    disk.write(0, &[1; 4096])?;
    // An fsync is done by a worker.
    disk.flush()?;
    let mut console = Console::start(FrontEnd::connect(running.path("serial-0")), 2)?;
    console.send(b"hello")?;
    for device in running.devices()? {
        let mut threads = 0;
        for task in fs::read_dir(format!("/proc/{device}/task"))? {
            let stat = fs::read_to_string(task?.path().join("stat"))?;
            let fields = stat.rsplit_once(')').context("stat")?.1;
            // Field 9 of proc(5); the first behind the name is field 3.
            let flags: u64 = fields.split_whitespace().nth(6).context("flags")?.parse()?;
            threads += usize::from(flags & PF_IO_WORKER == 0);
        }
        assert_eq!(threads, 1);
    }
    Ok(())
}
