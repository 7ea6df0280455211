//! Writes cpio archives of the kind the kernel unpacks as an initramfs ("newc": see the kernel's
//! `Documentation/driver-api/early-userspace/buffer-format.rst`). It does not read them.
//!
//! The kernel unpacks several archives in a row, so a small one with a test's own files may simply
//! be appended to a large one that is kept.

use std::io::{self, Write};

/// File type and permission bits, as in `st_mode`.
const DIRECTORY: u32 = 0o040_755;
const FILE: u32 = 0o100_644;
const PROGRAM: u32 = 0o100_755;
const CHARACTER_DEVICE: u32 = 0o020_600;

/// The name of the entry that ends an archive.
const TRAILER: &str = "TRAILER!!!";

/// An archive being written.
pub struct Archive<W> {
    out: W,
    entries: u32,
}

impl<W: Write> Archive<W> {
    /// An empty archive that is written to `out`.
    pub fn new(out: W) -> Self {
        Self { out, entries: 0 }
    }

    /// Adds a directory; its parent must have been added before.
    pub fn directory(&mut self, path: &str) -> io::Result<()> {
        self.entry(path, DIRECTORY, (0, 0), &[])
    }

    /// Adds a file that is read, not run.
    pub fn file(&mut self, path: &str, contents: &[u8]) -> io::Result<()> {
        self.entry(path, FILE, (0, 0), contents)
    }

    /// Adds a file that can be run.
    pub fn program(&mut self, path: &str, contents: &[u8]) -> io::Result<()> {
        self.entry(path, PROGRAM, (0, 0), contents)
    }

    /// Adds a character device node, such as the console that the kernel gives to `/init`.
    pub fn character_device(&mut self, path: &str, major: u32, minor: u32) -> io::Result<()> {
        self.entry(path, CHARACTER_DEVICE, (major, minor), &[])
    }

    /// Ends the archive and gives the writer back.
    pub fn finish(mut self) -> io::Result<W> {
        self.entry(TRAILER, 0, (0, 0), &[])?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), data: &[u8]) -> io::Result<()> {
        let size = u32::try_from(data.len()).map_err(|_| {
            io::Error::new(
                io::ErrorKind::FileTooLarge,
                format!("{path} is larger than 4 GiB"),
            )
        })?;
        let name_size = u32::try_from(path.len() + 1)
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidFilename))?;
        self.entries += 1;
        let (major, minor) = device;
        // Inode, mode, uid, gid, links, mtime, size, device of the file (2), device node (2), name
        // size with its NUL, checksum (unused in newc).
        let fields = [
            self.entries,
            mode,
            0,
            0,
            1,
            0,
            size,
            0,
            0,
            major,
            minor,
            name_size,
            0,
        ]
        .map(hex);
        write!(self.out, "070701{}{path}\0", fields.concat())?;
        self.pad(6 + 13 * 8 + path.len() + 1)?;
        self.out.write_all(data)?;
        self.pad(data.len())
    }

    /// Header with name, and data, each end on a multiple of four bytes.
    fn pad(&mut self, written: usize) -> io::Result<()> {
        self.out
            .write_all(&[0; 3][..written.next_multiple_of(4) - written])
    }
}

fn hex(field: u32) -> String {
    format!("{field:08X}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_starts_on_a_multiple_of_four_bytes() {
        let mut archive = Archive::new(Vec::new());
        archive.directory("d").unwrap();
        archive.file("d/odd", b"12345").unwrap();
        archive.character_device("d/console", 5, 1).unwrap();
        let bytes = archive.finish().unwrap();
        let starts: Vec<_> = bytes
            .windows(6)
            .enumerate()
            .filter(|(_, window)| window == b"070701")
            .map(|(at, _)| at)
            .collect();
        assert_eq!(starts.len(), 4);
        assert!(starts.iter().all(|at| at % 4 == 0), "{starts:?}");
        assert_eq!(bytes.len() % 4, 0);
    }

    #[test]
    fn an_entry_is_what_the_kernel_documentation_says() {
        let mut archive = Archive::new(Vec::new());
        archive.program("init", b"#!").unwrap();
        let bytes = archive.finish().unwrap();
        let header = std::str::from_utf8(&bytes[..110]).unwrap();
        let expected = concat!(
            "070701", "00000001", "000081ED", "00000000", "00000000", "00000001", "00000000",
            "00000002", "00000000", "00000000", "00000000", "00000000", "00000005", "00000000",
        );
        assert_eq!(header, expected);
        assert_eq!(&bytes[110..120], b"init\0\0#!\0\0");
    }
}
