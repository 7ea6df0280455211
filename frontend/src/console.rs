//! A virtio-console driver (virtio 1.3, 5.3) for the one port of a simple console: bytes out, bytes
//! in, buffers posted; no terminal.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use crate::{Buffer, Builder, Error, FrontEnd, Parked, Token, Used};

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
    state: State,
}

/// What it keeps between two connections.
#[derive(Debug)]
struct State {
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
        let state = State {
            posted: HashMap::new(),
            free,
            outgoing: page()?,
            received: VecDeque::new(),
        };
        let mut console = Self { front, state };
        console.post()?;
        Ok(console)
    }

    /// The front-end below.
    pub fn front(&mut self) -> &mut FrontEnd {
        &mut self.front
    }

    /// Stops both queues and leaves; the posted buffers stay where they are.
    pub fn leave(self) -> Result<ParkedConsole, Error> {
        Ok(ParkedConsole {
            front: self.front.leave()?,
            state: self.state,
        })
    }

    /// Number of receive buffers that the device holds.
    pub fn posted(&self) -> usize {
        self.state.posted.len()
    }

    /// Sends bytes and waits until the device has taken them.
    pub fn send(&mut self, bytes: &[u8]) -> Result<(), Error> {
        for piece in bytes.chunks(BUFFER_SIZE as usize) {
            self.front.memory().write(self.state.outgoing, piece)?;
            let length = u32::try_from(piece.len()).unwrap_or(BUFFER_SIZE);
            let buffer = Buffer::new(self.state.outgoing, length);
            self.front.ring(TRANSMIT).exchange(&[buffer], &[])?;
        }
        Ok(())
    }

    /// Waits until at least so many bytes have come, and takes all that have.
    pub fn receive(&mut self, at_least: usize, limit: Duration) -> Result<Vec<u8>, Error> {
        let deadline = Instant::now() + limit;
        while self.state.received.len() < at_least {
            let left = deadline.saturating_duration_since(Instant::now());
            let used = self
                .front
                .ring(RECEIVE)
                .wait_used(left)
                .map_err(|error| match error {
                    Error::Deadline { .. } => Error::Deadline {
                        awaited: format!(
                            "{at_least} bytes of input ({} came)",
                            self.state.received.len()
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
        Ok(self.state.received.drain(..).collect())
    }

    /// Hands all free receive buffers to the device.
    pub fn post(&mut self) -> Result<(), Error> {
        while let Some(address) = self.state.free.pop() {
            let buffer = Buffer::new(address, BUFFER_SIZE);
            let token = self.front.ring(RECEIVE).add(&[], &[buffer])?;
            self.state.posted.insert(token, address);
        }
        self.front.ring(RECEIVE).kick()?;
        Ok(())
    }

    fn take(&mut self, used: Used) -> Result<(), Error> {
        let address = self.state.posted.remove(&used.token).ok_or(Error::Misuse(
            "a chain came back that this driver did not post",
        ))?;
        let mut bytes = vec![0; used.written as usize];
        self.front.memory().read(address, &mut bytes)?;
        self.state.received.extend(bytes);
        self.state.free.push(address);
        self.post()
    }
}

/// A console's driver between two connections.
#[derive(Debug)]
#[must_use]
pub struct ParkedConsole {
    front: Parked,
    state: State,
}

impl ParkedConsole {
    /// Connects again and goes on where the queues stopped.
    pub fn resume(self) -> Result<Console, Error> {
        Ok(Console {
            front: self.front.resume()?,
            state: self.state,
        })
    }
}
