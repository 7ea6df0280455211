//! The messages about guest memory. Rings go on over the change: each takes the new memory between
//! two chains, and a removal is acknowledged when nothing uses what was removed.

use std::rc::{Rc, Weak};
use std::time::Duration;

use vudev_virtio::{Device, GuestMemory, Region, RegionLayout};

use super::error::Reason;
use super::queue_setup::QueueSetup;
use super::state::State;
use crate::message::{Body, MemoryRequest};
use crate::running::DRAIN_LIMIT;

/// Memory slots that we offer: what vhost in the kernel offers, and what VMMs count with.
pub const MEMORY_SLOTS: usize = 509;

/// How often it is looked whether removed memory is still in use. Removal is rare, and the
/// front-end waits for it in no hurry.
const RELEASE_INTERVAL: Duration = Duration::from_millis(1);

/// How long the kernel may take to give back operations that were cancelled.
const CANCEL_LIMIT: Duration = Duration::from_secs(2);

impl<D: Device> State<D> {
    pub(super) async fn memory_request(
        &mut self,
        request: MemoryRequest<Region>,
    ) -> Result<Option<Body>, Reason> {
        match request {
            MemoryRequest::Slots => return Ok(Some(Body::Number(MEMORY_SLOTS as u64))),
            MemoryRequest::SetTable(regions) => {
                self.replace_memory(regions)?;
                self.removed_is_released().await?;
            }
            MemoryRequest::Add(region) => self.add_region(region)?,
            MemoryRequest::Remove(layout) => {
                self.remove_region(layout)?;
                self.removed_is_released().await?;
            }
        }
        self.start_rings_in_memory()?;
        Ok(None)
    }

    fn regions(&self) -> Vec<Region> {
        self.memory
            .as_ref()
            .map(|memory| memory.regions().to_vec())
            .unwrap_or_default()
    }

    fn add_region(&mut self, region: Region) -> Result<(), Reason> {
        let mut regions = self.regions();
        if regions.len() >= MEMORY_SLOTS {
            return Err(Reason::NoMemorySlot(MEMORY_SLOTS));
        }
        regions.push(region);
        self.replace_memory(regions)
    }

    /// The spec names a region by guest address, user address and size; the rest is ignored.
    fn remove_region(&mut self, layout: RegionLayout) -> Result<(), Reason> {
        let same = |region: &Region| {
            let has = region.layout();
            has.guest_address == layout.guest_address
                && has.user_address == layout.user_address
                && has.size == layout.size
        };
        let mut regions = self.regions();
        let Some(position) = regions.iter().position(same) else {
            return Err(Reason::NoSuchRegion(layout));
        };
        regions.remove(position);
        self.replace_memory(regions)
    }

    /// Puts other memory under all rings. On an error nothing has changed.
    fn replace_memory(&mut self, regions: Vec<Region>) -> Result<(), Reason> {
        let memory = Rc::new(GuestMemory::new(regions)?);
        for ring in &mut self.rings {
            ring.replace_memory(&memory);
        }
        let shared = (!memory.regions().is_empty()).then_some(memory);
        if let Some(old) = std::mem::replace(&mut self.memory, shared) {
            self.replaced.push(Rc::downgrade(&old));
        }
        self.replaced.retain(in_use);
        Ok(())
    }

    /// Waits until no operation uses memory that was replaced. Operations that do not end are
    /// cancelled together with their queues.
    async fn removed_is_released(&mut self) -> Result<(), Reason> {
        if self.released_within(DRAIN_LIMIT).await {
            return Ok(());
        }
        self.rings.iter_mut().for_each(QueueSetup::give_up_if_busy);
        if self.released_within(CANCEL_LIMIT).await {
            Ok(())
        } else {
            Err(Reason::MemoryInUse)
        }
    }

    async fn released_within(&mut self, limit: Duration) -> bool {
        let (replaced, rings, handle) = (&mut self.replaced, &mut self.rings, &self.handle);
        let released = async {
            // What has just completed is let go of within a turn.
            handle.yield_now().await;
            loop {
                rings.iter_mut().for_each(QueueSetup::forget_if_ended);
                replaced.retain(in_use);
                if replaced.is_empty() {
                    break;
                }
                handle.sleep(RELEASE_INTERVAL).await;
            }
        };
        handle.timeout(limit, released).await.is_some()
    }
}

fn in_use(memory: &Weak<GuestMemory>) -> bool {
    memory.strong_count() > 0
}
