//! Two VMs of stock QEMU and kernel, with a `vudev` of proxies between them: a device VM, in which
//! another `vudev` runs, and a driver VM, whose devices it has.

#![allow(dead_code, reason = "each suite uses its part of what they share")]
#![allow(
    clippy::unwrap_used,
    reason = "a suite whose own set-up fails has nothing to test"
)]

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use vudev_tests::{Assets, Guest, Vudev, VudevCommand, static_vudev};

/// What is between them.
pub(crate) struct Between {
    names: Vec<String>,
    vudev: Vudev,
    folder: TempDir,
    memory_mib: u32,
}

impl Between {
    /// A proxy for each of these names, for a driver VM with so much memory.
    pub(crate) fn new(names: &[&str], memory_mib: u32) -> Self {
        let folder = tempfile::Builder::new().prefix("vudev-").tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let memory = File::create_new(path("memory")).unwrap();
        memory.set_len(u64::from(memory_mib) << 20).unwrap();
        let command = VudevCommand::new().unwrap().argument("--log-level=debug");
        let command = names.iter().fold(command, |command, name| {
            let (socket, memory) = (path(&vfio(name)), path("memory"));
            let options = format!("socket={},ram-file={}", socket.display(), memory.display());
            command.device("vvu-proxy", &options, &path(name))
        });
        Self {
            names: names.iter().copied().map(str::to_owned).collect(),
            vudev: command.start().unwrap(),
            folder,
            memory_mib,
        }
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
        self.names.iter().fold(guest, |guest, name| {
            guest.vfio_user(&self.path(&vfio(name)))
        })
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

    /// What the proxies have logged so far.
    pub(crate) fn log(&self) -> String {
        self.vudev.log().unwrap()
    }

    /// All proxies live, and end when they are asked to.
    pub(crate) fn stop(self) {
        self.vudev.stop().unwrap();
    }
}

/// The socket for the device VM of a proxy.
fn vfio(name: &str) -> String {
    format!("{name}-vfio")
}
