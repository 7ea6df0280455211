//! A played ring and clock, for tests: operations are really carried out, by plain system calls,
//! but when, in what order, how much of them and whether at all is decided by a seed. The same
//! device code runs on it, and a failure is replayed by its seed.

use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

use libc::iovec;

use crate::completion::Completion;
use crate::operation::{Operation, STREAM_POSITION};

/// What goes wrong in a simulation, each in thousandths of the operations it can happen to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// Reads and writes that transfer less than asked for, at least one byte.
    pub short: u32,
    /// Reads, writes, syncs and allocations that fail with EIO, untouched.
    pub failed: u32,
    /// Operations that are put off to a later turn; those behind them overtake.
    pub delayed: u32,
}

/// How long a simulated wait may last in real time: a device that waits for what no one will do is
/// a bug of the test, and is told so.
const STUCK_MS: i32 = 10_000;
/// How long a write waits that was put off and may wait.
const PUT_OFF: Duration = Duration::from_millis(2);
/// How much simulated time one turn takes.
const TURN: Duration = Duration::from_micros(1);
/// And how much one look at memory.
const LOOK: Duration = Duration::from_nanos(40);

pub(crate) struct Simulation {
    faults: Faults,
    state: u64,
    start: Instant,
    elapsed: Duration,
    sleeps: u64,
    pending: Vec<(u64, Operation)>,
    /// Whether something was pushed that the last enter has not seen.
    staged: bool,
    ready: VecDeque<Completion>,
}

impl Simulation {
    pub(crate) fn new(seed: u64, faults: Faults) -> Self {
        Self {
            faults,
            state: seed,
            start: Instant::now(),
            elapsed: Duration::ZERO,
            sleeps: 0,
            pending: Vec::new(),
            staged: false,
            ready: VecDeque::new(),
        }
    }

    pub(crate) fn now(&self) -> Instant {
        self.start + self.elapsed
    }

    /// SplitMix64 (Steele, Lea, Flood 2014): small, and good enough to choose faults by.
    pub(crate) fn random(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        let limit = u64::try_from(limit).unwrap_or(u64::MAX).max(1);
        usize::try_from(self.random() % limit).unwrap_or(0)
    }

    fn happens(&mut self, thousandths: u32) -> bool {
        self.random() % 1000 < u64::from(thousandths)
    }

    /// # Safety
    ///
    /// What `operation` points at must stay valid until its last completion is reaped.
    #[expect(
        unsafe_code,
        reason = "the ring's contract: pointers are used in a later call"
    )]
    pub(crate) unsafe fn push(&mut self, user_data: u64, operation: &Operation) -> bool {
        self.pending.push((user_data, *operation));
        self.staged = true;
        true
    }

    /// Carries `operation` out now, unless the seed says that it would wait.
    ///
    /// # Safety
    ///
    /// What `operation` points at must be valid now.
    #[expect(unsafe_code, reason = "the contract of who does it without a ring")]
    pub(crate) unsafe fn at_once(&mut self, operation: &Operation, wait: bool) -> i32 {
        let is_write = matches!(operation, Operation::WriteVectored { .. });
        if is_write && !wait {
            // Most file systems cannot say it.
            return -libc::EOPNOTSUPP;
        }
        if self.happens(self.faults.delayed) {
            if !wait {
                return -libc::EAGAIN;
            }
            self.elapsed += PUT_OFF;
            self.sleeps += 1;
        }
        self.attempt(operation).unwrap_or(-libc::EAGAIN)
    }

    pub(crate) fn thread_sleeps(&self) -> u64 {
        self.sleeps
    }

    pub(crate) fn cancel(&mut self, user_data: u64) -> bool {
        if let Some(at) = self.pending.iter().position(|it| it.0 == user_data) {
            self.pending.swap_remove(at);
            self.answer(user_data, -libc::ECANCELED, false);
        }
        true
    }

    pub(crate) fn wants_enter(&mut self) -> bool {
        !self.pending.is_empty()
    }

    pub(crate) fn is_due(&self) -> bool {
        self.staged || !self.ready.is_empty()
    }

    /// A moment passes. In each turn's worth of them others may do something.
    pub(crate) fn pause(&mut self) {
        let turns = |elapsed: Duration| elapsed.as_nanos() / TURN.as_nanos();
        let before = turns(self.elapsed);
        self.elapsed += LOOK;
        if turns(self.elapsed) > before {
            self.play();
        }
    }

    pub(crate) fn next_completion(&mut self) -> Option<Completion> {
        self.ready.pop_front()
    }

    /// Plays one turn, or as many as it takes until something completes or `wait` has passed.
    pub(crate) fn enter(&mut self, wait: Option<Duration>) -> io::Result<()> {
        let deadline = wait.map(|wait| self.elapsed + wait);
        self.staged = false;
        loop {
            self.elapsed += TURN;
            let put_off = self.play();
            if !self.ready.is_empty() || wait == Some(Duration::ZERO) {
                return Ok(());
            }
            if put_off {
                continue;
            }
            match deadline {
                Some(deadline) => {
                    self.elapsed = self.elapsed.max(deadline);
                    return Ok(());
                }
                None => self.wait_for_others()?,
            }
        }
    }

    /// Tries every pending operation once, in an order of the seed's; whether any was put off by
    /// choice.
    fn play(&mut self) -> bool {
        let mut put_off = false;
        let mut untried = std::mem::take(&mut self.pending);
        while !untried.is_empty() {
            let chosen = self.below(untried.len());
            let (user_data, operation) = untried.swap_remove(chosen);
            if self.happens(self.faults.delayed) {
                put_off = true;
                self.pending.push((user_data, operation));
                continue;
            }
            let multishot = matches!(
                operation,
                Operation::Poll {
                    multishot: true,
                    ..
                }
            );
            match self.attempt(&operation) {
                Some(result) => {
                    self.answer(user_data, result, multishot);
                    if multishot {
                        self.pending.push((user_data, operation));
                    }
                }
                None => self.pending.push((user_data, operation)),
            }
        }
        put_off
    }

    fn answer(&mut self, user_data: u64, result: i32, more: bool) {
        self.ready.push_back(Completion {
            user_data,
            result,
            more,
        });
    }

    /// Carries `operation` out; `None` when it would wait.
    fn attempt(&mut self, operation: &Operation) -> Option<i32> {
        match *operation {
            Operation::ReadVectored { .. } | Operation::WriteVectored { .. }
                if self.happens(self.faults.failed) =>
            {
                Some(-libc::EIO)
            }
            Operation::Sync { .. } | Operation::Allocate { .. }
                if self.happens(self.faults.failed) =>
            {
                Some(-libc::EIO)
            }
            Operation::ReadVectored { pieces, count, .. }
            | Operation::WriteVectored { pieces, count, .. } => {
                let part = self.part(pieces, count);
                let count = i32::try_from(part.len()).unwrap_or(i32::MAX);
                Some(transfer(operation, part.as_ptr(), count))
            }
            Operation::Poll { fd, events, .. } => poll_now(fd, events),
            Operation::Sync { .. }
            | Operation::Allocate { .. }
            | Operation::Accept { .. }
            | Operation::ReceiveMessage { .. }
            | Operation::SendMessage { .. }
            | Operation::Shutdown { .. } => {
                let waits = |&result: &i32| result == -libc::EAGAIN && !never_waits(operation);
                Some(call(operation)).filter(|result| !waits(result))
            }
        }
    }

    /// The pieces, or the first part of them when the seed says so.
    fn part(&mut self, pieces: *const iovec, count: u32) -> Vec<iovec> {
        // SAFETY: `push` was promised that the pieces are valid until the completion.
        #[expect(unsafe_code, reason = "reads what a ring would")]
        let mut part = unsafe { std::slice::from_raw_parts(pieces, count as usize) }.to_vec();
        let total: usize = part.iter().map(|piece| piece.iov_len).sum();
        if total > 1 && self.happens(self.faults.short) {
            let mut keep = 1 + self.below(total - 1);
            for piece in &mut part {
                piece.iov_len = piece.iov_len.min(keep);
                keep -= piece.iov_len;
            }
        }
        part
    }

    /// Sleeps, in real time, until one of the polled descriptors is ready.
    fn wait_for_others(&mut self) -> io::Result<()> {
        let mut polled: Vec<libc::pollfd> = self
            .pending
            .iter()
            .map(|(_, operation)| watched(operation))
            .collect();
        let count = polled.len() as libc::nfds_t;
        // SAFETY: `polled` is a live local of `count` elements.
        #[expect(unsafe_code, reason = "libc call with a pointer to a local")]
        let ready = unsafe { libc::poll(polled.as_mut_ptr(), count, STUCK_MS) };
        match ready {
            0 => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the simulation waits for something that nobody does",
            )),
            _ => Ok(()),
        }
    }
}

/// What to wait for before trying `operation` again.
fn watched(operation: &Operation) -> libc::pollfd {
    let (fd, events) = match *operation {
        Operation::Poll { fd, events, .. } => (fd, events),
        Operation::Accept { fd } | Operation::ReceiveMessage { fd, .. } => {
            (fd, u32::from(libc::POLLIN.cast_unsigned()))
        }
        Operation::SendMessage { fd, .. } => (fd, u32::from(libc::POLLOUT.cast_unsigned())),
        Operation::ReadVectored { fd, .. }
        | Operation::WriteVectored { fd, .. }
        | Operation::Sync { fd, .. }
        | Operation::Allocate { fd, .. }
        | Operation::Shutdown { fd, .. } => (fd, 0),
    };
    polled(fd, events)
}

fn polled(fd: RawFd, events: u32) -> libc::pollfd {
    libc::pollfd {
        fd,
        events: i16::try_from(events).unwrap_or(libc::POLLIN),
        revents: 0,
    }
}

/// Whether the submitter asked for an answer at once.
fn never_waits(operation: &Operation) -> bool {
    match *operation {
        Operation::ReceiveMessage { flags, .. } | Operation::SendMessage { flags, .. } => {
            flags & libc::MSG_DONTWAIT.cast_unsigned() != 0
        }
        Operation::ReadVectored { .. }
        | Operation::WriteVectored { .. }
        | Operation::Sync { .. }
        | Operation::Allocate { .. }
        | Operation::Poll { .. }
        | Operation::Accept { .. }
        | Operation::Shutdown { .. } => false,
    }
}

fn poll_now(fd: RawFd, events: u32) -> Option<i32> {
    let mut polled = polled(fd, events);
    // SAFETY: `polled` is a live local.
    #[expect(unsafe_code, reason = "libc call with a pointer to a local")]
    let ready = unsafe { libc::poll(&raw mut polled, 1, 0) };
    (ready > 0).then(|| i32::from(polled.revents))
}

fn transfer(operation: &Operation, pieces: *const iovec, count: i32) -> i32 {
    // SAFETY: the pieces are part of those that `push` was promised to be valid.
    #[expect(unsafe_code, reason = "does what a ring would")]
    let result = unsafe {
        match *operation {
            Operation::ReadVectored { fd, offset, .. } if offset == STREAM_POSITION => {
                libc::readv(fd, pieces, count)
            }
            Operation::ReadVectored { fd, offset, .. } => {
                libc::preadv(fd, pieces, count, offset.cast_signed())
            }
            Operation::WriteVectored { fd, offset, .. } if offset == STREAM_POSITION => {
                libc::writev(fd, pieces, count)
            }
            Operation::WriteVectored { fd, offset, .. } => {
                libc::pwritev(fd, pieces, count, offset.cast_signed())
            }
            Operation::Sync { .. }
            | Operation::Allocate { .. }
            | Operation::Poll { .. }
            | Operation::Accept { .. }
            | Operation::ReceiveMessage { .. }
            | Operation::SendMessage { .. }
            | Operation::Shutdown { .. } => unreachable!("{operation:?} transfers no pieces"),
        }
    };
    count_or_errno(i64::try_from(result).unwrap_or(-1))
}

fn call(operation: &Operation) -> i32 {
    // SAFETY: the headers are those that `push` was promised to be valid.
    #[expect(unsafe_code, reason = "does what a ring would")]
    let result = unsafe {
        match *operation {
            Operation::Sync {
                fd,
                data_only: true,
            } => i64::from(libc::fdatasync(fd)),
            Operation::Sync { fd, .. } => i64::from(libc::fsync(fd)),
            Operation::Allocate {
                fd,
                mode,
                offset,
                len,
            } => i64::from(libc::fallocate(
                fd,
                mode,
                offset.cast_signed(),
                len.cast_signed(),
            )),
            Operation::Accept { fd } => match poll_now(fd, u32::from(libc::POLLIN.cast_unsigned()))
            {
                None => return -libc::EAGAIN,
                Some(_) => i64::from(libc::accept4(
                    fd,
                    std::ptr::null_mut(),
                    std::ptr::null_mut(),
                    libc::SOCK_CLOEXEC,
                )),
            },
            Operation::ReceiveMessage { fd, header, flags } => {
                libc::recvmsg(fd, header, flags.cast_signed() | libc::MSG_DONTWAIT) as i64
            }
            Operation::SendMessage { fd, header, flags } => {
                libc::sendmsg(fd, header, flags.cast_signed() | libc::MSG_DONTWAIT) as i64
            }
            Operation::Shutdown { fd, how } => i64::from(libc::shutdown(fd, how)),
            Operation::ReadVectored { .. }
            | Operation::WriteVectored { .. }
            | Operation::Poll { .. } => unreachable!("{operation:?} is no plain call"),
        }
    };
    count_or_errno(result)
}

fn count_or_errno(result: i64) -> i32 {
    if result < 0 {
        let errno = io::Error::last_os_error().raw_os_error();
        return -errno.unwrap_or(libc::EIO);
    }
    i32::try_from(result).unwrap_or(i32::MAX)
}
