//! The way in: from the other end of the port to the guest's receive buffers. It does not hold a
//! chain while it waits, and does not hold bytes at all.

use std::cell::Cell;
use std::future::pending;
use std::rc::Rc;

use vudev_executor::Notify;
use vudev_virtio::{Queue, QueueError};

use super::link::{Connection, Link};
use crate::passing::{is_memory_lost, is_passing, rest, until_recall};

/// Where input comes from.
pub(super) struct Input {
    /// `None` when there is never any. It outlives front-ends.
    link: Option<Rc<Link>>,
    /// The last connection whose input has ended. It may take output still.
    ended: Cell<Option<u64>>,
    label: String,
}

/// Whether a port may be given input now.
pub(super) trait Gate {
    /// Whether the guest has opened the port.
    fn is_open(&self) -> bool;

    /// Told when that may have changed.
    fn news(&self) -> &Notify;
}

impl Input {
    pub(super) fn new(link: Option<Rc<Link>>, label: String) -> Self {
        Self {
            link,
            ended: Cell::new(None),
            label,
        }
    }

    /// Serves the receive queue.
    pub(super) async fn serve(&self, mut queue: Queue, gate: &impl Gate) -> Result<(), QueueError> {
        while let Some(connection) = self.wait(&queue, gate).await {
            let Some(mut chain) = queue.next().await? else {
                return Ok(());
            };
            // It may have closed while a buffer was waited for.
            if !gate.is_open() {
                queue.put_back(chain);
                continue;
            }
            if chain.writable.is_empty() {
                queue.complete(chain, 0);
                continue;
            }
            let read = connection.file.read(chain.writable.take());
            let (result, buffers) = until_recall(&queue, read).await;
            chain.writable = buffers;
            match result {
                Ok(read) if read > 0 => {
                    queue.complete(chain, u32::try_from(read).unwrap_or(u32::MAX));
                }
                Ok(_) => {
                    queue.put_back(chain);
                    self.end(&connection, "the input has ended");
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
                    self.end(&connection, &format!("the input is gone: {error}"));
                }
            }
        }
        Ok(())
    }

    /// The input, once there is something to read and the guest wants it; `None` when a stop is
    /// asked for.
    async fn wait(&self, queue: &Queue, gate: &impl Gate) -> Option<Connection> {
        let Some(link) = &self.link else {
            return queue.until_stop(pending()).await;
        };
        loop {
            if !gate.is_open() {
                queue.until_stop(gate.news().notified()).await?;
                continue;
            }
            let current = link.current();
            let current = current.filter(|it| self.ended.get() != Some(it.generation));
            let Some(connection) = current else {
                queue.until_stop(link.changed()).await?;
                continue;
            };
            match queue.until_stop(connection.file.readable()).await? {
                Ok(()) if gate.is_open() => return Some(connection),
                Ok(()) => {}
                Err(error) if is_passing(&error) => {
                    rest(queue).await?;
                }
                Err(error) => self.end(&connection, &format!("the input is gone: {error}")),
            }
        }
    }

    fn end(&self, connection: &Connection, why: &str) {
        log::info!("{}{why}", self.label);
        self.ended.set(Some(connection.generation));
    }
}
