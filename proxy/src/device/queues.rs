//! The two virtqueues as the session uses them: a message into a buffer of rx, a message out of a
//! buffer of tx. What a driver does wrong here gives the device up.

use std::cell::{Cell, RefCell};

use vudev_executor::Notify;

use super::{Device, isr};
use crate::vhost_user::MESSAGE_MAX;
use crate::virtio::{Chain, Ring, RingError};

/// Front-end messages, from the device to the driver.
pub(crate) const RX: usize = 0;
/// Replies and requests of the back-end, from the driver to the device.
pub(crate) const TX: usize = 1;

/// One queue. It runs from DRIVER_OK on.
#[derive(Default)]
pub(super) struct Queue {
    ring: RefCell<Option<Ring>>,
    /// The chain that was taken last; its memory is used again.
    chain: RefCell<Chain>,
    /// Whether that chain is still out: its message is on its way.
    is_out: Cell<bool>,
    /// The driver has made buffers available.
    notified: Notify,
}

impl Device {
    /// Starts the queues that the driver has enabled.
    pub(super) fn start_queues(&self) {
        for (index, queue) in self.queues.iter().enumerate() {
            let registers = *self.common.borrow().queue(index);
            if !registers.enabled {
                continue;
            }
            match Ring::new(&registers) {
                Ok(ring) => drop(queue.ring.replace(Some(ring))),
                Err(error) => return self.needs_reset(&error),
            }
        }
    }

    pub(super) fn stop_queues(&self) {
        for queue in &self.queues {
            queue.ring.replace(None);
            queue.is_out.set(false);
        }
    }

    /// The driver has notified a queue.
    pub(super) fn notify_queue(&self, index: usize) {
        if index == TX && !self.has_front_end() {
            return self.discard_transmissions();
        }
        if let Some(queue) = self.queues.get(index) {
            queue.notified.notify();
        }
    }

    /// Waits for the driver to notify a queue.
    pub(crate) async fn notified(&self, index: usize) {
        self.queues[index].notified.notified().await;
    }

    /// Puts a message into the next buffer of rx; false if there is none.
    ///
    /// # Errors
    ///
    /// What the driver did wrong; a buffer that is too small for the message is also that.
    pub(crate) fn put_message(&self, message: &[u8]) -> Result<bool, RingError> {
        let queue = &self.queues[RX];
        let chain = &mut *queue.chain.borrow_mut();
        let wants_call = {
            let mut ring = queue.ring.borrow_mut();
            let Some(ring) = ring.as_mut() else {
                return Ok(false);
            };
            let dma = self.dma.borrow();
            if !ring.take(&dma, true, chain)? {
                return Ok(false);
            }
            Ring::write(&dma, chain, message)?;
            let written = u32::try_from(message.len()).expect("a message is short");
            ring.complete(&dma, chain, written)?
        };
        self.queue_used(RX, wants_call);
        Ok(true)
    }

    /// Copies the next message of tx out; false if there is none. It is the driver's again once
    /// [`Device::transmitted`] is called.
    ///
    /// # Errors
    ///
    /// What the driver did wrong.
    pub(crate) fn take_message(&self, into: &mut Vec<u8>) -> Result<bool, RingError> {
        let queue = &self.queues[TX];
        let chain = &mut *queue.chain.borrow_mut();
        let mut ring = queue.ring.borrow_mut();
        let Some(ring) = ring.as_mut() else {
            return Ok(false);
        };
        let dma = self.dma.borrow();
        if !ring.take(&dma, false, chain)? {
            return Ok(false);
        }
        Ring::read(&dma, chain, MESSAGE_MAX, into)?;
        queue.is_out.set(true);
        Ok(true)
    }

    /// Gives the buffer of the last message of tx back.
    ///
    /// # Errors
    ///
    /// What the driver did wrong.
    pub(crate) fn transmitted(&self) -> Result<(), RingError> {
        let queue = &self.queues[TX];
        let wants_call = match queue.ring.borrow_mut().as_mut() {
            Some(ring) if queue.is_out.take() => {
                ring.complete(&self.dma.borrow(), &queue.chain.borrow(), 0)?
            }
            _ => false,
        };
        self.queue_used(TX, wants_call);
        Ok(())
    }

    /// Gives back what the driver wants sent where nobody is to receive it, and first of all what
    /// was on its way when the session ended.
    pub(super) fn discard_transmissions(&self) {
        let queue = &self.queues[TX];
        let mut wants_call = false;
        let discarded = {
            let mut ring = queue.ring.borrow_mut();
            let Some(ring) = ring.as_mut() else { return };
            let dma = self.dma.borrow();
            let chain = &mut *queue.chain.borrow_mut();
            let mut discard = || -> Result<bool, RingError> {
                if !queue.is_out.take() && !ring.take(&dma, false, chain)? {
                    return Ok(false);
                }
                wants_call |= ring.complete(&dma, chain, 0)?;
                Ok(true)
            };
            // A driver that makes more available meanwhile notifies again.
            let mut outcome = Ok(true);
            for _ in 0..crate::virtio::QUEUE_SIZE_MAX {
                outcome = discard();
                if outcome != Ok(true) {
                    break;
                }
            }
            outcome
        };
        match discarded {
            Ok(_) => self.queue_used(TX, wants_call),
            Err(error) => self.needs_reset(&error),
        }
    }

    /// Tells the driver of used buffers, if it wants to know.
    fn queue_used(&self, index: usize, wants_call: bool) {
        if wants_call {
            let vector = self.common.borrow().queue(index).vector;
            self.interrupt(vector, isr::QUEUE);
        }
    }
}
