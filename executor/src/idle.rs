//! Before the loop sleeps: it looks at memory that others write to without telling the kernel, for
//! as long as that pays, and then asks them to tell. Not the sleep itself, which is the ring's.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use crate::driver::Driver;

/// Memory that somebody writes to without telling, until asked to.
pub trait Watched {
    /// Whether there is news. Whoever waits for it has been woken then, and it is not looked at
    /// again before the next [`crate::Handle::watch`]. Called at the end of a turn after which the
    /// loop has tasks to run, and again and again while it polls: a load or two, and no system
    /// call. Not before a sleep: [`Watched::ask`] is.
    fn look(&self) -> bool;

    /// The loop is about to sleep: asks to be told of news from now on, through the kernel, and
    /// looks a last time, as [`Watched::look`] does. It is not looked at again in any case.
    fn ask(&self) -> bool;
}

/// For how long the loop looks at memory after its last work, before it sleeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Polling {
    /// Not at all: it asks and sleeps.
    #[default]
    Off,
    /// So long, whatever came of it before; but not while a disk works for the loop.
    For(Duration),
    /// [`ADAPTIVE_LIMIT`], while work comes that quickly.
    Adaptive,
}

/// How long an adaptive loop polls. Longer than a wake-up on another processor takes (10 to 70 µs,
/// by how deep it sleeps), nothing is gained any more.
pub const ADAPTIVE_LIMIT: Duration = Duration::from_micros(50);

/// The longest sleep after which the next one is tried to be avoided. Several times the limit: what
/// a driver takes between two requests is shorter when it and we are not both woken for each.
const BRISK: Duration = Duration::from_micros(200);

/// What was polled for in vain so often in a row costs one spell in 1024; or more of long ones.
const MISSES_MAX: u32 = 10;

/// What is polled in vain is such a part of the time at most, so that spells of two wake-ups, which
/// polling makes shorter once it succeeds, are tried to be avoided every few milliseconds.
const SHARE_IN_VAIN: u32 = 64;

/// Looks at one memory between two looks at the clock: a microsecond or so, and about as long for
/// many, of which each is looked at as much less often.
const LOOKS_PER_CLOCK: usize = 32;

/// What is found so long after the last look at the clock came while somebody else had the
/// processor: the driver, as like as not, which polling only kept waiting.
const AWAY: Duration = Duration::from_micros(5);

/// Who has polled for so long before work was found has waited for who woke up meanwhile.
const AHEAD: Duration = Duration::from_micros(3);

/// What is looked at, and the habit of it.
#[derive(Default)]
pub(crate) struct Idle {
    watched: RefCell<Vec<Rc<dyn Watched>>>,
    polling: Cell<Polling>,
    habit: Cell<Habit>,
    /// [`Idle::is_ahead`].
    ahead: Cell<bool>,
    /// Counters of [`crate::Stats`].
    pub(crate) polls: Cell<u64>,
    pub(crate) finds: Cell<u64>,
}

/// What became of the last spells without work.
#[derive(Clone, Copy, Default)]
struct Habit {
    /// Whether the last one was short.
    brisk: bool,
    /// Spells in which polling did not pay since it did.
    misses: u32,
    /// Spells to sleep through at once, since polling has failed of late.
    skip: u32,
    /// How long the last one was that was measured.
    spell: Duration,
}

impl Idle {
    pub(crate) fn set_polling(&self, polling: Polling) {
        self.polling.set(polling);
        self.habit.take();
        self.ahead.take();
    }

    pub(crate) fn watch(&self, memory: Rc<dyn Watched>) {
        self.watched.borrow_mut().push(memory);
    }

    /// Lets go of all memory, for whoever drops it without a borrow held.
    pub(crate) fn forget(&self) -> Vec<Rc<dyn Watched>> {
        self.watched.take()
    }

    /// Looks at all memory; whether any had news.
    pub(crate) fn look(&self) -> bool {
        if self.watched.borrow().is_empty() {
            return false;
        }
        // Wakers and destructors are foreign code, so no borrow is held then.
        let mut watched = self.watched.take();
        let before = watched.len();
        watched.retain(|memory| !memory.look());
        let news = watched.len() < before;
        self.put_back(watched);
        news
    }

    /// Asks all to tell; whether any had news.
    #[inline]
    pub(crate) fn ask(&self) -> bool {
        !self.watched.borrow().is_empty() && self.ask_all()
    }

    fn ask_all(&self) -> bool {
        let mut watched = self.watched.take();
        let mut news = false;
        for memory in watched.drain(..) {
            news |= memory.ask();
        }
        self.put_back(watched);
        news
    }

    /// What is left, in the vector that has grown, behind what came meanwhile.
    fn put_back(&self, mut left: Vec<Rc<dyn Watched>>) {
        let mut watched = self.watched.borrow_mut();
        left.append(&mut watched);
        *watched = left;
    }

    /// How long to poll in a spell that begins now; zero is not at all.
    pub(crate) fn window(&self) -> Duration {
        match self.polling.get() {
            Polling::Off => Duration::ZERO,
            Polling::For(window) => window,
            Polling::Adaptive => {
                let Habit { brisk, skip, .. } = self.habit.get();
                match brisk && skip == 0 {
                    true => ADAPTIVE_LIMIT,
                    false => Duration::ZERO,
                }
            }
        }
    }

    /// Whether [`Idle::slept`] wants to know how long: before it can be time to poll it does not,
    /// so that who sleeps for short does not look at the clock twice each time.
    pub(crate) fn learns(&self) -> bool {
        if self.polling.get() != Polling::Adaptive {
            return false;
        }
        let habit = self.habit.get();
        let waits = habit.skip > 1;
        if waits {
            let skip = habit.skip - 1;
            self.habit.set(Habit { skip, ..habit });
        }
        !waits
    }

    /// Whether the loop has polled for a while until memory that it watches had news, and since
    /// then neither polled in vain nor slept.
    #[inline]
    pub(crate) fn is_ahead(&self) -> bool {
        self.ahead.get()
    }

    /// Counts a spell that was polled in.
    fn count(&self, found: bool) {
        self.polls.set(self.polls.get() + 1);
        self.finds.set(self.finds.get() + u64::from(found));
    }

    /// Looks between two looks at the clock.
    fn looks_per_clock(&self) -> usize {
        (LOOKS_PER_CLOCK / self.watched.borrow().len().max(1)).max(1)
    }

    /// The loop sleeps: from now on nobody knows whom it waits for.
    #[inline]
    pub(crate) fn sleeps(&self) {
        self.ahead.set(false);
    }

    /// Whether polling has paid.
    fn polled(&self, paid: bool) {
        let habit = self.habit.get();
        let misses = if paid {
            0
        } else {
            MISSES_MAX.min(habit.misses + 1)
        };
        let price = SHARE_IN_VAIN * ADAPTIVE_LIMIT;
        let enough = price.as_nanos() / habit.spell.as_nanos().max(1);
        let skip = u32::try_from(enough).unwrap_or(u32::MAX);
        self.habit.set(Habit {
            misses,
            skip: skip.min((1 << misses) - 1),
            ..habit
        });
    }

    /// How long a sleep was.
    pub(crate) fn slept(&self, spell: Duration) {
        let habit = self.habit.get();
        let brisk = spell <= BRISK;
        let skip = habit.skip.saturating_sub(1);
        self.habit.set(Habit {
            brisk,
            skip,
            spell,
            ..habit
        });
    }
}

/// Looks for something to do for as long as `window`, without a system call; whether there is, be
/// it the next timer, after `deadline`.
pub(crate) fn poll(driver: &Driver, window: Duration, deadline: Option<Duration>) -> bool {
    let idle = &driver.idle;
    // What is there already needed no polling, and says nothing about it: on a processor that is
    // shared with the driver, that had it meanwhile.
    if finds(driver).is_some() {
        idle.count(true);
        return true;
    }
    let looks = idle.looks_per_clock();
    let start = driver.now();
    let mut before = start;
    let (found, paid) = loop {
        let found = (0..looks).find_map(|_| finds(driver));
        let now = driver.now();
        if let Some(found) = found {
            let paid = now.saturating_duration_since(before) < AWAY;
            let waited = before.saturating_duration_since(start) >= AHEAD;
            if paid && waited && found == Found::News {
                idle.ahead.set(true);
            }
            break (true, paid);
        }
        let passed = now.saturating_duration_since(start);
        if deadline.is_some_and(|deadline| passed >= deadline) {
            break (true, true);
        }
        if passed >= window {
            break (false, false);
        }
        before = now;
    };
    idle.count(found);
    idle.polled(paid);
    if !paid {
        idle.ahead.set(false);
    }
    found
}

/// What a look found.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Found {
    /// In memory that is watched.
    News,
    /// Something of the ring's.
    Due,
}

/// One look; without success a moment passes.
fn finds(driver: &Driver) -> Option<Found> {
    if driver.idle.look() {
        return Some(Found::News);
    }
    if driver.is_due() {
        return Some(Found::Due);
    }
    driver.pause();
    None
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::Executor;

    const SHORT: Duration = Duration::from_micros(60);
    const LONG: Duration = Duration::from_millis(1);

    fn adaptive() -> Idle {
        let idle = Idle::default();
        idle.set_polling(Polling::Adaptive);
        idle
    }

    fn sleep(idle: &Idle, length: Duration) {
        if idle.learns() {
            idle.slept(length);
        }
    }

    /// Spells of this length, none of which polling finds the end of; how many were polled in.
    fn polled_in_vain(idle: &Idle, spells: usize, length: Duration) -> usize {
        let mut polled = 0;
        for _ in 0..spells {
            if idle.window() > Duration::ZERO {
                idle.polled(false);
                polled += 1;
            }
            sleep(idle, length);
        }
        polled
    }

    #[test]
    fn nobody_polls_before_work_comes_in_quick_succession() {
        let idle = adaptive();
        assert_eq!(polled_in_vain(&idle, 1000, LONG), 0);
        idle.slept(SHORT);
        assert_eq!(idle.window(), ADAPTIVE_LIMIT);
        // One long sleep ends it.
        idle.slept(LONG);
        assert_eq!(idle.window(), Duration::ZERO);
    }

    #[test]
    fn polling_goes_on_for_as_long_as_it_finds_work() {
        let idle = adaptive();
        idle.slept(SHORT);
        for _ in 0..1000 {
            assert_eq!(idle.window(), ADAPTIVE_LIMIT);
            idle.polled(true);
        }
    }

    /// Has news at a look, which takes so long.
    struct News {
        at: Cell<u32>,
        takes: Duration,
    }

    impl Watched for News {
        fn look(&self) -> bool {
            self.at.set(self.at.get() - 1);
            let news = self.at.get() == 0;
            let start = Instant::now();
            while news && start.elapsed() < self.takes {}
            news
        }

        fn ask(&self) -> bool {
            unreachable!("nobody sleeps")
        }
    }

    #[test]
    fn many_memories_are_looked_at_as_much_less_often_between_two_looks_at_the_clock() {
        let idle = Idle::default();
        for (memories, looks) in [(0, 32), (1, 32), (16, 2), (64, 1)] {
            while idle.watched.borrow().len() < memories {
                let at = Cell::new(u32::MAX);
                let takes = Duration::ZERO;
                idle.watch(Rc::new(News { at, takes }));
            }
            assert_eq!(idle.looks_per_clock(), looks, "{memories}");
        }
    }

    /// A loop whose spells are short, and that will look at news.
    fn before_news(at: u32, takes: Duration) -> Executor {
        let executor = Executor::with_operations(8).expect("a ring");
        let idle = &executor.handle().driver().idle;
        idle.set_polling(Polling::Adaptive);
        idle.slept(SHORT);
        let at = Cell::new(at);
        idle.watch(Rc::new(News { at, takes }));
        executor
    }

    #[test]
    fn what_came_while_somebody_else_had_the_processor_does_not_speak_for_polling() {
        let executor = before_news(2, 2 * AWAY);
        let driver = executor.handle().driver();
        driver.idle.ahead.set(true);
        assert_eq!(driver.idle.window(), ADAPTIVE_LIMIT);
        assert!(poll(driver, LONG, None));
        assert_eq!(driver.idle.window(), Duration::ZERO);
        assert!(!driver.idle.is_ahead());
    }

    #[test]
    fn what_is_there_at_the_first_look_does_not_speak_for_polling() {
        let executor = before_news(1, Duration::ZERO);
        let driver = executor.handle().driver();
        driver.idle.polled(false);
        assert_eq!(driver.idle.window(), Duration::ZERO);
        assert!(poll(driver, LONG, None));
        assert_eq!(driver.idle.window(), Duration::ZERO);
        assert_eq!((driver.idle.polls.get(), driver.idle.finds.get()), (1, 1));
    }

    #[test]
    fn polling_in_vain_becomes_rare_and_one_find_forgives_all() {
        // A driver that runs only while we sleep, on the same processor.
        let switch = Duration::from_micros(3);
        let polled = polled_in_vain(&adaptive(), 100_000, switch);
        assert!((100..120).contains(&polled), "{polled}");
        // One that has to be woken up on another.
        let idle = adaptive();
        let polled = polled_in_vain(&idle, 100_000, SHORT);
        // 50 µs of each 3.2 ms.
        assert!((1800..1900).contains(&polled), "{polled}");
        while idle.window() == Duration::ZERO {
            sleep(&idle, SHORT);
        }
        idle.polled(true);
        assert_eq!(idle.window(), ADAPTIVE_LIMIT);
    }

    #[test]
    fn a_window_of_the_operator_s_is_polled_through_in_any_case() {
        let idle = Idle::default();
        let window = Duration::from_micros(7);
        for (polling, expected) in [
            (Polling::Off, Duration::ZERO),
            (Polling::For(window), window),
        ] {
            idle.set_polling(polling);
            idle.slept(LONG);
            idle.polled(false);
            assert_eq!(idle.window(), expected);
            assert!(!idle.learns());
        }
    }
}
