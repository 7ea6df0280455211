//! What the kernel alone takes: bare calls in a loop, the same calls by a thread that is told of
//! each and tells it back, and a bare ring. No queue, no device, nobody's work but the kernel's: a
//! back-end that uses these calls comes as far, and no further.

mod ring;

use std::hint::spin_loop;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustix::event::{EventfdFlags, eventfd};

use crate::calls::{Calls, Wait, spin};
use crate::processor::thread_time;
use crate::run::Run;

pub use ring::Blocks;

/// A system call, to be made again and again.
pub type Call = Box<dyn FnMut() -> io::Result<()> + Send>;

/// A wake-up takes microseconds; this is for what will never come.
const LIMIT: Duration = Duration::from_secs(20);

/// So many calls, one after the other.
///
/// # Errors
///
/// The call's.
pub fn alone(times: u64, call: &mut Call) -> io::Result<Run> {
    let (start, before) = (Instant::now(), thread_time());
    for _ in 0..times {
        call()?;
    }
    Ok(Run::bare(times, start, thread_time() - before))
}

/// So many calls by another thread, which is told of one at a time: by an eventfd, or it `polls`
/// for it. It calls by an eventfd when it is done; until then this one waits, as a driver does.
///
/// # Errors
///
/// The call's, and when nothing comes back.
pub fn handed_over(times: u64, polls: bool, wait: Wait, call: &mut Call) -> Result<Run> {
    let there = Both::new()?;
    let calls = Calls::new()?;
    calls.add(&there.call)?;
    let start = Instant::now();
    let (driver, used) = std::thread::scope(|scope| {
        let device = scope.spawn(|| there.serve(times, polls, call));
        let driver = there.drive(times, polls, wait, &calls);
        there.over.store(true, Ordering::Release);
        let woken = signal(&there.kick);
        let used = device.join().ok().context("the bare thread has failed")?;
        woken?;
        // Why it fell silent, rather than that it did.
        let used = used?;
        anyhow::Ok((driver?, used))
    })?;
    Ok(Run {
        driver,
        ..Run::bare(times, start, used)
    })
}

/// What the two threads share.
struct Both {
    asked: AtomicU64,
    done: AtomicU64,
    over: AtomicBool,
    kick: OwnedFd,
    call: OwnedFd,
}

impl Both {
    fn new() -> io::Result<Self> {
        Ok(Self {
            asked: AtomicU64::new(0),
            done: AtomicU64::new(0),
            over: AtomicBool::new(false),
            kick: eventfd(0, EventfdFlags::CLOEXEC)?,
            call: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        })
    }

    /// Processor time of this thread.
    fn drive(&self, times: u64, polls: bool, wait: Wait, calls: &Calls) -> Result<Duration> {
        let before = thread_time();
        for number in 1..=times {
            if self.over.load(Ordering::Acquire) {
                break;
            }
            self.asked.store(number, Ordering::Release);
            if !polls {
                signal(&self.kick)?;
            }
            let is_done = || self.done.load(Ordering::Acquire) >= number;
            match wait {
                Wait::Asleep => {
                    while !is_done() {
                        calls.sleep(LIMIT)?;
                    }
                }
                Wait::Spinning => {
                    spin(LIMIT, || Ok(is_done() || self.over.load(Ordering::Acquire)))?;
                }
            }
        }
        Ok(thread_time() - before)
    }

    /// Processor time of this thread.
    fn serve(&self, times: u64, polls: bool, call: &mut Call) -> io::Result<Duration> {
        let before = thread_time();
        for number in 1..=times {
            while self.asked.load(Ordering::Acquire) < number {
                if self.over.load(Ordering::Acquire) {
                    return Ok(Duration::ZERO);
                }
                if polls {
                    spin_loop();
                } else {
                    rustix::io::read(&self.kick, &mut [0; 8])?;
                }
            }
            let made = call();
            if made.is_err() {
                self.over.store(true, Ordering::Release);
            }
            self.done.store(number, Ordering::Release);
            signal(&self.call)?;
            made?;
        }
        Ok(thread_time() - before)
    }
}

fn signal(event: &OwnedFd) -> io::Result<()> {
    rustix::io::write(event, &1_u64.to_ne_bytes())?;
    Ok(())
}

/// Places in a file of so many bytes, that nobody reads ahead by (xorshift, Marsaglia 2003).
#[derive(Clone, Debug)]
pub struct Places {
    count: u64,
    size: u64,
    state: u64,
}

impl Places {
    /// For blocks of `size` bytes.
    pub fn new(bytes: u64, size: u32) -> Self {
        let size = u64::from(size);
        Self {
            count: bytes / size,
            size,
            state: 7,
        }
    }

    /// An offset.
    pub fn choose(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state % self.count * self.size
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    /// Whether the thread polls, and how the driver waits.
    const WAYS: [(bool, Wait); 4] = [
        (false, Wait::Asleep),
        (false, Wait::Spinning),
        (true, Wait::Asleep),
        (true, Wait::Spinning),
    ];

    #[test]
    fn a_bare_thread_makes_each_call_once_whether_it_polls_or_sleeps() {
        for (polls, wait) in WAYS {
            let made = Arc::new(AtomicU64::new(0));
            let counted = Arc::clone(&made);
            let mut call: Call = Box::new(move || {
                counted.fetch_add(1, Ordering::Relaxed);
                Ok(())
            });
            let run = handed_over(1000, polls, wait, &mut call).unwrap();
            assert_eq!(made.load(Ordering::Relaxed), 1000);
            assert_eq!(run.requests, 1000);
            assert!(run.driver > Duration::ZERO && run.used > Duration::ZERO);
        }
    }

    #[test]
    fn a_call_that_fails_ends_the_bare_thread_with_its_error() {
        for (polls, wait) in WAYS {
            let mut left = 3;
            let mut call: Call = Box::new(move || {
                left -= 1;
                match left {
                    0 => Err(io::Error::other("no more of it")),
                    _ => Ok(()),
                }
            });
            let error = handed_over(10, polls, wait, &mut call).unwrap_err();
            assert_eq!(error.to_string(), "no more of it");
        }
    }

    #[test]
    fn places_are_blocks_of_the_file() {
        let mut places = Places::new(1 << 20, 4096);
        let mut seen = std::collections::HashSet::new();
        for _ in 0..10_000 {
            let at = places.choose();
            assert!(at.is_multiple_of(4096) && at < 1 << 20);
            seen.insert(at);
        }
        assert_eq!(seen.len(), 256);
    }
}
