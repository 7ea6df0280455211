//! What the kernel shows of a PCI function before it is opened: whether it is a virtio-vhost-user
//! device, whether VFIO has it, and its IOMMU group. Nothing is written here, and what is said of
//! another's function never tells to unbind it.

use std::fs;
use std::path::{Path, PathBuf};

use super::address::PciAddress;
use super::capabilities::{CONFIGURATION_SIZE, Layout, LayoutError};
use super::vfio::VfioError;

/// The driver that hands functions to VFIO.
const DRIVER: &str = "vfio-pci";

/// The group of a virtio-vhost-user function that is bound to VFIO. `sysfs` is `/sys/bus/pci`.
pub(super) fn group_of(address: PciAddress, sysfs: &Path) -> Result<u32, VfioError> {
    let folder = sysfs.join("devices").join(address.to_string());
    if !folder.exists() {
        return Err(VfioError::Missing(address));
    }
    check_kind(address, &folder)?;
    let driver = last(folder.join("driver"));
    let group = last(folder.join("iommu_group")).and_then(|group| group.parse().ok());
    match (driver.as_deref(), group) {
        (Some(DRIVER), Some(group)) => Ok(group),
        (Some(DRIVER), None) => Err(VfioError::NoGroup(address)),
        (None, group) if is_meant_for_vfio(&folder) => {
            Err(if !sysfs.join("drivers").join(DRIVER).exists() {
                VfioError::NotLoaded(address)
            } else if group.is_none() {
                VfioError::NoGroup(address)
            } else {
                VfioError::NotTaken(address)
            })
        }
        (driver, _) => Err(VfioError::NotBound {
            address,
            id: id(&folder),
            driver: driver.unwrap_or("no driver").to_owned(),
            folder: folder.display().to_string(),
        }),
    }
}

/// Refuses what is surely no virtio-vhost-user device. Who is not root reads no capabilities: then
/// nothing is sure.
fn check_kind(address: PciAddress, folder: &Path) -> Result<(), VfioError> {
    let bytes = fs::read(folder.join("config")).unwrap_or_default();
    let Some(configuration) = bytes.first_chunk::<CONFIGURATION_SIZE>() else {
        return Ok(());
    };
    match Layout::has_doorbells(configuration) {
        Ok(true) => Ok(()),
        Err(error @ LayoutError::NoAnswer) => Err(error.into()),
        Ok(false) | Err(_) => Err(VfioError::AnotherDevice {
            address,
            id: id(folder),
        }),
    }
}

/// `1af4:107d`, as `lspci -n` has it.
fn id(folder: &Path) -> String {
    let number = |name| {
        let text = fs::read_to_string(folder.join(name)).unwrap_or_default();
        let digits = text.trim().trim_start_matches("0x");
        if digits.is_empty() { "?" } else { digits }.to_owned()
    };
    format!("{}:{}", number("vendor"), number("device"))
}

fn is_meant_for_vfio(folder: &Path) -> bool {
    fs::read_to_string(folder.join("driver_override")).is_ok_and(|text| text.trim() == DRIVER)
}

/// The last part of what a link names.
fn last(link: PathBuf) -> Option<String> {
    let target = fs::read_link(link).ok()?;
    Some(target.file_name()?.to_str()?.to_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A function as sysfs shows it.
    struct Shown {
        root: tempfile::TempDir,
        folder: PathBuf,
    }

    impl Shown {
        fn new(driver: Option<&str>, group: Option<&str>) -> Self {
            let root = tempfile::tempdir().unwrap();
            let folder = root.path().join("devices/0000:00:05.0");
            fs::create_dir_all(&folder).unwrap();
            for (name, target) in [("driver", driver), ("iommu_group", group)] {
                if let Some(target) = target {
                    symlink(Path::new("/somewhere").join(target), folder.join(name)).unwrap();
                }
            }
            fs::write(folder.join("vendor"), "0x1af4\n").unwrap();
            fs::write(folder.join("device"), "0x1001\n").unwrap();
            Self { root, folder }
        }

        fn with(self, name: &str, bytes: impl AsRef<[u8]>) -> Self {
            fs::write(self.folder.join(name), bytes).unwrap();
            self
        }

        fn loaded(self) -> Self {
            fs::create_dir_all(self.root.path().join("drivers/vfio-pci")).unwrap();
            self
        }

        fn group(&self) -> Result<u32, String> {
            let found = group_of("00:05.0".parse().unwrap(), self.root.path());
            found.map_err(|error| error.to_string())
        }

        fn refused(&self) -> String {
            self.group().unwrap_err()
        }
    }

    /// One vendor capability, of this type.
    fn configuration(kind: u8) -> Vec<u8> {
        let mut bytes = vec![0; CONFIGURATION_SIZE];
        (bytes[0x06], bytes[0x34]) = (0x10, 0x40);
        bytes[0x40..0x44].copy_from_slice(&[0x09, 0, 20, kind]);
        bytes
    }

    #[test]
    fn a_function_that_is_not_ready_is_refused_with_the_remedy() {
        let bound = Shown::new(Some("virtio-pci"), Some("3")).refused();
        assert!(
            bound.contains("(1af4:1001) is bound to virtio-pci"),
            "{bound}"
        );
        assert!(bound.contains("driver_override"), "{bound}");
        let unbound = Shown::new(None, Some("3")).refused();
        assert!(unbound.contains("is bound to no driver"), "{unbound}");
        for group in [None, Some("three")] {
            let alone = Shown::new(Some("vfio-pci"), group).refused();
            assert!(alone.contains("intel_iommu=on"), "{alone}");
        }
        assert_eq!(Shown::new(Some("vfio-pci"), Some("3")).group(), Ok(3));
    }

    #[test]
    fn what_is_another_device_is_refused_as_such_and_no_unbinding_is_advised() {
        let of = |bytes: &[u8]| {
            Shown::new(Some("virtio-pci"), Some("3"))
                .with("config", bytes)
                .refused()
        };
        let another = "PCI function 0000:00:05.0 (1af4:1001) is no virtio-vhost-user device";
        for bytes in [configuration(4), vec![0; CONFIGURATION_SIZE]] {
            let disk = of(&bytes);
            assert!(
                disk.starts_with(another) && !disk.contains("unbind"),
                "{disk}"
            );
        }
        // A function of ours goes on, and so does one whose capabilities nobody but root may read.
        for bytes in [&configuration(6)[..], &configuration(4)[..64]] {
            let ours = of(bytes);
            assert!(ours.contains("is bound to virtio-pci"), "{ours}");
        }
        let gone = of(&[0xff; CONFIGURATION_SIZE]);
        assert!(gone.contains("does not answer"), "{gone}");
    }

    #[test]
    fn a_function_meant_for_vfio_without_a_driver_says_what_keeps_vfio_from_it() {
        let meant = |group| Shown::new(None, group).with("driver_override", "vfio-pci\n");
        let not_loaded = meant(Some("3")).refused();
        assert!(not_loaded.contains("modprobe vfio-pci"), "{not_loaded}");
        let no_iommu = meant(None).loaded().refused();
        assert!(no_iommu.contains("intel_iommu=on"), "{no_iommu}");
        let not_taken = meant(Some("3")).loaded().refused();
        assert!(
            not_taken.contains("drivers_probe") && not_taken.contains("dmesg"),
            "{not_taken}"
        );
    }
}
