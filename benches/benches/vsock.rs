//! A stream from the guest to a program of the host: bytes a second, in packets of at most
//! 4 KiB and 64 KiB, the most that Linux sends, from a jailed `vudev` over its socket. Beside it
//! `vhost-device-vsock` with the same front-end and the same program, where it is installed. The
//! program reads all that comes; the time is until it has the last byte.

use std::cell::LazyCell;
use std::io::Read as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Result;
use criterion::{Criterion, Throughput};
use vudev_benches::contest::{Contest, Report};
use vudev_benches::peer;
use vudev_frontend::vsock::{HEADER, HOST, Packet, STREAM, op};
use vudev_frontend::{FrontEnd, LIMIT, Vsock};
use vudev_harness::{Child, VudevCommand};

const PEER: &str = "vhost-device-vsock";
/// Promised: a part of the peer's time.
const OF_THE_PEER: f64 = 1.0 / 3.0;

/// The guest.
const CID: u64 = 3;
/// Where the program listens, and whence the guest connects.
const PORT: u32 = 1024;
const GUEST_PORT: u32 = 5000;

fn main() -> Result<()> {
    let mut criterion = Criterion::default().configure_from_args();
    let mut report = Report::default();
    let (ours, theirs) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let options = format!("cid={CID},uds-path={}", ours.path().join("v").display());
    let program = Path::new(env!("CARGO_BIN_EXE_vudev-benched"));
    // Not before it is wanted: the benchmarks may only be listed.
    let vudev = LazyCell::new(|| {
        let command = VudevCommand::of(program);
        let command = command.device("vsock", &options, &socket(ours.path()));
        command.start().expect("vudev starts")
    });
    let peer = peer::find(PEER);
    let peer = peer.map(|program| {
        LazyCell::new({
            let theirs = theirs.path();
            move || start_peer(&program, theirs)
        })
    });
    for bytes in [4096, 65536] {
        let mut contest = Contest::new(format!("vsock {bytes} bytes"))
            .moves(Throughput::Bytes(bytes as u64))
            .of("vudev", |times| {
                LazyCell::force(&vudev);
                send(ours.path(), bytes, times)
            });
        if let Some(peer) = &peer {
            contest = contest
                .of(PEER, |times| {
                    LazyCell::force(peer);
                    send(theirs.path(), bytes, times)
                })
                .promise(PEER, OF_THE_PEER);
        }
        contest.run(&mut criterion, &mut report);
    }
    criterion.final_summary();
    report.close(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("vsock.txt"))?;
    Ok(())
}

fn socket(folder: &Path) -> PathBuf {
    folder.join("vsock")
}

fn start_peer(program: &Path, folder: &Path) -> Child {
    let (socket, host) = (socket(folder), folder.join("v"));
    let (socket, host) = (socket.display(), host.display());
    let mut command = Command::new(program);
    command.args([
        "--vm",
        &format!("guest-cid={CID},socket={socket},uds-path={host}"),
    ]);
    peer::start(PEER, &command, &folder.join("vsock")).expect("the peer starts")
}

/// One connection, and so many packets.
fn send(folder: &Path, bytes: usize, times: u64) -> Duration {
    let listening = folder.join(format!("v_{PORT}"));
    let program = UnixListener::bind(&listening).expect("a socket");
    let total = times * bytes as u64;
    let program = aside(move || read(&program, total));
    let front = FrontEnd::connect(socket(folder)).memory(32 << 20);
    let packet_max = u32::try_from(HEADER + bytes).expect("below 4 GiB");
    let mut guest = Guest {
        vsock: Vsock::start(front, 64, 4096, packet_max).expect("it listens"),
        sent: 0,
        room: 0,
        forwarded: 0,
    };
    guest.connect();
    let data = vec![b'.'; bytes];
    let start = Instant::now();
    let mut left = total;
    while left > 0 {
        left -= guest.send(&data[..bytes.min(usize::try_from(left).unwrap_or(bytes))]);
    }
    program.join().expect("no panic");
    let took = start.elapsed();
    std::fs::remove_file(listening).expect("it was made");
    took
}

/// The program of the host, until it has all.
fn read(listening: &UnixListener, total: u64) {
    let (stream, _) = listening.accept().expect("the guest connects");
    let all = std::io::copy(&mut stream.take(total), &mut std::io::sink());
    assert_eq!(all.expect("a stream that can be read"), total);
}

#[expect(clippy::disallowed_methods, reason = "the host's program")]
fn aside(work: impl FnOnce() + Send + 'static) -> std::thread::JoinHandle<()> {
    std::thread::spawn(work)
}

/// The guest's end of the stream.
struct Guest {
    vsock: Vsock,
    /// Bytes sent, and what the other side says of them, all modulo 2^32 (5.10.6.3).
    sent: u32,
    room: u32,
    forwarded: u32,
}

impl Guest {
    fn packet(&self, op: u16) -> Packet {
        Packet {
            from: CID,
            to: HOST,
            from_port: GUEST_PORT,
            to_port: PORT,
            kind: STREAM,
            op,
            buffer: 1 << 16,
            ..Packet::default()
        }
    }

    fn connect(&mut self) {
        let request = self.packet(op::REQUEST);
        self.vsock.send(&request).expect("room in the ring");
        let answer = self.listen();
        assert_eq!(answer, op::RESPONSE, "the program listens");
    }

    /// Sends as much of `data` as there is room for at the other side; how much that was.
    fn send(&mut self, data: &[u8]) -> u64 {
        while let Some(told) = self.vsock.poll().expect("lawful packets") {
            self.take_credit(&told);
        }
        let room = |this: &Self| this.room - this.sent.wrapping_sub(this.forwarded);
        while room(self) == 0 {
            self.listen();
        }
        let length = data.len().min(room(self) as usize);
        let packet = self.packet(op::RW).with_data(&data[..length]);
        self.vsock.send(&packet).expect("room in the ring");
        self.sent = self.sent.wrapping_add(packet.length);
        packet.length.into()
    }

    /// Waits for a packet, and says of what kind it was.
    fn listen(&mut self) -> u16 {
        let told = self.vsock.receive(LIMIT).expect("a packet from the device");
        self.take_credit(&told);
        told.op
    }

    fn take_credit(&mut self, told: &Packet) {
        assert_ne!(told.op, op::RST, "the connection lives");
        (self.room, self.forwarded) = (told.buffer, told.forwarded);
    }
}
