//! A FUSE file system of one file, served by a thread: memory that a front-end could withhold page
//! by page. Only what it takes to open the file; see linux/fuse.h.

#![allow(
    clippy::unwrap_used,
    reason = "without the file there is nothing to test"
)]

use std::{
    fs::File,
    io::{Read, Write},
    os::fd::AsRawFd,
    os::unix::fs::MetadataExt,
    path::Path,
    thread::JoinHandle,
};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

/// Bytes of the file.
pub(crate) const SIZE: u64 = 0x10000;
/// Length of a request's header.
const HEADER: usize = 40;
/// The file's node; the root is 1.
const NODE: u64 = 2;

const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const OPEN: u32 = 14;
const STATFS: u32 = 17;
const RELEASE: u32 = 18;
const FLUSH: u32 = 25;
const INIT: u32 = 26;
const ENOSYS: i32 = -38;

/// A mounted file system; unmounted when dropped.
pub(crate) struct Fuse {
    directory: tempfile::TempDir,
    server: Option<JoinHandle<()>>,
}

impl Fuse {
    /// Mounts it, or says why that is not possible.
    pub(crate) fn mount() -> std::io::Result<Self> {
        let directory = tempfile::tempdir()?;
        let device = File::options().read(true).write(true).open("/dev/fuse")?;
        let (user, group) = (
            directory.path().metadata()?.uid(),
            directory.path().metadata()?.gid(),
        );
        let options = format!(
            "fd={},rootmode=40000,user_id={user},group_id={group},allow_other",
            device.as_raw_fd()
        );
        let options = std::ffi::CString::new(options)?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        mount(
            "hostile",
            directory.path(),
            "fuse",
            flags,
            Some(options.as_c_str()),
        )?;
        #[expect(clippy::disallowed_methods, reason = "the server is the other side")]
        let server = std::thread::spawn(move || serve(device));
        Ok(Self {
            directory,
            server: Some(server),
        })
    }

    /// Opens the file for reading and writing.
    pub(crate) fn file(&self) -> File {
        File::options()
            .read(true)
            .write(true)
            .open(self.path().join("memory"))
            .unwrap()
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }
}

impl Drop for Fuse {
    fn drop(&mut self) {
        unmount(self.path(), UnmountFlags::DETACH).unwrap();
        // The last use of the file system ends the connection, and with it the server.
        self.server.take().map(JoinHandle::join).unwrap().unwrap();
    }
}

fn serve(mut device: File) {
    let mut request = vec![0; 128 << 10];
    while let Ok(length) = device.read(&mut request) {
        let word = |at: usize| u32::from_ne_bytes(request[at..at + 4].try_into().unwrap());
        let unique = u64::from_ne_bytes(request[8..16].try_into().unwrap());
        let node = u64::from_ne_bytes(request[16..24].try_into().unwrap());
        assert!(length >= HEADER);
        let (error, body) = match word(4) {
            FORGET => continue,
            INIT => (0, longs(&[7 | 31 << 32, 0, 4096 << 32, 0, 0, 0, 0, 0])),
            LOOKUP => (
                0,
                [longs(&[NODE, 0, 3600, 3600, 0]), attributes(NODE)].concat(),
            ),
            GETATTR => (0, [longs(&[3600, 0]), attributes(node)].concat()),
            OPEN => (0, longs(&[1, 0])),
            STATFS => (0, longs(&[0, 0, 0, 0, 0, 4096 | 255 << 32, 4096, 0, 0, 0])),
            FLUSH | RELEASE => (0, Vec::new()),
            _ => (ENOSYS, Vec::new()),
        };
        let length = u32::try_from(16 + body.len()).unwrap();
        let mut reply = length.to_ne_bytes().to_vec();
        reply.extend(i32::to_ne_bytes(error));
        reply.extend(unique.to_ne_bytes());
        reply.extend(body);
        // An interrupted request is not there any more.
        let _ = device.write(&reply);
    }
}

/// `struct fuse_attr` of a node.
fn attributes(node: u64) -> Vec<u8> {
    let (size, mode) = if node == NODE {
        (SIZE, 0o100_666)
    } else {
        (0, 0o040_777)
    };
    longs(&[node, size, 0, 0, 0, 0, 0, mode << 32, 1, 0, 4096 << 32])
}

fn longs(values: &[u64]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_ne_bytes())
        .collect()
}
