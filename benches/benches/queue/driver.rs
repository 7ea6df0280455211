//! The driver's side: chains that stand in the ring for good, so that making them available is one
//! store.

use std::rc::Rc;

use vudev_virtio::testing::{Guest, Ring};

/// How a chain's descriptors lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// In the ring's own table.
    Direct,
    /// In a table of their own.
    Indirect,
}

/// Entries of the ring.
pub(crate) const SIZE: u16 = 128;
/// Chains that are made; each stands in the ring four times.
const CHAINS: u16 = 32;

/// A request's header, which is read; its data and its status, which are written.
const HEADER: [u8; 16] = [0; 16];
const WRITABLE: [u32; 2] = [4096, 1];
/// What the device says it has written.
pub(crate) const WRITTEN: u32 = 4097;

pub(crate) struct Driver {
    pub(crate) guest: Rc<Guest>,
    pub(crate) ring: Ring,
    available: u16,
}

impl Driver {
    pub(crate) fn new(layout: Layout) -> Self {
        let guest = Guest::new(1 << 20);
        let ring = guest.ring(SIZE);
        let readable: [&[u8]; 1] = [&HEADER];
        let heads: Vec<u16> = (0..CHAINS)
            .map(|_| match layout {
                Layout::Direct => ring.lay_out(&readable, &WRITABLE),
                Layout::Indirect => ring.add_indirect(&readable, &WRITABLE),
            })
            .collect();
        // The ring's entries, once around; those of indirect chains have one already.
        let missing = match layout {
            Layout::Direct => SIZE,
            Layout::Indirect => SIZE - CHAINS,
        };
        for (_, head) in (0..missing).zip(heads.iter().cycle()) {
            ring.publish(*head);
        }
        ring.start_at(SIZE);
        Self {
            guest,
            ring,
            available: SIZE,
        }
    }

    /// Makes so many chains available.
    pub(crate) fn make(&mut self, chains: u16) {
        self.available = self.available.wrapping_add(chains);
        self.ring.set_available_index(self.available);
    }

    /// All that was made available is used.
    pub(crate) fn check(&self) {
        assert_eq!(self.ring.used_index(), self.available, "chains came back");
    }
}
