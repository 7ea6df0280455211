//! A driver's end of virtqueues by hand: memory in a file, in which addresses are offsets, and
//! queues in it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::{pread, pwrite};

use crate::virtio::QueueRegisters;

/// Memory of the device VM.
pub struct Area(OwnedFd);

impl Area {
    /// So many bytes of zeros.
    pub fn new(size: u64) -> Rc<Self> {
        let file = memfd_create("area", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, size).unwrap();
        Rc::new(Self(file))
    }

    /// The file it lies in.
    pub fn file(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Bytes from an offset on.
    pub fn read(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        assert_eq!(pread(&self.0, &mut bytes, at).unwrap(), len);
        bytes
    }

    /// Writes from an offset on.
    pub fn write(&self, at: u64, bytes: &[u8]) {
        assert_eq!(pwrite(&self.0, bytes, at).unwrap(), bytes.len());
    }

    /// A word at an offset.
    pub fn u16(&self, at: u64) -> u16 {
        u16::from_le_bytes(self.read(at, 2).try_into().unwrap())
    }
}

/// One queue: its table, its available ring and its used ring in a page each, from `at` on.
pub struct Queue {
    /// Where it lies.
    pub area: Rc<Area>,
    /// From where on.
    pub at: u64,
    /// Its entries.
    pub size: u16,
    /// The next index that is made available.
    pub available: u16,
    /// The next index that is taken from the used ring.
    pub used: u16,
}

/// The descriptor goes on in another.
pub const NEXT: u16 = 1;
/// The device writes to it.
pub const WRITE: u16 = 2;

impl Queue {
    /// An empty one.
    pub fn new(area: &Rc<Area>, at: u64, size: u16) -> Self {
        Self {
            area: area.clone(),
            at,
            size,
            available: 0,
            used: 0,
        }
    }

    /// What the device is told of it, where addresses are offsets.
    pub fn registers(&self) -> QueueRegisters {
        QueueRegisters {
            size: self.size,
            vector: 0,
            enabled: true,
            descriptors: self.at,
            available: self.at + 0x1000,
            used: self.at + 0x2000,
        }
    }

    /// Writes a descriptor.
    pub fn describe(&self, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        let bytes = [
            &address.to_le_bytes()[..],
            &len.to_le_bytes(),
            &flags.to_le_bytes(),
            &next.to_le_bytes(),
        ];
        self.area
            .write(self.at + 16 * u64::from(index), &bytes.concat());
    }

    /// Makes the chain at `head` available.
    pub fn offer(&mut self, head: u16) {
        let slot = u64::from(self.available % self.size);
        let ring = self.at + 0x1000;
        self.area.write(ring + 4 + 2 * slot, &head.to_le_bytes());
        self.available = self.available.wrapping_add(1);
        self.area.write(ring + 2, &self.available.to_le_bytes());
    }

    /// The next used chain: its head, and how many bytes were written.
    pub fn take_used(&mut self) -> Option<(u16, u32)> {
        let ring = self.at + 0x2000;
        if self.area.u16(ring + 2) == self.used {
            return None;
        }
        let slot = u64::from(self.used % self.size);
        let entry = self.area.read(ring + 4 + 8 * slot, 8);
        self.used = self.used.wrapping_add(1);
        let head = u16::from_le_bytes(entry[..2].try_into().unwrap());
        Some((head, u32::from_le_bytes(entry[4..].try_into().unwrap())))
    }
}
