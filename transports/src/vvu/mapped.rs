//! A function whose bars are parts of one descriptor, as VFIO has it: windows mapped when it is
//! made, memory as it is needed. How the descriptor, the vectors and the DMA area came about is not
//! asked.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use vudev_virtio::GuestMemory;

use super::capabilities::{BARS, Layout, Window};
use super::error::FunctionError;
use super::function::{Function, Width};
use super::mmio::Mmio;

/// All that was opened of a function.
#[derive(Debug)]
pub struct Parts {
    /// Where its windows lie, by the sizes of its bars.
    pub layout: Layout,
    /// The device.
    pub device: OwnedFd,
    /// Where each bar begins in it.
    pub bars: [u64; BARS],
    /// An eventfd for each MSI-X vector.
    pub vectors: Vec<OwnedFd>,
    /// Memory that the function reaches too.
    pub dma: Rc<GuestMemory>,
    /// What must stay open for all that to work.
    pub keep: Vec<OwnedFd>,
}

/// A function that is mapped.
#[derive(Debug)]
pub struct MappedFunction {
    layout: Layout,
    device: Rc<OwnedFd>,
    registers: [Mmio; Window::ALL.len()],
    /// Where the shared memory begins in the device.
    shared_memory: u64,
    vectors: Vec<OwnedFd>,
    dma: Rc<GuestMemory>,
    _keep: Vec<OwnedFd>,
}

impl MappedFunction {
    /// Maps the windows.
    ///
    /// # Errors
    ///
    /// The kernel's: a bar that the device does not let be mapped.
    pub fn new(parts: Parts) -> Result<Self, FunctionError> {
        let Parts {
            layout,
            device,
            bars,
            vectors,
            dma,
            keep,
        } = parts;
        let place = |bar: u8, offset: u64| -> io::Result<u64> {
            let bar = bars.get(usize::from(bar));
            let place = bar.and_then(|bar| bar.checked_add(offset));
            place.ok_or_else(|| io::ErrorKind::InvalidInput.into())
        };
        let map = |window| -> Result<Mmio, FunctionError> {
            let range = layout.window(window);
            let mapped = place(range.bar, range.offset)
                .and_then(|at| Mmio::map(device.as_fd(), at, range.size));
            mapped.map_err(|source| FunctionError::Map { window, source })
        };
        let [common, notify, isr, device_window, doorbell, notification] = Window::ALL;
        let registers = [
            map(common)?,
            map(notify)?,
            map(isr)?,
            map(device_window)?,
            map(doorbell)?,
            map(notification)?,
        ];
        let memory = layout.shared_memory;
        let shared_memory =
            place(memory.bar, memory.offset).map_err(FunctionError::io("shared memory"))?;
        Ok(Self {
            layout,
            device: Rc::new(device),
            registers,
            shared_memory,
            vectors,
            dma,
            _keep: keep,
        })
    }
}

impl Function for MappedFunction {
    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn read(&self, window: Window, at: u64, width: Width) -> u32 {
        self.registers[window as usize].read(at, width)
    }

    fn write(&self, window: Window, at: u64, width: Width, value: u32) {
        self.registers[window as usize].write(at, width, value);
    }

    fn dma(&self) -> &Rc<GuestMemory> {
        &self.dma
    }

    fn vectors(&self) -> &[OwnedFd] {
        &self.vectors
    }

    fn shared_memory(&self, at: u64, size: u64) -> Option<(Rc<OwnedFd>, u64)> {
        let inside = at
            .checked_add(size)
            .is_some_and(|end| end <= self.layout.shared_memory.size);
        let place = self.shared_memory.checked_add(at)?;
        inside.then(|| (self.device.clone(), place))
    }
}
