//! Where the parts of a guest are: QEMU, kernel, initramfs. It finds what `cargo xtask guest` has
//! laid out in `target/guest/`, and fetches nothing itself.

use std::collections::BTreeMap;
use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

/// Raised whenever the layout of `target/guest/` changes, so that an older one is made anew.
const VERSION: u32 = 4;

/// Stands for the folder of the manifest in its strings, so that the folder can be moved.
const HERE: &str = "{guest}";

/// Points to a folder of guest parts other than `target/guest`.
const FOLDER_VARIABLE: &str = "VUDEV_GUEST_DIR";

/// What `manifest.json` in the guest folder says. Written by `xtask` last of all, so that it only
/// exists when everything it names does.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Manifest {
    /// [`Manifest::VERSION`] of the program that wrote it.
    pub version: u32,
    /// What was asked for when it was made; another wish makes another guest.
    pub wish: String,
    /// The words that start QEMU.
    pub qemu: Vec<String>,
    /// The words that start `mkfs.ext4`.
    pub mkfs: Vec<String>,
    /// The words that start `debugfs`, which reads an ext4 image without mounting it.
    pub debugfs: Vec<String>,
    /// The words that start `qemu-img`.
    pub qemu_img: Vec<String>,
    /// The words that start `qemu-io`.
    pub qemu_io: Vec<String>,
    /// Variables that these programs need.
    pub environment: BTreeMap<String, String>,
    /// An ELF `vmlinux`, or a bzImage.
    pub kernel: String,
    /// busybox and modules, without `/init`: that comes with each guest.
    pub initramfs: String,
}

impl Manifest {
    /// The version of the layout that this program writes and reads.
    pub const VERSION: u32 = VERSION;

    /// The manifest's name inside a guest folder.
    pub const FILE: &str = "manifest.json";

    /// `path` inside the guest folder, as it is written in a manifest.
    pub fn here(path: &str) -> String {
        format!("{HERE}/{path}")
    }
}

/// The parts of a guest, found and ready for use.
#[derive(Debug, Clone)]
pub struct Assets {
    folder: PathBuf,
    manifest: Manifest,
}

impl Assets {
    /// The guest parts of this workspace: those that `VUDEV_GUEST_DIR` names, or those in the
    /// target folder that the running program was built in.
    pub fn find() -> Result<Self> {
        if let Some(folder) = env::var_os(FOLDER_VARIABLE) {
            return Self::load(Path::new(&folder));
        }
        let program = env::current_exe().context("where is the running program?")?;
        let candidates = program
            .ancestors()
            .skip(1)
            .map(|folder| folder.join("guest"));
        for folder in candidates {
            if folder.join(Manifest::FILE).exists() {
                return Self::load(&folder);
            }
        }
        bail!("the guest's parts are not there; `cargo xtask guest` gets them")
    }

    /// The guest parts in one folder.
    pub fn load(folder: &Path) -> Result<Self> {
        let path = folder.join(Manifest::FILE);
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("{} (`cargo xtask guest` makes it)", path.display()))?;
        let manifest: Manifest = serde_json::from_str(&text)
            .with_context(|| format!("{} is of another layout", path.display()))?;
        ensure!(
            manifest.version == VERSION,
            "{} has layout {}, not {VERSION}; `cargo xtask guest` makes it anew",
            path.display(),
            manifest.version
        );
        Ok(Self {
            folder: folder.to_owned(),
            manifest,
        })
    }

    /// What was asked for when these parts were made.
    pub fn wish(&self) -> &str {
        &self.manifest.wish
    }

    /// The kernel that QEMU's `-kernel` takes.
    pub fn kernel(&self) -> PathBuf {
        self.resolve(&self.manifest.kernel).into()
    }

    /// The part of the initramfs that all guests have in common.
    pub fn initramfs(&self) -> PathBuf {
        self.resolve(&self.manifest.initramfs).into()
    }

    /// A command that runs QEMU.
    pub fn qemu(&self) -> Result<Command> {
        self.command(&self.manifest.qemu)
    }

    /// A command that runs `mkfs.ext4`.
    pub fn mkfs(&self) -> Result<Command> {
        self.command(&self.manifest.mkfs)
    }

    /// A command that runs `debugfs`.
    pub fn debugfs(&self) -> Result<Command> {
        self.command(&self.manifest.debugfs)
    }

    /// A command that runs `qemu-img`, which can be a front-end (`driver=virtio-blk-vhost-user`).
    pub fn qemu_img(&self) -> Result<Command> {
        self.command(&self.manifest.qemu_img)
    }

    /// A command that runs `qemu-io`, which can be a front-end too.
    pub fn qemu_io(&self) -> Result<Command> {
        self.command(&self.manifest.qemu_io)
    }

    /// A disk image of `size_mib` MiB with an empty ext4 file system, at `path`.
    pub fn make_ext4(&self, path: &Path, size_mib: u64) -> Result<()> {
        std::fs::File::create(path)?.set_len(size_mib << 20)?;
        let output = self.mkfs()?.args(["-q", "-F"]).arg(path).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "mkfs.ext4 {}: {}",
            path.display(),
            said.trim()
        );
        Ok(())
    }

    fn command(&self, words: &[String]) -> Result<Command> {
        let mut words = words.iter().map(|word| self.resolve(word));
        let program = words.next().context("the manifest names no program")?;
        let mut command = Command::new(program);
        command.args(words);
        for (name, value) in &self.manifest.environment {
            command.env(name, self.resolve(value));
        }
        Ok(command)
    }

    fn resolve(&self, text: &str) -> String {
        text.replace(HERE, &self.folder.to_string_lossy())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(version: u32) -> Manifest {
        Manifest {
            version,
            wish: "stock".into(),
            qemu: vec![Manifest::here("bin/ld.so"), Manifest::here("bin/qemu")],
            mkfs: vec!["mkfs.ext4".into()],
            debugfs: vec!["debugfs".into()],
            qemu_img: vec!["qemu-img".into()],
            qemu_io: vec!["qemu-io".into()],
            environment: [("MODULES".to_owned(), Manifest::here("modules"))].into(),
            kernel: "/boot/vmlinuz".into(),
            initramfs: Manifest::here("initramfs.cpio"),
        }
    }

    #[test]
    fn a_moved_folder_still_finds_its_parts() {
        let folder = tempfile::tempdir().unwrap();
        let text = serde_json::to_string(&manifest(VERSION)).unwrap();
        std::fs::write(folder.path().join(Manifest::FILE), text).unwrap();
        let assets = Assets::load(folder.path()).unwrap();
        assert_eq!(assets.initramfs(), folder.path().join("initramfs.cpio"));
        assert_eq!(assets.kernel(), Path::new("/boot/vmlinuz"));
        let qemu = assets.qemu().unwrap();
        assert_eq!(qemu.get_program(), folder.path().join("bin/ld.so"));
    }

    #[test]
    fn another_layout_is_refused_with_the_command_that_makes_it_anew() {
        let folder = tempfile::tempdir().unwrap();
        let text = serde_json::to_string(&manifest(VERSION + 1)).unwrap();
        std::fs::write(folder.path().join(Manifest::FILE), text).unwrap();
        let error = Assets::load(folder.path()).unwrap_err().to_string();
        assert!(error.contains("cargo xtask guest"), "{error}");
    }
}
