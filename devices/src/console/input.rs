//! The way in: from the other end of the port to the guest's receive buffers. It does not hold a
//! chain while it waits, and does not hold bytes at all.

use std::future::pending;
use std::pin::pin;
use std::rc::Rc;

use futures_util::future::{Either, select};
use vudev_executor::Notify;
use vudev_virtio::{Queue, QueueError};

use super::link::{Connection, Link};
use crate::passing::{is_memory_lost, is_passing, rest, until_recall};

/// Where input comes from.
pub(super) struct Input {
    /// `None` when there is never any. It outlives front-ends.
    link: Option<Rc<Link>>,
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
        Self { link, label }
    }

    /// Serves the receive queue.
    pub(super) async fn serve(&self, mut queue: Queue, gate: &impl Gate) -> Result<(), QueueError> {
        let Some(link) = &self.link else {
            let _ = queue.until_stop(pending::<()>()).await;
            return Ok(());
        };
        while let Some(connection) = self.wait(link, &queue, gate).await {
            let Some(mut chain) = queue.next().await? else {
                return Ok(());
            };
            // It may have closed while a buffer was waited for, or be another one's turn.
            let is_current = |it: Connection| it.generation == connection.generation;
            if !gate.is_open() || !link.input().is_some_and(is_current) {
                queue.put_back(chain);
                continue;
            }
            if chain.writable.is_empty() {
                queue.complete(chain, 0);
                continue;
            }
            let read = connection.file.read(chain.writable.take());
            link.reading();
            let (result, buffers) = until_recall(&queue, read).await;
            chain.writable = buffers;
            let took_some = matches!(result, Ok(1..));
            match result {
                Ok(read @ 1..) => {
                    queue.complete(chain, u32::try_from(read).unwrap_or(u32::MAX));
                }
                Ok(0) => {
                    queue.put_back(chain);
                    self.end(link, &connection, "the input has ended");
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
                    self.end(link, &connection, &format!("the input is gone: {error}"));
                }
            }
            link.read(took_some);
        }
        Ok(())
    }

    /// The input, once there is something to read and the guest wants it; `None` when a stop is
    /// asked for.
    async fn wait(&self, link: &Link, queue: &Queue, gate: &impl Gate) -> Option<Connection> {
        loop {
            if !gate.is_open() {
                queue.until_stop(gate.news().notified()).await?;
                continue;
            }
            let Some(connection) = link.input() else {
                queue.until_stop(link.changed()).await?;
                continue;
            };
            let changed = pin!(link.changed());
            let readable = select(connection.file.readable(), changed);
            let Either::Left((readable, _)) = queue.until_stop(readable).await? else {
                continue;
            };
            match readable {
                Ok(()) if gate.is_open() => return Some(connection),
                Ok(()) => {}
                Err(error) if is_passing(&error) => {
                    rest(queue).await?;
                }
                Err(error) => self.end(link, &connection, &format!("the input is gone: {error}")),
            }
        }
    }

    fn end(&self, link: &Link, connection: &Connection, why: &str) {
        log::info!("{}{why}", self.label);
        link.end_input(connection.generation);
    }
}
