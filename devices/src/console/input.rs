//! The way in: from a descriptor to the guest's receive buffers. It does not hold a chain while it
//! waits, and does not hold bytes at all.

use std::cell::RefCell;
use std::future::pending;

use vudev_executor::File;
use vudev_virtio::{Queue, QueueError};

use super::{finish, is_memory_lost, rest};
use crate::passing::is_passing;

/// Where input comes from.
pub(super) struct Input {
    /// `None` when there is none, or no more. It outlives front-ends.
    file: RefCell<Option<File>>,
}

impl Input {
    pub(super) fn new(file: Option<File>) -> Self {
        Self {
            file: RefCell::new(file),
        }
    }

    /// Serves the receive queue.
    pub(super) async fn serve(&self, mut queue: Queue) -> Result<(), QueueError> {
        while let Some(file) = self.wait(&queue).await {
            let Some(mut chain) = queue.next().await? else {
                return Ok(());
            };
            if chain.writable.is_empty() {
                queue.complete(chain, 0);
                continue;
            }
            let moved = finish(&queue, file.read(chain.writable.take())).await;
            chain.writable = moved.buffers;
            match moved.result {
                Ok(read) if read > 0 => {
                    queue.complete(chain, u32::try_from(read).unwrap_or(u32::MAX));
                }
                Ok(_) => {
                    queue.put_back(chain);
                    self.end("the input has ended");
                }
                Err(error) if is_passing(&error) => {
                    queue.put_back(chain);
                    // A stop shows itself in `wait`, too.
                    rest(&queue).await;
                }
                // The buffer is gone, not the input: the next front-end still wants it.
                Err(error) if is_memory_lost(&error) => queue.complete(chain, 0),
                Err(error) => {
                    queue.put_back(chain);
                    self.end(&format!("the input is gone: {error}"));
                }
            }
        }
        Ok(())
    }

    /// The input, once there is something to read; `None` when a stop is asked for.
    async fn wait(&self, queue: &Queue) -> Option<File> {
        loop {
            let file = self.file.borrow().clone();
            let Some(file) = file else {
                return queue.until_stop(pending()).await;
            };
            match queue.until_stop(file.readable()).await? {
                Ok(()) => return Some(file),
                Err(error) if is_passing(&error) => {
                    rest(queue).await?;
                }
                Err(error) => self.end(&format!("the input is gone: {error}")),
            }
        }
    }

    fn end(&self, why: &str) {
        log::info!("{why}");
        self.file.take();
    }
}
