//! Blocks past the page cache by a ring with nothing above it: what a disk gives to whoever keeps
//! so many in flight. What is cached needs no ring.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::time::Instant;

use anyhow::{Result, ensure};
use io_uring::types::Fd;
use io_uring::{IoUring, opcode, squeue};

use super::Places;
use crate::processor::thread_time;
use crate::run::Run;

/// Blocks that are read or written.
#[derive(Clone, Copy, Debug)]
pub struct Blocks<'a> {
    /// Where they are.
    pub file: &'a File,
    /// Bytes of each.
    pub size: u32,
    /// How many are in flight.
    pub depth: u16,
    /// Whether they are written, and not read.
    pub write: bool,
}

/// What O_DIRECT is content with everywhere.
const ALIGNED: usize = 4096;

impl Blocks<'_> {
    /// So many of them; what has completed is asked for anew, by one enter for all.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn run(&self, times: u64, places: &mut Places) -> Result<Run> {
        let mut memory = vec![0x5a; self.size as usize * usize::from(self.depth) + ALIGNED];
        let done = self.keep_busy(times, places, &mut memory);
        if done.is_err() {
            // The kernel may still have a part of it.
            std::mem::forget(memory);
        }
        done
    }

    fn keep_busy(&self, times: u64, places: &mut Places, memory: &mut [u8]) -> Result<Run> {
        let size = self.size as usize;
        let first = memory.as_ptr().align_offset(ALIGNED);
        let mut buffers: Vec<&mut [u8]> = memory[first..].chunks_exact_mut(size).collect();
        let mut ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .build(u32::from(self.depth).next_power_of_two())?;
        let (start, before) = (Instant::now(), thread_time());
        let mut free: Vec<usize> = (0..self.depth.into()).collect();
        let (mut asked, mut done) = (0, 0);
        while done < times {
            for slot in free.drain(..) {
                if asked < times {
                    asked += 1;
                    let entry = self.entry(buffers[slot], places.choose());
                    push(&mut ring, &entry.user_data(slot as u64))?;
                }
            }
            ring.submit_and_wait(1)?;
            for entry in ring.completion() {
                let moved = entry.result();
                ensure!(usize::try_from(moved) == Ok(size), "it ended with {moved}");
                free.push(usize::try_from(entry.user_data())?);
            }
            done += free.len() as u64;
        }
        Ok(Run::bare(times, start, thread_time() - before))
    }

    fn entry(&self, buffer: &mut [u8], at: u64) -> squeue::Entry {
        let file = Fd(self.file.as_raw_fd());
        let buffer = buffer.as_mut_ptr();
        match self.write {
            true => opcode::Write::new(file, buffer, self.size)
                .offset(at)
                .build(),
            false => opcode::Read::new(file, buffer, self.size)
                .offset(at)
                .build(),
        }
    }
}

#[expect(unsafe_code, reason = "the ring without an executor")]
fn push(ring: &mut IoUring, entry: &squeue::Entry) -> Result<()> {
    // SAFETY: `Blocks::run` owns the memory until all has completed, or for ever; each part of it
    // is in one entry at a time, since its slot is free only when that has completed.
    unsafe { ring.submission().push(entry) }?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;

    const SIZE: u32 = 4096;
    const COUNT: u64 = 16;

    /// What 200 blocks of an empty file are after so many, and what came of it.
    fn after(write: bool, bytes: u64) -> (Vec<u8>, Result<Run>) {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![0; usize::try_from(bytes).unwrap()])
            .unwrap();
        let blocks = Blocks {
            file: &file,
            size: SIZE,
            depth: 8,
            write,
        };
        let places = &mut Places::new(COUNT * u64::from(SIZE), SIZE);
        let run = blocks.run(200, places);
        let mut now = Vec::new();
        std::io::Seek::rewind(&mut file).unwrap();
        file.read_to_end(&mut now).unwrap();
        (now, run)
    }

    #[test]
    fn a_bare_ring_reads_and_writes_what_it_is_said_to() {
        let (read, run) = after(false, COUNT * u64::from(SIZE));
        assert_eq!(run.unwrap().requests, 200);
        assert!(read.iter().all(|byte| *byte == 0));
        let (written, run) = after(true, COUNT * u64::from(SIZE));
        assert_eq!(run.unwrap().requests, 200);
        assert!(written.iter().all(|byte| *byte == 0x5a));
    }

    #[test]
    fn a_block_that_is_not_there_is_told() {
        let (_, run) = after(false, u64::from(SIZE));
        assert_eq!(run.unwrap_err().to_string(), "it ended with 0");
    }
}
