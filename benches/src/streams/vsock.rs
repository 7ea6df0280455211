//! A stream from the guest to a program of the host, in packets of at most so many bytes: 64 KiB is
//! the most that Linux sends. Driver and program do as little as they can, so that it is the device
//! that is measured: the guest's data lies in its memory already, and the program reads 256 KiB at
//! once. The time is until it has the last byte.

use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use vudev_frontend::vsock::{HEADER, HOST, Packet, STREAM, op};
use vudev_frontend::{FrontEnd, LIMIT, Vsock};

use super::{Bare, Job, Stream};
use crate::backend::{Backend, Build};
use crate::bare::Call;
use crate::calls::Wait;
use crate::figures::Histogram;
use crate::run::{Run, Watch};

/// Streams.
pub static VSOCK: Stream = Stream {
    name: "vsock",
    jobs: &[job(4096), job(65536)],
    peer: "vhost-device-vsock",
    ours,
    theirs,
    run,
    bare: Bare {
        name: "send",
        requests: |job| u64::from(SENT / job.bytes),
        call: bare,
    },
};

const fn job(bytes: u32) -> Job {
    Job {
        bytes,
        depth: 0,
        wait: Wait::Asleep,
        rate_min: Some(3.0),
    }
}

/// The guest.
const CID: u64 = 3;
/// Where the program listens, and whence the guest connects.
const PORT: u32 = 1024;
const GUEST_PORT: u32 = 5000;

/// What the program reads at once: with less its calls are what is measured.
const READ: usize = 1 << 18;

/// What the bare call sends at once: all that Linux has in a packet, or as much of smaller ones.
const SENT: u32 = 1 << 16;

fn ours(build: &Build, folder: &Path) -> Result<Backend> {
    let options = format!("cid={CID},uds-path={}", folder.join("v").display());
    Backend::vudev("vudev", build, "vsock", &options, folder.join("vsock"))
}

fn theirs(program: &Path, folder: &Path) -> Result<Backend> {
    let (socket, host) = (folder.join("vsock"), folder.join("v"));
    let guest = format!(
        "guest-cid={CID},socket={},uds-path={}",
        socket.display(),
        host.display()
    );
    let mut command = Command::new(program);
    command.args(["--vm", &guest]);
    Backend::peer(VSOCK.peer, &command, socket, None)
}

/// One connection, and so many packets.
fn run(backend: &Backend, folder: &Path, job: Job, times: u64) -> Result<Run> {
    let listening = folder.join(format!("v_{PORT}"));
    // One that failed leaves it behind.
    let _ = std::fs::remove_file(&listening);
    let program = UnixListener::bind(&listening)?;
    let total = times * u64::from(job.bytes);
    let program = aside(move || read(&program, total));
    let front = FrontEnd::connect(backend.socket()).memory(32 << 20);
    let packet_max = u32::try_from(HEADER)? + job.bytes;
    let mut guest = Guest {
        vsock: Vsock::start(front, 64, 4096, packet_max)?,
        sent: 0,
        room: 0,
        forwarded: 0,
    };
    guest.connect()?;
    let watch = Watch::start(backend.worker())?;
    guest.send(total, job.bytes)?;
    let read = program.join();
    read.ok().context("the program has failed")??;
    Ok(watch.stop(times, Histogram::default())?)
}

/// The program of the host, until it has all.
fn read(listening: &UnixListener, total: u64) -> Result<()> {
    let (mut stream, _) = listening.accept()?;
    let mut bytes = vec![0; READ];
    let mut left = total;
    while left > 0 {
        let count = u64::try_from(stream.read(&mut bytes)?)?;
        ensure!(0 < count && count <= left, "{count} bytes of {left}");
        left -= count;
    }
    Ok(())
}

/// Into a socket that a thread reads as the host's program does, until this end of it is gone.
fn bare(_: Job) -> Result<Call> {
    let (mut guest, mut host) = UnixStream::pair()?;
    aside(move || {
        let mut bytes = vec![0; READ];
        while host.read(&mut bytes).is_ok_and(|count| count > 0) {}
    });
    let packets = vec![0x5a; SENT as usize];
    Ok(Box::new(move || guest.write_all(&packets)))
}

#[expect(clippy::disallowed_methods, reason = "the host's program")]
fn aside<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> std::thread::JoinHandle<T> {
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

    fn connect(&mut self) -> Result<()> {
        let request = self.packet(op::REQUEST);
        self.vsock.send(&request)?;
        let answer = self.listen()?;
        ensure!(answer == op::RESPONSE, "answered with {answer}");
        Ok(())
    }

    /// Sends `total` bytes in packets of at most `most`, as there is room at the other side.
    fn send(&mut self, total: u64, most: u32) -> Result<()> {
        let mut left = total;
        while left > 0 {
            while let Some(told) = self.vsock.poll()? {
                self.take_credit(&told)?;
            }
            while self.free() == 0 {
                self.listen()?;
            }
            let length = u64::from(most.min(self.free())).min(left);
            let length = u32::try_from(length)?;
            let packet = self.packet(op::RW);
            self.vsock.send_header(&Packet { length, ..packet })?;
            self.sent = self.sent.wrapping_add(length);
            left -= u64::from(length);
        }
        Ok(())
    }

    fn free(&self) -> u32 {
        let unread = self.sent.wrapping_sub(self.forwarded);
        self.room.saturating_sub(unread)
    }

    /// Waits for a packet, and says of what kind it was.
    fn listen(&mut self) -> Result<u16> {
        let told = self.vsock.receive(LIMIT)?;
        self.take_credit(&told)?;
        Ok(told.op)
    }

    fn take_credit(&mut self, told: &Packet) -> Result<()> {
        if told.op == op::RST {
            bail!("the connection is reset");
        }
        (self.room, self.forwarded) = (told.buffer, told.forwarded);
        Ok(())
    }
}
