//! Guest memory in three regions, one right behind the other, and where its bytes are mapped.

use std::rc::Rc;

use vudev_executor::IoBuffers as _;
use vudev_virtio::testing::{GUEST_BASE, Guest};
use vudev_virtio::{GuestMemory, Region, RegionLayout};

/// Where the regions begin, and where the last one ends, from the begin of the guest's memory.
pub(crate) type Edges = [u64; 4];

/// The guest's memory, mapped anew.
pub(crate) fn map(guest: &Guest, edges: &Edges) -> Rc<GuestMemory> {
    let region = |edge: &[u64]| {
        let layout = RegionLayout {
            guest_address: GUEST_BASE + edge[0],
            user_address: GUEST_BASE + edge[0],
            size: edge[1] - edge[0],
            offset: edge[0],
        };
        Region::map(layout, guest.file().try_clone().unwrap()).unwrap()
    };
    Rc::new(GuestMemory::new(edges.windows(2).map(region).collect()).unwrap())
}

/// Where the regions of a memory are mapped.
pub(crate) struct Places {
    edges: Edges,
    begins: [usize; 3],
}

impl Places {
    pub(crate) fn of(memory: &Rc<GuestMemory>, edges: &Edges) -> Self {
        let begins = [0, 1, 2].map(|region: usize| {
            let first = memory.buffers(&[(GUEST_BASE + edges[region], 1)]).unwrap();
            first.iovecs()[0].iov_base.addr()
        });
        Self {
            edges: *edges,
            begins,
        }
    }

    /// The region of a guest address, and where its byte is mapped.
    pub(crate) fn host(&self, address: u64) -> (usize, usize) {
        let at = address - GUEST_BASE;
        let region = self.edges[..3]
            .iter()
            .rposition(|&edge| edge <= at)
            .unwrap();
        let offset = usize::try_from(at - self.edges[region]).unwrap();
        (region, self.begins[region] + offset)
    }
}
