//! How often the device VM's accesses came here as messages. Each stands for a virtual CPU of the
//! device VM that waits for us: what is mapped costs none. What an access does is not known here.

use std::cell::Cell;
use std::fmt;

use crate::pci::layout::region;

/// Counts by region.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    virtio: u64,
    msix: u64,
    doorbells: u64,
    shared_memory: u64,
    configuration: u64,
}

/// What was counted since the last [`Traps::take`].
#[derive(Default)]
pub(super) struct Traps(Cell<Counts>);

impl Traps {
    /// One access. Regions that there are not count as none.
    pub(super) fn count(&self, region: u32) {
        let mut counts = self.0.take();
        let count = match region {
            region::VIRTIO => &mut counts.virtio,
            region::MSIX => &mut counts.msix,
            region::DOORBELLS => &mut counts.doorbells,
            region::SHARED_MEMORY => &mut counts.shared_memory,
            region::CONFIGURATION => &mut counts.configuration,
            _ => return self.0.set(counts),
        };
        *count = count.saturating_add(1);
        self.0.set(counts);
    }

    /// The counts, which begin anew.
    pub(super) fn take(&self) -> Counts {
        self.0.take()
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            virtio,
            msix,
            doorbells,
            shared_memory,
            configuration,
        } = self;
        write!(
            f,
            "registers {virtio}, MSI-X {msix}, doorbells {doorbells}, shared memory \
             {shared_memory}, configuration {configuration}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accesses_are_told_by_region_and_once() {
        let traps = Traps::default();
        for region in [
            region::DOORBELLS,
            region::DOORBELLS,
            region::SHARED_MEMORY,
            8,
        ] {
            traps.count(region);
        }
        assert_eq!(
            traps.take().to_string(),
            "registers 0, MSI-X 0, doorbells 2, shared memory 1, configuration 0"
        );
        assert_eq!(traps.take(), Counts::default());
    }
}
