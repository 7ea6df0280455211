//! Our queue at the work.

use std::time::Duration;

use vudev_benches::contest::ProcessorTime;
use vudev_executor::Executor;
use vudev_virtio::{Queue, QueueParts};

use crate::driver::{Driver, Layout, SIZE, WRITTEN};

pub(crate) fn batches(layout: Layout, batch: u16, times: u64) -> Duration {
    let mut driver = Driver::new(layout);
    let executor = Executor::with_operations(8).expect("a ring");
    let handle = executor.handle();
    let parts = QueueParts {
        next_available: SIZE,
        ..driver.ring.parts(handle, 0)
    };
    let (mut queue, _control) = Queue::start(handle, parts).expect("a lawful ring");
    let work = async {
        let start = ProcessorTime::start();
        for _ in 0..times {
            driver.make(batch);
            for _ in 0..batch {
                let chain = queue.next().await.expect("a lawful chain");
                queue.complete(chain.expect("nobody stops it"), WRITTEN);
            }
        }
        start.elapsed()
    };
    let took = executor.run(work).expect("a ring that works");
    driver.check();
    took
}
