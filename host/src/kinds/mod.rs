//! The kinds of devices that come with vudev: the options of each, what is opened for it outside
//! its jail, and how it is made of that inside. The devices themselves are `vudev-devices`.

mod block;
mod format;
mod net;
mod rng;
mod serial;
mod vsock;
pub(crate) mod vvu_proxy;

#[cfg(test)]
mod tests;

use std::os::fd::OwnedFd;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::options::{Key, Kind, OptionError, Values, reason, shown};

pub use block::Block;
pub use net::Net;
pub use rng::{Rng, RngDescription};
pub use serial::{EndDescription, PortDescription, Serial, SerialDescription};
pub use vsock::{Vsock, VsockDescription};

/// Why a key that `crosvm run` has changes nothing here.
const VMM_ONLY: &str = "it tells a VMM how to attach the device to the guest";

const PCI_ADDRESS: Key =
    Key::new("pci-address", Kind::PciAddress, "where the guest finds it").noted(VMM_ONLY);

const PACKED_QUEUE: Key =
    Key::flag("packed-queue", "offer packed rings").refused("packed rings are not built yet");

const MAX_QUEUE_SIZES: Key = Key::new(
    "max-queue-sizes",
    Kind::Numbers {
        min: 1,
        max: 32_768,
    },
    "the greatest size of each queue",
)
.noted("a front-end sets the sizes of the queues");

/// An open file and what it is.
struct Open {
    descriptor: OwnedFd,
    file_type: FileType,
}

/// Opens the file that a key names. `flags` say how; a file that is made may be read and written
/// by all that the umask allows.
///
/// Never waits for the other side of a FIFO, as open(2) would, and never makes a terminal ours.
fn open(values: &Values, key: &str, flags: OFlags) -> Result<Open, OptionError> {
    let path = values.path(key);
    let flags = flags | OFlags::CLOEXEC | OFlags::NOCTTY;
    let open = || {
        let descriptor = rustix::fs::open(path, flags | OFlags::NONBLOCK, Mode::from(0o666))?;
        let stat = rustix::fs::fstat(&descriptor)?;
        // The ring would give EAGAIN where it should wait.
        let set = rustix::fs::fcntl_getfl(&descriptor)?;
        rustix::fs::fcntl_setfl(&descriptor, set - OFlags::NONBLOCK)?;
        Ok(Open {
            descriptor,
            file_type: FileType::from_raw_mode(stat.st_mode),
        })
    };
    open().map_err(|errno| not_opened(values, key, flags, errno))
}

fn not_opened(values: &Values, key: &str, flags: OFlags, errno: Errno) -> OptionError {
    let path = values.path(key);
    let error = values.error(
        key,
        format!("cannot open {}: {}", shown(path), reason(errno)),
    );
    let writes = flags.intersects(OFlags::WRONLY | OFlags::RDWR);
    match errno {
        Errno::NOENT if flags.contains(OFlags::CREATE) => {
            error.remedy("make its directory, or write another path")
        }
        Errno::NOENT => error.remedy("write the path of a file that exists"),
        Errno::PERM => error.remedy(
            "have it allowed: a container's rules on devices, or a file's attributes (lsattr)",
        ),
        Errno::ACCESS if writes => {
            error.remedy("start as a user who may read and write it, or change its mode")
        }
        Errno::ACCESS => error.remedy("start as a user who may read it, or change its mode"),
        Errno::NXIO if writes => {
            error.remedy("a FIFO needs a reader first, and a socket cannot be opened")
        }
        Errno::ISDIR => error.remedy("write the path of a file in it"),
        Errno::MFILE => error.remedy("raise the limit of open files (ulimit -n)"),
        _ => error.remedy("write the path of a file that can be opened"),
    }
}
