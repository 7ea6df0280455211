//! Disks served by a back-end as a user would start it, ours or a peer's. Not what is asked of
//! them.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::fs::statfs;
use vudev_harness::{Child, Vudev, VudevCommand, wait_until_listening};

/// The peer for disks, of the package qemu-utils or qemu-system-common.
pub const STORAGE_DAEMON: &str = "qemu-storage-daemon";

/// Queues that a disk has; a driver uses as many as it likes.
pub const QUEUES: u16 = 4;

/// Starting takes milliseconds; this is for a machine that is very busy.
const START_LIMIT: Duration = Duration::from_secs(20);

/// What a disk's bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// A file in the page cache.
    Cached,
    /// A file, past the page cache.
    Direct,
    /// Nothing.
    Null,
}

impl Storage {
    /// As it is called in figures.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cached => "cached",
            Self::Direct => "direct",
            Self::Null => "null",
        }
    }
}

/// A file full of bytes, in a folder that goes with it.
#[derive(Debug)]
pub struct Image {
    folder: tempfile::TempDir,
    path: PathBuf,
    size: u64,
}

impl Image {
    /// A file of `size` bytes below `folder`, all of it in the page cache.
    ///
    /// # Errors
    ///
    /// When there is no room, or the folder is on a tmpfs.
    pub fn new(folder: &Path, size: u64) -> Result<Self> {
        fs::create_dir_all(folder)?;
        // A ring hands reads of it to worker threads, as no disk's.
        if statfs(folder)?.f_type == libc::TMPFS_MAGIC {
            bail!("{} is on a tmpfs, which is no disk", folder.display());
        }
        let folder = tempfile::tempdir_in(folder)?;
        let path = folder.path().join("disk");
        let mut file = File::create(&path)?;
        let piece = vec![0xa5; 1 << 20];
        for _ in 0..size >> 20 {
            file.write_all(&piece)?;
        }
        file.sync_all()?;
        Ok(Self { folder, path, size })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its length.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Leaves nothing to be written back during the next figures, and all of it in the page cache:
    /// what is written past that is dropped from it.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn settle(&self) -> Result<()> {
        let mut file = File::open(&self.path)?;
        file.sync_all()?;
        let mut piece = vec![0; 1 << 20];
        while file.read(&mut piece)? > 0 {}
        Ok(())
    }

    fn socket(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

/// A disk's back-end at work; ends when dropped.
#[derive(Debug)]
pub struct Backend {
    name: &'static str,
    process: Process,
    socket: PathBuf,
    works: u32,
}

/// What is kept for its end.
#[derive(Debug)]
enum Process {
    Ours(Vudev),
    Peer(#[expect(dead_code, reason = "dropped at the end")] Child),
}

impl Backend {
    /// The `vudev` of these benchmarks in `folder`, jailed as always.
    ///
    /// # Errors
    ///
    /// What it says.
    pub fn vudev(folder: &Path, image: &Image, storage: Storage) -> Result<Self> {
        let program = match storage {
            Storage::Cached | Storage::Direct => "vudev-benched",
            Storage::Null => "vudev-null",
        };
        Self::of(&folder.join(program), "vudev", image, storage)
    }

    /// Another build of ours, `name` in figures.
    ///
    /// # Errors
    ///
    /// What it says.
    pub fn of(program: &Path, name: &'static str, image: &Image, storage: Storage) -> Result<Self> {
        let socket = image.socket(&format!("{name}-{}", storage.name()));
        let file = image.path.display();
        let (device, options) = match storage {
            Storage::Cached | Storage::Direct => {
                let direct = storage == Storage::Direct;
                let options = format!("path={file},lock=false,queues={QUEUES},direct={direct}");
                ("block", options)
            }
            Storage::Null => ("null", format!("size={}", image.size)),
        };
        let command = VudevCommand::of(program);
        let vudev = command.device(device, &options, &socket).start()?;
        let works = *vudev.devices()?.first().context("vudev has no device")?;
        Ok(Self {
            name,
            process: Process::Ours(vudev),
            socket,
            works,
        })
    }

    /// The storage daemon with `aio=io_uring` and a thread for its disk; `None` where it is not
    /// installed.
    ///
    /// # Errors
    ///
    /// When it does not start.
    pub fn storage_daemon(image: &Image, storage: Storage) -> Result<Option<Self>> {
        let file = image.path.display();
        let file = format!("driver=file,filename={file},aio=io_uring");
        let node = match storage {
            Storage::Cached => file,
            Storage::Direct => format!("{file},cache.direct=on"),
            Storage::Null => format!("driver=null-co,size={}", image.size),
        };
        Self::export(image, storage.name(), &node)
    }

    /// Whether there is a peer.
    pub fn is_storage_daemon_installed() -> bool {
        let mut version = Command::new(STORAGE_DAEMON);
        version.arg("--version").stdout(Stdio::null());
        version.status().is_ok()
    }

    fn export(image: &Image, name: &str, node: &str) -> Result<Option<Self>> {
        if !Self::is_storage_daemon_installed() {
            return Ok(None);
        }
        let socket = image.socket(&format!("daemon-{name}"));
        let mut command = Command::new(STORAGE_DAEMON);
        command.args(["--object", "iothread,id=io"]);
        command.args(["--blockdev", &format!("{node},node-name=n")]);
        command.arg("--export").arg(format!(
            "type=vhost-user-blk,id=e,node-name=n,addr.type=unix,addr.path={},writable=on,\
             num-queues={QUEUES},iothread=io",
            socket.display()
        ));
        let mut child = Child::start(STORAGE_DAEMON, &command)?;
        wait_until_listening(&socket, &mut child, START_LIMIT)?;
        Ok(Some(Self {
            name: STORAGE_DAEMON,
            works: child.id(),
            process: Process::Peer(child),
            socket,
        }))
    }

    /// What it has said, if that is kept.
    pub fn log(&self) -> String {
        match &self.process {
            Process::Ours(vudev) => vudev.log().unwrap_or_default(),
            Process::Peer(_) => String::new(),
        }
    }

    /// Where it listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The process that does the work.
    pub fn worker(&self) -> u32 {
        self.works
    }

    /// As it is called in figures.
    pub fn name(&self) -> &'static str {
        self.name
    }
}
