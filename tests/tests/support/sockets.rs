//! The two ends of a socket device: connections of a guest's, driven by hand over `vudev_frontend`,
//! and programs of the host, a thread with as many Unix sockets. Each end sends a stream that the
//! other one knows beforehand.

#![allow(dead_code, reason = "each suite uses its part")]
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test panics where it fails, and its numbers are small"
)]

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vudev_frontend::Error;
use vudev_frontend::vsock::{HOST, Packet, STREAM, Vsock, op};

/// The guest's context identifier.
pub(crate) const CID: u64 = 42;
/// What a connection of the guest's takes before it says so.
pub(crate) const GUEST_BUFFER: u32 = 32 * 1024;

/// The guest's port and the host's.
pub(crate) type Name = (u32, u32);

/// What stream `number` has at a place: another byte in another stream, mostly.
pub(crate) fn stream(number: u32, length: usize) -> Vec<u8> {
    let mut state = number.wrapping_mul(0x9e37_79b9) | 1;
    let mut bytes = Vec::with_capacity(length + 4);
    bytes.extend(number.to_le_bytes());
    bytes.extend((0..length).map(|_| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()[1]
    }));
    bytes
}

/// One connection as the guest sees it.
#[derive(Default)]
pub(crate) struct End {
    pub(crate) open: bool,
    /// What it was sent; nothing is forgotten.
    pub(crate) input: Vec<u8>,
    /// What is still to be sent.
    pub(crate) output: Vec<u8>,
    sent: usize,
    /// It takes what comes.
    pub(crate) deaf: bool,
    told: u32,
    peer_buffer: u32,
    peer_forwarded: u32,
    /// What the host has ended: 1 receives, 2 sends no more.
    pub(crate) ended: u32,
    pub(crate) reset: bool,
    closing: bool,
}

impl End {
    /// Whether all was sent.
    pub(crate) fn is_sent(&self) -> bool {
        self.sent == self.output.len()
    }

    pub(crate) fn sent(&self) -> usize {
        self.sent
    }

    fn room(&self) -> usize {
        let flying = (self.sent as u32).wrapping_sub(self.peer_forwarded);
        self.peer_buffer.saturating_sub(flying) as usize
    }
}

/// A guest's sockets.
pub(crate) struct Guest {
    pub(crate) vsock: Vsock,
    pub(crate) ends: HashMap<Name, End>,
}

impl Guest {
    pub(crate) fn new(vsock: Vsock) -> Self {
        Self {
            vsock,
            ends: HashMap::new(),
        }
    }

    /// A packet of a connection's, with its credit.
    pub(crate) fn packet(&self, name: Name, op: u16) -> Packet {
        let forwarded = self.ends.get(&name).map_or(0, |end| match end.deaf {
            true => 0,
            false => end.input.len() as u32,
        });
        Packet {
            from: CID,
            to: HOST,
            from_port: name.0,
            to_port: name.1,
            kind: STREAM,
            op,
            buffer: GUEST_BUFFER,
            forwarded,
            ..Packet::default()
        }
    }

    /// Asks for a connection.
    pub(crate) fn connect(&mut self, name: Name) {
        self.ends.insert(name, End::default());
        self.send(name, op::REQUEST, 0);
    }

    pub(crate) fn send(&mut self, name: Name, op: u16, flags: u32) {
        let packet = Packet {
            flags,
            ..self.packet(name, op)
        };
        self.vsock.send(&packet).unwrap();
    }

    /// Ends both halves; the answer is a reset.
    pub(crate) fn close(&mut self, name: Name) {
        let end = self.ends.get_mut(&name).unwrap();
        if !end.closing && !end.reset {
            end.closing = true;
            self.send(name, op::SHUTDOWN, 3);
        }
    }

    /// Takes every packet that is there, waiting a little for the first, and sends what there is
    /// credit for.
    pub(crate) fn pump(&mut self) {
        match self.vsock.receive(Duration::from_millis(5)) {
            Ok(packet) => self.take(&packet),
            Err(Error::Deadline { .. }) => {}
            Err(error) => panic!("{error}"),
        }
        while let Some(packet) = self.vsock.poll().unwrap() {
            self.take(&packet);
        }
        let names: Vec<_> = self.ends.keys().copied().collect();
        for name in names {
            self.send_data(name);
        }
    }

    /// Pumps until something is so.
    pub(crate) fn until(&mut self, limit: Duration, mut done: impl FnMut(&mut Self) -> bool) {
        let deadline = Instant::now() + limit;
        while !done(self) {
            assert!(Instant::now() < deadline, "it takes too long");
            self.pump();
        }
    }

    fn send_data(&mut self, name: Name) {
        loop {
            let end = &self.ends[&name];
            let count = end.room().min(end.output.len() - end.sent).min(4096);
            if !end.open || end.reset || end.closing || count == 0 {
                return;
            }
            let data = end.output[end.sent..end.sent + count].to_vec();
            let packet = self.packet(name, op::RW).with_data(&data);
            self.vsock.send(&packet).unwrap();
            self.ends.get_mut(&name).unwrap().sent += count;
        }
    }

    fn take(&mut self, packet: &Packet) {
        assert_eq!((packet.from, packet.to, packet.kind), (HOST, CID, STREAM));
        assert_eq!(packet.length as usize, packet.data.len());
        let name = (packet.to_port, packet.from_port);
        if packet.op == op::REQUEST {
            self.ends.insert(name, End::default());
        }
        let Some(end) = self.ends.get_mut(&name) else {
            panic!("a packet of no connection: {packet:?}")
        };
        (end.peer_buffer, end.peer_forwarded) = (packet.buffer, packet.forwarded);
        match packet.op {
            op::REQUEST => {
                end.open = true;
                self.send(name, op::RESPONSE, 0);
            }
            op::RESPONSE => end.open = true,
            op::RST => end.reset = true,
            op::SHUTDOWN => {
                end.ended |= packet.flags;
                if end.ended == 3 {
                    end.reset = true;
                    self.send(name, op::RST, 0);
                }
            }
            op::RW => {
                end.input.extend(&packet.data);
                let taken = end.input.len() as u32;
                if !end.deaf && taken - end.told >= GUEST_BUFFER / 2 {
                    end.told = taken;
                    self.send(name, op::CREDIT_UPDATE, 0);
                }
            }
            op::CREDIT_UPDATE => {}
            op::CREDIT_REQUEST => self.send(name, op::CREDIT_UPDATE, 0),
            other => panic!("operation {other}"),
        }
    }
}

/// One connection as a program of the host sees it.
pub(crate) struct Program {
    socket: UnixStream,
    input: Vec<u8>,
    output: Vec<u8>,
    sent: usize,
    ended: bool,
}

impl Program {
    pub(crate) fn new(socket: UnixStream, output: Vec<u8>) -> Self {
        socket.set_nonblocking(true).unwrap();
        Self {
            socket,
            input: Vec::new(),
            output,
            sent: 0,
            ended: false,
        }
    }

    fn step(&mut self) {
        let mut bytes = [0; 8192];
        match self.socket.read(&mut bytes) {
            Ok(0) => self.ended = true,
            Ok(count) => self.input.extend(&bytes[..count]),
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}"),
        }
        if self.sent < self.output.len() {
            match self.socket.write(&self.output[self.sent..]) {
                Ok(count) => self.sent += count,
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}"),
            }
            if self.sent == self.output.len() {
                self.socket.shutdown(Shutdown::Write).unwrap();
            }
        }
    }
}

/// Sends and reads all of them to their ends, and gives what each has read.
pub(crate) fn run(mut programs: Vec<Program>, limit: Duration) -> Vec<Vec<u8>> {
    let deadline = Instant::now() + limit;
    while programs.iter().any(|it| !it.ended) {
        assert!(Instant::now() < deadline, "the host's side takes too long");
        let events = |it: &Program| match it.sent < it.output.len() {
            true => PollFlags::IN | PollFlags::OUT,
            false => PollFlags::IN,
        };
        let live: Vec<usize> = (0..programs.len())
            .filter(|it| !programs[*it].ended)
            .collect();
        let mut polled: Vec<_> = live
            .iter()
            .map(|it| PollFd::new(&programs[*it].socket, events(&programs[*it])))
            .collect();
        let timeout = Timespec::try_from(Duration::from_millis(100)).unwrap();
        poll(&mut polled, Some(&timeout)).unwrap();
        let ready: Vec<_> = polled.iter().map(|it| !it.revents().is_empty()).collect();
        for (index, ready) in live.into_iter().zip(ready) {
            if ready {
                programs[index].step();
            }
        }
    }
    programs.into_iter().map(|it| it.input).collect()
}
