//! Writes, reads, discards and zeroes a disk at random from a thread for each processor, and
//! compares each read with what must be there: for a guest of the tests, whose disk may be lost.
//!
//!     vudev-verify DEVICE OPERATIONS SEED
//!
//! Each thread has its own part of the disk and does so many operations on ranges of 512 bytes to
//! 1 MiB, past the page cache. At the end all of the disk is read again. It prints what was done,
//! how many sectors were wrong, and the checksum of the whole; the exit status is 0 if none was.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::process::{Command, ExitCode};
use std::sync::Mutex;
use std::thread;

use rustix::fs::{FallocateFlags, OFlags, SeekFrom, fallocate, seek};
use rustix::thread::{CpuSet, sched_setaffinity};
use vudev_tests::sums::{SECTOR, Sum, fill};

/// Sectors in the longest operation.
const LONGEST: usize = (1 << 20) / SECTOR;

/// What O_DIRECT wants of memory, whatever the disk.
const ALIGNMENT: usize = 4096;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, device, operations, seed] = arguments.as_slice() else {
        eprintln!("usage: vudev-verify DEVICE OPERATIONS SEED");
        return ExitCode::from(2);
    };
    match verify(device, number(operations), number(seed)) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            println!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn number(text: &str) -> u64 {
    text.parse()
        .unwrap_or_else(|_| panic!("{text} is no number"))
}

/// How many sectors were wrong.
fn verify(device: &str, operations: u64, seed: u64) -> io::Result<u64> {
    let disk = open(device)?;
    let sectors = seek(&disk, SeekFrom::End(0))? / SECTOR as u64;
    let parts = thread::available_parallelism()?.get();
    let each = sectors / parts as u64;
    let workers: Vec<_> = (0..parts)
        .map(|number| {
            let mut part = Part::new(device, number, each, seed)?;
            thread::Builder::new().spawn(move || part.work(operations).map(|()| part))
        })
        .collect::<io::Result<_>>()?;
    let mut done = [0; KINDS.len()];
    let (mut sum, mut wrong) = (Sum::default(), 0);
    for worker in workers {
        let mut part = worker.join().expect("no panic")?;
        wrong += part.wrong;
        wrong += part.read_all(&mut sum)?;
        for (all, one) in done.iter_mut().zip(part.done) {
            *all += one;
        }
    }
    for (kind, count) in KINDS.iter().zip(done) {
        println!("{kind}: {count}");
    }
    println!("wrong sectors: {wrong}");
    println!(
        "checksum: {:016x} of {} sectors",
        sum.value(),
        each * parts as u64
    );
    Ok(wrong)
}

fn open(device: &str) -> io::Result<File> {
    let direct = OFlags::DIRECT.bits().cast_signed();
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(direct);
    options.open(device)
}

const KINDS: [&str; 6] = [
    "writes",
    "reads",
    "zeroed",
    "unmapped",
    "discarded",
    "flushes",
];

/// One discard at a time, by the tool that does it.
static DISCARDING: Mutex<()> = Mutex::new(());

/// A thread's part of the disk.
struct Part {
    device: String,
    disk: File,
    processor: usize,
    first: u64,
    /// What each sector was filled with last.
    stamps: Vec<u32>,
    /// Sectors that were discarded since: what they were filled with, or zeros.
    discarded: Vec<bool>,
    stamp: u32,
    random: u64,
    buffer: Vec<u8>,
    done: [u64; KINDS.len()],
    wrong: u64,
}

impl Part {
    fn new(device: &str, number: usize, sectors: u64, seed: u64) -> io::Result<Self> {
        let count = usize::try_from(sectors).expect("a small disk");
        Ok(Self {
            device: device.to_owned(),
            disk: open(device)?,
            processor: number,
            first: number as u64 * sectors,
            stamps: vec![0; count],
            discarded: vec![false; count],
            stamp: 0,
            random: seed + number as u64,
            buffer: vec![0; LONGEST * SECTOR + ALIGNMENT],
            done: [0; KINDS.len()],
            wrong: 0,
        })
    }

    /// On a processor of its own, so that each of the disk's queues is used.
    fn work(&mut self, operations: u64) -> io::Result<()> {
        let mut processors = CpuSet::new();
        processors.set(self.processor);
        sched_setaffinity(None, &processors)?;
        for _ in 0..operations {
            let most = (LONGEST >> self.below(12)).min(self.stamps.len()).max(1);
            let count = 1 + self.below(most);
            let at = self.below(self.stamps.len() - count + 1);
            let kind = [0, 0, 0, 0, 1, 1, 1, 1, 2, 3, 4, 5][self.below(12)];
            self.done[kind] += 1;
            match kind {
                0 => self.write(at, count)?,
                1 => self.wrong += self.read(at, count, None)?,
                2 => self.zero(at, count, FallocateFlags::ZERO_RANGE)?,
                3 => self.zero(at, count, FallocateFlags::PUNCH_HOLE)?,
                4 => self.discard(at, count)?,
                _ => self.disk.sync_data()?,
            }
        }
        Ok(())
    }

    fn write(&mut self, at: usize, count: usize) -> io::Result<()> {
        self.stamp += 1;
        let (stamp, first) = (self.stamp, self.first + at as u64);
        let bytes = aligned(&mut self.buffer, count * SECTOR);
        for (sector, bytes) in (first..).zip(bytes.chunks_exact_mut(SECTOR)) {
            fill(sector, stamp, bytes);
        }
        self.disk.write_all_at(bytes, first * SECTOR as u64)?;
        self.note(at, count, stamp);
        Ok(())
    }

    /// Reads and compares; how many sectors were wrong.
    fn read(&mut self, at: usize, count: usize, sum: Option<&mut Sum>) -> io::Result<u64> {
        let first = self.first + at as u64;
        let bytes = aligned(&mut self.buffer, count * SECTOR);
        self.disk.read_exact_at(bytes, first * SECTOR as u64)?;
        let (mut wrong, mut right) = (0, [0; SECTOR]);
        for (number, bytes) in bytes.chunks_exact(SECTOR).enumerate() {
            let sector = first + number as u64;
            fill(sector, self.stamps[at + number], &mut right);
            let gone = self.discarded[at + number] && bytes == [0; SECTOR];
            if bytes != right && !gone {
                wrong += 1;
                println!("sector {sector} is wrong");
            }
        }
        if let Some(sum) = sum {
            sum.add(bytes);
        }
        Ok(wrong)
    }

    fn read_all(&mut self, sum: &mut Sum) -> io::Result<u64> {
        let (mut wrong, mut at) = (0, 0);
        while at < self.stamps.len() {
            let count = LONGEST.min(self.stamps.len() - at);
            wrong += self.read(at, count, Some(sum))?;
            at += count;
        }
        Ok(wrong)
    }

    /// WRITE_ZEROES, with `unmap` for a hole (`blkdev_fallocate` of the kernel).
    fn zero(&mut self, at: usize, count: usize, how: FallocateFlags) -> io::Result<()> {
        let (offset, length) = self.range(at, count);
        fallocate(&self.disk, how | FallocateFlags::KEEP_SIZE, offset, length)?;
        self.note(at, count, 0);
        Ok(())
    }

    fn discard(&mut self, at: usize, count: usize) -> io::Result<()> {
        let (offset, length) = self.range(at, count);
        // It opens the disk for itself alone.
        let _one = DISCARDING.lock();
        let mut blkdiscard = Command::new("blkdiscard");
        let (offset, length) = (offset.to_string(), length.to_string());
        blkdiscard.args(["-o", &offset, "-l", &length, &self.device]);
        if !blkdiscard.status()?.success() {
            return Err(io::Error::other("blkdiscard failed"));
        }
        self.discarded[at..at + count].fill(true);
        Ok(())
    }

    fn range(&self, at: usize, count: usize) -> (u64, u64) {
        let offset = (self.first + at as u64) * SECTOR as u64;
        (offset, (count * SECTOR) as u64)
    }

    fn note(&mut self, at: usize, count: usize, stamp: u32) {
        self.stamps[at..at + count].fill(stamp);
        self.discarded[at..at + count].fill(false);
    }

    /// A number below a limit, the same again with the same seed (SplitMix64).
    fn below(&mut self, limit: usize) -> usize {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) >> 1).expect("a guest of 64 bits") % limit
    }
}

fn aligned(buffer: &mut [u8], length: usize) -> &mut [u8] {
    let start = buffer.as_ptr().align_offset(ALIGNMENT);
    &mut buffer[start..start + length]
}
