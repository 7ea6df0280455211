//! What the executor's tests share: the other side of descriptors.
#![allow(dead_code, reason = "each test file uses a part")]

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use rustix::event::EventfdFlags;
use vudev_executor::{Executor, IoBuffers};

pub(crate) fn executor(operations: u32) -> Executor {
    Executor::with_operations(operations).expect("a ring")
}

pub(crate) fn eventfd(flags: EventfdFlags) -> OwnedFd {
    rustix::event::eventfd(0, flags | EventfdFlags::CLOEXEC).expect("an eventfd")
}

pub(crate) fn signal(fd: &impl AsFd, count: u64) {
    assert_eq!(rustix::io::write(fd, &count.to_ne_bytes()), Ok(8));
}

pub(crate) fn pipe() -> (OwnedFd, OwnedFd) {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).expect("a pipe")
}

pub(crate) fn read_all(file: &mut File) -> Vec<u8> {
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).expect("readable");
    bytes
}

pub(crate) fn disk(content: &[u8]) -> File {
    // Under the build directory rather than /tmp, which may be a tmpfs: the ring hands reads of
    // tmpfs to a worker.
    let mut file = tempfile::tempfile_in(env!("CARGO_TARGET_TMPDIR")).expect("a file");
    file.write_all(content).expect("written");
    file
}

/// A buffer that tells when it is freed.
pub(crate) struct Witnessed<B>(pub(crate) B, pub(crate) Rc<std::cell::Cell<bool>>);

impl<B> Drop for Witnessed<B> {
    fn drop(&mut self) {
        self.1.set(true);
    }
}

// SAFETY: the inner buffers keep the contract, and are owned.
#[expect(unsafe_code, reason = "a wrapper")]
unsafe impl<B: IoBuffers> IoBuffers for Witnessed<B> {
    fn iovecs(&self) -> &[libc::iovec] {
        self.0.iovecs()
    }
}
