//! A virtio-net driver (virtio 1.3, 5.1) for tests and figures: frames out, frames in over one or
//! several receive buffers, commands. No network stack: a frame is whatever bytes it is given.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use crate::{Buffer, Builder, Error, FrontEnd, Parked, Token, Used};

/// Feature bits of a network device.
pub mod feature {
    /// The device computes checksums.
    pub const CSUM: u64 = 1 << 0;
    /// The driver takes frames without their checksum.
    pub const GUEST_CSUM: u64 = 1 << 1;
    /// Offloads can be changed by command.
    pub const CTRL_GUEST_OFFLOADS: u64 = 1 << 2;
    /// An MTU is told.
    pub const MTU: u64 = 1 << 3;
    /// An address is given.
    pub const MAC: u64 = 1 << 5;
    /// The driver takes large TCP over IPv4.
    pub const GUEST_TSO4: u64 = 1 << 7;
    /// The driver takes large TCP over IPv6.
    pub const GUEST_TSO6: u64 = 1 << 8;
    /// The driver takes large TCP with ECN.
    pub const GUEST_ECN: u64 = 1 << 9;
    /// The driver takes large UDP, to be fragmented.
    pub const GUEST_UFO: u64 = 1 << 10;
    /// The device takes large TCP over IPv4.
    pub const HOST_TSO4: u64 = 1 << 11;
    /// The device takes large TCP over IPv6.
    pub const HOST_TSO6: u64 = 1 << 12;
    /// The device takes large TCP with ECN.
    pub const HOST_ECN: u64 = 1 << 13;
    /// The device takes large UDP, to be fragmented.
    pub const HOST_UFO: u64 = 1 << 14;
    /// A frame may lie in several buffers.
    pub const MRG_RXBUF: u64 = 1 << 15;
    /// The link's state is told.
    pub const STATUS: u64 = 1 << 16;
    /// There is a control queue.
    pub const CTRL_VQ: u64 = 1 << 17;
    /// Receive modes and addresses.
    pub const CTRL_RX: u64 = 1 << 18;
    /// VLANs.
    pub const CTRL_VLAN: u64 = 1 << 19;
    /// More receive modes.
    pub const CTRL_RX_EXTRA: u64 = 1 << 20;
    /// The device may ask for an announcement.
    pub const GUEST_ANNOUNCE: u64 = 1 << 21;
    /// Several pairs of queues.
    pub const MQ: u64 = 1 << 22;
    /// The driver may set its address.
    pub const CTRL_MAC_ADDR: u64 = 1 << 23;
    /// The driver takes large UDP over IPv4.
    pub const GUEST_USO4: u64 = 1 << 54;
    /// The driver takes large UDP over IPv6.
    pub const GUEST_USO6: u64 = 1 << 55;
    /// The device takes large UDP.
    pub const HOST_USO: u64 = 1 << 56;
    /// Speed and duplex mode are told.
    pub const SPEED_DUPLEX: u64 = 1 << 63;
}

/// Bytes of the header in front of a frame.
pub const HEADER_SIZE: usize = 12;
/// The longest frame that this driver sends.
const FRAME_MAX: u64 = 70_000;
/// What stands in an answer that the device did not write.
const UNWRITTEN: u8 = 0xee;

/// The configuration space (5.1.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// The address, with `MAC`.
    pub mac: [u8; 6],
    /// 1: the link is up; 2: an announcement is asked for.
    pub status: u16,
    /// Pairs of queues, with `MQ`.
    pub pairs: u16,
    /// The greatest packet, with `MTU`.
    pub mtu: u16,
    /// Megabits a second, with `SPEED_DUPLEX`.
    pub speed: u32,
    /// 1 is full.
    pub duplex: u8,
}

/// The header of a frame, `struct virtio_net_hdr`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// 1: the checksum is to be computed.
    pub flags: u8,
    /// The kind of large frame, 0 for none.
    pub gso_type: u8,
    /// Bytes of its headers.
    pub hdr_len: u16,
    /// Bytes of a segment's data.
    pub gso_size: u16,
    /// Where the checksum begins to count.
    pub csum_start: u16,
    /// And where it stands from there on.
    pub csum_offset: u16,
    /// Buffers that a received frame lies in.
    pub num_buffers: u16,
}

impl Header {
    /// Its bytes.
    pub fn bytes(&self) -> [u8; HEADER_SIZE] {
        let mut bytes = [0; HEADER_SIZE];
        (bytes[0], bytes[1]) = (self.flags, self.gso_type);
        let fields = [
            self.hdr_len,
            self.gso_size,
            self.csum_start,
            self.csum_offset,
            self.num_buffers,
        ];
        for (place, field) in bytes[2..].chunks_exact_mut(2).zip(fields) {
            place.copy_from_slice(&field.to_le_bytes());
        }
        bytes
    }

    fn parse(bytes: &[u8; HEADER_SIZE]) -> Self {
        let field = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        Self {
            flags: bytes[0],
            gso_type: bytes[1],
            hdr_len: field(2),
            gso_size: field(4),
            csum_start: field(6),
            csum_offset: field(8),
            num_buffers: field(10),
        }
    }
}

/// A frame that came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What the device says of it.
    pub header: Header,
    /// The frame.
    pub bytes: Vec<u8>,
}

/// A driver with all its queues running.
#[derive(Debug)]
pub struct Net {
    front: FrontEnd,
    state: State,
}

/// What it keeps between two connections.
#[derive(Debug)]
struct State {
    pairs: u16,
    posted: Vec<HashMap<Token, Buffer>>,
    free: Vec<VecDeque<Buffer>>,
    outgoing: u64,
    command: u64,
    answer: u64,
}

impl Net {
    /// Starts a driver of so many pairs, and posts `buffers` receive buffers of `size` bytes for
    /// each. The builder's features say what is negotiated beside the framework's; it must give
    /// memory enough.
    pub fn start(builder: Builder, pairs: u16, buffers: u16, size: u32) -> Result<Self, Error> {
        let front = builder.queues(2 * pairs + 1).start()?;
        let memory = front.memory();
        let post = |_| -> Result<VecDeque<Buffer>, Error> {
            let each = |_| Ok(Buffer::new(memory.allocate(size.into(), 2)?, size));
            (0..buffers).map(each).collect()
        };
        let free = (0..pairs).map(post).collect::<Result<_, _>>()?;
        let state = State {
            pairs,
            posted: (0..pairs).map(|_| HashMap::new()).collect(),
            free,
            outgoing: memory.allocate(FRAME_MAX, 16)?,
            command: memory.allocate(4096, 2)?,
            answer: memory.allocate(1, 1)?,
        };
        let mut net = Self { front, state };
        (0..pairs).try_for_each(|pair| net.post(pair))?;
        Ok(net)
    }

    /// The front-end below.
    pub fn front(&mut self) -> &mut FrontEnd {
        &mut self.front
    }

    /// Stops all queues and leaves. Receive buffers that are posted stay so.
    pub fn leave(self) -> Result<ParkedNet, Error> {
        Ok(ParkedNet {
            front: self.front.leave()?,
            state: self.state,
        })
    }

    /// Reads the configuration space.
    pub fn config(&mut self) -> Result<Config, Error> {
        let space = self.front.connection().config(0, 24)?;
        let field = |at: usize| u16::from_le_bytes([space[at], space[at + 1]]);
        let mut mac = [0; 6];
        mac.copy_from_slice(&space[..6]);
        Ok(Config {
            mac,
            status: field(6),
            pairs: field(8),
            mtu: field(10),
            speed: u32::from(field(12)) | u32::from(field(14)) << 16,
            duplex: space[16],
        })
    }

    /// Receive buffers of a pair that the device has.
    pub fn posted(&self, pair: u16) -> usize {
        self.state.posted[usize::from(pair)].len()
    }

    /// Sends a frame and waits until the device has taken it.
    pub fn send(&mut self, pair: u16, header: &Header, frame: &[u8]) -> Result<(), Error> {
        let lengths = [HEADER_SIZE, frame.len()];
        self.send_cut(pair, header, frame, &lengths)
    }

    /// [`Net::send`] with header and frame in buffers of these lengths; empty ones are left out.
    pub fn send_cut(
        &mut self,
        pair: u16,
        header: &Header,
        frame: &[u8],
        lengths: &[usize],
    ) -> Result<(), Error> {
        let bytes = [&header.bytes()[..], frame].concat();
        self.front.memory().write(self.state.outgoing, &bytes)?;
        let mut buffers = Vec::new();
        let mut at = self.state.outgoing;
        for &length in lengths.iter().filter(|length| **length > 0) {
            let length = u32::try_from(length).map_err(|_| Error::Misuse("a frame above 4 GiB"))?;
            buffers.push(Buffer::new(at, length));
            at += u64::from(length);
        }
        self.front.ring(2 * pair + 1).exchange(&buffers, &[])?;
        Ok(())
    }

    /// The next frame of a pair, over as many buffers as its header says. They are posted again.
    pub fn receive(&mut self, pair: u16, limit: Duration) -> Result<Frame, Error> {
        let frame = self.take(pair, limit)?;
        self.post(pair)?;
        Ok(frame)
    }

    /// [`Net::receive`] without posting the buffers again.
    pub fn take(&mut self, pair: u16, limit: Duration) -> Result<Frame, Error> {
        let used = self.front.ring(2 * pair).wait_used(limit)?;
        let mut bytes = self.bytes(pair, used)?;
        let Some(header) = bytes.first_chunk().map(Header::parse) else {
            let reason = format!("a frame of {} bytes", bytes.len());
            return Err(Error::BadUsed {
                ring: 2 * pair,
                reason,
            });
        };
        for number in 1..header.num_buffers {
            // All of them are there as soon as the first is: Linux's driver relies on it.
            let Some(used) = self.front.ring(2 * pair).poll_used()? else {
                let reason = format!("buffer {number} of {} is missing", header.num_buffers);
                return Err(Error::BadUsed {
                    ring: 2 * pair,
                    reason,
                });
            };
            bytes.extend(self.bytes(pair, used)?);
        }
        bytes.drain(..HEADER_SIZE);
        Ok(Frame { header, bytes })
    }

    /// Gives all free receive buffers of a pair to the device.
    pub fn post(&mut self, pair: u16) -> Result<(), Error> {
        let at = usize::from(pair);
        let ring = self.front.ring(2 * pair);
        while let Some(buffer) = self.state.free[at].pop_front() {
            self.state.posted[at].insert(ring.add(&[], &[buffer])?, buffer);
        }
        ring.kick()?;
        Ok(())
    }

    /// Sends a command; the device's answer: 0 is success, 1 an error.
    pub fn command(&mut self, class: u8, command: u8, data: &[u8]) -> Result<u8, Error> {
        let bytes = [&[class, command][..], data].concat();
        self.raw_command(&bytes)
    }

    /// [`Net::command`], of any bytes, in one buffer.
    pub fn raw_command(&mut self, bytes: &[u8]) -> Result<u8, Error> {
        let length = u32::try_from(bytes.len()).map_err(|_| Error::Misuse("above 4 GiB"))?;
        let memory = self.front.memory().clone();
        memory.write(self.state.command, bytes)?;
        memory.write(self.state.answer, &[UNWRITTEN])?;
        let queue = self.control_queue();
        let command = [Buffer::new(self.state.command, length)];
        let answer = [Buffer::new(self.state.answer, 1)];
        self.front.ring(queue).exchange(&command, &answer)?;
        let mut answered = [0];
        memory.read(self.state.answer, &mut answered)?;
        Ok(answered[0])
    }

    /// The control queue's number: behind all pairs (5.1.2).
    pub fn control_queue(&self) -> u16 {
        2 * self.state.pairs
    }

    fn bytes(&mut self, pair: u16, used: Used) -> Result<Vec<u8>, Error> {
        let at = usize::from(pair);
        let buffer = self.state.posted[at].remove(&used.token);
        let buffer = buffer.ok_or(Error::Misuse("a buffer came back that was not posted"))?;
        let mut bytes = vec![0; used.written as usize];
        self.front.memory().read(buffer.address, &mut bytes)?;
        self.state.free[at].push_back(buffer);
        Ok(bytes)
    }
}

/// A driver between two connections.
#[derive(Debug)]
#[must_use]
pub struct ParkedNet {
    front: Parked,
    state: State,
}

impl ParkedNet {
    /// Connects again and goes on where the queues stopped.
    pub fn resume(self) -> Result<Net, Error> {
        Ok(Net {
            front: self.front.resume()?,
            state: self.state,
        })
    }

    /// Where each queue goes on.
    pub fn bases(&self) -> &[u16] {
        self.front.bases()
    }
}
