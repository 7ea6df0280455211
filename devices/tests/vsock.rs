//! The socket device under guests that keep no rule, in one process and on a played ring: whatever
//! they send, the device lives, gives every chain back, and serves the next one. A failure names
//! its seed.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test panics where it fails, and its numbers are small"
)]

use std::cell::RefCell;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::rc::Rc;
use std::time::Duration;

use vudev_devices::vsock::{CONNECTIONS_MAX, Connect, Vsock};
use vudev_executor::{Executor, Faults, Handle};
use vudev_transports::direct::{Direct, DirectRing};
use vudev_virtio::spec::feature;
use vudev_virtio::testing::{Guest, Ring};

const CID: u32 = 7;
const SIZE: u16 = 64;
const HEADER: usize = 44;

const REQUEST: u16 = 1;
const RESPONSE: u16 = 2;
const RST: u16 = 3;
const RW: u16 = 5;

/// Numbers that come again with the same seed (xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 8) % limit
    }
}

/// The other ends of what the device was connected to.
type Programs = Rc<RefCell<Vec<UnixStream>>>;

struct Rig {
    handle: Handle,
    direct: Direct<Vsock>,
    rings: Vec<Ring>,
    _folder: tempfile::TempDir,
    path: std::path::PathBuf,
}

impl Rig {
    fn new(handle: &Handle, connect: Connect) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("v");
        let listener: OwnedFd = UnixListener::bind(&path).unwrap().into();
        let device = Rc::new(Vsock::new(handle, CID, listener, connect));
        let guest = Guest::new(8 << 20);
        let features = feature::FRAMEWORK;
        let direct = Direct::new(handle, device, guest.memory(), features).unwrap();
        let mut rig = Self {
            handle: handle.clone(),
            direct,
            rings: (0..3).map(|_| guest.ring(SIZE)).collect(),
            _folder: folder,
            path,
        };
        for (index, ring) in (0..).zip(&rig.rings) {
            // By no eventfd: one that was kicked stays readable, and a played clock that always
            // has something to do stands still.
            let start = DirectRing::polled(index, SIZE, ring.addresses());
            rig.direct.start(start).unwrap();
        }
        rig
    }

    /// Sends a packet and waits until it has been taken.
    async fn send(&self, packet: &[u8]) {
        let cut = packet.len().min(HEADER);
        let (header, data) = packet.split_at(cut);
        let parts: &[&[u8]] = if data.is_empty() {
            &[header]
        } else {
            &[header, data]
        };
        self.rings[1].add(parts, &[]);
        self.used(1).await;
    }

    /// Sends headers, as many at once as the ring has room for.
    async fn send_all(&self, packets: impl Iterator<Item = Vec<u8>>) {
        let packets: Vec<_> = packets.collect();
        for several in packets.chunks(usize::from(SIZE)) {
            for packet in several {
                self.rings[1].add(&[packet], &[]);
            }
            for _ in several {
                self.used(1).await;
            }
        }
    }

    async fn used(&self, ring: usize) -> Vec<u8> {
        loop {
            if let Some(used) = self.rings[ring].used() {
                return used.bytes[..used.written as usize].to_vec();
            }
            // Where nobody does anything, time passes only for those who sleep.
            self.handle.sleep(Duration::from_millis(1)).await;
        }
    }

    /// Posts a receive buffer and waits for a packet.
    async fn receive(&self) -> Vec<u8> {
        self.rings[0].add(&[], &[4096]);
        self.used(0).await
    }
}

fn packet(ports: (u32, u32), op: u16, buffer: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(u64::from(CID).to_le_bytes());
    bytes.extend(2_u64.to_le_bytes());
    bytes.extend(ports.0.to_le_bytes());
    bytes.extend(ports.1.to_le_bytes());
    bytes.extend((data.len() as u32).to_le_bytes());
    bytes.extend(1_u16.to_le_bytes());
    bytes.extend(op.to_le_bytes());
    bytes.extend(0_u32.to_le_bytes());
    bytes.extend(buffer.to_le_bytes());
    bytes.extend(0_u32.to_le_bytes());
    bytes.extend(data);
    bytes
}

fn op(packet: &[u8]) -> u16 {
    u16::from_le_bytes([packet[30], packet[31]])
}

/// Connects everything to programs that are kept.
fn connected(programs: &Programs) -> Connect {
    let programs = programs.clone();
    Box::new(move |port| {
        let programs = programs.clone();
        Box::pin(async move {
            if port == 0 {
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            let (ours, theirs) = UnixStream::pair()?;
            theirs.set_nonblocking(true)?;
            // Little room, so that programs are found not to keep up.
            rustix::net::sockopt::set_socket_send_buffer_size(&ours, 16 << 10)?;
            programs.borrow_mut().push(theirs);
            Ok(ours.into())
        })
    })
}

fn nonsense(random: &mut Random) -> Vec<u8> {
    let ports = (random.below(4) as u32, random.below(4) as u32);
    let data = vec![9; random.below(3000) as usize];
    let buffer = [0, 1, 5000, u32::MAX][random.below(4) as usize];
    let kind = [
        REQUEST, REQUEST, RESPONSE, RST, 4, RW, RW, RW, RW, 6, 7, 0, 900,
    ];
    let op = kind[random.below(kind.len() as u64) as usize];
    let mut bytes = packet(ports, op, buffer, &data);
    // One field in four packets is anything.
    if random.below(4) == 0 {
        let at = random.below(HEADER as u64) as usize;
        bytes[at] = random.below(256) as u8;
    }
    // Flags of a shutdown.
    bytes[32] = random.below(4) as u8;
    if random.below(40) == 0 {
        bytes.truncate(random.below(HEADER as u64) as usize + 1);
    }
    bytes
}

/// Programs that write, read, end a half, or leave, as it comes.
fn programs_at_work(random: &mut Random, programs: &Programs) {
    use std::io::{Read, Write};
    let mut programs = programs.borrow_mut();
    if programs.is_empty() {
        return;
    }
    let chosen = random.below(programs.len() as u64) as usize;
    let program = &mut programs[chosen];
    match random.below(8) {
        0..=3 => _ = program.write(&vec![3; random.below(9000) as usize]),
        4 | 5 => _ = program.read(&mut vec![0; random.below(9000) as usize]),
        6 => _ = program.shutdown(std::net::Shutdown::Write),
        _ => drop(programs.swap_remove(chosen)),
    }
}

/// Everything that a guest and programs may do, and then a guest that behaves.
fn play(seed: u64) {
    let executor = Executor::simulated(
        seed,
        Faults {
            delayed: 200,
            ..Faults::default()
        },
    );
    let handle = executor.handle().clone();
    let played = executor.run(async {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let programs = Programs::default();
        let mut rig = Rig::new(&handle, connected(&programs));
        let mut posted = 0;
        for _ in 0..400 {
            match random.below(4) {
                0 if posted < usize::from(SIZE) => {
                    rig.rings[0].add(&[], &[[10, 44, 45, 4096][random.below(4) as usize]]);
                    posted += 1;
                }
                1 => programs_at_work(&mut random, &programs),
                _ => rig.send(&nonsense(&mut random)).await,
            }
            while let Some(used) = rig.rings[0].used() {
                posted -= 1;
                assert!(used.written == 0 || used.written as usize >= HEADER);
            }
        }
        let (receive, transmit) = (rig.direct.stop(0).await, rig.direct.stop(1).await);
        receive.unwrap();
        transmit.unwrap();
        assert_eq!(
            rig.direct.dropped(0) + rig.direct.dropped(1),
            0,
            "no chain is lost"
        );
        rig.direct.reset().await;
    });
    played.unwrap();
}

#[test]
fn no_packets_of_a_guest_and_no_programs_break_the_device_or_lose_a_chain() {
    let only = std::env::var("VUDEV_SEED")
        .ok()
        .and_then(|it| it.parse().ok());
    let seeds: Vec<u64> = only.map_or_else(|| (1..=100).collect(), |seed| vec![seed]);
    for seed in seeds {
        let played = std::panic::catch_unwind(|| play(seed));
        assert!(played.is_ok(), "VUDEV_SEED={seed} plays it again");
    }
}

#[test]
fn a_connection_beyond_the_most_is_reset_and_one_less_makes_room() {
    let executor = Executor::simulated(1, Faults::default());
    let handle = executor.handle().clone();
    let played = executor.run(async {
        let never: Connect = Box::new(|_| Box::pin(std::future::pending()));
        let rig = Rig::new(&handle, never);
        let requests = (0..CONNECTIONS_MAX as u32).map(|port| packet((port, 80), REQUEST, 0, &[]));
        rig.send_all(requests).await;
        assert!(rig.rings[0].used().is_none());
        let beyond = (u32::MAX, 80);
        rig.send(&packet(beyond, REQUEST, 0, &[])).await;
        let reset = rig.receive().await;
        assert_eq!((op(&reset), reset.len()), (RST, HEADER));
        rig.send(&packet((5, 80), RST, 0, &[])).await;
        rig.send(&packet(beyond, REQUEST, 0, &[])).await;
        rig.rings[0].add(&[], &[4096]);
        handle.sleep(Duration::from_secs(1)).await;
        assert!(rig.rings[0].used().is_none(), "it is being connected");
    });
    played.unwrap();
}

#[test]
fn a_program_that_says_nothing_is_hung_up_on_and_so_is_one_whose_guest_is_silent() {
    use std::io::{Read, Write};
    let executor = Executor::simulated(1, Faults::default());
    let handle = executor.handle().clone();
    let played = executor.run(async {
        let programs = Programs::default();
        let rig = Rig::new(&handle, connected(&programs));
        handle.sleep(Duration::from_millis(1)).await;
        let mut silent = UnixStream::connect(&rig.path).unwrap();
        let mut hopeful = UnixStream::connect(&rig.path).unwrap();
        hopeful.write_all(b"CONNECT 9\n").unwrap();
        for program in [&silent, &hopeful] {
            program.set_nonblocking(true).unwrap();
        }
        handle.sleep(Duration::from_secs(4)).await;
        let waits = |program: &mut UnixStream| program.read(&mut [0]).is_err();
        assert!(waits(&mut silent) && waits(&mut hopeful));
        handle.sleep(Duration::from_secs(2)).await;
        assert!(!waits(&mut silent) && waits(&mut hopeful));
        handle.sleep(Duration::from_secs(5)).await;
        assert!(!waits(&mut hopeful));
        // The guest, late, hears of a wish and of its end.
        assert_eq!(op(&rig.receive().await), RST);
    });
    played.unwrap();
}

#[test]
fn a_guest_without_receive_buffers_sends_on_and_hears_later() {
    let executor = Executor::simulated(1, Faults::default());
    let handle = executor.handle().clone();
    let played = executor.run(async {
        let programs = Programs::default();
        let rig = Rig::new(&handle, connected(&programs));
        let ports = (1, 80);
        rig.send(&packet(ports, REQUEST, 5000, &[])).await;
        handle.sleep(Duration::from_millis(1)).await;
        rig.send(&packet(ports, RW, 5000, b"one")).await;
        // More resets than are kept: the device goes on.
        rig.send_all((100..3000).map(|port| packet((port, 80), RW, 0, &[])))
            .await;
        let mut bytes = [0; 3];
        io::Read::read_exact(&mut programs.borrow_mut()[0], &mut bytes).unwrap();
        assert_eq!(&bytes, b"one");
        assert_eq!(op(&rig.receive().await), RESPONSE);
        assert_eq!(op(&rig.receive().await), RST);
    });
    played.unwrap();
}

/// The first program reads at most 3000 bytes.
fn read_some(programs: &Programs, heard: &mut Vec<u8>) {
    let mut bytes = [0; 3000];
    match io::Read::read(&mut programs.borrow_mut()[0], &mut bytes) {
        Ok(count) => heard.extend(&bytes[..count]),
        Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
    }
}

#[test]
fn packets_that_are_sent_together_come_in_order_to_a_program_that_reads_late() {
    for seed in 1..50 {
        let delayed = Faults {
            delayed: 300,
            ..Faults::default()
        };
        let executor = Executor::simulated(seed, delayed);
        let handle = executor.handle().clone();
        let played = executor.run(async {
            let programs = Programs::default();
            let rig = Rig::new(&handle, connected(&programs));
            let ports = (1, 80);
            rig.send(&packet(ports, REQUEST, 5000, &[])).await;
            assert_eq!(op(&rig.receive().await), RESPONSE);
            let mut random = Random(seed);
            // Less than the credit; of each part the program reads some before the next comes.
            let said: Vec<u8> = (0..240_000).map(|_| random.below(256) as u8).collect();
            let mut heard = Vec::new();
            for part in said.chunks(40_000) {
                for data in part.chunks(4000) {
                    rig.rings[1].add(&[&packet(ports, RW, 5000, data)], &[]);
                }
                for _ in part.chunks(4000) {
                    read_some(&programs, &mut heard);
                    rig.used(1).await;
                }
            }
            while heard.len() < said.len() {
                read_some(&programs, &mut heard);
                handle.sleep(Duration::from_millis(1)).await;
            }
            assert!(heard == said, "seed {seed}");
        });
        played.unwrap();
    }
}
