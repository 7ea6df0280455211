//! A virtio-rng driver (virtio 1.3, 5.4): asks for bytes, one request or several at a time.

use std::{collections::HashMap, time::Duration};

use crate::{Buffer, Builder, Error, FrontEnd, Token};

/// An entropy device's driver.
#[derive(Debug)]
pub struct Rng {
    front: FrontEnd,
    asked: HashMap<Token, Buffer>,
}

impl Rng {
    /// Starts a driver.
    pub fn start(builder: Builder) -> Result<Self, Error> {
        Ok(Self::over(builder.queues(1).start()?))
    }

    /// Like [`Rng::start`], over a front-end that runs with one queue.
    pub fn over(front: FrontEnd) -> Self {
        Self {
            front,
            asked: HashMap::new(),
        }
    }

    /// The front-end below.
    pub fn front(&mut self) -> &mut FrontEnd {
        &mut self.front
    }

    /// Asks for so many bytes, without waiting for them.
    pub fn ask(&mut self, bytes: u32) -> Result<(), Error> {
        let address = self.front.memory().allocate(bytes.into(), 1)?;
        let buffer = Buffer::new(address, bytes);
        let ring = self.front.ring(0);
        let token = ring.add(&[], &[buffer])?;
        self.asked.insert(token, buffer);
        ring.kick()?;
        Ok(())
    }

    /// Waits for the next answer.
    pub fn answer(&mut self, limit: Duration) -> Result<Vec<u8>, Error> {
        let used = self.front.ring(0).wait_used(limit)?;
        let buffer = self.asked.remove(&used.token).ok_or(Error::Misuse(
            "a chain came back that this driver did not send",
        ))?;
        let mut bytes = vec![0; used.written as usize];
        self.front.memory().read(buffer.address, &mut bytes)?;
        Ok(bytes)
    }

    /// Asks, and waits for the answer.
    pub fn read(&mut self, bytes: u32, limit: Duration) -> Result<Vec<u8>, Error> {
        self.ask(bytes)?;
        self.answer(limit)
    }
}
