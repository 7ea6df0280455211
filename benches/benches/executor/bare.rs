//! The same work with nothing between it and the kernel: a loop over a ring, made with the flags of
//! ours, and plain system calls. No tasks, no owners of memory, and nothing that may be dropped
//! early.

use std::os::fd::AsRawFd;
use std::time::Duration;

use io_uring::types::Fd;
use io_uring::{EnterFlags, IoUring, opcode, squeue};
use rustix::event::epoll;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

use vudev_benches::contest::ProcessorTime;

use crate::fixture::{self, BLOCK_BYTES, Places};

/// [`BLOCK_BYTES`], as an entry has it.
const BLOCK: u32 = 4096;
/// Entries of the rings, as many as ours has.
const ENTRIES: u32 = 512;

fn ring() -> IoUring {
    let ring = IoUring::builder()
        .setup_r_disabled()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag()
        .setup_submit_all()
        .setup_cqsize(ENTRIES * 2)
        .build(ENTRIES)
        .expect("a ring");
    ring.submitter().register_enable_rings().expect("enabled");
    ring
}

#[expect(unsafe_code, reason = "the ring without an executor")]
fn push(ring: &mut IoUring, entry: &squeue::Entry) {
    // SAFETY: what the entries of this file point at lives until they have completed.
    unsafe { ring.submission().push(entry) }.expect("fewer in flight than entries");
}

/// Enters that find nothing to do.
#[expect(unsafe_code, reason = "the enter that the crate has no safe call for")]
pub(crate) fn turns(times: u64) -> Duration {
    let ring = ring();
    let start = ProcessorTime::start();
    for _ in 0..times {
        let flags = EnterFlags::GETEVENTS.bits();
        // SAFETY: no argument is passed.
        let entered = unsafe { ring.submitter().enter::<libc::sigset_t>(0, 0, flags, None) };
        entered.expect("a ring that works");
    }
    start.elapsed()
}

/// One timer, set and stopped.
pub(crate) fn timers(times: u64) -> Duration {
    let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC).expect("a timer");
    let once = |seconds| Itimerspec {
        it_interval: Timespec::default(),
        it_value: Timespec {
            tv_sec: seconds,
            tv_nsec: 0,
        },
    };
    let start = ProcessorTime::start();
    for _ in 0..times {
        for seconds in [3600, 0] {
            timerfd_settime(&timer, TimerfdTimerFlags::empty(), &once(seconds)).expect("set");
        }
    }
    start.elapsed()
}

/// One multishot poll of the kick, which nobody reads.
pub(crate) fn ring_rounds(times: u64) -> Duration {
    let (kick, call) = fixture::events();
    let mut ring = ring();
    let events = u32::from(libc::POLLIN.cast_unsigned());
    let poll = opcode::PollAdd::new(Fd(kick.as_raw_fd()), events).multi(true);
    push(&mut ring, &poll.build());
    ring.submit().expect("a ring that works");
    let start = ProcessorTime::start();
    for _ in 0..times {
        fixture::signal(&kick);
        ring.submit_and_wait(1).expect("a ring that works");
        for entry in ring.completion() {
            assert!(entry.result() > 0, "an eventfd can be polled");
        }
        fixture::signal(&call);
    }
    start.elapsed()
}

/// What most back-ends do: epoll, and a read of the kick.
pub(crate) fn epoll_rounds(times: u64) -> Duration {
    let (kick, call) = fixture::events();
    let poll = epoll::create(epoll::CreateFlags::CLOEXEC).expect("an epoll");
    epoll::add(
        &poll,
        &kick,
        epoll::EventData::new_u64(0),
        epoll::EventFlags::IN,
    )
    .expect("added");
    let mut events = Vec::with_capacity(8);
    let start = ProcessorTime::start();
    for _ in 0..times {
        fixture::signal(&kick);
        events.clear();
        let count = epoll::wait(&poll, rustix::buffer::spare_capacity(&mut events), None);
        assert_eq!(count, Ok(1));
        let mut bytes = [0; 8];
        assert_eq!(rustix::io::read(&kick, &mut bytes), Ok(8));
        fixture::signal(&call);
    }
    start.elapsed()
}

/// `depth` reads in flight; what has completed is asked for anew.
pub(crate) fn ring_reads(depth: usize, times: u64) -> Duration {
    let file = fixture::file();
    let mut ring = ring();
    let mut buffers = vec![[0u8; BLOCK_BYTES]; depth];
    let mut places: Vec<_> = (0..depth).map(Places::new).collect();
    let mut read = |ring: &mut IoUring, slot: usize| {
        let buffer = buffers[slot].as_mut_ptr();
        let entry = opcode::Read::new(Fd(file.as_raw_fd()), buffer, BLOCK)
            .offset(places[slot].next())
            .build()
            .user_data(slot as u64);
        push(ring, &entry);
    };
    let start = ProcessorTime::start();
    let mut asked = (depth as u64).min(times);
    (0..depth)
        .zip(0..times)
        .for_each(|(slot, _)| read(&mut ring, slot));
    let mut done = 0;
    let mut free = Vec::with_capacity(depth);
    while done < times {
        ring.submit_and_wait(1).expect("a ring that works");
        for entry in ring.completion() {
            assert_eq!(usize::try_from(entry.result()), Ok(BLOCK_BYTES));
            free.push(usize::try_from(entry.user_data()).expect("a slot"));
        }
        done += free.len() as u64;
        for slot in free.drain(..) {
            if asked < times {
                asked += 1;
                read(&mut ring, slot);
            }
        }
    }
    start.elapsed()
}

pub(crate) fn preads(times: u64) -> Duration {
    let file = fixture::file();
    let mut buffer = [0; BLOCK_BYTES];
    let mut places = Places::new(0);
    let start = ProcessorTime::start();
    for _ in 0..times {
        let read = rustix::io::pread(&file, &mut buffer, places.next());
        assert_eq!(read, Ok(BLOCK_BYTES));
    }
    start.elapsed()
}
