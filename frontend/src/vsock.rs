//! A virtio-vsock driver (virtio 1.3, 5.10): packets out, packets in, receive buffers posted. What
//! is in a packet is the caller's affair, so that a test can say what no kernel would.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use crate::{Buffer, Builder, Error, FrontEnd, LIMIT, Token, Used};

/// The device's queue to the driver.
pub const RECEIVE: u16 = 0;
/// The driver's queue to the device.
pub const TRANSMIT: u16 = 1;
/// The device's queue of events.
pub const EVENT: u16 = 2;

/// Bytes of a packet's header.
pub const HEADER: usize = 44;

/// The host's context identifier.
pub const HOST: u64 = 2;
/// The type of a stream's packets.
pub const STREAM: u16 = 1;

/// Operations (5.10.6).
pub mod op {
    /// Asks for a connection.
    pub const REQUEST: u16 = 1;
    /// Grants it.
    pub const RESPONSE: u16 = 2;
    /// Ends it, or refuses it.
    pub const RST: u16 = 3;
    /// Ends one half, or both.
    pub const SHUTDOWN: u16 = 4;
    /// Data.
    pub const RW: u16 = 5;
    /// Says how much room there is.
    pub const CREDIT_UPDATE: u16 = 6;
    /// Asks for that.
    pub const CREDIT_REQUEST: u16 = 7;
}

/// A packet, `struct virtio_vsock_hdr` (5.10.6) with its data.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Packet {
    /// `src_cid`, the sender's context identifier.
    pub from: u64,
    /// `dst_cid`, the receiver's.
    pub to: u64,
    /// `src_port`.
    pub from_port: u32,
    /// `dst_port`.
    pub to_port: u32,
    /// `len`: what the header says of the data's length; set by [`Packet::with_data`].
    pub length: u32,
    /// `type`.
    pub kind: u16,
    /// One of [`op`].
    pub op: u16,
    /// Of a SHUTDOWN: 1 receives no more, 2 sends no more.
    pub flags: u32,
    /// `buf_alloc`, the sender's buffer.
    pub buffer: u32,
    /// `fwd_cnt`, what it has taken out of that.
    pub forwarded: u32,
    /// What follows the header.
    pub data: Vec<u8>,
}

impl Packet {
    /// The same with data and its length.
    pub fn with_data(self, data: &[u8]) -> Self {
        Self {
            length: u32::try_from(data.len()).unwrap_or(u32::MAX),
            data: data.to_vec(),
            ..self
        }
    }

    /// As it goes over a queue.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER + self.data.len());
        bytes.extend(self.from.to_le_bytes());
        bytes.extend(self.to.to_le_bytes());
        bytes.extend(self.from_port.to_le_bytes());
        bytes.extend(self.to_port.to_le_bytes());
        bytes.extend(self.length.to_le_bytes());
        bytes.extend(self.kind.to_le_bytes());
        bytes.extend(self.op.to_le_bytes());
        bytes.extend(self.flags.to_le_bytes());
        bytes.extend(self.buffer.to_le_bytes());
        bytes.extend(self.forwarded.to_le_bytes());
        bytes.extend(&self.data);
        bytes
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let (header, data) = bytes.split_at_checked(HEADER)?;
        let word = |at: usize| Some(u32::from_le_bytes(header.get(at..at + 4)?.try_into().ok()?));
        let long = |at: usize| Some(u64::from_le_bytes(header.get(at..at + 8)?.try_into().ok()?));
        let half = |at: usize| Some(u16::from_le_bytes(header.get(at..at + 2)?.try_into().ok()?));
        Some(Self {
            from: long(0)?,
            to: long(8)?,
            from_port: word(16)?,
            to_port: word(20)?,
            length: word(24)?,
            kind: half(28)?,
            op: half(30)?,
            flags: word(32)?,
            buffer: word(36)?,
            forwarded: word(40)?,
            data: data.to_vec(),
        })
    }
}

/// A socket device's driver.
#[derive(Debug)]
pub struct Vsock {
    front: FrontEnd,
    posted: HashMap<Token, u64>,
    buffer_size: u32,
    sent: HashMap<Token, u64>,
    free: Vec<u64>,
    packet_max: u32,
    received: VecDeque<Packet>,
}

impl Vsock {
    /// Starts a driver and posts `buffers` receive buffers of `buffer_size` bytes. Packets that it
    /// sends have at most `packet_max` bytes.
    pub fn start(
        builder: Builder,
        buffers: usize,
        buffer_size: u32,
        packet_max: u32,
    ) -> Result<Self, Error> {
        Self::over(builder.queues(3).start()?, buffers, buffer_size, packet_max)
    }

    /// Like [`Vsock::start`], over a front-end that runs with three queues.
    pub fn over(
        front: FrontEnd,
        buffers: usize,
        buffer_size: u32,
        packet_max: u32,
    ) -> Result<Self, Error> {
        let mut vsock = Self {
            front,
            posted: HashMap::new(),
            buffer_size,
            sent: HashMap::new(),
            free: Vec::new(),
            packet_max,
            received: VecDeque::new(),
        };
        for _ in 0..buffers {
            let address = vsock.front.memory().allocate(buffer_size.into(), 1)?;
            vsock.post(address)?;
        }
        vsock.front.ring(RECEIVE).kick()?;
        Ok(vsock)
    }

    /// The front-end below.
    pub fn front(&mut self) -> &mut FrontEnd {
        &mut self.front
    }

    /// The front-end below, without the driver.
    pub fn into_front(self) -> FrontEnd {
        self.front
    }

    /// Sends a packet in one buffer, header and data together. Waits for room in the ring.
    pub fn send(&mut self, packet: &Packet) -> Result<(), Error> {
        self.send_bytes(&packet.bytes())
    }

    /// Sends what need not be a packet.
    pub fn send_bytes(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.add(bytes, bytes.len())
    }

    /// Sends a packet whose data, `packet.length` bytes, is whatever lies in the buffer that it
    /// goes into: nothing but its header is copied.
    pub fn send_header(&mut self, packet: &Packet) -> Result<(), Error> {
        self.add(&packet.bytes(), HEADER + packet.length as usize)
    }

    /// Sends a buffer of `length` bytes that begins with `bytes`.
    fn add(&mut self, bytes: &[u8], length: usize) -> Result<(), Error> {
        while let Some(used) = self.front.ring(TRANSMIT).poll_used()? {
            self.take_back(used)?;
        }
        while self.front.ring(TRANSMIT).free_descriptors() == 0 {
            let used = self.front.ring(TRANSMIT).wait_used(LIMIT)?;
            self.take_back(used)?;
        }
        let length = u32::try_from(length).ok();
        let length = length
            .filter(|length| *length <= self.packet_max)
            .ok_or(Error::Misuse("a packet beyond packet_max"))?;
        let address = match self.free.pop() {
            Some(address) => address,
            None => self.front.memory().allocate(self.packet_max.into(), 1)?,
        };
        self.front.memory().write(address, bytes)?;
        let ring = self.front.ring(TRANSMIT);
        let token = ring.add(&[Buffer::new(address, length)], &[])?;
        ring.kick()?;
        self.sent.insert(token, address);
        Ok(())
    }

    /// Waits until the device has taken everything that was sent.
    pub fn flush(&mut self) -> Result<(), Error> {
        while !self.sent.is_empty() {
            let used = self.front.ring(TRANSMIT).wait_used(LIMIT)?;
            self.take_back(used)?;
        }
        Ok(())
    }

    /// The next packet, if there is one.
    pub fn poll(&mut self) -> Result<Option<Packet>, Error> {
        let mut posted = false;
        while let Some(used) = self.front.ring(RECEIVE).poll_used()? {
            self.take(used)?;
            posted = true;
        }
        if posted {
            self.front.ring(RECEIVE).kick()?;
        }
        Ok(self.received.pop_front())
    }

    /// The next packet, waited for.
    pub fn receive(&mut self, limit: Duration) -> Result<Packet, Error> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(packet) = self.poll()? {
                return Ok(packet);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let used = self.front.ring(RECEIVE).wait_used(left)?;
            self.take(used)?;
            self.front.ring(RECEIVE).kick()?;
        }
    }

    fn take(&mut self, used: Used) -> Result<(), Error> {
        let address = self.posted.remove(&used.token).ok_or(Error::Misuse(
            "a chain came back that this driver did not post",
        ))?;
        let mut bytes = vec![0; used.written as usize];
        self.front.memory().read(address, &mut bytes)?;
        self.post(address)?;
        // A buffer without a packet is lawful: its connection ended meanwhile.
        self.received.extend(Packet::parse(&bytes));
        Ok(())
    }

    fn take_back(&mut self, used: Used) -> Result<(), Error> {
        let address = self.sent.remove(&used.token).ok_or(Error::Misuse(
            "a chain came back that this driver did not send",
        ))?;
        self.free.push(address);
        Ok(())
    }

    fn post(&mut self, address: u64) -> Result<(), Error> {
        let buffer = Buffer::new(address, self.buffer_size);
        let token = self.front.ring(RECEIVE).add(&[], &[buffer])?;
        self.posted.insert(token, address);
        Ok(())
    }
}
