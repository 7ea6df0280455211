//! Two VMs of stock QEMU and kernel, with our proxies between them: a device VM, in which `vudev`
//! runs, and a driver VM, whose devices it has.

#![allow(dead_code, reason = "each suite uses its part of what they share")]
#![allow(
    clippy::unwrap_used,
    reason = "a suite whose own set-up fails has nothing to test"
)]

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use vudev_proxy::SharedMemory;
use vudev_proxy::testing::Running;
use vudev_tests::{Assets, Guest, static_vudev};

/// What is between them.
pub(crate) struct Between {
    proxies: Vec<Running>,
    folder: TempDir,
    memory_mib: u32,
}

impl Between {
    /// A proxy for each of these names, for a driver VM with so much memory.
    pub(crate) fn new(names: &[&str], memory_mib: u32) -> Self {
        let folder = tempfile::Builder::new().prefix("vudev-").tempdir().unwrap();
        let memory = File::create_new(folder.path().join("memory")).unwrap();
        memory.set_len(u64::from(memory_mib) << 20).unwrap();
        drop(memory);
        let mut this = Self {
            proxies: Vec::new(),
            folder,
            memory_mib,
        };
        for name in names {
            let own = this.path(&format!("proxy-{name}"));
            fs::create_dir(&own).unwrap();
            let memory = SharedMemory::RamFile(this.open_memory());
            this.proxies.push(Running::start_in(&own, memory));
            std::os::unix::fs::symlink(own.join("vhost"), this.path(name)).unwrap();
        }
        this
    }

    /// Where front-ends connect, by name: each in this folder.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The VM with the functions of all proxies, in their order from `00:10.0` on, and `vudev`.
    pub(crate) fn device_vm(&self, assets: &Assets) -> Guest {
        let guest = Guest::new(assets).program(&static_vudev().unwrap());
        self.proxies
            .iter()
            .fold(guest, |guest, proxy| guest.vfio_user(&proxy.vfio()))
    }

    /// The VM whose memory the device VM sees.
    pub(crate) fn driver_vm(&self, assets: &Assets) -> Guest {
        Guest::new(assets)
            .memory(self.memory_mib)
            .memory_file(&self.path("memory"))
    }

    /// How much of the driver VM's memory is more than a hole in its file.
    pub(crate) fn memory_on_disk(&self) -> u64 {
        fs::metadata(self.path("memory")).unwrap().blocks() * 512
    }

    fn open_memory(&self) -> OwnedFd {
        let mut options = File::options();
        let file = options.read(true).write(true).open(self.path("memory"));
        file.unwrap().into()
    }
}
