//! The virtio-vhost-user function: what its registers do, and what its two sides share. Not the
//! wires: a vfio-user client reaches it as [`vfio_user::Function`], a front-end through a session.
//!
//! Nothing here waits. A session that is told to end does nothing more, from this moment on: its
//! task looks at the [`Latch`] before all else.

mod configuration;
mod doorbell;
mod memory;
mod queues;
mod registers;
mod traps;

use std::cell::{Cell, RefCell};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use vudev_executor::{Handle, Kick, Latch, Notify};

pub(crate) use self::doorbell::Doorbell;
pub use self::memory::{SharedMemory, SharedMemoryError};
pub(crate) use self::queues::{RX, TX};

use self::memory::Window;
use self::queues::Queue;
use self::traps::{Counts, Traps};
use crate::pci::layout::{self, VECTORS, VHOST_QUEUES_MAX, region};
use crate::pci::{Configuration, Identity, Msix, NO_VECTOR};
use crate::vfio_user::{self, DmaMap, DmaUnmap, MapError, RegionInfo, SetInterrupts};
use crate::vhost_user::MemoryRegion;
use crate::virtio::{Common, Dma, QUEUES};

/// Status of the device's configuration: the driver is ready for a front-end.
const BACKEND_UP: u32 = 1 << 0;
/// A front-end is there.
const FRONTEND_UP: u32 = 1 << 1;

/// The only type of interrupts that there are any of (`VFIO_PCI_MSIX_IRQ_INDEX`).
const MSIX_INTERRUPTS: u32 = 2;

/// Between two lines of the log about what either side did wrong.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(1);

/// Which interrupts the interrupt status (4.1.4.5) tells of, where there is no vector.
mod isr {
    pub(super) const QUEUE: u8 = 1 << 0;
    pub(super) const CONFIGURATION: u8 = 1 << 1;
    pub(super) const NOTIFICATION: u8 = 1 << 2;
}

/// The function.
pub(crate) struct Device {
    handle: Handle,
    configuration: RefCell<Configuration>,
    msix: Msix,
    common: RefCell<Common>,
    isr: Cell<u8>,
    dma: RefCell<Dma>,
    queues: [Queue; QUEUES],
    uuid: [u8; 16],
    status: Cell<u32>,
    /// Set when what BACKEND_UP has begun is over.
    over: RefCell<Rc<Latch>>,
    backend_up: Notify,
    /// Calls, then errors.
    doorbells: RefCell<Vec<Option<Doorbell>>>,
    notification_select: Cell<u16>,
    notification_vectors: RefCell<Vec<u16>>,
    shared_memory: Window,
    traps: Traps,
    complained: Cell<Option<Instant>>,
    /// Whether the VMM of the device VM is there.
    has_client: Cell<bool>,
}

impl Device {
    pub(crate) fn new(
        handle: &Handle,
        identity: Identity,
        uuid: [u8; 16],
        shared_memory: SharedMemory,
    ) -> Result<Rc<Self>, SharedMemoryError> {
        let shared_memory = Window::new(shared_memory)?;
        let queues = usize::from(VHOST_QUEUES_MAX);
        Ok(Rc::new(Self {
            handle: handle.clone(),
            configuration: RefCell::new(Configuration::new(identity, shared_memory.bytes())),
            msix: Msix::new(handle),
            common: RefCell::default(),
            isr: Cell::new(0),
            dma: RefCell::default(),
            queues: Default::default(),
            uuid,
            status: Cell::new(0),
            over: RefCell::new(ended()),
            backend_up: Notify::new(),
            doorbells: RefCell::new((0..2 * queues).map(|_| None).collect()),
            notification_select: Cell::new(0),
            notification_vectors: RefCell::new(vec![NO_VECTOR; queues]),
            shared_memory,
            traps: Traps::default(),
            complained: Cell::new(None),
            has_client: Cell::new(false),
        }))
    }

    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Whether the driver waits for a front-end.
    pub(crate) fn is_backend_up(&self) -> bool {
        !self.over.borrow().is_set()
    }

    /// Waits for the driver to set BACKEND_UP; what is set when that is over.
    pub(crate) async fn wait_backend_up(&self) -> Rc<Latch> {
        loop {
            let over = self.over.borrow().clone();
            if !over.is_set() {
                return over;
            }
            self.backend_up.notified().await;
        }
    }

    /// A front-end is there.
    pub(crate) fn front_end_up(&self) {
        // What is for one that has left is not for this one.
        self.discard_transmissions();
        self.status.set(self.status.get() | FRONTEND_UP);
        self.configuration_changed();
    }

    /// The front-end is gone: the driver says when it is ready for another.
    pub(crate) fn front_end_left(&self) {
        self.end_session();
        self.configuration_changed();
    }

    /// How often the device VM has trapped since the last time this was asked.
    pub(crate) fn take_traps(&self) -> Counts {
        self.traps.take()
    }

    /// Ends what BACKEND_UP has begun.
    fn end_session(&self) {
        self.status.set(0);
        self.over.borrow().set();
        self.doorbells.borrow_mut().fill_with(|| None);
        self.shared_memory.clear();
        self.discard_transmissions();
    }

    /// The driver has broken the rules: nothing goes on until it resets the device.
    pub(crate) fn needs_reset(&self, cause: &dyn std::fmt::Display) {
        self.complain(format_args!("the device needs a reset: {cause}"));
        self.common.borrow_mut().needs_reset();
        self.stop_queues();
        self.end_session();
        self.configuration_changed();
    }

    /// A line in the log, unless there was one just now.
    pub(crate) fn complain(&self, what: std::fmt::Arguments<'_>) {
        let now = self.handle.now();
        let quiet = |last| now.saturating_duration_since(last) < COMPLAINT_INTERVAL;
        if !self.complained.get().is_some_and(quiet) {
            self.complained.set(Some(now));
            log::warn!("{what}");
        }
    }

    fn configuration_changed(&self) {
        self.common.borrow_mut().config_changed();
        let vector = self.common.borrow().config_vector();
        self.interrupt(vector, isr::CONFIGURATION);
    }

    fn interrupt(&self, vector: u16, isr: u8) {
        match vector {
            NO_VECTOR => self.isr.set(self.isr.get() | isr),
            vector => self.msix.trigger(vector),
        }
    }

    /// The front-end has kicked one of its queues.
    pub(crate) fn kicked(&self, queue: u16) {
        let vectors = self.notification_vectors.borrow();
        if let Some(vector) = vectors.get(usize::from(queue)) {
            self.interrupt(*vector, isr::NOTIFICATION);
        }
    }

    /// What doorbell `index` signals: calls first, then as many errors.
    pub(crate) fn set_doorbell(&self, index: usize, to: Option<Doorbell>) {
        if let Some(doorbell) = self.doorbells.borrow_mut().get_mut(index) {
            *doorbell = to;
        }
    }

    /// Shows this memory from now on; gives the table to be forwarded.
    pub(crate) fn set_memory(
        &self,
        regions: Vec<MemoryRegion>,
        files: Vec<OwnedFd>,
    ) -> Result<Vec<MemoryRegion>, SharedMemoryError> {
        self.shared_memory.set_table(regions, files)
    }

    /// Signals a kick's vector as often as the front-end kicks.
    pub(crate) async fn watch_kicks(self: Rc<Self>, queue: u16, mut kick: Kick) {
        loop {
            match kick.wait().await {
                Ok(()) => self.kicked(queue),
                Err(error) => {
                    return self.complain(format_args!("kicks of queue {queue}: {error}"));
                }
            }
        }
    }

    fn load(&self, region: u32, offset: u64, into: &mut [u8]) {
        match region {
            region::VIRTIO => self.read_virtio(offset, into),
            region::MSIX => self.msix.read(offset, into),
            region::DOORBELLS => self.read_doorbells(offset, into),
            region::SHARED_MEMORY => self.shared_memory.read(offset, into),
            region::CONFIGURATION => self.read_configuration(offset, into),
            _ => into.fill(0xff),
        }
    }

    fn store(&self, region: u32, offset: u64, data: &[u8]) {
        match region {
            region::VIRTIO => self.write_virtio(offset, data),
            region::MSIX => self.msix.write(offset, data),
            region::DOORBELLS => self.write_doorbells(offset, data),
            region::SHARED_MEMORY => self.shared_memory.write(offset, data),
            region::CONFIGURATION => self.write_configuration(offset, data),
            _ => {}
        }
    }

    /// virtio's own reset (2.4).
    fn reset_device(&self) {
        self.common.replace(Common::default());
        self.stop_queues();
        self.end_session();
        self.isr.set(0);
        self.notification_select.set(0);
        self.notification_vectors.borrow_mut().fill(NO_VECTOR);
    }

    /// The VMM of the device VM is gone: so is its memory, and whoever waited for interrupts.
    /// Whether it was one, and nobody who only looked.
    pub(crate) fn client_left(&self) -> bool {
        vfio_user::Function::reset(self);
        self.dma.borrow_mut().clear();
        self.msix.forget();
        self.has_client.take()
    }
}

fn ended() -> Rc<Latch> {
    let latch = Latch::new();
    latch.set();
    Rc::new(latch)
}

impl vfio_user::Function for Device {
    fn region(&self, index: u32) -> RegionInfo {
        let size = match index {
            region::VIRTIO => layout::VIRTIO_SIZE,
            region::MSIX => layout::MSIX_SIZE,
            region::DOORBELLS => layout::DOORBELLS_SIZE,
            region::SHARED_MEMORY => return self.shared_memory.region(),
            region::CONFIGURATION => layout::CONFIGURATION_SIZE as u64,
            _ => 0,
        };
        RegionInfo { size, mapped: None }
    }

    fn region_file(&self, index: u32) -> Option<BorrowedFd<'_>> {
        match index {
            region::SHARED_MEMORY => self.shared_memory.file(),
            _ => None,
        }
    }

    fn interrupts(&self, index: u32) -> u32 {
        match index {
            MSIX_INTERRUPTS => u32::from(VECTORS),
            _ => 0,
        }
    }

    fn read(&self, region: u32, offset: u64, into: &mut [u8]) {
        self.traps.count(region);
        self.load(region, offset, into);
    }

    fn write(&self, region: u32, offset: u64, data: &[u8]) {
        self.traps.count(region);
        self.store(region, offset, data);
    }

    fn map(&self, map: DmaMap) -> Result<(), MapError> {
        self.dma.borrow_mut().map(map)
    }

    fn unmap(&self, unmap: &DmaUnmap) -> Result<(), Errno> {
        self.dma.borrow_mut().unmap(unmap)
    }

    fn set_interrupts(&self, set: SetInterrupts<'_>) -> Result<(), Errno> {
        match set.index {
            MSIX_INTERRUPTS => self.msix.set(set),
            // None of another type: nothing to be done, and nothing to be done to these.
            _ => Ok(()),
        }
    }

    fn reset(&self) {
        self.reset_device();
        self.msix.reset();
        self.configuration.borrow_mut().reset();
    }

    fn agreed(&self) {
        self.has_client.set(true);
        log::info!("the device VM's VMM has connected");
    }
}
