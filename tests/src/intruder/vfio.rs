//! A virtio-vhost-user function in the hands of its device: what VFIO would do for whoever has its
//! descriptors, had the function not been set up before the jail closed. Where a device has none,
//! the attempts are the same calls of no descriptor.

use std::os::fd::RawFd;

use super::hands::{at, call};
use super::{Attempt, refused};

/// The three descriptors of a function, or -1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vfio {
    /// Maps memory for the function.
    pub container: RawFd,
    /// Gives its device.
    pub group: RawFd,
    /// Its bars, its configuration space and its interrupts.
    pub device: RawFd,
}

impl Vfio {
    /// None.
    pub const NONE: Self = Self {
        container: -1,
        group: -1,
        device: -1,
    };

    /// Finds them in `/proc`, which only works before the jail closes.
    pub fn of_this_process() -> Self {
        let mut found = Self::NONE;
        let entries = std::fs::read_dir("/proc/self/fd").into_iter().flatten();
        for entry in entries.flatten() {
            let number = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok());
            let (Ok(target), Some(number)) = (std::fs::read_link(entry.path()), number) else {
                continue;
            };
            match target.to_str() {
                Some("/dev/vfio/vfio") => found.container = number,
                Some("anon_inode:[vfio-device]") => found.device = number,
                Some(path) if path.starts_with("/dev/vfio/") => found.group = number,
                _ => {}
            }
        }
        found
    }
}

/// `VFIO_GROUP_UNSET_CONTAINER` and those after it (`linux/vfio.h`).
const UNSET_CONTAINER: i64 = 0x3b69;
const GET_DEVICE_FD: i64 = 0x3b6a;
const GET_REGION_INFO: i64 = 0x3b6c;
const SET_IRQS: i64 = 0x3b6e;
const RESET: i64 = 0x3b6f;
const MAP_DMA: i64 = 0x3b71;
const UNMAP_DMA: i64 = 0x3b72;

const NOT_THERE: &[i32] = &[libc::EBADF];

/// What they are called: all that is asked of VFIO.
pub fn names() -> impl Iterator<Item = &'static str> {
    ATTEMPTS.iter().map(|attempt| attempt.name)
}

pub(super) static ATTEMPTS: &[Attempt] = &[
    refused(
        "ioctl VFIO_IOMMU_MAP_DMA to show the function other memory",
        NOT_THERE,
        |hands| {
            // argsz and flags, vaddr, iova, size
            let map = [32_u64 | 3 << 32, 0x10000, 0x10000, 0x1000];
            ioctl(hands.vfio.container, MAP_DMA, &map)
        },
    ),
    refused("ioctl VFIO_IOMMU_UNMAP_DMA", NOT_THERE, |hands| {
        let unmap = [24_u64, 0, u64::MAX];
        ioctl(hands.vfio.container, UNMAP_DMA, &unmap)
    }),
    refused(
        "ioctl VFIO_GROUP_GET_DEVICE_FD for a function of the same group",
        NOT_THERE,
        |hands| {
            ioctl(
                hands.vfio.group,
                GET_DEVICE_FD,
                &[u64::from_le_bytes(*b"0000:00:"), 0],
            )
        },
    ),
    refused("ioctl VFIO_GROUP_UNSET_CONTAINER", NOT_THERE, |hands| {
        ioctl(hands.vfio.group, UNSET_CONTAINER, &[])
    }),
    refused("ioctl VFIO_DEVICE_GET_REGION_INFO", NOT_THERE, |hands| {
        ioctl(hands.vfio.device, GET_REGION_INFO, &[32, 0, 0, 0])
    }),
    refused(
        "ioctl VFIO_DEVICE_SET_IRQS to wake others",
        NOT_THERE,
        // All vectors off: argsz, flags (no data, trigger), index (MSI-X), start, count.
        |hands| ioctl(hands.vfio.device, SET_IRQS, &[20 | 0x21 << 32, 2, 0]),
    ),
    refused("ioctl VFIO_DEVICE_RESET", NOT_THERE, |hands| {
        ioctl(hands.vfio.device, RESET, &[])
    }),
    refused("mmap a bar to execute it", NOT_THERE, |hands| {
        let (protection, flags) = (libc::PROT_READ | libc::PROT_EXEC, libc::MAP_SHARED);
        let device = hands.vfio.device.into();
        call(
            libc::SYS_mmap,
            &[0, 4096, protection.into(), flags.into(), device, 0],
        )
    }),
];

fn ioctl(descriptor: RawFd, request: i64, structure: &[u64]) -> i64 {
    let structure = at(structure.as_ptr());
    call(libc::SYS_ioctl, &[descriptor.into(), request, structure])
}
