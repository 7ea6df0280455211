//! Opening a function over VFIO, by container and group. In two steps, because two processes take
//! them: [`Opened::open`] needs paths, [`Opened::map`] is done where the function is then driven,
//! before its jail closes, for memory is pinned for who maps it. Not a driver.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::rc::Rc;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::MemfdFlags;
use vfio_bindings::bindings::vfio;
use vudev_executor::IoBuffers;
use vudev_virtio::{GuestMemory, MemoryError, Region, RegionLayout};

use super::address::PciAddress;
use super::capabilities::{BARS, CONFIGURATION_SIZE, Layout, LayoutError};
use super::error::FunctionError;
use super::ioctls;
use super::mapped::{MappedFunction, Parts};
use super::rings::{DMA_ADDRESS, DMA_SIZE};
use super::set_up::vectors_max;
use super::sysfs::group_of;

/// `VFIO_API_VERSION`.
const API_VERSION: i32 = 0;

/// PCI's command register, and its bits for bars of memory and for reaching memory itself.
const COMMAND: u64 = 4;
const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_MASTER: u16 = 1 << 2;

/// Why a function cannot be opened. Each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum VfioError {
    /// It is not there.
    #[error("there is no PCI function {0}: lspci lists them")]
    Missing(PciAddress),
    /// It is something else, most likely the VM's own disk.
    #[error(
        "PCI function {address} ({id}) is no virtio-vhost-user device: lspci -d 1af4:107d lists \
         those of vudev's proxies"
    )]
    AnotherDevice {
        /// The function.
        address: PciAddress,
        /// Its vendor and device.
        id: String,
    },
    /// It is to be bound to VFIO, once that is there.
    #[error(
        "PCI function {0} is meant for vfio-pci, which this kernel has not loaded: modprobe \
         vfio-pci"
    )]
    NotLoaded(PciAddress),
    /// It is to be bound to VFIO, which is there.
    #[error(
        "PCI function {0} is meant for vfio-pci, which does not have it: write {0} into \
         /sys/bus/pci/drivers_probe; if vfio-pci refuses it, dmesg tells why"
    )]
    NotTaken(PciAddress),
    /// Another driver has it, or none.
    #[error(
        "PCI function {address} ({id}) is bound to {driver}: in {folder}, write vfio-pci into \
         driver_override, and {address} into driver/unbind if there is one; then {address} into \
         /sys/bus/pci/drivers_probe"
    )]
    NotBound {
        /// The function.
        address: PciAddress,
        /// Its vendor and device.
        id: String,
        /// What it is bound to.
        driver: String,
        /// Its folder in sysfs.
        folder: String,
    },
    /// It is in no group.
    #[error(
        "PCI function {0} is in no IOMMU group: this VM needs an IOMMU, and its kernel to use it \
         (intel_iommu=on)"
    )]
    NoGroup(PciAddress),
    /// Others of its group are not bound to VFIO.
    #[error(
        "IOMMU group {0} is not viable: every function of it must be bound to vfio-pci or to no \
         driver"
    )]
    NotViable(u32),
    /// No interrupt remapping.
    #[error(
        "VFIO does not accept the IOMMU, most likely as it does not remap interrupts: give the VM \
         intel-iommu with intremap=on, or load vfio_iommu_type1 with allow_unsafe_interrupts=1"
    )]
    NoInterruptRemapping,
    /// A file that cannot be opened.
    #[error("{path}: {source} ({remedy})")]
    Open {
        /// Which one.
        path: String,
        /// What may help.
        remedy: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A VFIO of another age.
    #[error("VFIO speaks version {0}, not 0")]
    Version(i32),
    /// Not a virtio-vhost-user device.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// Interrupts of this VM are used up, most likely.
    #[error("VFIO_DEVICE_SET_IRQS: {0} (has the VM vectors left? each processor brings some)")]
    Vectors(#[source] io::Error),
    /// No memory for both.
    #[error("the DMA area: {0}")]
    Dma(#[from] MemoryError),
    /// What was opened cannot be used.
    #[error(transparent)]
    Function(#[from] FunctionError),
    /// The kernel refused.
    #[error("{operation}: {source}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl VfioError {
    fn io(operation: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { operation, source }
    }
}

/// A function that was opened and is behind an IOMMU, and nothing more. Its last descriptor closed,
/// the function is reset by the kernel.
#[derive(Debug)]
pub struct Opened {
    /// The container, `/dev/vfio/vfio`.
    pub container: OwnedFd,
    /// The group, `/dev/vfio/N`.
    pub group: OwnedFd,
    /// The device.
    pub device: OwnedFd,
}

impl Opened {
    /// Opens a function.
    ///
    /// # Errors
    ///
    /// When there is none, when it is not bound to vfio-pci, and when VFIO refuses it.
    pub fn open(address: PciAddress) -> Result<Self, VfioError> {
        Self::open_below(address, Path::new("/sys/bus/pci"), Path::new("/dev/vfio"))
    }

    /// The same, with the places where the kernel shows what there is.
    fn open_below(address: PciAddress, sysfs: &Path, vfio: &Path) -> Result<Self, VfioError> {
        let group_number = group_of(address, sysfs)?;
        let remedy = "is the module vfio-pci loaded?";
        let container = open(&vfio.join("vfio"), remedy)?;
        let version = ioctls::api_version(container.as_fd())
            .map_err(VfioError::io("VFIO_GET_API_VERSION"))?;
        if version != API_VERSION {
            return Err(VfioError::Version(version));
        }
        let remedy = "it can be opened once: another process has it, or another function of its \
                      group, or this one has no right to it";
        let group = open(&vfio.join(group_number.to_string()), remedy)?;
        let flags =
            ioctls::group_flags(group.as_fd()).map_err(VfioError::io("VFIO_GROUP_GET_STATUS"))?;
        if flags & vfio::VFIO_GROUP_FLAGS_VIABLE == 0 {
            return Err(VfioError::NotViable(group_number));
        }
        ioctls::set_container(group.as_fd(), container.as_fd())
            .map_err(VfioError::io("VFIO_GROUP_SET_CONTAINER"))?;
        ioctls::set_iommu(container.as_fd(), vfio::VFIO_TYPE1v2_IOMMU).map_err(|source| {
            match source.kind() {
                io::ErrorKind::PermissionDenied => VfioError::NoInterruptRemapping,
                _ => VfioError::io("VFIO_SET_IOMMU")(source),
            }
        })?;
        let name = CString::new(address.to_string()).expect("digits");
        let device = ioctls::device(group.as_fd(), &name)
            .map_err(VfioError::io("VFIO_GROUP_GET_DEVICE_FD"))?;
        Ok(Self {
            container,
            group,
            device,
        })
    }

    /// Maps all that a driver needs for a device of `queues` queues: windows, vectors, and memory
    /// that both reach. A VM of one processor has some two hundred vectors for all its functions,
    /// so that no more are taken than are used.
    ///
    /// # Errors
    ///
    /// When it is no virtio-vhost-user device, and when the kernel refuses.
    pub fn map(self, queues: u16) -> Result<MappedFunction, VfioError> {
        let Self {
            container,
            group,
            device,
        } = self;
        let info = |index| {
            let info = ioctls::region_info(device.as_fd(), index);
            info.map_err(VfioError::io("VFIO_DEVICE_GET_REGION_INFO"))
        };
        let (mut sizes, mut bars) = ([0; BARS], [0; BARS]);
        for ((index, size), offset) in (0..).zip(&mut sizes).zip(&mut bars) {
            let info = info(index)?;
            (*size, *offset) = (info.size, info.offset);
        }
        let device = File::from(device);
        let configuration = info_of_configuration(&device)?;
        let mut bytes = [0; CONFIGURATION_SIZE];
        device
            .read_exact_at(&mut bytes, configuration)
            .map_err(VfioError::io("reading the configuration space"))?;
        let layout = Layout::parse(&bytes, &sizes)?;
        enable(&device, configuration).map_err(VfioError::io("enabling the function"))?;
        let vectors = vectors(&device, vectors_max(queues))?;
        let dma = dma(&container)?;
        Ok(MappedFunction::new(Parts {
            layout,
            device: device.into(),
            bars,
            vectors,
            dma,
            keep: vec![group, container],
        })?)
    }
}

fn open(path: &Path, remedy: &'static str) -> Result<OwnedFd, VfioError> {
    let opened = OpenOptions::new().read(true).write(true).open(path);
    opened.map(OwnedFd::from).map_err(|source| VfioError::Open {
        path: path.display().to_string(),
        remedy,
        source,
    })
}

/// Where the configuration space begins in the device.
fn info_of_configuration(device: &File) -> Result<u64, VfioError> {
    let info = ioctls::region_info(device.as_fd(), vfio::VFIO_PCI_CONFIG_REGION_INDEX)
        .map_err(VfioError::io("VFIO_DEVICE_GET_REGION_INFO"))?;
    Ok(info.offset)
}

/// Lets its bars be accessed, and it reach memory.
fn enable(device: &File, configuration: u64) -> io::Result<()> {
    let at = configuration + COMMAND;
    let mut command = [0; 2];
    device.read_exact_at(&mut command, at)?;
    let command = u16::from_le_bytes(command) | COMMAND_MEMORY | COMMAND_MASTER;
    device.write_all_at(&command.to_le_bytes(), at)
}

/// An eventfd for each MSI-X vector up to so many, raised by it.
fn vectors(device: &File, max: u16) -> Result<Vec<OwnedFd>, VfioError> {
    let index = vfio::VFIO_PCI_MSIX_IRQ_INDEX;
    let count = ioctls::interrupt_count(device.as_fd(), index)
        .map_err(VfioError::io("VFIO_DEVICE_GET_IRQ_INFO"))?;
    let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
    let vectors = (0..count.min(max.into()))
        .map(|_| eventfd(0, flags).map_err(|errno| VfioError::io("eventfd")(errno.into())))
        .collect::<Result<Vec<_>, _>>()?;
    // Without any there is nothing to set; who drives the function says that they are too few.
    if !vectors.is_empty() {
        let flags = vfio::VFIO_IRQ_SET_DATA_EVENTFD | vfio::VFIO_IRQ_SET_ACTION_TRIGGER;
        ioctls::set_interrupts(device.as_fd(), index, flags, &vectors)
            .map_err(VfioError::Vectors)?;
    }
    Ok(vectors)
}

/// Memory that the function reaches by the same addresses.
fn dma(container: &OwnedFd) -> Result<Rc<GuestMemory>, VfioError> {
    let file = rustix::fs::memfd_create("vvu-dma", MemfdFlags::CLOEXEC)
        .map_err(|errno| VfioError::io("memfd_create")(errno.into()))?;
    rustix::fs::ftruncate(&file, DMA_SIZE)
        .map_err(|errno| VfioError::io("ftruncate")(errno.into()))?;
    let place = RegionLayout {
        guest_address: DMA_ADDRESS,
        user_address: DMA_ADDRESS,
        size: DMA_SIZE,
        offset: 0,
    };
    let memory = Rc::new(GuestMemory::new(vec![Region::map(place, file)?])?);
    let size = u32::try_from(DMA_SIZE).expect("some pages");
    let whole = memory.buffers(&[(DMA_ADDRESS, size)])?;
    let [iovec] = whole.iovecs() else {
        return Err(MemoryError::NotAFile.into());
    };
    let flags = vfio::VFIO_DMA_MAP_FLAG_READ | vfio::VFIO_DMA_MAP_FLAG_WRITE;
    let (start, address) = (iovec.iov_base.addr(), DMA_ADDRESS);
    ioctls::map_dma(container.as_fd(), flags, start, address, DMA_SIZE).map_err(VfioError::io(
        "VFIO_IOMMU_MAP_DMA (is RLIMIT_MEMLOCK large enough?)",
    ))?;
    Ok(memory)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_function_without_vfio_or_that_is_not_there_is_refused_with_the_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let address: PciAddress = "00:05.0".parse().unwrap();
        let function = folder.path().join("devices").join(address.to_string());
        fs::create_dir_all(&function).unwrap();
        symlink("/somewhere/vfio-pci", function.join("driver")).unwrap();
        symlink("/somewhere/3", function.join("iommu_group")).unwrap();
        let no_vfio = Opened::open_below(address, folder.path(), folder.path());
        let no_vfio = no_vfio.unwrap_err().to_string();
        assert!(
            no_vfio.contains("is the module vfio-pci loaded?"),
            "{no_vfio}"
        );
        let nowhere = Opened::open("ffff:ff:1f.7".parse().unwrap());
        let nowhere = nowhere.unwrap_err().to_string();
        assert_eq!(
            nowhere,
            "there is no PCI function ffff:ff:1f.7: lspci lists them"
        );
    }
}
