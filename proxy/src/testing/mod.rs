//! Both VMs' sides of a proxy, for tests: a proxy in a thread of its own, and a device VM that is
//! driven by hand through a vfio-user client that is not ours. The driver VM is `vudev-frontend`'s.
//!
//! Nothing here knows whether the proxy is in this process or in a jail: a device VM is given the
//! path of a socket.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests, which fail as tests do"
)]

mod device_vm;
mod driver;
mod messages;
mod raw;
mod running;

pub use device_vm::{
    BACKEND_UP, CONFIG_VECTOR, CONFIGURATION, DOORBELLS, DeviceVm, FIRST_KICK_VECTOR, FRONTEND_UP,
    RX_VECTOR, SHARED_MEMORY, TX_VECTOR, VIRTIO, await_event, borrowed, event, ram_file,
};
pub use driver::{Area, NEXT, Queue, WRITE};
pub use messages::{access, command, dma_map, dma_unmap, header, longs, version, words};
pub use raw::{Answer, Raw};
pub use running::Running;
