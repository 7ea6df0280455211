//! Disks served by a back-end as a user would start it, ours or a peer's. Not what is asked of
//! them.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Result, bail};
use rustix::fs::statfs;

use crate::backend::{Backend, Build};

/// The peer for disks, of the package qemu-utils or qemu-system-common.
pub const STORAGE_DAEMON: &str = "qemu-storage-daemon";

/// Queues that a disk has; a driver uses as many as it likes.
pub const QUEUES: u16 = 4;

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

    /// The program of ours that serves it.
    pub fn program(self) -> &'static str {
        match self {
            Self::Cached | Self::Direct => "vudev-benched",
            Self::Null => "vudev-null",
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

/// A build of ours, `name` in figures, jailed as always.
///
/// # Errors
///
/// What it says.
pub fn vudev(
    build: &Build,
    name: &'static str,
    image: &Image,
    storage: Storage,
) -> Result<Backend> {
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
    Backend::vudev(name, build, device, &options, socket)
}

/// The storage daemon with `aio=io_uring` and a thread for its disk.
///
/// # Errors
///
/// When it does not start.
pub fn storage_daemon(image: &Image, storage: Storage) -> Result<Backend> {
    let file = image.path.display();
    let file = format!("driver=file,filename={file},aio=io_uring");
    let node = match storage {
        Storage::Cached => file,
        Storage::Direct => format!("{file},cache.direct=on"),
        Storage::Null => format!("driver=null-co,size={}", image.size),
    };
    let socket = image.socket(&format!("daemon-{}", storage.name()));
    let mut command = Command::new(STORAGE_DAEMON);
    command.args(["--object", "iothread,id=io"]);
    command.args(["--blockdev", &format!("{node},node-name=n")]);
    command.arg("--export").arg(format!(
        "type=vhost-user-blk,id=e,node-name=n,addr.type=unix,addr.path={},writable=on,\
         num-queues={QUEUES},iothread=io",
        socket.display()
    ));
    Backend::peer(STORAGE_DAEMON, &command, socket, None)
}

/// Whether there is a peer.
pub fn is_storage_daemon_installed() -> bool {
    let mut version = Command::new(STORAGE_DAEMON);
    version.arg("--version").stdout(Stdio::null());
    version.status().is_ok()
}
