//! Fetches and assembles the guest that demo and tests boot: QEMU 11, a stock Debian cloud kernel,
//! busybox. It needs no root and leaves the host as it is; the result is kept in `target/guest/`.
//! Starting a guest is `vudev_harness::Guest`'s business.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Instant;
use std::{env, io};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{FlockOperation, flock};
use vudev_harness::archive::Archive;
use vudev_harness::{Assets, Manifest};

use crate::apt::{self, Apt};
use crate::process::{say, text};
use crate::{kernel, tools, workspace};

/// The release whose kernel and programs the guest has, and where its newer packages are.
pub(crate) const RELEASE: &str = "trixie";
pub(crate) const BACKPORTS: &str = "trixie-backports";

/// The cloud kernel's modules that vudev's devices need, in the order of loading. The console's
/// driver, ext4 and PCI are built in.
const MODULES: &[&str] = &[
    "virtio_blk",
    "failover",
    "net_failover",
    "virtio_net",
    "virtio-rng",
    "vsock",
    "vmw_vsock_virtio_transport_common",
    "vmw_vsock_virtio_transport",
];

/// Those that a device VM loads by itself, in this order: its programs drive PCI devices, and have
/// taps.
const DEVICE_VM_MODULES: &[&str] = &[
    "irqbypass",
    "vfio",
    "vfio_iommu_type1",
    "vfio-pci-core",
    "vfio-pci",
    "tun",
];

/// What the guest and its tests take from the distribution: QEMU, its front-end of disks without a
/// guest (`virtio-blk-vhost-user`, of `qemu-block-extra`), and tools for file systems.
const PACKAGES: &[&str] = &[
    "qemu-system-x86",
    "qemu-utils",
    "qemu-block-extra",
    "busybox-static",
    "e2fsprogs",
];

/// `vhost-user-test-device-pci`, our console's front-end, came with this QEMU.
const QEMU_MAJOR_MIN: u32 = 11;

/// Names a QEMU, kernel, modules and busybox to use instead of fetched ones.
const QEMU_VARIABLE: &str = "VUDEV_QEMU";
const KERNEL_VARIABLE: &str = "VUDEV_KERNEL";
const MODULES_VARIABLE: &str = "VUDEV_KERNEL_MODULES";
const BUSYBOX_VARIABLE: &str = "VUDEV_BUSYBOX";

/// The guest's parts, made now if they are not there yet.
pub(crate) fn ensure() -> Result<Assets> {
    let target = workspace::target()?;
    fs::create_dir_all(&target)?;
    // Two runs at a time must not build into the same folder.
    let lock = File::create(target.join("guest.lock"))?;
    flock(&lock, FlockOperation::LockExclusive)?;

    let folder = target.join("guest");
    let wish = wish();
    if let Ok(assets) = Assets::load(&folder)
        && assets.wish() == wish
    {
        return Ok(assets);
    }
    let started = Instant::now();
    let fresh = target.join("guest.new");
    remove(&fresh)?;
    fs::create_dir_all(&fresh)?;
    let mut manifest = if wish == STOCK {
        fetched(&fresh)?
    } else {
        pointed_to()?
    };
    manifest.wish = wish;
    fs::write(
        fresh.join(Manifest::FILE),
        serde_json::to_string_pretty(&manifest)?,
    )?;
    remove(&folder)?;
    fs::rename(&fresh, &folder)?;
    let assets = Assets::load(&folder)?;
    check_qemu(&assets)?;
    say(&format!(
        "the guest is ready ({:.0} s)",
        started.elapsed().as_secs_f64()
    ));
    Ok(assets)
}

/// The wish for a fetched guest.
const STOCK: &str = "stock";

/// What kind of guest is asked for by the environment.
fn wish() -> String {
    let variables = [
        QEMU_VARIABLE,
        KERNEL_VARIABLE,
        MODULES_VARIABLE,
        BUSYBOX_VARIABLE,
    ];
    let set: Vec<_> = variables
        .iter()
        .filter_map(|name| Some(format!("{name}={}", env::var(name).ok()?)))
        .collect();
    if set.is_empty() {
        STOCK.to_owned()
    } else {
        set.join(" ")
    }
}

/// Fetches everything from the Debian mirror that the host uses.
fn fetched(folder: &Path) -> Result<Manifest> {
    if !cfg!(target_arch = "x86_64") || tools::find("apt-get").is_none() {
        bail!("a guest can only be fetched on x86_64 with apt; {HOW_TO_POINT}");
    }
    tools::require(tools::FOR_GUEST)?;
    let work = folder.join("apt");
    let apt = Apt::new(&work, &[RELEASE, BACKPORTS])?;
    say("fetching the lists of packages (15 MB)");
    apt.update()?;
    say("fetching QEMU, busybox and e2fsprogs (50 MB)");
    let debs = apt.download(BACKPORTS, PACKAGES)?;
    let image = apt.dependency("linux-image-cloud-amd64", RELEASE, "linux-image-")?;
    say(&format!("fetching {image} (34 MB)"));
    let kernel_deb = apt.download_one(&image)?;

    say(&format!("unpacking {} packages", debs.len() + 1));
    let root = folder.join("root");
    apt::unpack(&debs, &root)?;
    let kernel_root = work.join("kernel");
    apt::unpack(&[kernel_deb], &kernel_root)?;
    let busybox = root.join("usr/bin/busybox");
    let image = only_file(&kernel_root.join("boot"), "vmlinuz-")?;
    place_kernel(&image, &folder.join("kernel"))?;
    let modules = kernel_root.join("usr/lib/modules");
    write_initramfs(&folder.join("initramfs.cpio"), &busybox, Some(&modules))?;
    fs::remove_dir_all(&work)?;
    Ok(fetched_manifest())
}

/// The unpacked programs run on any distribution through the loader that came with them.
fn fetched_manifest() -> Manifest {
    let library = Manifest::here("root/usr/lib/x86_64-linux-gnu");
    let run = |program: &str| {
        vec![
            Manifest::here("root/usr/lib64/ld-linux-x86-64.so.2"),
            "--library-path".to_owned(),
            format!("{library}:{library}/pulseaudio"),
            Manifest::here(program),
        ]
    };
    let mut qemu = run("root/usr/bin/qemu-system-x86_64");
    for firmware in ["root/usr/share/qemu", "root/usr/share/seabios"] {
        qemu.extend(["-L".to_owned(), Manifest::here(firmware)]);
    }
    Manifest {
        version: Manifest::VERSION,
        wish: String::new(),
        qemu,
        mkfs: run("root/usr/sbin/mkfs.ext4"),
        debugfs: run("root/usr/sbin/debugfs"),
        qemu_img: run("root/usr/bin/qemu-img"),
        qemu_io: run("root/usr/bin/qemu-io"),
        environment: BTreeMap::from([("QEMU_MODULE_DIR".to_owned(), format!("{library}/qemu"))]),
        kernel: Manifest::here("kernel"),
        initramfs: Manifest::here("initramfs.cpio"),
    }
}

const HOW_TO_POINT: &str = "elsewhere set VUDEV_QEMU to a qemu-system-x86_64 (11.0 or later), \
    VUDEV_KERNEL to a vmlinux or bzImage, VUDEV_BUSYBOX to a static busybox and \
    VUDEV_KERNEL_MODULES to the folder with that kernel's modules, if it has any; \
    mkfs.ext4, debugfs, qemu-img and qemu-io (e2fsprogs, qemu-utils) are then taken from PATH";

/// Uses what the environment points to.
fn pointed_to() -> Result<Manifest> {
    let named = |name: &str| match env::var(name) {
        Ok(path) if Path::new(&path).exists() => Ok(path),
        Ok(path) => bail!("{name}={path}: there is no such file"),
        Err(_) => bail!("{name} is not set; {HOW_TO_POINT}"),
    };
    let tool = |name: &str| {
        let packages = "e2fsprogs, qemu-utils";
        let found = tools::find(name).with_context(|| format!("{name} is missing ({packages})"))?;
        Ok::<_, anyhow::Error>(vec![found.to_string_lossy().into_owned()])
    };
    let modules = env::var_os(MODULES_VARIABLE).map(PathBuf::from);
    let folder = workspace::target()?.join("guest.new");
    let busybox = named(BUSYBOX_VARIABLE)?;
    write_initramfs(
        &folder.join("initramfs.cpio"),
        Path::new(&busybox),
        modules.as_deref(),
    )?;
    Ok(Manifest {
        version: Manifest::VERSION,
        wish: String::new(),
        qemu: vec![named(QEMU_VARIABLE)?],
        mkfs: tool("mkfs.ext4")?,
        debugfs: tool("debugfs")?,
        qemu_img: tool("qemu-img")?,
        qemu_io: tool("qemu-io")?,
        environment: BTreeMap::new(),
        kernel: named(KERNEL_VARIABLE)?,
        initramfs: Manifest::here("initramfs.cpio"),
    })
}

fn place_kernel(image: &Path, into: &Path) -> Result<()> {
    let bytes = fs::read(image)?;
    if !kernel::extract_vmlinux(&bytes, into)? {
        fs::copy(image, into)?;
    }
    Ok(())
}

/// The part of the initramfs that all guests have in common.
fn write_initramfs(path: &Path, busybox: &Path, modules: Option<&Path>) -> Result<()> {
    let mut archive = Archive::new(io::BufWriter::new(File::create(path)?));
    for folder in ["bin", "dev", "proc", "sys", "mnt", "tmp", "modules"] {
        archive.directory(folder)?;
    }
    // The kernel opens it for /init before anything is mounted.
    archive.character_device("dev/console", 5, 1)?;
    let program = fs::read(busybox).with_context(|| busybox.display().to_string())?;
    archive.program("bin/busybox", &program)?;
    for (list, names) in [("order", MODULES), ("device-vm", DEVICE_VM_MODULES)] {
        let mut order = String::new();
        for name in names {
            let Some(folder) = modules else { break };
            let Some(module) = kernel::module(folder, name, busybox)? else {
                continue;
            };
            archive.file(&format!("modules/{name}.ko"), &module)?;
            order += &format!("{name}\n");
        }
        archive.file(&format!("modules/{list}"), order.as_bytes())?;
    }
    archive.finish()?;
    Ok(())
}

fn check_qemu(assets: &Assets) -> Result<()> {
    let version = text(assets.qemu()?.arg("--version"))?;
    let major = version
        .split_whitespace()
        .find_map(|word| word.split_once('.')?.0.parse::<u32>().ok())
        .with_context(|| format!("QEMU says its version as {version:?}"))?;
    ensure!(
        major >= QEMU_MAJOR_MIN,
        "QEMU {major} is older than {QEMU_MAJOR_MIN}.0"
    );
    Ok(())
}

pub(crate) fn only_file(folder: &Path, prefix: &str) -> Result<PathBuf> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            return Ok(entry.path());
        }
    }
    bail!("there is no {prefix}… in {}", folder.display())
}

pub(crate) fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", folder.display()))
        }
        _ => Ok(()),
    }
}
