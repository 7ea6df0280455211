//! How front-ends reach a device, as its process has it before its jail closes: what was opened by
//! the supervisor has been mapped, and nobody listens yet. Which descriptors make a wire is decided
//! here; what goes over it is `vudev-transports`' matter.

use std::os::fd::OwnedFd;
use std::rc::Rc;

use vudev_executor::Handle;
use vudev_transports::vvu::{FunctionError, Listener, MemoryPlacement, Opened, VfioError};

use crate::channel::Transport;
use crate::options::VvuMemory;

/// Ring operations of a function beside those of a socket: its receive queue and its configuration
/// are polled, and its transmit queue by whoever waits for room in it, an answer and a request of
/// ours.
const OPERATIONS_OF_FUNCTION: u32 = 4;

/// What front-ends come through.
pub(crate) enum Wire {
    /// A Unix socket that listens.
    Socket(OwnedFd),
    /// A virtio-vhost-user function, mapped.
    Function(Listener),
}

/// What came is no wire.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WireError {
    /// The supervisor is another binary.
    #[error("the start has {got} descriptors for a wire that takes {expected}")]
    Descriptors {
        /// How many the wire takes.
        expected: usize,
        /// How many came.
        got: usize,
    },
    /// It cannot be mapped, or is no virtio-vhost-user device.
    #[error(transparent)]
    Function(#[from] VfioError),
    /// It has too little for the device.
    #[error(transparent)]
    Unfit(#[from] FunctionError),
}

impl Wire {
    /// Makes it of its descriptors, and maps what there is to map for so many queues.
    pub(super) fn new(
        handle: &Handle,
        transport: Transport,
        descriptors: Vec<OwnedFd>,
        queues: u16,
    ) -> Result<Self, WireError> {
        match transport {
            Transport::VhostUser => {
                let [socket] = exactly(descriptors)?;
                Ok(Self::Socket(socket))
            }
            Transport::Vvu(memory) => {
                let [container, group, device] = exactly(descriptors)?;
                let opened = Opened {
                    container,
                    group,
                    device,
                };
                let function = Rc::new(opened.map(queues)?);
                let listener = Listener::new(handle, function, queues, placement(memory))?;
                Ok(Self::Function(listener))
            }
        }
    }
}

fn exactly<const N: usize>(descriptors: Vec<OwnedFd>) -> Result<[OwnedFd; N], WireError> {
    let got = descriptors.len();
    <[OwnedFd; N]>::try_from(descriptors).map_err(|_| WireError::Descriptors { expected: N, got })
}

fn placement(memory: VvuMemory) -> MemoryPlacement {
    match memory {
        VvuMemory::Files => MemoryPlacement::WholeFiles,
        VvuMemory::Regions => MemoryPlacement::Regions,
        VvuMemory::Offsets => MemoryPlacement::FileOffsets,
    }
}

/// How many descriptors a wire is made of. They come before the device's own.
pub(super) fn descriptors(transport: Transport) -> usize {
    match transport {
        Transport::VhostUser => 1,
        Transport::Vvu(_) => 3,
    }
}

/// Ring operations that a wire has in flight beside those of any.
pub(super) fn operations(transport: Transport) -> u32 {
    match transport {
        Transport::VhostUser => 0,
        Transport::Vvu(_) => OPERATIONS_OF_FUNCTION,
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{EventfdFlags, eventfd};
    use vudev_executor::{Executor, Faults};

    use super::*;

    const VVU: Transport = Transport::Vvu(VvuMemory::Files);

    fn given(count: usize) -> Vec<OwnedFd> {
        let one = || eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        std::iter::repeat_with(one).take(count).collect()
    }

    #[test]
    fn a_wire_is_made_of_its_own_descriptors() {
        let executor = Executor::simulated(0, Faults::default());
        let handle = executor.handle();
        let socket = Wire::new(handle, Transport::VhostUser, given(1), 1);
        assert!(matches!(socket, Ok(Wire::Socket(_))));
        for transport in [Transport::VhostUser, VVU] {
            let expected = descriptors(transport);
            for wrong in [expected - 1, expected + 1] {
                let error = Wire::new(handle, transport, given(wrong), 1).err();
                let error = error.map(|error| error.to_string()).unwrap_or_default();
                assert!(error.contains(&format!("takes {expected}")), "{error}");
            }
        }
    }

    #[test]
    fn what_is_no_function_is_told_by_the_call_that_failed() {
        let executor = Executor::simulated(0, Faults::default());
        let error = Wire::new(executor.handle(), VVU, given(3), 1).err();
        let error = error.map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains("VFIO_DEVICE_GET_REGION_INFO"), "{error}");
    }
}
