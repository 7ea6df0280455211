//! Images for the kernel's first root whose files may lie in any folder: folders are made on the
//! way. The format is `vudev_harness::archive`'s.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result};
use vudev_harness::archive::Archive;

/// An image being written. Where a file is to be may begin with a slash or not.
pub(crate) struct Image<W> {
    archive: Archive<W>,
    folders: BTreeSet<PathBuf>,
}

impl<W: Write> Image<W> {
    /// An empty image that is written to `out`.
    pub(crate) fn new(out: W) -> Self {
        Self {
            archive: Archive::new(out),
            folders: BTreeSet::new(),
        }
    }

    /// Adds a folder, and those above it.
    pub(crate) fn folder(&mut self, folder: &Path) -> Result<()> {
        let mut path = PathBuf::new();
        for part in folder.components() {
            let Component::Normal(part) = part else {
                continue;
            };
            path.push(part);
            if self.folders.insert(path.clone()) {
                self.archive.directory(&path.to_string_lossy())?;
            }
        }
        Ok(())
    }

    /// Adds the node of the console that the kernel opens for the first program.
    pub(crate) fn console(&mut self) -> Result<()> {
        self.folder(Path::new("dev"))?;
        Ok(self.archive.character_device("dev/console", 5, 1)?)
    }

    /// Adds a file with these contents.
    pub(crate) fn file(&mut self, place: &Path, contents: &[u8]) -> Result<()> {
        self.folders_above(place)?;
        self.archive.file(&inside(place), contents)?;
        Ok(())
    }

    /// Adds a program with these contents.
    pub(crate) fn program(&mut self, place: &Path, contents: &[u8]) -> Result<()> {
        self.folders_above(place)?;
        self.archive.program(&inside(place), contents)?;
        Ok(())
    }

    /// Adds a copy of one of the host's programs.
    pub(crate) fn program_from(&mut self, place: &Path, from: &Path) -> Result<()> {
        let contents = fs::read(from).with_context(|| from.display().to_string())?;
        self.program(place, &contents)
    }

    /// Ends the image and gives the writer back.
    pub(crate) fn finish(self) -> Result<W> {
        Ok(self.archive.finish()?)
    }

    fn folders_above(&mut self, file: &Path) -> Result<()> {
        file.parent().map_or(Ok(()), |folder| self.folder(folder))
    }
}

/// Names in an archive have no slash in front.
fn inside(path: &Path) -> String {
    path.to_string_lossy().trim_start_matches('/').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_come_once_and_before_what_is_in_them() {
        let mut image = Image::new(Vec::new());
        for place in ["/a/b/first", "a/b/second", "third"] {
            image.program(Path::new(place), b"").unwrap();
        }
        let bytes = image.finish().unwrap();
        let text = String::from_utf8_lossy(&bytes);
        // A name stands behind 110 bytes of digits, and ends in a NUL.
        let headers = text.match_indices("070701");
        let names = headers.map(|(at, _)| text[at + 110..].split('\0').next().unwrap_or_default());
        let expected = ["a", "a/b", "a/b/first", "a/b/second", "third", "TRAILER!!!"];
        assert_eq!(names.collect::<Vec<_>>(), expected);
    }
}
