//! Tasks that are ready. Not when they run: that is the executor's.
//!
//! A queue belongs to its thread, and a task knows only the queue's name there: a number to copy,
//! where a shared queue would cost each wake half a dozen atomic operations. A waker may be sent to
//! another thread all the same, which knows no queue of that name: the task's own check of its
//! thread is the panic then.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_task::Runnable;
use slab::Slab;

/// What a task carries with it: where it goes when it is woken.
pub(crate) type Ready = Runnable<Place>;

/// Shared by the thread's table and its owner, who need not look it up.
type Queue = Rc<RefCell<VecDeque<Ready>>>;

/// The queues of this thread, each under its name.
type Queues = Slab<(u64, Queue)>;

thread_local!(static QUEUES: RefCell<Queues> = const { RefCell::new(Slab::new()) });

/// Queues that were made by all threads.
static MADE: AtomicU64 = AtomicU64::new(0);

/// Names a queue.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    slot: usize,
    /// Tells it from earlier ones in the same slot, and from those of other threads.
    name: u64,
}

impl Place {
    /// Puts a task that was woken into its queue. One whose queue is gone is cancelled.
    pub(crate) fn wake(ready: Ready) {
        let place = *ready.metadata();
        let late = QUEUES.with_borrow(|queues| match place.of(queues) {
            Some(queue) => {
                queue.borrow_mut().push_back(ready);
                None
            }
            None => Some(ready),
        });
        // Its future's destructor is foreign code, so no borrow is held here.
        drop(late);
    }

    fn of(self, queues: &Queues) -> Option<&Queue> {
        let (name, queue) = queues.get(self.slot)?;
        (*name == self.name).then_some(queue)
    }
}

/// The owner of a queue.
pub(crate) struct RunQueue {
    place: Place,
    ready: Queue,
}

impl RunQueue {
    pub(crate) fn new() -> Self {
        let name = MADE.fetch_add(1, Ordering::Relaxed);
        let ready = Queue::default();
        let slot = QUEUES.with_borrow_mut(|queues| queues.insert((name, ready.clone())));
        let place = Place { slot, name };
        Self { place, ready }
    }

    pub(crate) fn place(&self) -> Place {
        self.place
    }

    /// Runs what is ready now, and says whether anything was: what becomes ready meanwhile waits
    /// until the kernel has had its say.
    pub(crate) fn run_batch(&self, batch: &mut VecDeque<Ready>) -> bool {
        if self.is_empty() {
            return false;
        }
        std::mem::swap(&mut *self.ready.borrow_mut(), batch);
        for ready in batch.drain(..) {
            ready.run();
        }
        true
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.ready.borrow().is_empty()
    }
}

impl Drop for RunQueue {
    fn drop(&mut self) {
        let left = QUEUES.with_borrow_mut(|queues| queues.try_remove(self.place.slot));
        // Tasks' destructors are foreign code, so no borrow is held here.
        let left = (left, self.ready.take());
        drop(left);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::future::poll_fn;
    use std::rc::Rc;
    use std::task::{Poll, Waker};

    use crate::Executor;

    #[test]
    fn a_task_that_is_woken_after_its_executor_ended_is_cancelled() {
        let executor = Executor::with_operations(8).unwrap();
        let handle = executor.handle().clone();
        let (waker, held) = (Rc::new(RefCell::new(None::<Waker>)), Rc::new(()));
        let (stored, kept) = (waker.clone(), held.clone());
        let task = handle.spawn(async move {
            let _kept = kept;
            poll_fn::<(), _>(|cx| {
                stored.replace(Some(cx.waker().clone()));
                Poll::Pending
            })
            .await;
        });
        executor.run(handle.yield_now()).unwrap();
        drop(executor);
        // Another queue in the same slot is not taken for the one that is gone.
        let next = Executor::with_operations(8).unwrap();
        assert_eq!(Rc::strong_count(&held), 2, "the task's owner still has it");
        waker.take().expect("it ran").wake();
        assert_eq!(Rc::strong_count(&held), 1, "and it is dropped, not kept");
        next.run(next.handle().yield_now()).unwrap();
        drop(task);
    }

    #[test]
    fn two_executors_of_a_thread_run_their_own_tasks_only() {
        let executors = [(); 2].map(|()| Executor::with_operations(8).unwrap());
        let ran = [(); 2].map(|()| Rc::new(Cell::new(false)));
        let spawn = |(executor, ran): (&Executor, &Rc<Cell<bool>>)| {
            let ran = ran.clone();
            executor.handle().spawn(async move { ran.set(true) })
        };
        let _tasks: Vec<_> = executors.iter().zip(&ran).map(spawn).collect();
        executors[1].run(executors[1].handle().yield_now()).unwrap();
        assert_eq!(ran.each_ref().map(|ran| ran.get()), [false, true]);
    }
}
