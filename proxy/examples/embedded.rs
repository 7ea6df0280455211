//! A proxy inside a program of its author's own: the PCI function for a device VM at one socket,
//! the front-ends of the driver VM at another, and the driver VM's memory in a file. It has no
//! jail: `vudev vvu-proxy` is the same `Proxy` with one.
//!
//!     truncate -s 1G /dev/shm/driver-vm
//!     cargo run -p vudev-proxy --example embedded -- /tmp/vfio /tmp/vhost /dev/shm/driver-vm
//!
//! The device VM's QEMU then takes `-device vfio-user-pci` with the first socket, and the driver
//! VM's a chardev at the second one (`docs/vvu.md`).

use std::env;
use std::error::Error;
use std::fs::OpenOptions;
use std::os::unix::net::UnixListener;

use vudev_executor::Executor;
use vudev_proxy::pci::Identity;
use vudev_proxy::{OPERATIONS, Parts, Proxy, SharedMemory};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args().skip(1);
    let mut next = || arguments.next().ok_or("it takes SOCKET VHOST RAM_FILE");
    let (socket, vhost, ram_file) = (next()?, next()?, next()?);
    // Several proxies may share a loop: so many operations for each.
    let executor = Executor::with_operations(OPERATIONS)?;
    let memory = OpenOptions::new().read(true).write(true).open(ram_file)?;
    let parts = Parts {
        clients: UnixListener::bind(socket)?.into(),
        shared_memory: SharedMemory::RamFile(memory.into()),
        identity: Identity {
            vendor: 0x1af4,
            device: 0x107d,
        },
        uuid: [0; 16],
    };
    let front_ends = UnixListener::bind(vhost)?.into();
    let proxy = Proxy::new(executor.handle(), parts)?;
    // For ever. What ends it is a future beside it that ends, or the process.
    executor.run(proxy.run(front_ends))?;
    Ok(())
}
