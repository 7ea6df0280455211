//! The seam between a driver of a virtio-vhost-user function and the function: registers by window,
//! a DMA area, vectors and shared memory. It is no bus and no driver: whoever opens a function
//! (over VFIO, or as software for tests) gives these, all of them before the jail closes.

use std::os::fd::OwnedFd;
use std::rc::Rc;

use vudev_virtio::GuestMemory;

use super::capabilities::{Layout, Window};
use super::error::FunctionError;

/// How wide an access is. Fields of 64 bits are accessed in halves (virtio 1.3, 4.1.3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// 8 bits.
    Byte = 1,
    /// 16 bits.
    Word = 2,
    /// 32 bits.
    Double = 4,
}

/// What a function of another side has, ready for use without any further system call but mappings
/// of shared memory.
///
/// Registers are little-endian on the bus; values here are numbers.
pub trait Function {
    /// Where its windows lie, and how large they are.
    fn layout(&self) -> &Layout;

    /// Reads a register. `at` is within the window, and a multiple of the width.
    fn read(&self, window: Window, at: u64, width: Width) -> u32;

    /// Writes a register, as [`Function::read`]. Never waits for anything.
    fn write(&self, window: Window, at: u64, width: Width, value: u32);

    /// Memory that the function reaches at the same addresses: [`super::DMA_SIZE`] bytes from
    /// [`super::DMA_ADDRESS`] on.
    fn dma(&self) -> &Rc<GuestMemory>;

    /// An eventfd for each MSI-X vector.
    fn vectors(&self) -> &[OwnedFd];

    /// The file, and where in it, of `size` bytes of shared memory from `at` of its window on.
    /// `None`: it does not show that much.
    fn shared_memory(&self, at: u64, size: u64) -> Option<(Rc<OwnedFd>, u64)>;
}

/// A register that was checked to lie in its window and to be aligned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Register {
    window: Window,
    at: u64,
    width: Width,
}

impl Register {
    /// The register at a place that a function has named.
    pub(super) fn new(
        layout: &Layout,
        window: Window,
        at: u64,
        width: Width,
    ) -> Result<Self, FunctionError> {
        let size = layout.window(window).size;
        let bytes = width as u64;
        let inside = at.checked_add(bytes).is_some_and(|end| end <= size);
        if inside && at.is_multiple_of(bytes) {
            Ok(Self { window, at, width })
        } else {
            Err(FunctionError::RegisterOutside { window, at, size })
        }
    }

    /// A register at a place that every window of its kind has.
    pub(super) const fn fixed(window: Window, at: u64, width: Width) -> Self {
        Self { window, at, width }
    }

    pub(super) fn read(self, function: &dyn Function) -> u32 {
        function.read(self.window, self.at, self.width)
    }

    pub(super) fn write(self, function: &dyn Function, value: u32) {
        function.write(self.window, self.at, self.width, value);
    }
}
