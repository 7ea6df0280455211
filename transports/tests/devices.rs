//! Devices of ours by every wire: what they do must not depend on how a front-end came to them. The
//! memory of a function's bar cannot be pinned, so a disk with O_DIRECT copies there; it does the
//! same all the same. What a session cannot do over a function is in the table of `vvu/main.rs`.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests, outside of any #[test]"
)]

mod common;

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};

use vudev_devices::block::{Block, BlockConfig, measure};
use vudev_devices::console::Console;
use vudev_devices::net::{Net, NetConfig};
use vudev_devices::rng::Rng;
use vudev_devices::vsock::{Connect, Vsock};
use vudev_frontend::vsock::{EVENT, HOST, Packet, STREAM, op};
use vudev_frontend::{Buffer, FrontEnd, LIMIT, block, console, net, rng, vsock};

use crate::common::{Wire, serve_over};

/// What the helpers take for granted; each test says its own.
const WIRE: Wire = Wire::Socket;

const BOTH: [Wire; 2] = [Wire::Socket, Wire::Vvu];

/// Bytes of the disk, and of what is written at once.
const DISK: u64 = 1 << 20;
const PIECE: usize = 64 << 10;

/// Bytes that are nowhere the same.
fn pattern(seed: u32, len: usize) -> Vec<u8> {
    let words = (0_u32..).map(|at| (at ^ seed).wrapping_mul(0x9e37_79b1));
    words.flat_map(u32::to_le_bytes).take(len).collect()
}

/// Writes, reads back, and reads what the file had.
fn use_disk(path: &Path, before: &[u8]) {
    let builder = FrontEnd::connect(path).memory(4 << 20);
    let length = u32::try_from(PIECE).unwrap();
    let mut disk = block::Block::start(builder, 4, length).unwrap();
    let mut read = vec![0; before.len()];
    disk.read(0, &mut read).unwrap();
    assert!(read == before, "what the file had");
    // Whole blocks, and a sector in the midst of one.
    for (offset, len) in [(0, 3 * PIECE), (512 * 7, 512), (DISK - 512, 512)] {
        let data = pattern(u32::try_from(offset).unwrap(), len);
        disk.write(offset, &data).unwrap();
        let mut back = vec![0; len];
        disk.read(offset, &mut back).unwrap();
        assert!(back == data, "{len} bytes at {offset}");
    }
    disk.flush().unwrap();
}

fn serve_disk(wire: Wire, direct: bool) {
    let named = tempfile::NamedTempFile::new().unwrap();
    let before = pattern(7, usize::try_from(DISK).unwrap());
    named.as_file().write_all_at(&before, 0).unwrap();
    let flags = if direct { libc::O_DIRECT } else { 0 };
    let file = File::options()
        .read(true)
        .write(true)
        .custom_flags(flags)
        .open(named.path())
        .unwrap();
    let config = BlockConfig {
        capacity: DISK,
        direct,
        direct_alignment: measure(&file).unwrap().direct_alignment.unwrap_or(4096),
        ..BlockConfig::default()
    };
    let expected = before.clone();
    let served = serve_over(
        wire,
        |handle| Block::new(handle, &config, file).unwrap(),
        move |path| use_disk(path, &expected),
    );
    served.assert_all_left();
    let mut after = vec![0; before.len()];
    named.as_file().read_exact_at(&mut after, 0).unwrap();
    let (start, end) = (512 * 7, after.len() - 512);
    assert!(after[start..start + 512] == pattern(512 * 7, 512));
    assert!(after[end..] == pattern(u32::try_from(DISK - 512).unwrap(), 512));
    assert!(after[3 * PIECE..end] == before[3 * PIECE..end], "untouched");
}

#[test]
fn a_disk_is_the_same_by_every_wire() {
    BOTH.into_iter().for_each(|wire| serve_disk(wire, false));
}

#[test]
fn a_disk_past_the_page_cache_is_the_same_by_every_wire() {
    BOTH.into_iter().for_each(|wire| serve_disk(wire, true));
}

#[test]
fn random_bytes_come_by_every_wire() {
    for wire in BOTH {
        let served = serve_over(
            wire,
            |handle| Rng::new(handle, None, None),
            |path| {
                let mut rng = rng::Rng::start(FrontEnd::connect(path).queue_size(8)).unwrap();
                let (one, other) = (rng.read(64, LIMIT).unwrap(), rng.read(64, LIMIT).unwrap());
                assert!(!one.is_empty() && one != other);
            },
        );
        served.assert_all_left();
    }
}

#[test]
fn a_console_keeps_every_byte_while_front_ends_come_and_go_by_every_wire() {
    for wire in BOTH {
        let (input, mut typing) = io::pipe().unwrap();
        let (mut reading, output) = io::pipe().unwrap();
        let served = serve_over(
            wire,
            |handle| Console::new(handle, Some(input.into()), Some(output.into())),
            move |path| {
                let mut console =
                    console::Console::start(FrontEnd::connect(path).queues(2), 4).unwrap();
                for round in 0..3_u8 {
                    let said = [b'a' + round; 300];
                    console.send(&said).unwrap();
                    let mut printed = [0; 300];
                    reading.read_exact(&mut printed).unwrap();
                    assert_eq!(printed, said);
                    typing.write_all(&[b'0' + round; 5]).unwrap();
                    assert_eq!(console.receive(5, LIMIT).unwrap(), [b'0' + round; 5]);
                    console = console.leave().unwrap().resume().unwrap();
                }
            },
        );
        served.assert_all_left();
        assert_eq!(served.outcomes.len(), 4);
    }
}

/// Bytes of a frame's header (virtio 1.3, 5.1.6).
const HEADER: usize = 12;

#[test]
fn frames_go_both_ways_by_every_wire() {
    for wire in BOTH {
        let (network, tap) = UnixDatagram::pair().unwrap();
        network.set_read_timeout(Some(LIMIT)).unwrap();
        let config = NetConfig {
            mac: None,
            mtu: 1500,
            pairs: 1,
            multi_queue: false,
            mergeable: true,
            offloads: 0,
        };
        let served = serve_over(
            wire,
            |handle| Net::new(handle, config, vec![tap.into()]).unwrap(),
            move |path| {
                let builder = FrontEnd::connect(path).memory(4 << 20);
                let mut net = net::Net::start(builder, 1, 16, 2048).unwrap();
                for round in 0..20_u8 {
                    let frame = vec![round; 60 + usize::from(round) * 70];
                    net.send(0, &net::Header::default(), &frame).unwrap();
                    let mut went = [0; 2048];
                    let count = network.recv(&mut went).unwrap();
                    assert!(went[HEADER..count] == frame, "round {round} out");
                    network.send(&[&[0; HEADER][..], &frame].concat()).unwrap();
                    let came = net.receive(0, LIMIT).unwrap();
                    assert!(came.bytes == frame, "round {round} in");
                }
            },
        );
        served.assert_all_left();
    }
}

/// The guest's context identifier.
const CID: u32 = 7;
/// Bytes of a stream that go each way at once, and how often: more than any credit, together.
const TURN: usize = 16 << 10;
const TURNS: u32 = 8;
/// What the guest keeps for a connection, and a packet of its at most.
const GUEST_BUFFER: u32 = 64 << 10;
const PACKET: usize = 4096;

/// One connection of a guest's.
struct Stream<'g> {
    guest: &'g mut vsock::Vsock,
    port: u32,
    host_port: u32,
    /// Bytes that came.
    taken: u32,
}

impl<'g> Stream<'g> {
    /// The guest calls a port of the host.
    fn call(guest: &'g mut vsock::Vsock, port: u32, host_port: u32) -> Self {
        let mut stream = Self {
            guest,
            port,
            host_port,
            taken: 0,
        };
        stream.send(op::REQUEST, 0, &[]);
        assert_eq!(stream.receive().op, op::RESPONSE);
        stream
    }

    /// The guest is called, and answers.
    fn answer(guest: &'g mut vsock::Vsock, port: u32) -> Self {
        let request = guest.receive(LIMIT).unwrap();
        assert_eq!((request.op, request.to_port), (op::REQUEST, port));
        let mut stream = Self {
            guest,
            port,
            host_port: request.from_port,
            taken: 0,
        };
        stream.send(op::RESPONSE, 0, &[]);
        stream
    }

    fn send(&mut self, op: u16, flags: u32, data: &[u8]) {
        let packet = Packet {
            from: CID.into(),
            to: HOST,
            from_port: self.port,
            to_port: self.host_port,
            kind: STREAM,
            op,
            flags,
            buffer: GUEST_BUFFER,
            forwarded: self.taken,
            ..Packet::default()
        };
        self.guest.send(&packet.with_data(data)).unwrap();
    }

    /// The next packet that says more than how much room there is.
    fn receive(&mut self) -> Packet {
        loop {
            let packet = self.guest.receive(LIMIT).unwrap();
            let ports = (packet.from_port, packet.to_port);
            assert_eq!(ports, (self.host_port, self.port), "{packet:?}");
            if packet.op != op::CREDIT_UPDATE {
                return packet;
            }
        }
    }

    /// Bytes go both ways, in turns.
    fn exchange(&mut self, program: &mut UnixStream) {
        program.set_read_timeout(Some(LIMIT)).unwrap();
        for turn in 0..TURNS {
            let there = pattern(turn, TURN);
            for piece in there.chunks(PACKET) {
                self.send(op::RW, 0, piece);
            }
            let mut came = vec![0; TURN];
            program.read_exact(&mut came).unwrap();
            assert!(came == there, "turn {turn}, to the host");
            let back = pattern(!turn, TURN);
            program.write_all(&back).unwrap();
            let mut came = Vec::new();
            while came.len() < TURN {
                let packet = self.receive();
                assert_eq!(packet.op, op::RW);
                self.taken += packet.length;
                came.extend(packet.data);
            }
            assert!(came == back, "turn {turn}, to the guest");
        }
    }
}

/// A guest that calls and ends its call, then is called and leaves in the middle; and the next one.
fn use_sockets(path: &Path, sockets: &Path, called: &Receiver<(u32, UnixStream)>) {
    let start = || {
        let builder = FrontEnd::connect(path).memory(4 << 20).queue_size(64);
        vsock::Vsock::start(builder, 32, 4096, 8192).unwrap()
    };
    let mut guest = start();
    let mut stream = Stream::call(&mut guest, 1000, 80);
    let (port, mut program) = called.recv_timeout(LIMIT).unwrap();
    assert_eq!(port, 80);
    stream.exchange(&mut program);
    stream.send(op::SHUTDOWN, 3, &[]);
    assert_eq!(stream.receive().op, op::RST);
    assert_eq!(program.read(&mut [0]).unwrap(), 0);

    let mut program = UnixStream::connect(sockets).unwrap();
    writeln!(program, "CONNECT 90").unwrap();
    let mut stream = Stream::answer(&mut guest, 90);
    let granted = format!("OK {}\n", stream.host_port);
    let mut line = vec![0; granted.len()];
    program.read_exact(&mut line).unwrap();
    assert_eq!(line, granted.as_bytes());
    stream.exchange(&mut program);
    drop(guest.into_front().leave().unwrap());
    assert_eq!(program.read(&mut [0]).unwrap(), 0);

    let mut front = start().into_front();
    let event = front.memory().allocate(4, 4).unwrap();
    front.memory().write(event, &[9; 4]).unwrap();
    let exchanged = front.ring(EVENT).exchange(&[], &[Buffer::new(event, 4)]);
    assert_eq!(exchanged.unwrap(), 4);
    let mut id = [9; 4];
    front.memory().read(event, &mut id).unwrap();
    assert_eq!(id, [0; 4], "VIRTIO_VSOCK_EVENT_TRANSPORT_RESET");
}

#[test]
fn streams_go_both_ways_and_end_with_their_front_end_by_every_wire() {
    for wire in BOTH {
        let folder = tempfile::tempdir().unwrap();
        let sockets = folder.path().join("v");
        let listener = UnixListener::bind(&sockets).unwrap();
        let (calls, called) = channel();
        let connect: Connect = Box::new(move |port| {
            let calls = calls.clone();
            Box::pin(async move {
                let (ours, theirs) = UnixStream::pair()?;
                calls.send((port, theirs)).map_err(io::Error::other)?;
                Ok(ours.into())
            })
        });
        let served = serve_over(
            wire,
            |handle| Vsock::new(handle, CID, listener.into(), connect),
            move |path| use_sockets(path, &sockets, &called),
        );
        served.assert_all_left();
        assert_eq!(served.outcomes.len(), 2);
    }
}
