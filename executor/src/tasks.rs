//! Tasks, and who wakes them. Not when they run: that is the executor's.
//!
//! A task belongs to its executor and that to its thread, and a waker is nothing but the numbers of
//! the three: to copy it, to drop it and to wake by it counts nothing and allocates nothing, where
//! counts that threads may share would cost five atomic operations for each operation of a ring.
//! The price is that a waker whose task has ended may wake the next one in its place for nothing,
//! which every future has to bear.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::mem::{self, ManuallyDrop};
use std::pin::Pin;
use std::ptr;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, RawWaker, RawWakerVTable, Waker, ready};

/// What a waker carries, as a pointer to nothing: from the lowest bit on its task (half of the
/// bits), its executor and its thread (a quarter each, and numbers that do not fit begin anew).
const EXECUTOR_SHIFT: u32 = usize::BITS / 2;
const THREAD_SHIFT: u32 = EXECUTOR_SHIFT + usize::BITS / 4;
/// The task's bits. All of them set is the root.
const TASK: usize = (1 << EXECUTOR_SHIFT) - 1;
const ROOT: usize = TASK;
/// Bits of an executor's and of a thread's number.
const NUMBER: usize = (1 << (usize::BITS / 4)) - 1;

#[expect(unsafe_code, reason = "a waker of numbers")]
fn waker(name: usize) -> Waker {
    let name = ptr::without_provenance(name);
    // SAFETY: what is called for it follows no pointer, holds nothing and leaves nothing behind,
    // and looks for the task among those of the calling thread only.
    unsafe { Waker::from_raw(RawWaker::new(name, &NUMBERS)) }
}

static NUMBERS: RawWakerVTable = RawWakerVTable::new(
    |name| RawWaker::new(name, &NUMBERS),
    |name| wake(name.addr()),
    |name| wake(name.addr()),
    |_| (),
);

/// A thread's executors.
struct Thread {
    number: usize,
    made: Cell<usize>,
    /// Each under its name: that of a waker without the task.
    tables: RefCell<Vec<(usize, Rc<Table>)>>,
}

static THREADS: AtomicUsize = AtomicUsize::new(0);

thread_local!(static THREAD: Thread = Thread {
    number: THREADS.fetch_add(1, Ordering::Relaxed) & NUMBER,
    made: Cell::new(0),
    tables: RefCell::default(),
});

impl Thread {
    fn add(&self, table: &Rc<Table>) -> usize {
        let mut tables = self.tables.borrow_mut();
        loop {
            let executor = self.made.get();
            self.made.set((executor + 1) & NUMBER);
            let name = self.number << THREAD_SHIFT | executor << EXECUTOR_SHIFT;
            if tables.iter().all(|(taken, _)| *taken != name) {
                tables.push((name, table.clone()));
                return name;
            }
        }
    }

    fn wake(&self, waker: usize) {
        let tables = self.tables.borrow();
        match tables.iter().find(|(name, _)| *name == waker & !TASK) {
            Some((_, table)) => table.wake(waker & TASK),
            // Its executor has ended, or would never hear of it.
            None => assert_eq!(
                waker >> THREAD_SHIFT,
                self.number,
                "a task was woken by a thread that is not its own"
            ),
        }
    }
}

fn wake(waker: usize) {
    // A thread that is about to end runs nothing any more.
    let _ = THREAD.try_with(|thread| thread.wake(waker));
}

/// The tasks of an executor. No foreign code runs while they are borrowed.
struct Table {
    lists: RefCell<Lists>,
    /// Tasks of the batch that runs, behind the one whose turn it is.
    behind: Cell<usize>,
    root_woken: Cell<bool>,
    closed: Cell<bool>,
}

#[derive(Default)]
struct Lists {
    slots: Vec<Slot>,
    free: Vec<usize>,
    /// Tasks that were woken, each once.
    ready: Vec<usize>,
}

#[derive(Default)]
struct Slot {
    /// None while it runs, and in a free slot.
    future: Option<Boxed>,
    /// Since its last turn.
    woken: bool,
    running: bool,
    cancelled: bool,
}

type Boxed = Pin<Box<dyn Future<Output = ()>>>;

impl Table {
    fn wake(&self, task: usize) {
        if task == ROOT {
            return self.root_woken.set(true);
        }
        let Lists { slots, ready, .. } = &mut *self.lists.borrow_mut();
        if let Some(slot) = slots.get_mut(task)
            && !mem::replace(&mut slot.woken, true)
            // Who wakes itself comes behind those that it wakes.
            && !slot.running
        {
            ready.push(task);
        }
    }

    fn add(&self, future: Boxed) -> usize {
        let task = {
            let Lists { slots, free, .. } = &mut *self.lists.borrow_mut();
            let task = free.pop().unwrap_or(slots.len());
            assert!(task < ROOT, "more tasks than a waker can name");
            if task == slots.len() {
                slots.push(Slot::default());
            }
            slots[task].future = Some(future);
            task
        };
        self.wake(task);
        task
    }

    /// Has a task dropped when its turn comes: its destructor is foreign code.
    fn cancel(&self, task: usize) {
        if let Some(slot) = self.lists.borrow_mut().slots.get_mut(task) {
            slot.cancelled = true;
        }
        self.wake(task);
    }

    /// Takes a task to run it, and says whether it was cancelled; `None` if there is none: a waker
    /// may be older than its task's end.
    fn take(&self, task: usize) -> Option<(Boxed, bool)> {
        let slot = &mut self.lists.borrow_mut().slots[task];
        slot.woken = false;
        let future = slot.future.take()?;
        slot.running = true;
        Some((future, slot.cancelled))
    }

    fn put_back(&self, task: usize, future: Boxed) {
        let Lists { slots, ready, .. } = &mut *self.lists.borrow_mut();
        let slot = &mut slots[task];
        slot.future = Some(future);
        slot.running = false;
        if slot.woken {
            ready.push(task);
        }
    }

    fn free(&self, task: usize) {
        let Lists { slots, free, .. } = &mut *self.lists.borrow_mut();
        slots[task] = Slot::default();
        free.push(task);
    }
}

/// The owner of the tasks.
pub(crate) struct Tasks {
    name: usize,
    table: Rc<Table>,
}

impl Tasks {
    pub(crate) fn new() -> Self {
        let table = Rc::new(Table {
            lists: RefCell::default(),
            behind: Cell::new(0),
            root_woken: Cell::new(false),
            closed: Cell::new(false),
        });
        let name = THREAD.with(|thread| thread.add(&table));
        Self { name, table }
    }

    pub(crate) fn root_waker(&self) -> Waker {
        waker(self.name | ROOT)
    }

    /// Whether the root was woken since this was last asked.
    pub(crate) fn take_root_woken(&self) -> bool {
        self.table.root_woken.replace(false)
    }

    /// Whether a task is ready, or the root: of a batch that runs those too whose turn is to come.
    pub(crate) fn is_ready(&self) -> bool {
        self.table.behind.get() > 0
            || self.table.root_woken.get()
            || !self.table.lists.borrow().ready.is_empty()
    }

    pub(crate) fn spawn<F>(&self, future: F) -> Task<F::Output>
    where
        F: Future<Output: 'static> + 'static,
    {
        let end = Rc::new(End {
            output: Cell::new(None),
            waiter: Cell::new(None),
            is_finished: Cell::new(false),
        });
        let told = end.clone();
        let task = if self.table.closed.get() {
            ROOT
        } else {
            self.table.add(Box::pin(Telling { future, told }))
        };
        Task {
            end,
            table: self.table.clone(),
            task,
        }
    }

    /// Runs what is ready now, and says whether anything was: what becomes ready meanwhile waits
    /// until the kernel has had its say. `batch` is empty before and after.
    pub(crate) fn run_batch(&self, batch: &mut Vec<usize>) -> bool {
        {
            let ready = &mut self.table.lists.borrow_mut().ready;
            if ready.is_empty() {
                return false;
            }
            mem::swap(ready, batch);
        }
        let mut rest = Rest {
            table: &self.table,
            batch,
            done: 0,
        };
        while let Some(&task) = rest.batch.get(rest.done) {
            rest.done += 1;
            self.table.behind.set(rest.batch.len() - rest.done);
            self.run(task);
        }
        true
    }

    fn run(&self, task: usize) {
        let Some((mut future, cancelled)) = self.table.take(task) else {
            return;
        };
        // It has nothing to drop.
        let waker = ManuallyDrop::new(waker(self.name | task));
        let mut cx = Context::from_waker(&waker);
        if cancelled || future.as_mut().poll(&mut cx).is_ready() {
            drop(future);
            self.table.free(task);
        } else {
            self.table.put_back(task, future);
        }
    }

    /// Wakes one of these tasks, which runs no foreign code; whether it is one, whose waker has
    /// nothing to drop.
    #[inline]
    pub(crate) fn wake_by_ref(&self, waker: &Waker) -> bool {
        let name = waker.data().addr();
        let ours = ptr::eq(waker.vtable(), &raw const NUMBERS) && name & !TASK == self.name;
        if ours {
            self.table.wake(name & TASK);
        }
        ours
    }

    /// Drops all tasks. There will be no more.
    pub(crate) fn close(&self) {
        self.table.closed.set(true);
        let count = self.table.lists.borrow().slots.len();
        for task in 0..count {
            let held = self.table.take(task);
            drop(held);
        }
        let _ = THREAD.try_with(|thread| {
            let mut tables = thread.tables.borrow_mut();
            tables.retain(|(name, _)| *name != self.name);
        });
    }
}

/// A batch: what a panic leaves of it is still ready.
struct Rest<'a> {
    table: &'a Table,
    batch: &'a mut Vec<usize>,
    done: usize,
}

impl Drop for Rest<'_> {
    fn drop(&mut self) {
        self.table.behind.set(0);
        if self.done < self.batch.len() {
            let mut lists = self.table.lists.borrow_mut();
            lists.ready.extend_from_slice(&self.batch[self.done..]);
        }
        self.batch.clear();
    }
}

/// A task's end.
struct End<T> {
    output: Cell<Option<T>>,
    waiter: Cell<Option<Waker>>,
    is_finished: Cell<bool>,
}

/// A future that tells of its end.
struct Telling<F: Future> {
    future: F,
    told: Rc<End<F::Output>>,
}

impl<F: Future> Future for Telling<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        // SAFETY: the future is moved out of nowhere, `Telling` has no destructor, and is Unpin if
        // the future is; the other field is not pinned.
        #[expect(unsafe_code, reason = "a field of what is pinned")]
        let (future, told) = unsafe {
            let this = self.get_unchecked_mut();
            (Pin::new_unchecked(&mut this.future), &this.told)
        };
        let output = ready!(future.poll(cx));
        told.output.set(Some(output));
        told.is_finished.set(true);
        if let Some(waiter) = told.waiter.take() {
            waiter.wake();
        }
        Poll::Ready(())
    }
}

/// A spawned future's output. Dropping it cancels the future; there is no detaching, so that the
/// end of the root is the end of all. Whoever awaits it after the executor is gone waits for ever.
#[must_use = "a dropped task is cancelled"]
pub struct Task<T> {
    end: Rc<End<T>>,
    table: Rc<Table>,
    task: usize,
}

impl<T> Task<T> {
    /// Whether the future has ended.
    pub fn is_finished(&self) -> bool {
        self.end.is_finished.get()
    }
}

impl<T> Future for Task<T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        if self.is_finished() {
            let output = self.end.output.take();
            return Poll::Ready(output.expect("not polled after completion"));
        }
        self.end.waiter.set(Some(cx.waker().clone()));
        Poll::Pending
    }
}

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        if !self.is_finished() {
            self.table.cancel(self.task);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::future::poll_fn;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::rc::Rc;
    use std::task::{Poll, Waker};

    use crate::{Executor, Handle, Task};

    fn executor() -> Executor {
        Executor::with_operations(8).unwrap()
    }

    /// A task that waits for ever, holds `held` and counts how often it is polled.
    fn waiting(handle: &Handle, held: &Rc<Cell<u32>>) -> (Task<()>, Rc<RefCell<Option<Waker>>>) {
        let waker = Rc::new(RefCell::new(None));
        let (stored, polls) = (waker.clone(), held.clone());
        let task = handle.spawn(poll_fn(move |cx| {
            stored.replace(Some(cx.waker().clone()));
            polls.set(polls.get() + 1);
            Poll::Pending
        }));
        (task, waker)
    }

    #[test]
    fn a_task_ends_with_its_executor_whoever_holds_it_and_its_waker() {
        let executor = executor();
        let polls = Rc::new(Cell::new(0));
        let (task, waker) = waiting(executor.handle(), &polls);
        executor.run(executor.handle().yield_now()).unwrap();
        assert_eq!((polls.get(), Rc::strong_count(&polls)), (1, 2));
        let handle = executor.handle().clone();
        drop(executor);
        assert_eq!(Rc::strong_count(&polls), 1, "it is dropped");
        // The next executor's task in the same place is not woken for it.
        let next = self::executor();
        let _other = waiting(next.handle(), &polls);
        waker.take().expect("it ran").wake();
        next.run(next.handle().yield_now()).unwrap();
        assert_eq!(polls.get(), 2);
        let late = handle.spawn(async {});
        assert!(!late.is_finished() && !task.is_finished());
    }

    #[test]
    fn two_executors_of_a_thread_run_their_own_tasks_only() {
        let executors = [(); 2].map(|()| executor());
        let ran = [(); 2].map(|()| Rc::new(Cell::new(false)));
        let spawn = |(executor, ran): (&Executor, &Rc<Cell<bool>>)| {
            let ran = ran.clone();
            executor.handle().spawn(async move { ran.set(true) })
        };
        let _tasks: Vec<_> = executors.iter().zip(&ran).map(spawn).collect();
        executors[1].run(executors[1].handle().yield_now()).unwrap();
        assert_eq!(ran.each_ref().map(|ran| ran.get()), [false, true]);
    }

    #[test]
    fn a_task_that_is_woken_by_another_thread_is_a_panic_there_and_nothing_here() {
        let executor = executor();
        let polls = Rc::new(Cell::new(0));
        let (_task, waker) = waiting(executor.handle(), &polls);
        let run = || executor.run(executor.handle().yield_now()).unwrap();
        run();
        let sent = waker.take().expect("it ran");
        #[expect(clippy::disallowed_methods, reason = "the thread that is not its own")]
        let woken = std::thread::spawn(move || catch_unwind(AssertUnwindSafe(|| sent.wake())));
        let panic = woken.join().unwrap().unwrap_err();
        let words = panic.downcast_ref::<String>().unwrap();
        assert!(words.contains("not its own"), "{words}");
        run();
        assert_eq!(polls.get(), 1);
    }

    #[test]
    fn a_waker_that_is_older_than_its_task_wakes_for_nothing_at_most() {
        let executor = executor();
        let polls = Rc::new(Cell::new(0));
        let (task, waker) = waiting(executor.handle(), &polls);
        let run = || executor.run(executor.handle().yield_now()).unwrap();
        run();
        drop(task);
        run();
        assert_eq!(Rc::strong_count(&polls), 1, "it is cancelled");
        let old = waker.take().expect("it ran");
        old.wake_by_ref();
        run();
        // Woken before the new one in its place began, and after.
        old.wake_by_ref();
        let (_task, _waker) = waiting(executor.handle(), &polls);
        run();
        assert_eq!(polls.get(), 2, "once, though woken twice");
        old.wake();
        run();
        assert_eq!(polls.get(), 3);
    }

    #[test]
    fn a_task_that_wakes_itself_comes_behind_those_that_it_wakes() {
        let executor = executor();
        let handle = executor.handle();
        let order = Rc::new(RefCell::new(Vec::new()));
        let polls = Rc::new(Cell::new(0));
        let other: Rc<RefCell<Option<Waker>>> = Rc::default();
        let (said, stored) = (order.clone(), other.clone());
        let _second = handle.spawn(poll_fn::<(), _>(move |cx| {
            said.borrow_mut().push("second");
            stored.replace(Some(cx.waker().clone()));
            Poll::Pending
        }));
        let said = order.clone();
        let first = handle.spawn(poll_fn(move |cx| {
            said.borrow_mut().push("first");
            polls.set(polls.get() + 1);
            cx.waker().wake_by_ref();
            other.borrow().as_ref().expect("it ran").wake_by_ref();
            match polls.get() {
                2 => Poll::Ready(()),
                _ => Poll::Pending,
            }
        }));
        executor.run(first).unwrap();
        let expected = ["second", "first", "second", "first"];
        assert_eq!(order.borrow()[..4], expected);
    }

    #[test]
    fn a_task_that_drops_its_own_end_is_cancelled_when_its_turn_is_over() {
        let executor = executor();
        let held = Rc::new(());
        let own: Rc<RefCell<Option<Task<()>>>> = Rc::default();
        let (kept, task) = (held.clone(), own.clone());
        let spawned = executor.handle().spawn(async move {
            let _kept = kept;
            task.take();
            std::future::pending::<()>().await;
        });
        own.replace(Some(spawned));
        let handle = executor.handle().clone();
        executor
            .run(async move {
                handle.yield_now().await;
                handle.yield_now().await;
            })
            .unwrap();
        assert_eq!(Rc::strong_count(&held), 1);
    }
}
