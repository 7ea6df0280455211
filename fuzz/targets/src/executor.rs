//! One executor for all inputs of a thread: a ring for each would cost more than what is tried.

use std::future::Future;

use vudev_executor::{Executor, Handle};

/// The proxy's, and what the last input left to be cancelled.
const OPERATIONS: u32 = 512;

/// Calls `run` with this thread's.
pub(crate) fn with_executor<T>(run: impl FnOnce(&Executor) -> T) -> T {
    thread_local! {
        static EXECUTOR: Executor = Executor::with_operations(OPERATIONS).expect("a ring");
    }
    EXECUTOR.with(run)
}

/// Runs a future there.
pub(crate) fn run<T, F: Future<Output = T>>(future: impl FnOnce(Handle) -> F) -> T {
    with_executor(|executor| {
        let handle = executor.handle().clone();
        executor.run(future(handle)).expect("the ring works")
    })
}

/// Gives everybody so many turns.
pub(crate) async fn turns(handle: &Handle, count: u32) {
    for _ in 0..count {
        handle.yield_now().await;
    }
}
