//! The way out: from the guest's transmit chains to a descriptor, one chain after the other. An
//! output that is gone does not hold the guest up: what it prints then is thrown away.

use std::cell::{Cell, RefCell};
use std::io;

use rustix::io::Errno;
use vudev_executor::File;
use vudev_virtio::{Chain, Queue, QueueError};

use super::{finish, is_passing, rest};

/// Where output goes.
pub(super) struct Output {
    /// `None` for a sink, and when the output is gone.
    file: RefCell<Option<File>>,
    /// Bytes written already of the chain that the queue gives next: a stop came in its middle.
    begun: Cell<usize>,
    /// How often output was lost to a full disk.
    losses: Cell<u64>,
}

/// What has become of a chain's bytes.
enum Emitted {
    /// All written, or thrown away.
    All,
    /// A stop came first.
    Interrupted,
}

impl Output {
    pub(super) fn new(file: Option<File>) -> Self {
        Self {
            file: RefCell::new(file),
            begun: Cell::new(0),
            losses: Cell::new(0),
        }
    }

    /// Another driver's chains have nothing to do with the last one's.
    pub(super) fn forget_begun(&self) {
        self.begun.set(0);
    }

    /// Serves the transmit queue.
    pub(super) async fn serve(&self, mut queue: Queue) -> Result<(), QueueError> {
        while let Some(mut chain) = queue.next().await? {
            match self.emit(&queue, &mut chain).await {
                Emitted::All => queue.complete(chain, 0),
                Emitted::Interrupted => {
                    queue.put_back(chain);
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    async fn emit(&self, queue: &Queue, chain: &mut Chain) -> Emitted {
        let length = chain.readable.len();
        // As much as there is, so it cannot fail.
        let _ = chain.readable.advance(self.begun.take().min(length));
        while !chain.readable.is_empty() {
            let file = self.file.borrow().clone();
            let Some(file) = file else { break };
            let moved = finish(queue, file.write(chain.readable.take())).await;
            chain.readable = moved.buffers;
            let goes_on = match moved.result {
                Ok(0) => rest(queue).await,
                Ok(written) => chain.readable.advance(written).ok(),
                Err(error) if Errno::from_io_error(&error) == Some(Errno::AGAIN) => {
                    queue.until_stop(file.writable()).await.map(drop)
                }
                Err(error) if is_passing(&error) => rest(queue).await,
                Err(error) => {
                    self.lose(chain, &error);
                    Some(())
                }
            };
            if goes_on.is_none() {
                self.begun.set(length - chain.readable.len());
                return Emitted::Interrupted;
            }
        }
        Emitted::All
    }

    /// Gives up what is left of `chain`, and the output with it unless that may come back.
    fn lose(&self, chain: &mut Chain, error: &io::Error) {
        chain.readable.truncate(0);
        let full = [Errno::NOSPC, Errno::DQUOT, Errno::FBIG];
        if !Errno::from_io_error(error).is_some_and(|errno| full.contains(&errno)) {
            log::warn!("the output is gone, what the guest prints is thrown away: {error}");
            self.file.take();
            return;
        }
        // A full disk stays full for a while, and a guest prints without end.
        let losses = self.losses.get().saturating_add(1);
        self.losses.set(losses);
        if losses.is_power_of_two() {
            log::warn!("output was lost ({losses} times so far): {error}");
        }
    }
}
