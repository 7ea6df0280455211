//! Many tasks that do what they like, at random and the same each time: none is forgotten.

use std::cell::{Cell, RefCell};
use std::future::{pending, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

use vudev_executor::{Bytes, Executor, Faults, File, Handle, Task};

const SEEDS: u64 = 300;
const TURNS: usize = 60;
const TASKS_MAX: usize = 400;

/// Numbers of a seed (xorshift64).
struct Dice(Cell<u64>);

impl Dice {
    fn new(seed: u64) -> Self {
        Self(Cell::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1))
    }

    fn below(&self, limit: usize) -> usize {
        let mut state = self.0.get();
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        self.0.set(state);
        usize::try_from(state >> 33).expect("31 bits") % limit
    }
}

#[derive(Default)]
struct Entry {
    /// `None` once it was cancelled.
    task: RefCell<Option<Task<()>>>,
    polls: Cell<u64>,
    /// Woken since it was last polled.
    due: Cell<bool>,
    over: Cell<bool>,
}

struct World {
    handle: Handle,
    dice: Dice,
    entries: RefCell<Vec<Rc<Entry>>>,
    /// Of every poll, and never let go of.
    wakers: RefCell<Vec<(Rc<Entry>, Waker)>>,
    alive: Cell<usize>,
}

struct Alive(Rc<World>);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.alive.set(self.0.alive.get() - 1);
        if self.0.below(3) == 0 {
            act(&self.0);
        }
    }
}

impl World {
    fn below(&self, limit: usize) -> usize {
        self.dice.below(limit)
    }
}

fn spawn(world: &Rc<World>) {
    if world.entries.borrow().len() >= TASKS_MAX {
        return;
    }
    let entry = Rc::new(Entry::default());
    entry.due.set(true);
    world.alive.set(world.alive.get() + 1);
    let (alive, own) = (Alive(world.clone()), entry.clone());
    let task = world.handle.spawn(poll_fn(move |cx| {
        assert!(!own.over.get(), "it has ended");
        own.polls.set(own.polls.get() + 1);
        own.due.set(false);
        let waker = (own.clone(), cx.waker().clone());
        alive.0.wakers.borrow_mut().push(waker);
        for _ in 0..alive.0.below(4) {
            act(&alive.0);
        }
        let ends = alive.0.below(6) == 0;
        own.over.set(ends);
        if ends { Poll::Ready(()) } else { Poll::Pending }
    }));
    entry.task.replace(Some(task));
    world.entries.borrow_mut().push(entry);
}

/// Something to somebody: from a task, from a destructor, or by a waker whose task is over.
fn act(world: &Rc<World>) {
    match world.below(8) {
        0 => spawn(world),
        1 => {
            let number = world.below(world.entries.borrow().len());
            let entry = world.entries.borrow()[number].clone();
            drop(entry.task.take());
        }
        _ if world.wakers.borrow().is_empty() => {}
        _ => {
            let number = world.below(world.wakers.borrow().len());
            let (entry, waker) = world.wakers.borrow()[number].clone();
            entry.due.set(true);
            waker.wake();
        }
    }
}

fn play(seed: u64) {
    let executor = Executor::simulated(seed, Faults::default());
    let world = Rc::new(World {
        handle: executor.handle().clone(),
        dice: Dice::new(seed),
        entries: RefCell::default(),
        wakers: RefCell::default(),
        alive: Cell::new(0),
    });
    (0..10).for_each(|_| spawn(&world));
    let root = async {
        for turn in 0..TURNS {
            act(&world);
            let entries = world.entries.borrow().clone();
            let due = entries.into_iter().filter(|it| it.due.get());
            let due: Vec<_> = due.map(|it| (it.polls.get(), it)).collect();
            executor.handle().yield_now().await;
            for (polls, entry) in due {
                let cancelled = entry.task.borrow().is_none();
                let ran = entry.polls.get() > polls;
                assert!(
                    ran || cancelled || entry.over.get(),
                    "seed {seed}, turn {turn}"
                );
            }
        }
    };
    executor.run(root).expect("a ring that is played");
    drop(executor);
    assert_eq!(world.alive.get(), 0, "seed {seed}");
    // They hold tasks that hold them.
    world.wakers.take();
    assert!(world.entries.take().len() > 10, "seed {seed}");
}

#[test]
fn no_wake_up_is_lost_and_no_task_outlives_its_executor() {
    (1..=SEEDS).for_each(play);
}

struct Files {
    handle: Handle,
    zeros: File,
    nothing: File,
    dice: Dice,
}

impl Files {
    /// Begins a read of nothing, waits for some turns, in the line for a slot or with one, and
    /// gives it up.
    async fn give_up(&self) {
        let mut read = self.nothing.read(Bytes::zeroed(1));
        for _ in 0..=self.dice.below(4) {
            poll_fn(|cx| {
                assert!(Pin::new(&mut read).poll(cx).is_pending());
                Poll::Ready(())
            })
            .await;
            self.handle.yield_now().await;
        }
    }

    async fn work(self: Rc<Self>, gives_up: bool) {
        for _ in 0..2 {
            if gives_up {
                self.give_up().await;
            } else {
                let (read, _) = self.zeros.read(Bytes::zeroed(1)).await;
                assert_eq!(read.expect("zeros"), 1);
            }
        }
    }
}

#[test]
fn nobody_waits_for_ever_for_a_slot_that_others_gave_up() {
    for seed in 1..=20 {
        let executor = Executor::with_operations(4).expect("a ring");
        let handle = executor.handle();
        let zeros = std::fs::File::open("/dev/zero").expect("there is one");
        let (nothing, _held_open) = std::io::pipe().expect("a pipe");
        let files = Rc::new(Files {
            handle: handle.clone(),
            zeros: File::new(handle, zeros),
            nothing: File::new(handle, nothing),
            dice: Dice::new(seed),
        });
        let spawn = |number: u32| {
            let gives_up = !number.is_multiple_of(3);
            handle.spawn(files.clone().work(gives_up))
        };
        let tasks: Vec<_> = (0..60).map(spawn).collect();
        let all = async {
            for task in tasks {
                task.await;
            }
        };
        let ended = executor.run(handle.timeout(Duration::from_secs(10), all));
        assert!(
            ended.expect("a ring").is_some(),
            "seed {seed}: {:?}",
            handle.stats()
        );
    }
}

#[test]
fn a_panic_of_one_task_loses_none_of_its_batch() {
    let executor = Executor::with_operations(8).unwrap();
    let handle = executor.handle().clone();
    let held = Rc::new(());
    let ran = Rc::new(Cell::new(false));
    let panics: Task<()> = handle.spawn(async { panic!("on purpose") });
    let (kept, runs) = ((held.clone(), handle.clone()), ran.clone());
    let behind: Task<()> = handle.spawn(async move {
        let _kept = kept;
        runs.set(true);
        pending::<()>().await;
    });
    let run = || executor.run(handle.yield_now());
    catch_unwind(AssertUnwindSafe(run)).unwrap_err();
    assert!(!ran.get());
    executor.run(handle.yield_now()).unwrap();
    assert!(ran.get());
    // Neither do they outlive the executor.
    drop(executor);
    assert_eq!(Rc::strong_count(&held), 1);
    drop((panics, behind));
}

#[test]
fn an_executor_ends_with_the_tasks_that_a_panic_kept_from_running() {
    let executor = Executor::with_operations(8).unwrap();
    let handle = executor.handle().clone();
    let held = Rc::new(());
    let panics: Task<()> = handle.spawn(async { panic!("on purpose") });
    let kept = (held.clone(), handle.clone());
    let behind: Task<()> = handle.spawn(async move {
        let _kept = kept;
        pending::<()>().await;
    });
    catch_unwind(AssertUnwindSafe(move || {
        let ended = executor.run(handle.yield_now());
        drop(executor);
        ended
    }))
    .unwrap_err();
    assert_eq!(Rc::strong_count(&held), 1);
    drop((panics, behind));
}
