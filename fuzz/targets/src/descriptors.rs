//! Descriptors as a hostile peer sends them, and whether they are closed again.

use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::input::Input;

/// Ends of a pipe, all alike, that tells once all of them are closed.
pub(crate) struct Counted {
    reading: OwnedFd,
}

impl Counted {
    /// So many.
    pub(crate) fn new(count: usize) -> (Self, Vec<OwnedFd>) {
        let flags = PipeFlags::CLOEXEC | PipeFlags::NONBLOCK;
        let (reading, writing) = pipe_with(flags).expect("a pipe");
        let copies = (0..count).map(|_| writing.try_clone().expect("a descriptor"));
        let copies = copies.collect();
        (Self { reading }, copies)
    }

    /// Whether whoever had them has closed them all.
    pub(crate) fn all_closed(&self) -> bool {
        rustix::io::read(&self.reading, &mut [0]) == Ok(0)
    }
}

/// Files that a peer has at hand.
pub(crate) struct Files {
    /// Its memory, which the target may write to and which may shrink.
    pub(crate) memory: OwnedFd,
    /// Another memory.
    pub(crate) other: OwnedFd,
}

impl Files {
    pub(crate) fn new(memory_bytes: u64, other_bytes: u64) -> Self {
        Self {
            memory: memory(memory_bytes),
            other: memory(other_bytes),
        }
    }

    /// Up to `most` of any kind. Eventfds do not block: a peer that blocks us by one that is full
    /// is tried by tests with a clock.
    pub(crate) fn choose(&self, input: &mut Input<'_>, most: u8) -> Vec<OwnedFd> {
        let count = input.u8() % (most + 1);
        (0..count).map(|_| self.one(input.u8())).collect()
    }

    fn one(&self, kind: u8) -> OwnedFd {
        let copy = |file: &OwnedFd| file.try_clone().expect("a descriptor");
        match kind % 8 {
            0 | 1 => event(),
            2 => copy(&self.memory),
            3 => copy(&self.other),
            4 => sealed(),
            5 => pipe_with(PipeFlags::CLOEXEC).expect("a pipe").0,
            6 => {
                let (one, _) = std::os::unix::net::UnixStream::pair().expect("sockets");
                one.into()
            }
            _ => std::fs::File::open("/dev/null").expect("/dev/null").into(),
        }
    }
}

pub(crate) fn event() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).expect("an eventfd")
}

pub(crate) fn memory(bytes: u64) -> OwnedFd {
    let file = memfd_create("memory", MemfdFlags::CLOEXEC).expect("a memfd");
    ftruncate(&file, bytes).expect("its size");
    file
}

/// Memory that nobody may write to.
fn sealed() -> OwnedFd {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = memfd_create("sealed", flags).expect("a memfd");
    ftruncate(&file, 0x4000).expect("its size");
    let seals = SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW;
    fcntl_add_seals(file.as_fd(), seals).expect("seals");
    file
}
