//! `txq`: answers to the front-end, and requests of ours, whole messages in a buffer each. Not what
//! they say.

use std::cell::RefCell;
use std::fmt;
use std::io;
use std::rc::Rc;

use vudev_executor::{Handle, Kick};

use super::error::FunctionError;
use super::function::Function;
use super::set_up::{Queue, TRANSMIT_VECTOR};
use crate::message::{BackendRequests, HEADER_SIZE, Sending};

/// The queue, shared by who answers and who asks.
pub(super) struct Transmitter {
    handle: Handle,
    function: Rc<dyn Function>,
    queue: RefCell<Queue>,
}

impl Transmitter {
    pub(super) fn new(handle: &Handle, function: &Rc<dyn Function>, queue: Queue) -> Self {
        Self {
            handle: handle.clone(),
            function: function.clone(),
            queue: RefCell::new(queue),
        }
    }

    /// Sends a message if there is a buffer for it.
    pub(super) fn try_send(&self, message: &[u8]) -> Result<bool, FunctionError> {
        let Queue { ring, notify } = &mut *self.queue.borrow_mut();
        while ring.take_used()?.is_some() {}
        let Some(buffer) = ring.free().next() else {
            return Ok(false);
        };
        ring.lend(buffer, message)?;
        notify.write(&*self.function, 1);
        Ok(true)
    }

    /// Watches for buffers that come back.
    pub(super) fn watch(&self) -> Result<Kick, FunctionError> {
        let vector = &self.function.vectors()[usize::from(TRANSMIT_VECTOR)];
        let copy = vector.try_clone().map_err(FunctionError::io("dup"))?;
        Ok(Kick::new(&self.handle, copy)?)
    }
}

impl fmt::Debug for Transmitter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Transmitter")
    }
}

impl BackendRequests for Transmitter {
    /// A function that gives no buffer back is waited for by this alone.
    fn send(&self, request: [u8; HEADER_SIZE]) -> Sending<'_> {
        Box::pin(async move {
            let mut watch = None;
            while !self.try_send(&request).map_err(io::Error::other)? {
                let watch = match &mut watch {
                    Some(watch) => watch,
                    watch => watch.insert(self.watch().map_err(io::Error::other)?),
                };
                watch.wait().await?;
            }
            Ok(())
        })
    }
}
