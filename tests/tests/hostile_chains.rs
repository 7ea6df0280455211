//! Chains that a ring may have and that mean anything or nothing, a few thousand for each device,
//! against the real, jailed `vudev`: with random headers, cuts and lengths, memory that changes
//! under them and is replaced, and stops in their midst. Every request comes back, no queue is
//! retired, nothing is an error of ours, and nothing is left behind. `VUDEV_NOISE_SEED` and
//! `VUDEV_NOISE_ROUNDS` look further than the few seconds of a test run.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test that fails here says where; noise may lose bits"
)]

#[path = "support/network.rs"]
mod network;
#[path = "support/random.rs"]
mod random;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::Instant;
use std::{env, fs};

use random::Random;
use tempfile::TempDir;
use vudev_frontend::net::feature;
use vudev_frontend::vsock::{HOST, Packet, STREAM, Vsock, op};
use vudev_frontend::{Buffer, Error, FrontEnd, LIMIT, Step};
use vudev_tests::{Vudev, VudevCommand};

/// Front-ends in a run, one after the other.
const ROUNDS: u64 = 8;
/// Chains of each.
const CHAINS: u64 = 300;
/// Where all chains lie, over each other.
const ARENA: u64 = 512 << 10;
/// The longest run of bytes in a chain: beyond the longest frame.
const LONGEST: u64 = 80 << 10;

/// Features that the devices are driven with.
const DISCARD: u64 = 1 << 13;
const WRITE_ZEROES: u64 = 1 << 14;
const MULTIPORT: u64 = 1 << 1;
const CARD: u64 = feature::CSUM
    | feature::GUEST_CSUM
    | feature::HOST_TSO4
    | feature::GUEST_TSO4
    | feature::CTRL_GUEST_OFFLOADS
    | feature::STATUS
    | feature::CTRL_VQ
    | feature::CTRL_RX
    | feature::CTRL_RX_EXTRA
    | feature::CTRL_VLAN
    | feature::CTRL_MAC_ADDR
    | feature::GUEST_ANNOUNCE
    | feature::MQ;

/// A running device and its folder.
struct Scene {
    vudev: Vudev,
    folder: TempDir,
    /// Its process, and its descriptors without a front-end.
    before: (u32, usize),
}

impl Scene {
    /// The devices of these arguments are one, `DIR` standing for the folder.
    fn start(kind: &str, parts: &[&str]) -> Self {
        let folder = tempfile::Builder::new().prefix("vudev-").tempdir().unwrap();
        let path = folder.path().to_str().unwrap();
        let socket = folder.path().join("vhost");
        let options = |part: &str| part.replace("DIR", path);
        let mut command = VudevCommand::new().unwrap();
        command = command.device(kind, &options(parts[0]), &socket);
        for part in &parts[1..] {
            let argument = format!("{},vhost={}", options(part), socket.display());
            command = command.argument(format!("--{kind}")).argument(argument);
        }
        let vudev = command.start().unwrap();
        let before = (0, 0);
        let mut scene = Self {
            vudev,
            folder,
            before,
        };
        scene.until(|| scene.log().contains("device is ready"));
        scene.before = (scene.device(), scene.descriptors());
        scene
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn log(&self) -> String {
        self.vudev.log().unwrap()
    }

    fn device(&self) -> u32 {
        self.vudev.devices().unwrap()[0]
    }

    fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.device()))
            .unwrap()
            .count()
    }

    fn until(&self, mut done: impl FnMut() -> bool) {
        let deadline = Instant::now() + LIMIT;
        while !done() {
            assert!(Instant::now() < deadline, "{}", self.log());
            std::thread::yield_now();
        }
    }

    /// Lets one front-end after the other take steps, each of which is a chain or nothing.
    fn play(&self, driver: &Driver<'_>, mut step: impl FnMut(&mut Player)) {
        let mut random = Random(number("VUDEV_NOISE_SEED", 0x5eed));
        for round in 0..number("VUDEV_NOISE_ROUNDS", ROUNDS) {
            let seed = random.0;
            let told = |error| panic!("round {round}, seed {seed}: {error}\n{}", self.log());
            let mut player = Player::new(self, driver, random);
            for _ in 0..CHAINS {
                step(&mut player);
                player.take_back().unwrap_or_else(told);
            }
            player.finish().unwrap_or_else(told);
            random = player.random;
        }
    }

    /// Looks whether the device is as it was, once all that played with it is gone.
    fn ends(&self) {
        self.until(|| (self.device(), self.descriptors()) == self.before);
        let log = self.log();
        assert!(
            !log.contains("retired") && !log.contains("error: "),
            "{log}"
        );
    }
}

fn number(name: &str, otherwise: u64) -> u64 {
    env::var(name).map_or(otherwise, |value| value.parse().unwrap())
}

/// What a front-end takes of a device.
struct Driver<'a> {
    queues: u16,
    /// Those of which all chains come back soon.
    answering: &'a [u16],
    features: u64,
}

/// A front-end that plays with a device.
struct Player {
    front: FrontEnd,
    arena: u64,
    answering: Vec<u16>,
    random: Random,
    failed: Option<Error>,
}

impl Player {
    fn new(scene: &Scene, driver: &Driver<'_>, random: Random) -> Self {
        let Driver {
            queues,
            answering,
            features,
        } = *driver;
        let front = FrontEnd::connect(scene.path("vhost")).memory(1 << 20);
        let front = front.queues(queues).queue_size(64).features(features);
        let front = front.start().unwrap();
        let arena = front.memory().allocate(ARENA, 4096).unwrap();
        Self {
            front,
            arena,
            answering: answering.to_vec(),
            random,
            failed: None,
        }
    }

    /// One of these.
    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.random.below(from.len() as u64) as usize]
    }

    fn bytes(&mut self, length: u64) -> Vec<u8> {
        (0..length)
            .map(|_| (self.random.next() >> 16) as u8)
            .collect()
    }

    /// Mostly small, at times any.
    fn length(&mut self) -> u64 {
        let most = self.pick(&[1, 20, 600, 600, 5000, LONGEST]);
        self.random.below(most)
    }

    /// Room for an answer, in up to so many pieces.
    fn room(&mut self, pieces: u64) -> Vec<Buffer> {
        (0..self.random.below(pieces + 1))
            .map(|_| {
                let length = 1 + self.length();
                self.place(length)
            })
            .collect()
    }

    fn place(&mut self, length: u64) -> Buffer {
        let at = self.random.below(ARENA - length);
        Buffer::new(self.arena + at, length as u32)
    }

    /// Makes these bytes and this room available as a chain, cut anyhow.
    fn send(&mut self, queue: u16, bytes: &[u8], room: &[Buffer]) {
        let mut readable = Vec::new();
        if !bytes.is_empty() {
            let whole = self.place(bytes.len() as u64);
            self.front.memory().write(whole.address, bytes).unwrap();
            let (mut at, end) = (whole.address, whole.address + bytes.len() as u64);
            while at < end {
                let most = self.pick(&[1, 16, 44, LONGEST, LONGEST]).min(end - at);
                let last = readable.len() == 8;
                let count = if last {
                    end - at
                } else {
                    1 + self.random.below(most)
                };
                readable.push(Buffer::new(at, count as u32));
                at += count;
            }
        }
        if readable.is_empty() && room.is_empty() {
            return;
        }
        if let Err(error) = self.add(queue, &readable, room) {
            self.failed = Some(error);
        }
    }

    fn add(&mut self, queue: u16, readable: &[Buffer], room: &[Buffer]) -> Result<(), Error> {
        let answers = self.answering.contains(&queue);
        let ring = self.front.ring(queue);
        loop {
            match ring.add(readable, room) {
                Err(Error::RingFull { .. }) if answers => {
                    ring.kick()?;
                    let _ = ring.wait_used(LIMIT)?;
                }
                Err(Error::RingFull { .. }) => return Ok(()),
                Err(error) => return Err(error),
                Ok(_) => break,
            }
        }
        if self.random.below(4) > 0 {
            self.front.ring(queue).kick()?;
        }
        if self.random.below(100) == 0 {
            self.front.take(Step::MemoryTable)?;
        }
        Ok(())
    }

    /// Takes what has come back.
    fn take_back(&mut self) -> Result<(), Error> {
        for queue in 0..self.front.ring_count() {
            while self.front.ring(queue).poll_used()?.is_some() {}
        }
        self.failed.take().map_or(Ok(()), Err)
    }

    /// Stops, at times with chains under way.
    fn finish(&mut self) -> Result<(), Error> {
        if self.random.below(2) == 0 {
            for queue in self.answering.clone() {
                let ring = self.front.ring(queue);
                ring.kick()?;
                while ring.in_flight() > 0 {
                    let _ = ring.wait_used(LIMIT)?;
                }
            }
        }
        self.front.stop()?;
        self.take_back()
    }
}

#[test]
fn a_disk_answers_whatever_it_is_asked() {
    const SECTORS: u64 = 2048;
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk");
    fs::File::create(&disk)
        .unwrap()
        .set_len(SECTORS * 512)
        .unwrap();
    for options in ["", ",direct", ",ro"] {
        let options = format!("path={},queues=2{options}", disk.display());
        let scene = Scene::start("block", &[&options]);
        let driver = Driver {
            queues: 2,
            answering: &[0, 1],
            features: if options.contains(",ro") {
                0
            } else {
                DISCARD | WRITE_ZEROES
            },
        };
        scene.play(&driver, |player| {
            let kind = player.pick(&[0_u32, 0, 1, 1, 4, 8, 11, 13, 13, 2, u32::MAX]);
            let far = player.pick(&[SECTORS, SECTORS, SECTORS + 2, u64::MAX]);
            let sector = player.random.below(far);
            let mut bytes = [kind.to_le_bytes(), [0xff; 4]].concat();
            bytes.extend(sector.to_le_bytes());
            let sectors = player.random.below(SECTORS) as u32;
            let flags = player.pick(&[0_u32, 0, 1, 2, 1 << 31]);
            let mut room = player.room(3);
            match kind {
                11 | 13 => {
                    for _ in 0..player.random.below(19) {
                        bytes.extend(player.random.below(far).to_le_bytes());
                        bytes.extend(sectors.to_le_bytes());
                        bytes.extend(flags.to_le_bytes());
                    }
                }
                0 if player.random.below(4) > 0 => {
                    let length = 512 * (1 + player.random.below(20));
                    room = vec![player.place(length), player.place(1)];
                }
                1 if player.random.below(4) > 0 => {
                    let length = 512 * player.random.below(20);
                    bytes.extend(player.bytes(length));
                    room = vec![player.place(1)];
                }
                _ => {
                    let length = player.length();
                    bytes.extend(player.bytes(length));
                }
            }
            if player.random.below(20) == 0 {
                bytes.truncate(player.random.below(17) as usize);
            }
            let queue = player.pick(&[0, 1]);
            player.send(queue, &bytes, &room);
        });
        scene.ends();
        assert_eq!(fs::metadata(&disk).unwrap().len(), SECTORS * 512);
    }
}

#[test]
fn an_entropy_device_answers_whatever_it_is_asked() {
    for options in ["source=/dev/zero", "max-bytes=1000000000,period=1"] {
        let scene = Scene::start("rng", &[options]);
        let driver = Driver {
            queues: 1,
            answering: &[0],
            features: 0,
        };
        scene.play(&driver, |player| {
            let (length, room) = (player.length(), player.room(5));
            let bytes = player.bytes(length);
            player.send(0, &bytes, &room);
        });
        scene.ends();
    }
}

#[test]
fn a_console_with_ports_takes_whatever_it_is_told() {
    let ports = [
        "type=file,path=DIR/out,name=a,out-timestamp",
        "type=sink,name=b",
    ];
    let scene = Scene::start("serial", &[ports[0], ports[1], "type=file,path=DIR/other"]);
    let all = [0, 1, 2, 3, 4, 5, 6, 7];
    let driver = Driver {
        queues: 8,
        answering: &[1, 3, 5, 7],
        features: MULTIPORT,
    };
    scene.play(&driver, |player| {
        let queue = player.pick(&all);
        let room = player.room(3);
        let bytes = match queue {
            3 if player.random.below(8) > 0 => {
                let port = player.pick(&[0_u32, 1, 2, 3, u32::MAX]);
                let event = player.random.below(9) as u16;
                let value = player.pick(&[0_u16, 1, 1, 0xffff]);
                let words = [event.to_le_bytes(), value.to_le_bytes()].concat();
                [&port.to_le_bytes()[..], &words].concat()
            }
            _ => {
                let length = player.length();
                player.bytes(length)
            }
        };
        player.send(queue, &bytes, &room);
    });
    scene.ends();
}

#[test]
fn a_network_card_takes_whatever_it_is_sent() {
    if !network::enter() {
        return;
    }
    network::tap("tap0", true);
    let wire = network::Wire::on("tap0");
    let scene = Scene::start("net", &["tap-name=tap0,vq-pairs=2"]);
    for features in [CARD | feature::MRG_RXBUF, CARD] {
        let driver = Driver {
            queues: 5,
            answering: &[1, 3, 4],
            features,
        };
        scene.play(&driver, |player| {
            let queue = player.pick(&[0, 0, 1, 1, 2, 2, 3, 3, 4]);
            let room = player.room(3);
            let length = player.length();
            let mut bytes = player.bytes(length);
            if queue == 4 {
                bytes.truncate(400);
                let command = [player.random.below(7) as u8, player.random.below(7) as u8];
                let value = player.pick(&[0_u16, 1, 2, 3, 64, 65, 0xffff]);
                let argument = [&value.to_le_bytes()[..], &bytes].concat();
                let most = player.pick(&[1, 2, 4, 6, 8, 1000]).min(argument.len());
                bytes = [&command[..], &argument[..most]].concat();
            } else if player.random.below(8) > 0 {
                let kind = player.pick(&[0_u8, 0, 1, 3, 4, 5, 0x81, 9]);
                let mut header = vec![player.pick(&[0, 1, 1, 3]), kind];
                for near in [66_u64, 1448, 34, 16, 1] {
                    let any = player.random.below(1 << 16);
                    let field = player.pick(&[near, near, 0, any]) as u16;
                    header.extend(field.to_le_bytes());
                }
                bytes.splice(0..0, header);
            }
            player.send(queue, &bytes, &room);
            if player.random.below(3) == 0 {
                let length = 14 + player.random.below(1500);
                wire.send(&[0; 10], &player.bytes(length));
            }
        });
        scene.ends();
    }
}

/// Programs of the host that keep to nothing.
#[derive(Default)]
struct Programs {
    listeners: Vec<UnixListener>,
    streams: Vec<UnixStream>,
}

impl Programs {
    fn step(&mut self, scene: &Scene, player: &mut Player) {
        for listener in &self.listeners {
            self.streams
                .extend(listener.accept().map(|(stream, _)| stream));
        }
        if player.random.below(8) == 0 {
            let mut stream = UnixStream::connect(scene.path("v")).unwrap();
            let greeting = player.pick(&["CONNECT 1\n", "CONNECT 2\nearly", "CON", "GET /\n"]);
            stream.write_all(greeting.as_bytes()).unwrap();
            self.streams.push(stream);
        }
        if self.streams.is_empty() {
            return;
        }
        let which = player.random.below(self.streams.len() as u64) as usize;
        let stream = &mut self.streams[which];
        stream.set_nonblocking(true).unwrap();
        // What comes of it is the device's affair.
        match player.random.below(8) {
            0 => drop(self.streams.swap_remove(which)),
            1 => drop(stream.shutdown(Shutdown::Write)),
            2 => drop(stream.shutdown(Shutdown::Read)),
            3 | 4 => drop(stream.read(&mut [0; 4096])),
            _ => {
                let length = player.length();
                drop(stream.write(&player.bytes(length)));
            }
        }
    }
}

/// A packet of the guest's, near one that could be.
fn packet(player: &mut Player, named: Option<(u32, u32)>) -> Vec<u8> {
    let length = player.length();
    let data = player.bytes(length);
    let (host, guest) = match named {
        Some(ports) if player.random.below(2) == 0 => ports,
        _ => (player.random.below(4) as u32, player.random.below(4) as u32),
    };
    let mut bytes = player
        .pick(&[42_u64, 42, 42, 42, 42, 42, 3])
        .to_le_bytes()
        .to_vec();
    bytes.extend(player.pick(&[2_u64, 2, 2, 2, 2, 2, 1 << 32]).to_le_bytes());
    bytes.extend([guest.to_le_bytes(), host.to_le_bytes()].concat());
    let any = player.pick(&[0, u32::MAX]);
    bytes.extend(
        player
            .pick(&[data.len() as u32, data.len() as u32, any])
            .to_le_bytes(),
    );
    bytes.extend(player.pick(&[1_u16, 1, 1, 1, 1, 1, 2]).to_le_bytes());
    bytes.extend(
        player
            .pick(&[1_u16, 1, 1, 2, 2, 3, 4, 5, 5, 5, 5, 6, 7, 0, 9])
            .to_le_bytes(),
    );
    bytes.extend(player.pick(&[0_u32, 1, 2, 3, u32::MAX]).to_le_bytes());
    bytes.extend(
        player
            .pick(&[0_u32, 100, 1 << 16, 1 << 16, u32::MAX])
            .to_le_bytes(),
    );
    bytes.extend(player.pick(&[0_u32, 0, 0, 100, u32::MAX]).to_le_bytes());
    let data_left = if player.random.below(20) == 0 {
        0
    } else {
        data.len()
    };
    bytes.extend(&data[..data_left]);
    if player.random.below(30) == 0 {
        bytes.truncate(player.random.below(44) as usize);
    }
    bytes
}

#[test]
fn a_socket_device_takes_whatever_it_is_sent() {
    let scene = Scene::start("vsock", &["cid=42,uds-path=DIR/v"]);
    let mut programs = Programs::default();
    let driver = Driver {
        queues: 3,
        answering: &[1],
        features: 0,
    };
    for port in 0..3 {
        let listener = UnixListener::bind(scene.path(&format!("v_{port}"))).unwrap();
        listener.set_nonblocking(true).unwrap();
        programs.listeners.push(listener);
    }
    // Ports that stand for programs of the host are counted from here on.
    let mut next = 0_u32;
    scene.play(&driver, |player| {
        programs.step(&scene, player);
        next += u32::from(player.random.below(9) == 0);
        let named = Some(((1 << 30) + next, 1 + player.random.below(2) as u32));
        let bytes = packet(player, named);
        match player.pick(&[0, 0, 1, 1, 1, 1, 2]) {
            1 => {
                let room = player.room(1);
                player.send(1, &bytes, &room);
            }
            queue => {
                let room = player.room(3);
                player.send(queue, &[], &room);
            }
        }
    });
    // Nothing of it stands in the way of the next guest's connection.
    let front = FrontEnd::connect(scene.path("vhost")).memory(1 << 20);
    let mut guest = Vsock::start(front, 16, 4096, 4096).unwrap();
    let request = Packet {
        from: 42,
        to: HOST,
        from_port: 7,
        kind: STREAM,
        op: op::REQUEST,
        ..Packet::default()
    };
    guest.send(&request).unwrap();
    assert_eq!(guest.receive(LIMIT).unwrap().op, op::RESPONSE);
    drop((guest, programs));
    scene.ends();
}
