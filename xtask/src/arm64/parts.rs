//! Fetches what building for and emulating 64-bit ARM needs, into the target folder:
//! Debian's rustc with that architecture's standard library, a linker, the C library's archives,
//! QEMU, a kernel, busybox. It installs nothing: packages are unpacked, and what is of another
//! release than the host's runs by its own loader.
//!
//! The toolchain is Debian's because rustup's own is not to be had everywhere with a foreign
//! standard library; it must be as new as the workspace's `rust-version`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use rustix::fs::{FlockOperation, flock};

use crate::apt::{Apt, unpack};
use crate::guest::{BACKPORTS, RELEASE, only_file, remove};
use crate::process::{say, text, write_script};
use crate::{tools, workspace};

/// Rust's name of the architecture.
pub(super) const TRIPLE: &str = "aarch64-unknown-linux-gnu";

/// Debian's name of the architecture.
const DEBIAN: &str = "arm64";

/// What the GNU tools and the C library's folders are called.
const GNU: &str = "aarch64-linux-gnu";

/// The newest release that is not a moving target within the hour: testing.
const TOOLCHAIN_RELEASE: &str = "forky";

/// Raised whenever what is in the folder changes.
const LAYOUT: &str = "1";

/// What was fetched.
pub(super) struct Parts {
    folder: PathBuf,
}

impl Parts {
    /// The parts, fetched now if they are not there yet.
    pub(super) fn ensure() -> Result<Self> {
        let target = workspace::target()?;
        fs::create_dir_all(&target)?;
        let lock = File::create(target.join("arm64.lock"))?;
        flock(&lock, FlockOperation::LockExclusive)?;
        let parts = Self {
            folder: target.join("arm64"),
        };
        let mark = parts.folder.join("layout");
        if fs::read_to_string(&mark).ok().as_deref() != Some(LAYOUT) {
            remove(&parts.folder)?;
            parts.fetch()?;
            fs::write(&mark, LAYOUT)?;
        }
        // The scripts have the folder's name in them, and it may have been moved.
        parts.write_scripts()?;
        let version = text(Command::new(parts.rustc()).arg("--version"))?;
        say(&format!("for arm64: {}", version.trim()));
        Ok(parts)
    }

    /// A script that is rustc.
    pub(super) fn rustc(&self) -> PathBuf {
        self.folder.join("rustc")
    }

    /// A script that links static programs.
    pub(super) fn linker(&self) -> PathBuf {
        self.folder.join("ld")
    }

    /// Where cargo builds.
    pub(super) fn build_folder(&self) -> PathBuf {
        self.folder.join("build")
    }

    /// The kernel that QEMU's `-kernel` takes.
    pub(super) fn kernel(&self) -> PathBuf {
        self.folder.join("kernel")
    }

    /// A static busybox for the machine.
    pub(super) fn busybox(&self) -> PathBuf {
        self.folder.join("busybox")
    }

    /// A command that runs QEMU.
    pub(super) fn qemu(&self) -> Command {
        let root = self.folder.join("emulator");
        let library = root.join("usr/lib/x86_64-linux-gnu");
        let mut qemu = Command::new(root.join(LOADER));
        qemu.arg("--library-path")
            .arg(format!("{0}:{0}/pulseaudio", library.display()))
            .arg(root.join("usr/bin/qemu-system-aarch64"))
            .arg("-L")
            .arg(root.join("usr/share/qemu"))
            .env("QEMU_MODULE_DIR", library.join("qemu"));
        qemu
    }

    fn fetch(&self) -> Result<()> {
        tools::require(tools::FOR_GUEST)?;
        let work = self.folder.join("apt");
        self.fetch_machine(&work.join("machine"))?;
        self.fetch_toolchain(&work.join("toolchain"))?;
        fs::remove_dir_all(&work)?;
        Ok(())
    }

    fn fetch_machine(&self, work: &Path) -> Result<()> {
        let apt = Apt::with_foreign(work, &[RELEASE, BACKPORTS], &[DEBIAN])?;
        say("fetching the lists of packages (30 MB), QEMU, a kernel and busybox (70 MB)");
        apt.update()?;
        let emulator = self.folder.join("emulator");
        unpack(&apt.download(BACKPORTS, &["qemu-system-arm"])?, &emulator)?;
        let newest = format!("linux-image-cloud-{DEBIAN}:{DEBIAN}");
        let kernel = apt.dependency(&newest, RELEASE, "linux-image-")?;
        let machine = work.join("root");
        for package in [kernel.as_str(), "busybox-static"] {
            let deb = apt.download_one(&format!("{package}:{DEBIAN}"))?;
            unpack(&[deb], &machine)?;
        }
        let kernel = only_file(&machine.join("boot"), "vmlinuz-")?;
        fs::rename(kernel, self.kernel())?;
        fs::rename(machine.join("usr/bin/busybox"), self.busybox())?;
        Ok(())
    }

    fn fetch_toolchain(&self, work: &Path) -> Result<()> {
        let apt = Apt::with_foreign(work, &[TOOLCHAIN_RELEASE], &[DEBIAN])?;
        say("fetching the lists of packages (20 MB), rustc, libraries and a linker (150 MB)");
        apt.update()?;
        let toolchain = self.folder.join("toolchain");
        let linker = format!("binutils-{GNU}");
        let own = apt.download(TOOLCHAIN_RELEASE, &["libstd-rust-dev", &linker])?;
        unpack(&own, &toolchain)?;
        // Its folder has the compiler's version in its name, and so has its package.
        let base = apt.dependency("libgcc-s1", TOOLCHAIN_RELEASE, "gcc-")?;
        let base = base.trim_end_matches("-base");
        let foreign = ["libstd-rust-dev", "libc6-dev", &format!("lib{base}-dev")];
        let foreign = foreign.map(|name| format!("{name}:{DEBIAN}"));
        for package in foreign.iter().map(String::as_str).chain(["rustc"]) {
            unpack(&[apt.download_one(package)?], &toolchain)?;
        }
        Ok(())
    }

    fn write_scripts(&self) -> Result<()> {
        let root = self.folder.join("toolchain");
        let gcc = root.join("usr/lib/gcc").join(GNU);
        let compiler = only_file(&gcc, "")?;
        let (root, compiler) = (root.display(), compiler.display());
        let run = format!("'{root}/{LOADER}' --library-path '{root}/usr/lib/x86_64-linux-gnu'");
        // Not sh: dash drops variables whose names no shell can set, and cargo has some of these
        // (`CARGO_BIN_EXE_vudev-escape`).
        let rustc = format!(
            "#!/bin/bash\n\
             exec {run} --argv0 rustc '{root}/usr/bin/rustc' --sysroot '{root}/usr' \"$@\"\n"
        );
        write_script(&self.rustc(), &rustc)?;
        // What a C compiler would add to the command line for a static program.
        let ld = format!(
            "#!/bin/sh\n\
             root='{root}'\n\
             c=\"$root/usr/lib/{GNU}\"\n\
             gcc='{compiler}'\n\
             exec {run} \"$root/usr/bin/{GNU}-ld\" --sysroot=\"$root\" \\\n\
             \x20   \"$c/crt1.o\" \"$c/crti.o\" \"$gcc/crtbeginT.o\" \\\n\
             \x20   -L\"$c\" -L\"$gcc\" \"$@\" \\\n\
             \x20   --start-group -lgcc -lgcc_eh -lc --end-group \"$gcc/crtend.o\" \"$c/crtn.o\"\n"
        );
        write_script(&self.linker(), &ld)
    }
}

/// The loader of what was fetched, in its folder.
const LOADER: &str = "usr/lib64/ld-linux-x86-64.so.2";
