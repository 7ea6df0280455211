//! What the loop does before it sleeps: it looks at watched memory, polls as long as it was told
//! to, and asks for what it will not see while it sleeps. The other side acts in a look, as it
//! would meanwhile on another processor.

mod common;

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

use common::{disk, eventfd, executor, signal};
use rustix::event::EventfdFlags;
use vudev_executor::{
    ADAPTIVE_LIMIT, Bytes, Call, Executor, Faults, File, Handle, Kick, Polling, Stats, Watched,
};

/// So long that only what is waited for ends the polling.
const AGES: Polling = Polling::For(Duration::from_secs(60));

/// Memory with an other side that acts in the look of this number, and one that waits for it.
struct Memory<A> {
    looks: Cell<u32>,
    asked: Cell<u32>,
    acts_at: Cell<u32>,
    /// Whether the act is news, for whoever waits.
    act: A,
    news: Cell<bool>,
    waiter: RefCell<Option<Waker>>,
}

impl<A: Fn() -> bool + 'static> Memory<A> {
    fn new(act: A) -> Rc<Self> {
        Rc::new(Self {
            looks: Cell::default(),
            asked: Cell::default(),
            acts_at: Cell::new(u32::MAX),
            act,
            news: Cell::default(),
            waiter: RefCell::default(),
        })
    }

    /// Has the other side act in that look from now.
    fn watch(self: &Rc<Self>, handle: &Handle, acts_at: u32) {
        self.looks.set(0);
        self.acts_at.set(acts_at);
        handle.watch(self.clone());
    }

    /// Waits for news.
    async fn wait(&self) {
        poll_fn(|cx| {
            if self.news.take() {
                return Poll::Ready(());
            }
            self.waiter.replace(Some(cx.waker().clone()));
            Poll::Pending
        })
        .await;
    }
}

impl<A: Fn() -> bool> Watched for Memory<A> {
    fn look(&self) -> bool {
        self.looks.set(self.looks.get() + 1);
        let news = self.looks.get() == self.acts_at.get() && (self.act)();
        if news {
            self.news.set(true);
            self.waiter.take().into_iter().for_each(Waker::wake);
        }
        news
    }

    fn ask(&self) -> bool {
        self.asked.set(self.asked.get() + 1);
        self.look()
    }
}

/// What `work` has added to the counters.
async fn counted(handle: &Handle, work: impl Future<Output = ()>) -> Stats {
    let before = handle.stats();
    work.await;
    let after = handle.stats();
    let mut added = Stats::default();
    added.enters = after.enters - before.enters;
    added.sleeps = after.sleeps - before.sleeps;
    added.polls = after.polls - before.polls;
    added.finds = after.finds - before.finds;
    added
}

#[test]
fn a_loop_that_polls_finds_news_without_a_system_call() {
    let executor = executor(8);
    let handle = executor.handle();
    executor.set_polling(AGES);
    executor
        .run(async {
            let memory = Memory::new(|| true);
            memory.watch(handle, 1000);
            let added = counted(handle, memory.wait()).await;
            assert_eq!((added.enters, added.polls, added.finds), (0, 1, 1));
            assert_eq!((memory.looks.get(), memory.asked.get()), (1000, 0));
        })
        .unwrap();
}

#[test]
fn a_kick_ends_the_polling_as_news_does() {
    let executor = executor(8);
    let handle = executor.handle();
    let fd = Rc::new(eventfd(EventfdFlags::empty()));
    let mut kick = Kick::new(handle, fd.try_clone().unwrap()).unwrap();
    executor.set_polling(AGES);
    executor
        .run(async {
            let memory = Memory::new(move || {
                signal(&*fd, 1);
                false
            });
            memory.watch(handle, 1000);
            let added = counted(handle, async { kick.wait().await.unwrap() }).await;
            // One enter submits the watch, the other one takes its completion.
            assert_eq!((added.enters, added.sleeps), (2, 0), "{added:?}");
            assert!(memory.looks.get() >= 1000 && added.polls >= 1);
        })
        .unwrap();
}

#[test]
fn a_timer_ends_the_polling_as_news_does() {
    // On a played clock: a real one may be late, and the time is over before anybody polls.
    let executor = Executor::simulated(1, Faults::default());
    let handle = executor.handle();
    executor.set_polling(AGES);
    executor
        .run(async {
            let millisecond = handle.sleep(Duration::from_millis(1));
            let added = counted(handle, millisecond).await;
            assert_eq!((added.sleeps, added.polls, added.finds), (0, 1, 1));
        })
        .unwrap();
}

#[test]
fn before_it_sleeps_the_loop_asks_and_what_came_meanwhile_keeps_it_awake() {
    // On a played clock: a real one may be late, and the loop then has no time to sleep.
    let executor = Executor::simulated(1, Faults::default());
    let handle = executor.handle();
    executor
        .run(async {
            let memory = Memory::new(|| true);
            memory.watch(handle, 1);
            let added = counted(handle, memory.wait()).await;
            assert_eq!((added.sleeps, added.polls), (0, 0), "{added:?}");
            assert_eq!((memory.looks.get(), memory.asked.get()), (1, 1));
            // Whoever was asked tells by itself, and is looked at no more.
            memory.watch(handle, u32::MAX);
            handle.sleep(Duration::from_millis(1)).await;
            handle.yield_now().await;
            assert_eq!((memory.looks.get(), memory.asked.get()), (1, 2));
        })
        .unwrap();
}

#[test]
fn a_loop_that_is_never_idle_still_looks_once_in_every_turn() {
    let executor = executor(8);
    let handle = executor.handle();
    executor
        .run(async {
            let memory = Memory::new(|| true);
            memory.watch(handle, 10);
            for turn in 0..10 {
                assert_eq!(memory.looks.get(), turn);
                handle.yield_now().await;
            }
            assert!(memory.news.get());
        })
        .unwrap();
}

#[test]
fn an_idle_loop_is_woken_by_nothing_whatever_its_polling() {
    for polling in [
        Polling::Off,
        Polling::For(ADAPTIVE_LIMIT),
        Polling::Adaptive,
    ] {
        let executor = executor(8);
        let handle = executor.handle();
        executor.set_polling(polling);
        let run = executor.run(async {
            // The loop's own waking is the one that this task has asked for.
            for _ in 0..3 {
                let nap = handle.sleep(Duration::from_millis(50));
                let added = counted(handle, nap).await;
                assert_eq!((added.enters, added.sleeps), (1, 1), "{polling:?}");
                let polls = u64::from(matches!(polling, Polling::For(_)));
                assert_eq!((added.polls, added.finds), (polls, 0), "{polling:?}");
            }
        });
        run.unwrap();
    }
}

#[test]
fn a_loop_that_is_woken_for_nothing_does_not_poll_again() {
    let executor = executor(8);
    let handle = executor.handle();
    executor.set_polling(Polling::For(ADAPTIVE_LIMIT));
    let call = Call::new(handle, eventfd(EventfdFlags::NONBLOCK)).unwrap();
    executor
        .run(async {
            // The guard over this call comes half a second later, in the middle of the nap.
            call.signal().unwrap();
            let nap = handle.sleep(Duration::from_millis(900));
            let added = counted(handle, nap).await;
            assert_eq!((added.sleeps, added.polls, added.finds), (2, 1, 0));
        })
        .unwrap();
}

#[test]
fn nobody_polls_while_a_disk_works_for_us() {
    let executor = Executor::simulated(1, Faults::default());
    let handle = executor.handle();
    executor.set_polling(AGES);
    let file = File::new(handle, disk(&[7; 64]));
    executor
        .run(async {
            let read =
                async { assert_eq!(file.read_at(Bytes::zeroed(64), 0).await.0.unwrap(), 64) };
            let added = counted(handle, read).await;
            assert_eq!((added.enters, added.sleeps, added.polls), (1, 1, 0));
        })
        .unwrap();
}

/// Rounds of work that come so many looks after the last, on a played ring.
fn played(seed: u64, rounds: u32, looks: impl Fn(u64) -> u32 + Copy) -> Stats {
    let executor = Executor::simulated(seed, Faults::default());
    let handle = executor.handle();
    executor.set_polling(Polling::Adaptive);
    executor
        .run(async {
            // The first short sleep says that it may pay.
            handle.sleep(Duration::from_micros(100)).await;
            let memory = Memory::new(|| true);
            for _ in 0..rounds {
                memory.watch(handle, looks(handle.random()));
                let patience = Duration::from_micros(100);
                let _ = handle.timeout(patience, memory.wait()).await;
            }
        })
        .expect("a run to its end");
    handle.stats()
}

#[test]
fn adaptive_polling_goes_on_while_it_finds_work_and_ends_soon_after() {
    let finds = played(1, 500, |_| 20);
    assert_eq!((finds.polls, finds.finds), (500, 500), "{finds:?}");
    assert_eq!(finds.sleeps, 1, "{finds:?}");
    // Who comes after each sleep only, because it had no processor until then.
    let never = played(1, 500, |_| u32::MAX);
    assert!(never.polls < 20 && never.finds == 0, "{never:?}");
}

#[test]
fn what_is_there_before_the_loop_polls_does_not_speak_for_polling() {
    // Two of three come while somebody else has the processor, before the first look; the third
    // only while we sleep.
    let count = Cell::new(0);
    let shared = played(1, 3000, |_| {
        count.set(count.get() + 1);
        if count.get() % 3 == 0 { u32::MAX } else { 1 }
    });
    // 50 µs of each 3.2 ms, in 100 ms of sleeps.
    let in_vain = shared.polls - shared.finds;
    assert!(in_vain < 50 && shared.finds > 20, "{shared:?}");
    // Where the third comes soon, it pays again and again.
    count.set(0);
    let apart = played(1, 3000, |_| {
        count.set(count.get() + 1);
        if count.get() % 3 == 0 { 20 } else { 1 }
    });
    assert_eq!((apart.polls, apart.finds), (3000, 3000), "{apart:?}");
}

#[test]
fn a_seed_replays_polling_too() {
    // Now found, now not.
    let looks = |random| u32::try_from(random % 3000).unwrap();
    let first = played(7, 300, looks);
    assert_eq!(first, played(7, 300, looks));
    assert!(first.finds > 0 && first.finds < first.polls, "{first:?}");
}
