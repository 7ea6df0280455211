//! What messages without descriptors speak of: memory is a part of the function's bar, a kick a
//! vector, a call or an error a doorbell. Bounds are checked here, once a message.

use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use vudev_executor::CallTarget;
use vudev_virtio::{MemoryError, Region, RegionLayout};

use super::capabilities::Window;
use super::function::{Function, Register, Width};
use super::set_up::kick_vector;
use super::transmit::Transmitter;
use crate::message::{BackendChannel, Header, MessageError, MessageName, Resources};

/// Where a device puts the regions of a table into its window. Devices of the field do not agree;
/// with one region, or with offsets of 0 in the files as a proxy of ours has them, the first two
/// say the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MemoryPlacement {
    /// Each file from its beginning up to the region's end, one after the other: QEMU's device and
    /// DPDK's driver.
    #[default]
    WholeFiles,
    /// The regions one after the other: the draft of the specification.
    Regions,
    /// Each region at its own offset in its file, as crosvm's driver has it.
    FileOffsets,
}

/// What does not change for a session.
pub(super) struct Wiring {
    pub(super) function: Rc<dyn Function>,
    pub(super) placement: MemoryPlacement,
    /// Queues whose kicks have a vector.
    pub(super) queues: u16,
    pub(super) vectors: u16,
    /// Doorbells of calls.
    pub(super) vhost_queues: u32,
}

/// The resources of one message.
pub(super) struct Windows<'a> {
    wiring: &'a Wiring,
    transmitter: &'a Rc<Transmitter>,
    message: MessageName,
    /// Where the next region goes.
    next: u64,
}

impl<'a> Windows<'a> {
    pub(super) fn new(
        wiring: &'a Wiring,
        transmitter: &'a Rc<Transmitter>,
        header: &Header,
    ) -> Self {
        Self {
            wiring,
            transmitter,
            message: header.name(),
            next: 0,
        }
    }

    /// Where a region lies in the window; `None` where no window reaches.
    fn place(&mut self, layout: &RegionLayout) -> Option<u64> {
        let at = match self.wiring.placement {
            MemoryPlacement::WholeFiles => self.next.checked_add(layout.offset)?,
            MemoryPlacement::Regions => self.next,
            MemoryPlacement::FileOffsets => layout.offset,
        };
        self.next = match self.wiring.placement {
            MemoryPlacement::WholeFiles | MemoryPlacement::Regions => {
                at.checked_add(layout.size)?
            }
            MemoryPlacement::FileOffsets => self.next,
        };
        Some(at)
    }

    fn map(&mut self, layout: RegionLayout) -> Result<Region, MemoryError> {
        let actual = self.wiring.function.layout().shared_memory.size;
        let place = self.place(&layout);
        let end = place.and_then(|at| at.checked_add(layout.size));
        let beyond = MemoryError::BeyondWindow {
            needed: end.unwrap_or(u64::MAX),
            actual,
        };
        let (Some(at), Some(end)) = (place, end) else {
            return Err(beyond);
        };
        if end > actual {
            return Err(beyond);
        }
        let shown = self.wiring.function.shared_memory(at, layout.size);
        let (file, offset) = shown.ok_or(beyond)?;
        Region::map_bar(layout, file.as_fd(), offset)
    }

    /// A doorbell, which is told its own number: with a multiplier of 0 they all have one address.
    fn doorbell(&self, queue: u16, number: u64) -> Result<CallTarget, MessageError> {
        let function = &self.wiring.function;
        let layout = function.layout();
        let refused = self.no_such_queue(queue);
        let Ok(value) = u16::try_from(number) else {
            return Err(refused);
        };
        let at = number * u64::from(layout.doorbell_multiplier);
        let register =
            Register::new(layout, Window::Doorbell, at, Width::Word).map_err(|_| refused)?;
        let function = function.clone();
        let ring = move || register.write(&*function, u32::from(value));
        Ok(CallTarget::doorbell(ring))
    }

    fn no_such_queue(&self, queue: u16) -> MessageError {
        MessageError::Value {
            message: self.message,
            field: "ring index",
            value: u64::from(queue),
            rule: "more than the VVU device has doorbells or vectors for",
        }
    }
}

impl Resources for Windows<'_> {
    type Memory = Region;

    fn count(&self) -> Option<usize> {
        None
    }

    fn memory(&mut self, layout: RegionLayout) -> Result<Region, MessageError> {
        self.map(layout).map_err(|source| MessageError::Memory {
            message: self.message,
            source,
        })
    }

    fn kick(&mut self, index: u16) -> Result<OwnedFd, MessageError> {
        let refused = self.no_such_queue(index);
        if index >= self.wiring.queues {
            return Err(refused);
        }
        let vector = kick_vector(index, self.wiring.vectors);
        let event = &self.wiring.function.vectors()[usize::from(vector)];
        event.try_clone().map_err(|error| MessageError::Event {
            message: self.message,
            errno: error.raw_os_error().unwrap_or(0),
        })
    }

    fn call(&mut self, index: u16) -> Result<CallTarget, MessageError> {
        if u32::from(index) >= self.wiring.vhost_queues {
            return Err(self.no_such_queue(index));
        }
        self.doorbell(index, u64::from(index))
    }

    /// The doorbells of errors lie behind those of calls (VVU, "Additional Device Resources"). Not
    /// every function has them, and without them nobody is told.
    fn error(&mut self, index: u16) -> Result<CallTarget, MessageError> {
        if u32::from(index) >= self.wiring.vhost_queues {
            return Err(self.no_such_queue(index));
        }
        let number = u64::from(self.wiring.vhost_queues) + u64::from(index);
        let doorbell = self.doorbell(index, number);
        Ok(doorbell.unwrap_or_else(|_| CallTarget::doorbell(|| {})))
    }

    fn channel(&mut self) -> Result<BackendChannel, MessageError> {
        Ok(BackendChannel::Requests(self.transmitter.clone()))
    }
}
