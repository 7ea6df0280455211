//! How front-ends reach a device, as its process has it before its jail closes: what was opened by
//! the supervisor has been mapped, and nobody listens yet. Which descriptors make a wire is decided
//! here; what goes over it is `vudev-transports`' matter.

use std::os::fd::OwnedFd;
use std::rc::Rc;

use vudev_transports::vvu::{Function, MemoryPlacement, Opened, VfioError};

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
    /// A virtio-vhost-user function.
    Function {
        /// It, mapped.
        function: Rc<dyn Function>,
        /// Where it shows memory.
        placement: MemoryPlacement,
    },
}

/// What came is no wire.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WireError {
    /// The supervisor is another binary.
    #[error("the start has {got} descriptors, and its wire alone takes {expected}")]
    Descriptors {
        /// How many the wire takes.
        expected: usize,
        /// How many came.
        got: usize,
    },
    /// It cannot be mapped, or is no virtio-vhost-user device.
    #[error(transparent)]
    Function(#[from] VfioError),
}

impl Wire {
    /// Takes the wire's descriptors, which come before the device's own, and maps what there is to
    /// map.
    pub(super) fn take(
        transport: Transport,
        descriptors: &mut Vec<OwnedFd>,
    ) -> Result<Self, WireError> {
        match transport {
            Transport::VhostUser => {
                let [socket] = first(descriptors)?;
                Ok(Self::Socket(socket))
            }
            Transport::Vvu(memory) => {
                let [container, group, device] = first(descriptors)?;
                let opened = Opened {
                    container,
                    group,
                    device,
                };
                Ok(Self::Function {
                    function: Rc::new(opened.map()?),
                    placement: placement(memory),
                })
            }
        }
    }
}

/// The first ones, if there are as many.
fn first<const N: usize>(descriptors: &mut Vec<OwnedFd>) -> Result<[OwnedFd; N], WireError> {
    let got = descriptors.len();
    let wrong = WireError::Descriptors { expected: N, got };
    if got < N {
        return Err(wrong);
    }
    let taken: Vec<_> = descriptors.drain(..N).collect();
    taken.try_into().map_err(|_| wrong)
}

fn placement(memory: VvuMemory) -> MemoryPlacement {
    match memory {
        VvuMemory::Files => MemoryPlacement::WholeFiles,
        VvuMemory::Regions => MemoryPlacement::Regions,
        VvuMemory::Offsets => MemoryPlacement::FileOffsets,
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

    use super::*;

    const VVU: Transport = Transport::Vvu(VvuMemory::Files);

    fn descriptors(count: usize) -> Vec<OwnedFd> {
        let one = || eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        std::iter::repeat_with(one).take(count).collect()
    }

    #[test]
    fn a_wire_takes_its_descriptors_and_leaves_the_devices_own() {
        let mut given = descriptors(3);
        assert!(matches!(
            Wire::take(Transport::VhostUser, &mut given),
            Ok(Wire::Socket(_))
        ));
        assert_eq!(given.len(), 2);
        for (transport, expected) in [(Transport::VhostUser, 1), (VVU, 3)] {
            let short = Wire::take(transport, &mut descriptors(expected - 1)).err();
            let short = short.map(|error| error.to_string()).unwrap_or_default();
            assert!(
                short.contains(&format!("alone takes {expected}")),
                "{short}"
            );
        }
    }

    #[test]
    fn what_is_no_function_is_told_by_the_call_that_failed() {
        let error = Wire::take(VVU, &mut descriptors(3)).err();
        let error = error.map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains("VFIO_DEVICE_GET_REGION_INFO"), "{error}");
    }
}
