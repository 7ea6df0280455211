//! Accesses to the configuration space, and by its window (virtio 1.3, 4.1.4.9) to the BARs. What
//! is in it is not written here.

use super::Device;
use crate::pci::{Effect, WindowAccess};
use crate::vfio_user::Function;

impl Device {
    pub(super) fn read_configuration(&self, offset: u64, into: &mut [u8]) {
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        let access = {
            let configuration = self.configuration.borrow();
            configuration.read(offset, into);
            configuration.window_access(offset, into.len())
        };
        if let Some(access) = access.filter(|access| self.is_inside(access)) {
            let mut data = [0; 4];
            self.load(access.bar, access.offset, &mut data[..access.length]);
            into.copy_from_slice(&data[..into.len()]);
        }
    }

    pub(super) fn write_configuration(&self, offset: u64, data: &[u8]) {
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        let (effect, access) = {
            let mut configuration = self.configuration.borrow_mut();
            let access = configuration.window_access(offset, data.len());
            (configuration.write(offset, data), access)
        };
        if effect == Effect::FunctionLevelReset {
            self.reset();
        }
        if let Some(access) = access.filter(|access| self.is_inside(access))
            && let Some(data) = data.get(..access.length)
        {
            self.store(access.bar, access.offset, data);
        }
    }

    /// A BAR is none of the other regions, so this goes no deeper.
    fn is_inside(&self, access: &WindowAccess) -> bool {
        access.offset + access.length as u64 <= self.region(access.bar).size
    }
}
