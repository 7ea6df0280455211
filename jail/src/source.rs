//! Where policy files come from: embedded in this program, or a directory of the operator's.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

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
        let flat = !Path::new(name).is_absolute() && !self.root.join(directory).is_dir();
        if flat { self.root.join(file) } else { path }
    }
}

impl Source for Directory {
    fn read(&self, name: &str) -> io::Result<String> {
        let mut text = String::new();
        let file = std::fs::File::open(self.path(name))?;
        file.take(FILE_SIZE_MAX + 1).read_to_string(&mut text)?;
        match text.len() as u64 > FILE_SIZE_MAX {
            true => Err(io::ErrorKind::FileTooLarge.into()),
            false => Ok(text),
        }
    }

    fn label(&self, name: &str) -> String {
        self.path(name).display().to_string()
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
    fn a_file_without_end_is_refused() {
        let error = Directory::new("/dev").read("zero").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
    }
}
