//! A driver for the block device, as plain as can be.

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use vudev_devices::block::{Block, BlockConfig, measure};
use vudev_executor::Handle;
use vudev_frontend::{Buffer, Used};

use super::Rig;

pub(crate) const SECTOR: usize = 512;

pub(crate) const OK: u8 = 0;
pub(crate) const IO_ERROR: u8 = 1;
pub(crate) const UNSUPPORTED: u8 = 2;
/// What a status byte holds before the device writes it.
pub(crate) const UNTOLD: u8 = 0xee;

pub(crate) const IN: u32 = 0;
pub(crate) const OUT: u32 = 1;
pub(crate) const FLUSH: u32 = 4;
pub(crate) const GET_ID: u32 = 8;
pub(crate) const DISCARD: u32 = 11;
pub(crate) const WRITE_ZEROES: u32 = 13;

pub(crate) const F_FLUSH: u64 = 1 << 9;
pub(crate) const F_CONFIG_WCE: u64 = 1 << 11;
pub(crate) const F_DISCARD: u64 = 1 << 13;
pub(crate) const F_WRITE_ZEROES: u64 = 1 << 14;

/// The flag of a range to zero whose space may be given back.
pub(crate) const UNMAP: u32 = 1;

pub(crate) type Disk = Rig<Block>;

/// A driver that took FLUSH, with a disk on all of `file`; one queue.
pub(crate) fn disk(handle: &Handle, file: &File, config: BlockConfig) -> Disk {
    disk_with(handle, file, config, F_FLUSH)
}

pub(crate) fn disk_with(handle: &Handle, file: &File, config: BlockConfig, features: u64) -> Disk {
    Rig::start(handle, block(handle, file, config), features)
}

/// A disk on all of `file`; one queue.
pub(crate) fn block(handle: &Handle, file: &File, config: BlockConfig) -> Block {
    let config = BlockConfig {
        // A device has no length of its own.
        capacity: config.capacity.max(file.metadata().unwrap().len()),
        queues: 1,
        ..config
    };
    Block::new(handle, &config, file.try_clone().unwrap()).unwrap()
}

/// A file of so many sectors, the bytes of each made of its number.
pub(crate) fn image(sectors: usize) -> File {
    let mut file = tempfile::tempfile().unwrap();
    std::io::Write::write_all(&mut file, &pattern(0, sectors)).unwrap();
    file
}

pub(crate) fn pattern(first: usize, sectors: usize) -> Vec<u8> {
    let sector = |number: usize| (0..SECTOR).map(move |at| (number * 7 + at * 13) as u8);
    (first..first + sectors).flat_map(sector).collect()
}

pub(crate) fn header(kind: u32, sector: u64) -> Vec<u8> {
    let mut bytes = kind.to_le_bytes().to_vec();
    bytes.extend([0; 4]);
    bytes.extend(sector.to_le_bytes());
    bytes
}

/// A range to discard or to zero: first sector, number of sectors, flags.
pub(crate) fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    let mut bytes = sector.to_le_bytes().to_vec();
    bytes.extend(sectors.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes
}

/// All that a file holds.
pub(crate) fn contents(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// A file opened as the supervisor opens it for `direct`, on a real file system, and what its
/// direct access needs.
pub(crate) fn direct_image(sectors: usize) -> (tempfile::NamedTempFile, File, u32) {
    let named = tempfile::NamedTempFile::new().unwrap();
    named
        .as_file()
        .write_all_at(&pattern(0, sectors), 0)
        .unwrap();
    named.as_file().sync_all().unwrap();
    let direct = File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(named.path())
        .unwrap();
    let alignment = measure(&direct).unwrap().direct_alignment.unwrap_or(4096);
    (named, direct, alignment)
}

/// What came of a request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u8,
    pub(crate) data: Vec<u8>,
    pub(crate) written: u32,
}

impl Disk {
    /// A request laid out as Linux does: header, data, status, each its own buffer.
    pub(crate) async fn request(
        &mut self,
        kind: u32,
        sector: u64,
        out: &[u8],
        room: usize,
    ) -> Answer {
        let header = self.put(&header(kind, sector));
        let mut readable = vec![header];
        readable.extend((!out.is_empty()).then(|| self.put(out)));
        let data = (room > 0).then(|| self.put(&vec![UNTOLD; room]));
        let status = self.put(&[UNTOLD]);
        let mut writable: Vec<Buffer> = data.into_iter().collect();
        writable.push(status);
        let used = self.chain(&readable, &writable).await;
        Answer {
            status: self.bytes(status)[0],
            data: data.map(|data| self.bytes(data)).unwrap_or_default(),
            written: used.written,
        }
    }

    pub(crate) async fn chain(&mut self, readable: &[Buffer], writable: &[Buffer]) -> Used {
        let token = self.send(0, readable, writable);
        let used = self.used(0).await;
        assert_eq!(used.token, token);
        used
    }

    pub(crate) async fn read(&mut self, sector: u64, length: usize) -> Answer {
        self.request(IN, sector, &[], length).await
    }

    /// Asks for ranges to be discarded or made zero.
    pub(crate) async fn change(&mut self, kind: u32, ranges: &[u8]) -> Answer {
        self.request(kind, 0, ranges, 0).await
    }

    pub(crate) async fn write(&mut self, sector: u64, bytes: &[u8]) -> Answer {
        self.request(OUT, sector, bytes, 0).await
    }
}
