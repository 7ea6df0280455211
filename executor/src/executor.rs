//! The loop.
//!
//! A turn: one batch of ready tasks → turn-end work → a look at watched memory → one enter that
//! submits everything and waits for a completion or the next deadline → reap → wake → timers.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use crate::completion::Backend;
use crate::driver::{Driver, TurnEnd};
use crate::idle::{self, Polling, Watched};
use crate::registered::Registered;
use crate::ring::{Config, Ring, RingError};
use crate::simulation::{Faults, Simulation};
use crate::stats::Stats;
use crate::tasks::Task;
use crate::timer::Sleep;

/// How deep tasks that hold tasks may be nested and still be dropped at once when their root is: a
/// task that is held elsewhere and wakes itself for ever must not keep the end from coming.
const CLEANUP_BATCHES_MAX: usize = 64;

/// Runs futures on this thread until the root one is done. Dropping it cancels and awaits whatever
/// is in flight.
pub struct Executor {
    handle: Handle,
}

impl Executor {
    /// Takes a ring, enabled later by [`Executor::enable`].
    pub fn new(ring: Ring) -> Self {
        let (operations, reserved) = ring.slots();
        Self::with_backend(Backend::Kernel(ring), operations, reserved)
    }

    /// An executor on an enabled ring that accepts everything, for `operations` in flight.
    ///
    /// # Errors
    ///
    /// [`RingError`], with the likely cause.
    pub fn with_operations(operations: u32) -> Result<Self, RingError> {
        let executor = Self::new(Ring::new(&Config::new(operations))?);
        executor.enable().map_err(RingError::Other)?;
        Ok(executor)
    }

    /// An executor on a played ring and clock: the same `seed` gives the same order of completions
    /// and the same faults.
    pub fn simulated(seed: u64, faults: Faults) -> Self {
        let config = Config::new(1024);
        let backend = Backend::Simulated(Simulation::new(seed, faults));
        Self::with_backend(backend, config.operations, config.reserved)
    }

    fn with_backend(backend: Backend, operations: u32, reserved: u32) -> Self {
        Self {
            handle: Handle {
                driver: Driver::new(backend, operations, reserved),
                reserve: false,
            },
        }
    }

    /// Ties the ring to the calling thread, the one that will [`run`](Self::run) it, and sets up
    /// the timer that guards calls (it uses SIGALRM). Needs the system calls `io_uring_register`,
    /// `timer_create` and `rt_sigaction`, so it comes before a seccomp filter.
    ///
    /// # Errors
    ///
    /// The kernel's, if the ring is enabled already.
    pub fn enable(&self) -> io::Result<()> {
        self.handle.driver.enable()?;
        self.handle.driver.guard_calls()
    }

    /// For how long the loop polls before it sleeps; not at all unless told here. It does as told:
    /// whoever has a single processor leaves it off, for who is polled for could not run meanwhile.
    pub fn set_polling(&self, polling: Polling) {
        self.handle.driver.idle.set_polling(polling);
    }

    /// What tasks and I/O objects hold.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Runs `root` to its end, and meanwhile every task.
    ///
    /// # Errors
    ///
    /// Only what makes the ring unusable (it was not enabled, or by another thread).
    pub fn run<F: Future>(&self, root: F) -> io::Result<F::Output> {
        let tasks = &self.handle.driver.tasks;
        let waker = tasks.root_waker();
        let mut cx = Context::from_waker(&waker);
        waker.wake_by_ref();
        let mut batch = Vec::new();
        let output = {
            let mut root = pin!(root);
            // Whether anybody has run since the last sleep.
            let mut worked = true;
            loop {
                worked |= tasks.run_batch(&mut batch);
                if tasks.take_root_woken() {
                    worked = true;
                    if let Poll::Ready(output) = root.as_mut().poll(&mut cx) {
                        break output;
                    }
                }
                worked &= !self.turn(worked)?;
            }
        };
        // The root is gone, so its tasks are cancelled: running them once drops their futures.
        for _ in 0..CLEANUP_BATCHES_MAX {
            if !tasks.run_batch(&mut batch) {
                break;
            }
        }
        self.handle.driver.end_turn();
        Ok(output)
    }

    /// Says whether it slept.
    #[inline]
    fn turn(&self, worked: bool) -> io::Result<bool> {
        let driver = &self.handle.driver;
        driver.end_turn();
        let busy = driver.tasks.is_ready();
        if busy {
            driver.idle.look();
        }
        let sleeps = !busy && !self.stays_awake(worked);
        if sleeps {
            self.sleep()?;
        } else {
            driver.turn(Some(Duration::ZERO))?;
        }
        if !driver.timers.borrow().is_empty() {
            self.fire_timers();
        }
        Ok(sleeps)
    }

    /// Whether something turned up instead of the sleep that is due: while polling, or at the last
    /// look before it.
    #[inline]
    fn stays_awake(&self, worked: bool) -> bool {
        let driver = &self.handle.driver;
        let window = driver.idle.window();
        // A disk that has something to do wakes us soon, and until then little else will come. And
        // what woke us for nothing, the guard over calls say, is no sign of more.
        let polls = worked && window > Duration::ZERO && !driver.awaits_disk();
        // What is staged is submitted first, and a timer ends the polling as work does.
        if polls && (driver.is_due() || idle::poll(driver, window, self.next_deadline())) {
            return true;
        }
        driver.idle.ask()
    }

    #[inline]
    fn sleep(&self) -> io::Result<()> {
        let driver = &self.handle.driver;
        let wait = self.next_deadline();
        driver.idle.sleeps();
        if !driver.idle.learns() || driver.awaits_disk() {
            return driver.turn(wait);
        }
        let before = driver.now();
        driver.turn(wait)?;
        driver
            .idle
            .slept(driver.now().saturating_duration_since(before));
        Ok(())
    }

    /// How long until the next timer is due; `None` without one.
    #[inline]
    fn next_deadline(&self) -> Option<Duration> {
        let driver = &self.handle.driver;
        let timers = driver.timers.borrow();
        // No look at the clock where there is no deadline.
        if timers.is_empty() {
            return None;
        }
        timers.wait(driver.now())
    }

    fn fire_timers(&self) {
        let driver = &self.handle.driver;
        let now = driver.now();
        loop {
            // Wakers run foreign code, so no borrow is held then.
            let due = driver.timers.borrow_mut().due(now);
            let Some(waker) = due else { return };
            waker.wake();
        }
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        // First, so that what they have in flight is cancelled.
        self.handle.driver.tasks.close();
        self.handle.driver.close();
        self.handle.driver.forget_waiters();
    }
}

/// What tasks and I/O objects hold of an [`Executor`].
#[derive(Clone)]
pub struct Handle {
    driver: Rc<Driver>,
    reserve: bool,
}

impl Handle {
    /// Runs `future` alongside.
    pub fn spawn<F>(&self, future: F) -> Task<F::Output>
    where
        F: Future<Output: 'static> + 'static,
    {
        self.driver.tasks.spawn(future)
    }

    /// The same handle, whose operations may use the slots of the reserve: for what must go on
    /// when a device has filled its own (a session, a stop).
    #[must_use]
    pub fn reserved(&self) -> Self {
        Self {
            reserve: true,
            ..self.clone()
        }
    }

    /// The loop's clock.
    pub fn now(&self) -> Instant {
        self.driver.now()
    }

    /// Completes `after` from now.
    pub fn sleep(&self, after: Duration) -> Sleep {
        Sleep::new(self, self.now() + after)
    }

    /// `future`'s output, or `None` when `limit` has passed first; `future` is dropped then.
    pub async fn timeout<F: Future>(&self, limit: Duration, future: F) -> Option<F::Output> {
        let mut sleep = self.sleep(limit);
        let mut future = pin!(future);
        poll_fn(|cx| {
            if let Poll::Ready(output) = future.as_mut().poll(cx) {
                return Poll::Ready(Some(output));
            }
            Pin::new(&mut sleep).poll(cx).map(|()| None)
        })
        .await
    }

    /// Gives one turn to everybody else, the kernel included.
    pub fn yield_now(&self) -> impl Future<Output = ()> + 'static + use<> {
        let yielded = Cell::new(false);
        poll_fn(move |cx| {
            if yielded.replace(true) {
                return Poll::Ready(());
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        })
    }

    /// A random number: the kernel's, or the seed's in a simulation.
    pub fn random(&self) -> u64 {
        self.driver.random()
    }

    /// Memory that the ring has registered, 128 KiB for all who ask: operations of the ring on it
    /// cost less, and [`crate::File::try_read_at`] and its like do not. It counts as locked memory
    /// (`ulimit -l`). It must be asked for before a restricted ring is enabled, and needs the
    /// system call `io_uring_register`.
    ///
    /// # Errors
    ///
    /// The kernel's: ENOMEM at the limit of locked memory. EACCES if the ring allows no
    /// `IORING_OP_READ_FIXED` and `IORING_OP_WRITE_FIXED`, or is restricted and enabled.
    pub fn registered(&self) -> io::Result<Registered> {
        self.driver.registered()
    }

    /// How often this thread has gone to sleep, whoever had it do so: what took long without a
    /// sleep was others' turn. A system call (`getrusage`) on the kernel's ring.
    pub fn thread_sleeps(&self) -> u64 {
        self.driver.thread_sleeps()
    }

    /// Has `work` called when this turn's tasks have run, before the loop submits or sleeps.
    pub fn at_turn_end(&self, work: Rc<dyn TurnEnd>) {
        self.driver.at_turn_end(work);
    }

    /// Has `memory` looked at while the loop is awake, and asked to tell of news before it sleeps:
    /// until some is found, or it was asked.
    pub fn watch(&self, memory: Rc<dyn Watched>) {
        self.driver.idle.watch(memory);
    }

    /// Whether the loop, polling, has waited for a while until memory that it watches had news, and
    /// has not slept since: a driver on another processor, say, had to wake up. Who calls it early
    /// waits for it less.
    #[inline]
    pub fn is_ahead(&self) -> bool {
        self.driver.idle.is_ahead()
    }

    /// Whether anybody else has something to do before the loop would sleep: a task, the ring, or a
    /// timer. Not what is watched. Looks at memory, and where there are timers at the clock.
    #[inline]
    pub fn is_due(&self) -> bool {
        self.driver.tasks.is_ready() || self.driver.is_due() || self.is_timer_due()
    }

    fn is_timer_due(&self) -> bool {
        let timers = self.driver.timers.borrow();
        !timers.is_empty() && timers.wait(self.driver.now()) == Some(Duration::ZERO)
    }

    /// The loop's counters.
    pub fn stats(&self) -> Stats {
        self.driver.stats()
    }

    #[inline]
    pub(crate) fn driver(&self) -> &Rc<Driver> {
        &self.driver
    }

    pub(crate) fn reserve(&self) -> bool {
        self.reserve
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;
    use crate::{Bytes, File};

    /// Submits every read, and waits for none.
    async fn submit<F: Future + Unpin>(reads: &mut [F]) {
        poll_fn(|cx| {
            for read in &mut *reads {
                assert!(Pin::new(read).poll(cx).is_pending());
            }
            Poll::Ready(())
        })
        .await;
    }

    /// 64 reads of a pipe and 64 of a file, which complete in one enter, into 64 places.
    #[test]
    fn completions_that_do_not_fit_are_flushed_and_none_is_lost() {
        const READS: u32 = 64;
        let config = Config {
            reserved: 0,
            ..Config::new(READS * 2)
        };
        let executor = Executor::new(Ring::with_entries(&config, READS, READS).unwrap());
        executor.enable().unwrap();
        let handle = executor.handle();
        let (read_end, write_end) = rustix::pipe::pipe().unwrap();
        let pipe = File::new(handle, read_end);
        let null = File::new(handle, std::fs::File::open("/dev/zero").unwrap());
        executor
            .run(async {
                let mut slow: Vec<_> = (0..READS).map(|_| pipe.read(Bytes::zeroed(1))).collect();
                submit(&mut slow).await;
                handle.yield_now().await;
                assert_eq!(handle.stats().in_flight, u64::from(READS));
                rustix::io::write(&write_end, &[0; READS as usize]).unwrap();
                let mut fast: Vec<_> = (0..READS).map(|_| null.read(Bytes::zeroed(1))).collect();
                submit(&mut fast).await;
                for read in slow.into_iter().chain(fast) {
                    assert_eq!(read.await.0.unwrap(), 1);
                }
            })
            .unwrap();
        assert!(handle.stats().overflows > 0, "{:?}", handle.stats());
    }
    /// Memory that is looked at.
    #[derive(Default)]
    struct Memory {
        looked: Cell<bool>,
        waiter: Cell<Option<Waker>>,
    }

    impl Watched for Memory {
        fn look(&self) -> bool {
            self.looked.set(true);
            self.waiter.take().into_iter().for_each(Waker::wake);
            true
        }

        fn ask(&self) -> bool {
            self.look()
        }
    }

    #[test]
    fn what_the_kernel_says_of_completions_that_were_taken_keeps_nobody_from_looking() {
        let ring = Ring::new(&Config::new(8)).unwrap();
        ring.say_held_back();
        let executor = Executor::new(ring);
        executor.enable().unwrap();
        executor.set_polling(Polling::Adaptive);
        executor.handle().driver.idle.slept(Duration::ZERO);
        let handle = executor.handle();
        let memory = Rc::new(Memory::default());
        handle.watch(memory.clone());
        let looked = poll_fn(|cx| {
            memory.waiter.set(Some(cx.waker().clone()));
            match memory.looked.get() {
                true => Poll::Ready(()),
                false => Poll::Pending,
            }
        });
        let looked = handle.timeout(Duration::from_secs(5), looked);
        assert!(executor.run(looked).unwrap().is_some());
        assert_eq!(
            handle.stats().enters,
            2,
            "one a turn, as long as it says so"
        );
    }
}
