//! A virtio-console driver (virtio 1.3, 5.3) for the one port of a simple console: bytes out, bytes
//! in, buffers posted; no terminal.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use crate::{Buffer, Builder, Error, FrontEnd, LIMIT, Parked, Token, Used};

/// The device's queue to the driver.
pub const RECEIVE: u16 = 0;
/// The driver's queue to the device.
pub const TRANSMIT: u16 = 1;
/// Bytes in a buffer, each way: a page, as Linux posts them.
const BUFFER_SIZE: u32 = 4096;

/// A console's driver.
#[derive(Debug)]
pub struct Console {
    front: FrontEnd,
    posted: HashMap<Token, u64>,
    free: Vec<u64>,
    outgoing: u64,
    received: VecDeque<u8>,
}

impl Console {
    /// Starts a driver and posts `buffers` receive buffers of 4096 bytes.
    pub fn start(builder: Builder, buffers: usize) -> Result<Self, Error> {
        Self::over(builder.queues(2).start()?, buffers)
    }

    /// Like [`Console::start`], over a front-end that runs with two queues.
    pub fn over(front: FrontEnd, buffers: usize) -> Result<Self, Error> {
        let page = || front.memory().allocate(BUFFER_SIZE.into(), 1);
        let free = (0..buffers).map(|_| page()).collect::<Result<_, _>>()?;
        let outgoing = page()?;
        let posted = HashMap::new();
        let mut console = Self {
            front,
            posted,
            free,
            outgoing,
            received: VecDeque::new(),
        };
        console.post()?;
        Ok(console)
    }

    /// The front-end below.
    pub fn front(&mut self) -> &mut FrontEnd {
        &mut self.front
    }

    /// Stops both queues and leaves; the posted buffers stay where they are.
    pub fn leave(self) -> Result<ParkedConsole, Error> {
        let Self {
            front,
            posted,
            free,
            outgoing,
            received,
        } = self;
        Ok(ParkedConsole {
            front: front.leave()?,
            posted,
            free,
            outgoing,
            received,
        })
    }

    /// Number of receive buffers that the device holds.
    pub fn posted(&self) -> usize {
        self.posted.len()
    }

    /// Sends bytes and waits until the device has taken them.
    pub fn send(&mut self, bytes: &[u8]) -> Result<(), Error> {
        for piece in bytes.chunks(BUFFER_SIZE as usize) {
            self.front.memory().write(self.outgoing, piece)?;
            let length = u32::try_from(piece.len()).unwrap_or(BUFFER_SIZE);
            let ring = self.front.ring(TRANSMIT);
            let token = ring.add(&[Buffer::new(self.outgoing, length)], &[])?;
            ring.kick()?;
            let used = ring.wait_used(LIMIT)?;
            if used.token != token {
                let reason = format!("{:?} came back, {token:?} was sent", used.token);
                return Err(Error::BadUsed {
                    ring: TRANSMIT,
                    reason,
                });
            }
        }
        Ok(())
    }

    /// Waits until at least so many bytes have come, and takes all that have.
    pub fn receive(&mut self, at_least: usize, limit: Duration) -> Result<Vec<u8>, Error> {
        let deadline = Instant::now() + limit;
        while self.received.len() < at_least {
            let left = deadline.saturating_duration_since(Instant::now());
            let used = self
                .front
                .ring(RECEIVE)
                .wait_used(left)
                .map_err(|error| match error {
                    Error::Deadline { .. } => Error::Deadline {
                        awaited: format!(
                            "{at_least} bytes of input ({} came)",
                            self.received.len()
                        ),
                        limit,
                    },
                    error => error,
                })?;
            self.take(used)?;
        }
        while let Some(used) = self.front.ring(RECEIVE).poll_used()? {
            self.take(used)?;
        }
        Ok(self.received.drain(..).collect())
    }

    /// Hands all free receive buffers to the device.
    pub fn post(&mut self) -> Result<(), Error> {
        while let Some(address) = self.free.pop() {
            let buffer = Buffer::new(address, BUFFER_SIZE);
            let token = self.front.ring(RECEIVE).add(&[], &[buffer])?;
            self.posted.insert(token, address);
        }
        self.front.ring(RECEIVE).kick()?;
        Ok(())
    }

    fn take(&mut self, used: Used) -> Result<(), Error> {
        let address = self.posted.remove(&used.token).ok_or(Error::Misuse(
            "a chain came back that this driver did not post",
        ))?;
        let mut bytes = vec![0; used.written as usize];
        self.front.memory().read(address, &mut bytes)?;
        self.received.extend(bytes);
        self.free.push(address);
        self.post()
    }
}

/// A console's driver between two connections.
#[derive(Debug)]
#[must_use]
pub struct ParkedConsole {
    front: Parked,
    posted: HashMap<Token, u64>,
    free: Vec<u64>,
    outgoing: u64,
    received: VecDeque<u8>,
}

impl ParkedConsole {
    /// Connects again and goes on where the queues stopped.
    pub fn resume(self) -> Result<Console, Error> {
        let Self {
            front,
            posted,
            free,
            outgoing,
            received,
        } = self;
        Ok(Console {
            front: front.resume()?,
            posted,
            free,
            outgoing,
            received,
        })
    }
}
