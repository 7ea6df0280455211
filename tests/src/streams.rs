//! The host's side of what a guest sends and gets: streams of known contents, their checksums, and
//! threads to do several at once.

#![expect(
    clippy::unwrap_used,
    reason = "a suite whose own set-up fails has nothing to test"
)]

use std::fmt;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::sums::{SECTOR, Sum, fill};

/// A guest answers within a second; a machine that runs all tests at once is slower.
pub const ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// Does something beside all else.
#[expect(clippy::disallowed_methods, reason = "the programs are the other side")]
pub fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    std::thread::spawn(work)
}

/// Calls a port of the guest's through the socket of a vsock device.
pub fn call(path: &Path, port: u32) -> UnixStream {
    let mut program = UnixStream::connect(path).unwrap();
    program.set_read_timeout(Some(ANSWER_LIMIT)).unwrap();
    writeln!(program, "CONNECT {port}").unwrap();
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        let mut byte = [0];
        program.read_exact(&mut byte).unwrap();
        line.push(byte[0]);
    }
    assert!(line.starts_with(b"OK "));
    program
}

/// A program of the host: the checksums of what it got and of what it sent, as `vudev-sockets`
/// prints them the other way round. The guest is told the end when all that it has sent is here: it
/// may be switched off then, and what it still had would be lost.
fn exchange(mut program: UnixStream, stamp: u32, sectors: u32) -> String {
    let mut writer = program.try_clone().unwrap();
    let sending = aside(move || {
        let (mut sum, mut sector) = (Sum::default(), [0; SECTOR]);
        for place in 0..sectors {
            fill(place.into(), stamp, &mut sector);
            sum.add(&sector);
            writer.write_all(&sector).unwrap();
        }
        sum.value()
    });
    let mut got = Vec::new();
    program.read_to_end(&mut got).unwrap();
    let sent = sending.join().unwrap();
    program.shutdown(Shutdown::Write).unwrap();
    assert_eq!(got.len(), usize::try_from(sectors).unwrap() * SECTOR);
    let mut sum = Sum::default();
    sum.add(&got);
    format!("{:016x} {sent:016x}", sum.value())
}

/// Exchanges so many sectors with all of them at once; sorted, as the guest's lines are.
pub fn exchange_all(programs: Vec<UnixStream>, first: u32, sectors: u32) -> Vec<String> {
    for program in &programs {
        program.set_read_timeout(Some(ANSWER_LIMIT)).unwrap();
        program.set_write_timeout(Some(ANSWER_LIMIT)).unwrap();
    }
    let programs = (first..).zip(programs);
    let threads = programs.map(|(stamp, program)| aside(move || exchange(program, stamp, sectors)));
    let threads: Vec<_> = threads.collect();
    let mut lines: Vec<_> = threads.into_iter().map(|it| it.join().unwrap()).collect();
    lines.sort();
    lines
}

/// What has gone one way: how many bytes, and their checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Streamed {
    bytes: u64,
    sum: u64,
}

impl fmt::Display for Streamed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes, sum {:016x}", self.bytes, self.sum)
    }
}

/// Bytes of a stream at a time.
const PIECE: usize = 1 << 20;

/// Sends so many MiB of known contents, no two sectors of which are the same.
pub fn pour(mut into: impl Write, mib: u16) -> io::Result<Streamed> {
    let mut piece = vec![0; PIECE];
    let (mut sum, mut sectors) = (Sum::default(), 0..);
    for _ in 0..mib {
        for (bytes, sector) in piece.chunks_exact_mut(SECTOR).zip(&mut sectors) {
            fill(sector, 1, bytes);
        }
        sum.add(&piece);
        into.write_all(&piece)?;
    }
    Ok(Streamed {
        bytes: u64::from(mib) << 20,
        sum: sum.value(),
    })
}

/// Takes in all until the end, which must be that of a whole word.
pub fn drain(mut from: impl Read) -> io::Result<Streamed> {
    let mut piece = vec![0; PIECE];
    let (mut bytes, mut sum) = (0, Sum::default());
    loop {
        let mut filled = 0;
        while filled < PIECE {
            match from.read(&mut piece[filled..])? {
                0 => break,
                count => filled += count,
            }
        }
        sum.add(&piece[..filled]);
        bytes += filled as u64;
        if filled < PIECE {
            let sum = sum.value();
            return Ok(Streamed { bytes, sum });
        }
    }
}

/// The checksum of these bytes, as `md5sum` prints it of its standard input.
pub fn md5(bytes: &[u8]) -> String {
    let mut command = Command::new("md5sum");
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(bytes).unwrap();
    let output = child.wait_with_output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}
