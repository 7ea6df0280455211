//! One ring as the front-end describes it, piece by piece and in any order, and the queue that runs
//! once all pieces are there. Not what the queue does.

use std::os::fd::OwnedFd;
use std::rc::Rc;

use vudev_executor::{Call, CallTarget, EventError, Handle, Kick, Notify};
use vudev_virtio::spec::feature::VERSION_1;
use vudev_virtio::{Device, GuestMemory, QueueParts, RingAddresses};

use super::error::RingError;
use crate::features::PROTOCOL_FEATURES;
use crate::message::UserAddresses;
use crate::running::{DRAIN_LIMIT, RunningQueue};

/// What a ring needs beside its own description to run.
pub(super) struct Surroundings<'a, D> {
    pub(super) handle: &'a Handle,
    pub(super) device: &'a Rc<D>,
    pub(super) memory: Option<&'a Rc<GuestMemory>>,
    /// As SET_FEATURES said, or `None` before.
    pub(super) features: Option<u64>,
    /// Notified when a ring ends.
    pub(super) changed: &'a Rc<Notify>,
}

/// One ring.
pub(super) struct QueueSetup {
    index: u16,
    size_max: u16,
    size: Option<u16>,
    addresses: Option<UserAddresses>,
    /// Where the next start begins. Free-running modulo 65536, so larger than the size as often as
    /// not.
    base: u16,
    kick: Option<KickSource>,
    call: Option<Call>,
    error: Option<Call>,
    /// What SET_VRING_ENABLE said, if it did.
    enabled: Option<bool>,
    state: State,
}

/// Whether a queue exists.
enum State {
    /// It does not.
    Stopped,
    /// It does. Its task may have ended by itself.
    Running(RunningQueue),
    /// It was given up. It takes a GET_VRING_BASE or a reset before the ring may start again.
    Retired,
}

/// Where kicks come from.
enum KickSource {
    /// From nowhere: the ring is polled.
    Polled,
    /// From this eventfd, kept because a ring that is disabled and enabled again needs it anew.
    Event(OwnedFd),
}

impl QueueSetup {
    pub(super) fn new(index: u16, size_max: u16) -> Self {
        Self {
            index,
            size_max,
            size: None,
            addresses: None,
            base: 0,
            kick: None,
            call: None,
            error: None,
            enabled: None,
            state: State::Stopped,
        }
    }

    /// SET_VRING_NUM.
    pub(super) fn set_size(&mut self, size: u16) -> Result<(), RingError> {
        if size > self.size_max {
            return Err(RingError::Size {
                size,
                max: self.size_max,
            });
        }
        self.refuse_while_running(self.size == Some(size), "the size")?;
        self.size = Some(size);
        Ok(())
    }

    /// SET_VRING_ADDR. Front-ends repeat it under a running ring, with the same addresses.
    pub(super) fn set_addresses(&mut self, addresses: UserAddresses) -> Result<(), RingError> {
        self.refuse_while_running(self.addresses == Some(addresses), "the addresses")?;
        self.addresses = Some(addresses);
        Ok(())
    }

    /// SET_VRING_BASE.
    pub(super) fn set_base(&mut self, base: u16) -> Result<(), RingError> {
        self.refuse_while_running(false, "the base")?;
        self.base = base;
        Ok(())
    }

    /// SET_VRING_KICK.
    pub(super) fn set_kick(
        &mut self,
        handle: &Handle,
        event: Option<OwnedFd>,
    ) -> Result<(), RingError> {
        let source = event.map_or(KickSource::Polled, KickSource::Event);
        // Made even when the ring stands still: what is no eventfd is refused here and now.
        let kick = source.open(handle)?;
        if let State::Running(queue) = &self.state {
            queue.control().set_kick(kick);
        }
        self.kick = Some(source);
        Ok(())
    }

    /// SET_VRING_CALL.
    pub(super) fn set_call(
        &mut self,
        handle: &Handle,
        event: Option<CallTarget>,
    ) -> Result<(), RingError> {
        self.call = open_call("call", handle, event)?;
        if let State::Running(queue) = &self.state {
            queue.control().set_call(self.call.clone());
        }
        Ok(())
    }

    /// SET_VRING_ERR.
    pub(super) fn set_error(
        &mut self,
        handle: &Handle,
        event: Option<CallTarget>,
    ) -> Result<(), RingError> {
        self.error = open_call("error", handle, event)?;
        if let State::Running(queue) = &self.state {
            queue.control().set_error(self.error.clone());
        }
        Ok(())
    }

    /// SET_VRING_ENABLE with 1.
    pub(super) fn enable(&mut self) {
        self.enabled = Some(true);
    }

    /// SET_VRING_ENABLE with 0: the ring rests, and goes on where it was when it is enabled again.
    pub(super) async fn disable(&mut self, handle: &Handle) -> Result<(), RingError> {
        self.enabled = Some(false);
        self.stop_queue(handle).await
    }

    /// GET_VRING_BASE: stops the ring and tells the next available index. Asked again, it says the
    /// same. The ring starts again when a new kick is set (spec, "Starting and stopping rings").
    pub(super) async fn stop(&mut self, handle: &Handle) -> Result<u16, RingError> {
        self.stop_queue(handle).await?;
        self.state = State::Stopped;
        self.kick = None;
        Ok(self.base)
    }

    /// Back to the beginning, but for call and error: front-ends set those once in a device's life.
    pub(super) async fn reset(&mut self, handle: &Handle) -> Result<(), RingError> {
        let stopped = self.stop_queue(handle).await;
        let Self {
            index: _,
            size_max: _,
            size,
            addresses,
            base,
            kick,
            call: _,
            error: _,
            enabled,
            state,
        } = self;
        (*size, *addresses, *kick, *enabled) = (None, None, None, None);
        *base = 0;
        *state = State::Stopped;
        stopped
    }

    /// Starts the ring if nothing is missing any more.
    pub(super) fn try_start<D: Device>(
        &mut self,
        around: &Surroundings<'_, D>,
    ) -> Result<(), RingError> {
        let Some(parts) = self.parts(around)? else {
            return Ok(());
        };
        let queue =
            RunningQueue::start(around.handle, around.device, parts, around.changed.clone())
                .map_err(RingError::Start)?;
        log::debug!("ring {}: started at index {}", self.index, self.base);
        self.state = State::Running(queue);
        Ok(())
    }

    /// Everything a queue needs, or `None` while something is to come.
    fn parts<D>(&self, around: &Surroundings<'_, D>) -> Result<Option<QueueParts>, RingError> {
        let (Some(size), Some(addresses), Some(kick)) = (self.size, self.addresses, &self.kick)
        else {
            return Ok(None);
        };
        let (Some(memory), Some(features), State::Stopped) =
            (around.memory, around.features, &self.state)
        else {
            return Ok(None);
        };
        // Without protocol features there is no SET_VRING_ENABLE, and rings are born enabled.
        if !self.enabled.unwrap_or(features & PROTOCOL_FEATURES == 0) {
            return Ok(None);
        }
        if features & VERSION_1 == 0 {
            return Err(RingError::LegacyDriver);
        }
        Ok(Some(QueueParts {
            index: self.index,
            size,
            rings: translate(memory, addresses)?,
            next_available: self.base,
            features: features & !PROTOCOL_FEATURES,
            memory: memory.clone(),
            kick: kick.open(around.handle)?,
            call: self.call.clone(),
            error: self.error.clone(),
        }))
    }

    /// Whether operations of this ring can be in flight.
    pub(super) fn is_running(&self) -> bool {
        match &self.state {
            State::Running(queue) => !queue.has_ended(),
            State::Stopped | State::Retired => false,
        }
    }

    /// Puts other memory under the ring between two chains. A ring that is not in it retires
    /// itself, and is stopped so that it lets go of the memory it was in.
    pub(super) fn replace_memory(&mut self, memory: &Rc<GuestMemory>) {
        self.forget_if_ended();
        if let State::Running(queue) = &self.state
            && queue.control().set_memory(memory.clone()).is_err()
        {
            queue.ask_to_stop();
        }
    }

    /// Lets go of a queue that has ended by itself, and with it of the memory that it was in.
    pub(super) fn forget_if_ended(&mut self) {
        if let State::Running(queue) = &self.state
            && queue.has_ended()
        {
            self.base = queue.control().next_available();
            self.state = State::Retired;
        }
    }

    /// Gives up a queue that still has operations in flight, or does not end although it was asked
    /// to: what it does is cancelled, and the driver is told.
    pub(super) fn give_up_if_busy(&mut self) {
        if let State::Running(queue) = &self.state
            && (queue.control().in_flight() > 0 || queue.is_asked_to_stop())
        {
            log::warn!(
                "queue {}: operations that do not end are cancelled",
                self.index
            );
            self.base = queue.control().next_available();
            self.state = State::Retired;
            if let Some(error) = &self.error
                && let Err(failed) = error.signal()
            {
                log::warn!("queue {}: error eventfd: {failed}", self.index);
            }
        }
    }

    /// Asks for a stop without waiting.
    pub(super) fn ask_to_stop(&self) {
        if let State::Running(queue) = &self.state {
            queue.ask_to_stop();
        }
    }

    /// Waits for the queue's end.
    pub(super) async fn drained(&mut self) {
        if let State::Running(queue) = &mut self.state {
            queue.drained().await;
        }
    }

    /// Stops the queue and keeps its index. A queue that ended by itself, or was given up, stays
    /// retired: its driver or its device has failed, and starting it again would hide that.
    async fn stop_queue(&mut self, handle: &Handle) -> Result<(), RingError> {
        let State::Running(queue) = &mut self.state else {
            return Ok(());
        };
        let failed = queue.has_ended();
        let drained = queue.stop(handle, DRAIN_LIMIT).await;
        self.base = queue.control().next_available();
        self.state = if drained && !failed {
            State::Stopped
        } else {
            State::Retired
        };
        if drained {
            Ok(())
        } else {
            Err(RingError::NotDrained { limit: DRAIN_LIMIT })
        }
    }

    fn refuse_while_running(&self, same: bool, field: &'static str) -> Result<(), RingError> {
        if self.is_running() && !same {
            Err(RingError::Running { field })
        } else {
            Ok(())
        }
    }
}

impl KickSource {
    fn open(&self, handle: &Handle) -> Result<Option<Kick>, RingError> {
        let Self::Event(event) = self else {
            return Ok(None);
        };
        let open = || {
            let copy = event.try_clone().map_err(|source| EventError::System {
                call: "dup",
                source,
            })?;
            Kick::new(handle, copy)
        };
        open().map(Some).map_err(|source| RingError::Event {
            which: "kick",
            source,
        })
    }
}

fn open_call(
    which: &'static str,
    handle: &Handle,
    event: Option<CallTarget>,
) -> Result<Option<Call>, RingError> {
    event
        .map(|event| Call::new(handle, event))
        .transpose()
        .map_err(|source| RingError::Event { which, source })
}

/// From the front-end's addresses to the guest's. The queue checks that each part lies whole in
/// memory.
fn translate(memory: &GuestMemory, user: UserAddresses) -> Result<RingAddresses, RingError> {
    let guest = |part, address| {
        memory
            .guest_address(address)
            .ok_or(RingError::AddressOutside { part, address })
    };
    Ok(RingAddresses {
        descriptors: guest("the descriptor table", user.descriptors)?,
        available: guest("the available ring", user.available)?,
        used: guest("the used ring", user.used)?,
    })
}
