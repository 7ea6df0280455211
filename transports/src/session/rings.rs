//! The messages about one ring, and what is done to all rings at once. What a single ring remembers
//! is in `queue_setup`.

use futures_util::future::join_all;
use vudev_virtio::Device;

use super::error::{Reason, RingError};
use super::queue_setup::QueueSetup;
use super::state::State;
use crate::message::{Body, RingRequest};

impl<D: Device> State<D> {
    pub(super) async fn ring_request(
        &mut self,
        index: u16,
        request: RingRequest,
    ) -> Result<Option<Body>, Reason> {
        let count = self.rings.len();
        let handle = self.handle.clone();
        let Some(ring) = self.rings.get_mut(usize::from(index)) else {
            return Err(Reason::NoSuchRing { index, count });
        };
        let denied = |reason| Reason::Ring { index, reason };
        match request {
            RingRequest::SetSize(size) => ring.set_size(size),
            RingRequest::SetAddresses(addresses) => ring.set_addresses(addresses),
            RingRequest::SetBase(base) => ring.set_base(base),
            RingRequest::SetKick(event) => ring.set_kick(&handle, event),
            RingRequest::SetCall(event) => ring.set_call(&handle, event),
            RingRequest::SetError(event) => ring.set_error(&handle, event),
            RingRequest::Enable(true) => {
                ring.enable();
                Ok(())
            }
            RingRequest::Enable(false) => ring.disable(&handle).await,
            RingRequest::Base => {
                let base = ring.stop(&handle).await.map_err(denied)?;
                return Ok(Some(Body::RingBase { index, base }));
            }
        }
        .map_err(denied)?;
        self.start_if_ready(index)?;
        Ok(None)
    }

    /// Starts one ring if it has all it needs.
    fn start_if_ready(&mut self, index: u16) -> Result<(), Reason> {
        let (around, rings) = self.surroundings();
        rings.get_mut(usize::from(index)).map_or(Ok(()), |ring| {
            ring.try_start(&around)
                .map_err(|reason| Reason::Ring { index, reason })
        })
    }

    /// Starts every ring that has all it needs.
    pub(super) fn start_ready_rings(&mut self) -> Result<(), Reason> {
        let (around, rings) = self.surroundings();
        for (index, ring) in (0..).zip(rings) {
            ring.try_start(&around)
                .map_err(|reason| Reason::Ring { index, reason })?;
        }
        Ok(())
    }

    /// Starts every ring that has all it needs and lies in the memory shared so far. More memory
    /// may be on its way, so a ring that does not is left alone.
    pub(super) fn start_rings_in_memory(&mut self) -> Result<(), Reason> {
        let (around, rings) = self.surroundings();
        for (index, ring) in (0..).zip(rings) {
            match ring.try_start(&around) {
                Ok(()) => {}
                Err(reason @ RingError::AddressOutside { .. }) => {
                    log::debug!("ring {index} waits for memory: {reason}");
                }
                Err(reason) => return Err(Reason::Ring { index, reason }),
            }
        }
        Ok(())
    }

    /// Stops all rings and forgets what they were told. The first failure is told, after all.
    pub(super) async fn reset_rings(&mut self) -> Result<(), Reason> {
        self.rings.iter().for_each(QueueSetup::ask_to_stop);
        let mut outcome = Ok(());
        for (index, ring) in (0..).zip(&mut self.rings) {
            if let Err(reason) = ring.reset(&self.handle).await
                && outcome.is_ok()
            {
                outcome = Err(Reason::Ring { index, reason });
            }
        }
        outcome
    }

    /// Asks all rings to stop and waits until they have.
    pub(super) async fn drain_rings(&mut self) {
        self.rings.iter().for_each(QueueSetup::ask_to_stop);
        join_all(self.rings.iter_mut().map(QueueSetup::drained)).await;
    }
}
