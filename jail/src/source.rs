//! Where policy files come from: embedded in this program, or a directory of the operator's.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::Arch;

include!(concat!(env!("OUT_DIR"), "/embedded.rs"));

/// Greatest file: a policy that fills the kernel's 4096 instructions is far below it.
pub const FILE_SIZE_MAX: u64 = 256 << 10;

/// Reads policy files by name. Names are relative to the directory `seccomp/`
/// (`x86_64/common_device.policy`, `ring/block.ring`), or absolute where a file includes so.
pub trait Source {
    /// The whole text of a file.
    fn read(&self, name: &str) -> io::Result<String>;

    /// How the file is called in an error message.
    fn label(&self, name: &str) -> String {
        name.to_owned()
    }
}

/// The files of `seccomp/` as they were when this program was built.
#[derive(Clone, Copy, Debug, Default)]
pub struct Embedded;

impl Embedded {
    /// Names of all files.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        EMBEDDED.iter().map(|(name, _)| *name)
    }
}

impl Source for Embedded {
    fn read(&self, name: &str) -> io::Result<String> {
        let found = EMBEDDED.iter().find(|(known, _)| *known == name);
        found
            .map(|(_, text)| (*text).to_owned())
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn label(&self, name: &str) -> String {
        format!("<embedded>/{name}")
    }
}

/// A directory laid out as `seccomp/`; or, as crosvm's `seccomp-policy-dir`, one that holds the
/// files of one architecture without subdirectories.
#[derive(Clone, Debug)]
pub struct Directory {
    root: PathBuf,
}

impl Directory {
    /// Reads below `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    fn path(&self, name: &str) -> PathBuf {
        // join() with an absolute name gives that name.
        let path = self.root.join(name);
        let Some((directory, file)) = name.split_once('/') else {
            return path;
        };
        match self.is_flat(directory) {
            true => self.root.join(file),
            false => path,
        }
    }

    /// Whether files are looked for without this directory of theirs; "" is that of an absolute
    /// name.
    fn is_flat(&self, directory: &str) -> bool {
        !directory.is_empty() && !self.root.join(directory).is_dir()
    }
}

impl Source for Directory {
    fn read(&self, name: &str) -> io::Result<String> {
        let mut bytes = Vec::new();
        let limit = FILE_SIZE_MAX + 1;
        self.open(name)?.take(limit).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > FILE_SIZE_MAX {
            return Err(refused(format!(
                "it is larger than {} KiB, which no policy is: put the policy there",
                FILE_SIZE_MAX >> 10
            )));
        }
        let text = String::from_utf8(bytes).map_err(|error| {
            let at = error.utf8_error().valid_up_to();
            refused(format!("byte {at} is not UTF-8: put a text there"))
        })?;
        match self.foreign_arch(name, &text) {
            Some(other) => Err(refused(format!(
                "it is the one for {other}: give the directory of this architecture"
            ))),
            None => Ok(text),
        }
    }

    /// Absolute, so that it is found by who did not type it.
    fn label(&self, name: &str) -> String {
        let path = self.path(name);
        let path = std::path::absolute(&path).unwrap_or(path);
        path.display().to_string()
    }
}

impl Directory {
    /// Opens a regular file, without waiting for what may be behind a name that is none: a FIFO
    /// waits for its writer, a device for whatever it likes.
    fn open(&self, name: &str) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let opened = rustix::fs::open(self.path(name), flags, Mode::empty());
        let file = File::from(opened.map_err(|errno| self.explained(name, errno))?);
        match file.metadata()?.is_file() {
            true => Ok(file),
            false => Err(refused(
                "it is not a regular file: put one there, or a link to one".to_owned(),
            )),
        }
    }

    /// What to do about it, where that can be told.
    fn explained(&self, name: &str, errno: Errno) -> io::Error {
        let remedy = match errno {
            Errno::NOENT | Errno::NOTDIR if !self.root.is_dir() => {
                format!("{:?} is no directory", self.root)
            }
            Errno::NOENT | Errno::NOTDIR => match self.another_arch(name) {
                Some(other) => format!("the directory has files for {other}, and none for this"),
                None => {
                    let arch = Arch::HOST.map_or("ARCHITECTURE", Arch::name);
                    format!(
                        "the directory must hold {arch}/*.policy and ring/*.ring as seccomp/ of \
                         vudev's source does, or these files without the folders"
                    )
                }
            },
            Errno::ACCESS => "who starts the devices must be able to read it".to_owned(),
            _ => return errno.into(),
        };
        let error = io::Error::from(errno);
        io::Error::new(error.kind(), format!("{error}: {remedy}"))
    }

    /// Of a file that lies in no folder of its architecture: the other one that it was written for,
    /// where it is one of ours.
    fn foreign_arch(&self, name: &str, text: &str) -> Option<Arch> {
        let (wanted, file) = name.split_once('/')?;
        let is_for = |arch: &str| is_built_in(arch, file, text);
        let mut others = Arch::ALL.into_iter();
        (self.is_flat(wanted) && !is_for(wanted))
            .then(|| others.find(|arch| is_for(arch.name())))
            .flatten()
    }

    /// Another architecture that the directory has, if it lacks the one that `name` is of.
    fn another_arch(&self, name: &str) -> Option<Arch> {
        let (wanted, _) = name.split_once('/')?;
        let there = |arch: &str| self.root.join(arch).is_dir();
        let of_arch = Arch::ALL.iter().any(|arch| arch.name() == wanted);
        let mut others = Arch::ALL.into_iter();
        (of_arch && !there(wanted))
            .then(|| others.find(|arch| there(arch.name())))
            .flatten()
    }
}

/// Whether this is the text of `file` for an architecture, as it was built in.
fn is_built_in(arch: &str, file: &str, text: &str) -> bool {
    let own = Embedded.read(&format!("{arch}/{file}"));
    own.is_ok_and(|own| own == text)
}

fn refused(problem: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, problem)
}

/// One text that a program has in itself, which can include nothing.
pub(crate) struct Text<'a> {
    /// How an error calls it.
    pub(crate) name: &'static str,
    pub(crate) text: &'a str,
    /// The function that reads what has includes.
    pub(crate) instead: &'static str,
}

impl Source for Text<'_> {
    fn read(&self, name: &str) -> io::Result<String> {
        match name == self.name {
            true => Ok(self.text.to_owned()),
            false => Err(refused(format!(
                "a text includes nothing: read it from a `Directory` (`{}`)",
                self.instead
            ))),
        }
    }
}

/// Files by value, for tests and for programs that make their policies.
impl Source for BTreeMap<String, String> {
    fn read(&self, name: &str) -> io::Result<String> {
        self.get(name)
            .cloned()
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_directory_is_read_with_and_without_subdirectories() {
        let tree = tempfile::tempdir().unwrap();
        let directory = Directory::new(tree.path());
        std::fs::write(tree.path().join("a.policy"), "flat").unwrap();
        assert_eq!(directory.read("x86_64/a.policy").unwrap(), "flat");
        std::fs::create_dir(tree.path().join("x86_64")).unwrap();
        assert!(directory.read("x86_64/a.policy").is_err());
        std::fs::write(tree.path().join("x86_64/a.policy"), "tree").unwrap();
        assert_eq!(directory.read("x86_64/a.policy").unwrap(), "tree");
        let absolute = tree.path().join("a.policy");
        assert_eq!(directory.read(absolute.to_str().unwrap()).unwrap(), "flat");
    }

    #[test]
    fn a_flat_directory_of_another_architecture_is_told() {
        let tree = tempfile::tempdir().unwrap();
        let text = Embedded.read("aarch64/common_device.policy").unwrap();
        std::fs::write(tree.path().join("common_device.policy"), text).unwrap();
        let directory = Directory::new(tree.path());
        assert!(directory.read("aarch64/common_device.policy").is_ok());
        let error = directory.read("x86_64/common_device.policy").unwrap_err();
        assert_eq!(
            error.to_string(),
            "it is the one for aarch64: give the directory of this architecture"
        );
    }

    #[test]
    fn what_is_no_file_is_refused_and_not_waited_for() {
        let tree = tempfile::tempdir().unwrap();
        let directory = Directory::new(tree.path());
        let mode = Mode::from_raw_mode(0o600);
        let fifo = tree.path().join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        std::os::unix::fs::symlink("/dev/zero", tree.path().join("zero")).unwrap();
        std::fs::create_dir(tree.path().join("folder")).unwrap();
        for name in ["fifo", "zero", "folder"] {
            let error = directory.read(name).unwrap_err();
            let remedy = "it is not a regular file: put one there, or a link to one";
            assert_eq!(error.to_string(), remedy, "{name}");
        }
        File::create(tree.path().join("huge"))
            .and_then(|file| file.set_len(1 << 40))
            .unwrap();
        let error = directory.read("huge").unwrap_err().to_string();
        let remedy = "it is larger than 256 KiB, which no policy is: put the policy there";
        assert_eq!(error, remedy);
        std::fs::write(tree.path().join("latin"), b"# caf\xe9\n").unwrap();
        let error = directory.read("latin").unwrap_err().to_string();
        assert_eq!(error, "byte 5 is not UTF-8: put a text there");
    }

    #[test]
    fn what_is_missing_is_told_with_what_should_be_there() {
        let tree = tempfile::tempdir().unwrap();
        let error = |root: &Path, name| {
            let error = Directory::new(root).read(name).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::NotFound);
            error.to_string()
        };
        let nowhere = tree.path().join("nowhere");
        assert!(error(&nowhere, "ring/a.ring").ends_with("nowhere\" is no directory"));
        let empty = error(tree.path(), "ring/a.ring");
        assert!(
            empty.contains("/*.policy and ring/*.ring as seccomp/"),
            "{empty}"
        );
        std::fs::create_dir(tree.path().join("aarch64")).unwrap();
        let other = error(tree.path(), "x86_64/a.policy");
        assert!(
            other.ends_with("has files for aarch64, and none for this"),
            "{other}"
        );
        assert_eq!(error(tree.path(), "ring/a.ring"), empty);
    }
}
