//! The system calls of VFIO (`linux/vfio.h`), each with the structure that it takes. Not their
//! order, nor what they are for.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use vfio_bindings::bindings::vfio::{
    vfio_group_status, vfio_iommu_type1_dma_map, vfio_irq_info, vfio_region_info,
};

/// `_IO(VFIO_TYPE, VFIO_BASE + n)`.
const fn number(n: u32) -> libc::Ioctl {
    ((b';' as u32) << 8 | (100 + n)) as libc::Ioctl
}

const GET_API_VERSION: libc::Ioctl = number(0);
const SET_IOMMU: libc::Ioctl = number(2);
const GROUP_GET_STATUS: libc::Ioctl = number(3);
const GROUP_SET_CONTAINER: libc::Ioctl = number(4);
const GROUP_GET_DEVICE_FD: libc::Ioctl = number(6);
const DEVICE_GET_REGION_INFO: libc::Ioctl = number(8);
const DEVICE_GET_IRQ_INFO: libc::Ioctl = number(9);
const DEVICE_SET_IRQS: libc::Ioctl = number(10);
const IOMMU_MAP_DMA: libc::Ioctl = number(13);

/// A system call whose argument is a number, or none.
#[expect(unsafe_code, reason = "ioctl(2) with a number")]
fn with_number(
    fd: BorrowedFd<'_>,
    request: libc::Ioctl,
    argument: libc::c_ulong,
) -> io::Result<i32> {
    // SAFETY: the requests that come here take no pointer.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), request, argument) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

/// A system call whose argument is a structure that begins with its own size.
#[expect(unsafe_code, reason = "ioctl(2) with a structure")]
fn with_structure<T>(
    fd: BorrowedFd<'_>,
    request: libc::Ioctl,
    structure: &mut T,
) -> io::Result<i32> {
    // SAFETY: each caller passes the structure that its request takes, whole, with `argsz` set to
    // its size, which bounds what the kernel reads and writes.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), request, std::ptr::from_mut(structure)) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

fn size_of_word<T>() -> u32 {
    u32::try_from(size_of::<T>()).expect("a small structure")
}

/// `VFIO_GET_API_VERSION` of a container.
pub(super) fn api_version(container: BorrowedFd<'_>) -> io::Result<i32> {
    with_number(container, GET_API_VERSION, 0)
}

/// `VFIO_GROUP_GET_STATUS`: the flags.
pub(super) fn group_flags(group: BorrowedFd<'_>) -> io::Result<u32> {
    let mut status = vfio_group_status {
        argsz: size_of_word::<vfio_group_status>(),
        flags: 0,
    };
    with_structure(group, GROUP_GET_STATUS, &mut status)?;
    Ok(status.flags)
}

/// `VFIO_GROUP_SET_CONTAINER`.
pub(super) fn set_container(group: BorrowedFd<'_>, container: BorrowedFd<'_>) -> io::Result<()> {
    let mut container = container.as_raw_fd();
    with_structure(group, GROUP_SET_CONTAINER, &mut container).map(drop)
}

/// `VFIO_SET_IOMMU`.
pub(super) fn set_iommu(container: BorrowedFd<'_>, model: u32) -> io::Result<()> {
    with_number(container, SET_IOMMU, model.into()).map(drop)
}

/// `VFIO_GROUP_GET_DEVICE_FD`.
#[expect(unsafe_code, reason = "ioctl(2) with a string, and a new descriptor")]
pub(super) fn device(group: BorrowedFd<'_>, name: &CStr) -> io::Result<OwnedFd> {
    // SAFETY: the request takes a string that ends with a zero byte.
    let result = unsafe { libc::ioctl(group.as_raw_fd(), GROUP_GET_DEVICE_FD, name.as_ptr()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(result) })
}

/// `VFIO_DEVICE_GET_REGION_INFO`.
pub(super) fn region_info(device: BorrowedFd<'_>, index: u32) -> io::Result<vfio_region_info> {
    let mut info = vfio_region_info {
        argsz: size_of_word::<vfio_region_info>(),
        index,
        ..Default::default()
    };
    with_structure(device, DEVICE_GET_REGION_INFO, &mut info)?;
    Ok(info)
}

/// `VFIO_DEVICE_GET_IRQ_INFO`: how many there are.
pub(super) fn interrupt_count(device: BorrowedFd<'_>, index: u32) -> io::Result<u32> {
    let mut info = vfio_irq_info {
        argsz: size_of_word::<vfio_irq_info>(),
        index,
        ..Default::default()
    };
    with_structure(device, DEVICE_GET_IRQ_INFO, &mut info)?;
    Ok(info.count)
}

/// `struct vfio_irq_set`, with room for as many eventfds as MSI-X has vectors.
#[repr(C)]
struct InterruptSet {
    argsz: u32,
    flags: u32,
    index: u32,
    start: u32,
    count: u32,
    events: [i32; VECTORS_MAX],
}

/// Vectors of MSI-X at most (PCI 3.0, 6.8.2.3).
pub(super) const VECTORS_MAX: usize = 2048;

/// `VFIO_DEVICE_SET_IRQS`: the eventfds of all vectors from the first on.
pub(super) fn set_interrupts(
    device: BorrowedFd<'_>,
    index: u32,
    flags: u32,
    vectors: &[OwnedFd],
) -> io::Result<()> {
    let count = u32::try_from(vectors.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut set = Box::new(InterruptSet {
        argsz: 20 + 4 * count,
        flags,
        index,
        start: 0,
        count,
        events: [-1; VECTORS_MAX],
    });
    if vectors.len() > VECTORS_MAX {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (place, event) in set.events.iter_mut().zip(vectors) {
        *place = event.as_raw_fd();
    }
    with_structure(device, DEVICE_SET_IRQS, &mut *set).map(drop)
}

/// `VFIO_IOMMU_MAP_DMA` of memory of this process, to read and to write.
pub(super) fn map_dma(
    container: BorrowedFd<'_>,
    flags: u32,
    memory: usize,
    address: u64,
    size: u64,
) -> io::Result<()> {
    let mut map = vfio_iommu_type1_dma_map {
        argsz: size_of_word::<vfio_iommu_type1_dma_map>(),
        flags,
        vaddr: memory as u64,
        iova: address,
        size,
    };
    with_structure(container, IOMMU_MAP_DMA, &mut map).map(drop)
}

#[cfg(test)]
mod tests {
    use vfio_bindings::bindings::vfio;

    use super::*;

    #[test]
    fn structures_and_numbers_are_those_of_the_kernel() {
        assert_eq!(GET_API_VERSION, 0x3b64);
        assert_eq!(IOMMU_MAP_DMA, 0x3b71);
        let events = std::mem::offset_of!(InterruptSet, events);
        assert_eq!(events, size_of::<vfio::vfio_irq_set>());
    }

    #[test]
    fn what_is_no_vfio_answers_with_an_error() {
        use std::os::fd::AsFd;
        let null = std::fs::File::open("/dev/null").unwrap();
        assert!(api_version(null.as_fd()).is_err());
        assert!(group_flags(null.as_fd()).is_err());
        assert!(device(null.as_fd(), c"0000:00:05.0").is_err());
        assert!(set_interrupts(null.as_fd(), 2, 0x24, &[]).is_err());
    }
}
