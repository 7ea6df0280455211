//! The way out: from the guest's transmit chains to a descriptor, one chain after the other. An
//! output that is gone does not hold the guest up: what it prints then is thrown away.

use std::cell::{Cell, RefCell};
use std::io;

use rustix::io::Errno;
use vudev_executor::File;
use vudev_virtio::{Chain, GuestBuffers, Queue, QueueError};

use super::terminal::can_block;
use super::{finish, is_memory_lost, rest};
use crate::passing::is_passing;

/// How many bytes go at once to a terminal that is not ours alone ([`super::terminal`]). A write
/// waits inside the kernel when there is less room, so it is little, and done only when the
/// terminal says that it has room: that is at least one byte, and mostly some thousand.
const BLOCKING_PIECE: usize = 256;

/// Where output goes.
pub(super) struct Output {
    /// `None` for a sink, and when the output is gone.
    file: RefCell<Option<File>>,
    /// The chain that a stop came in the middle of.
    begun: Cell<Option<Begun>>,
    /// How much may be written at once, when the output can be written to.
    piece_max: usize,
    /// How often output was lost to a full disk, or with the memory that it was in.
    losses: Cell<u64>,
}

/// A chain that was written in part and put back. A front-end that comes back gives it again, and
/// another one, with another guest, does not: position, head and length tell them apart. (A reset
/// says nothing, since every front-end that leaves is followed by one.)
#[derive(Clone, Copy, PartialEq, Eq)]
struct Begun {
    chain: (u16, u16, usize),
    written: usize,
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
        let can_block = file.as_ref().is_some_and(can_block);
        Self {
            piece_max: if can_block {
                BLOCKING_PIECE
            } else {
                usize::MAX
            },
            file: RefCell::new(file),
            begun: Cell::new(None),
            losses: Cell::new(0),
        }
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
        let this = (chain.position(), chain.head(), length);
        if let Some(begun) = self.begun.take()
            && begun.chain == this
        {
            // Less than its length, so it cannot fail.
            let _ = chain.readable.advance(begun.written);
        }
        while !chain.readable.is_empty() {
            let mut piece = chain.readable.take();
            if let Ok(rest) = piece.split_off(self.piece_max) {
                chain.readable = rest;
            }
            if self.emit_piece(queue, &mut piece).await.is_none() {
                let written = length - chain.readable.len() - piece.len();
                let begun = Begun {
                    chain: this,
                    written,
                };
                self.begun.set(Some(begun));
                return Emitted::Interrupted;
            }
        }
        Emitted::All
    }

    /// Writes all of `piece`, or what the output takes before a stop: `None`.
    async fn emit_piece(&self, queue: &Queue, piece: &mut GuestBuffers) -> Option<()> {
        while !piece.is_empty() {
            let file = self.file.borrow().clone();
            let Some(file) = file else { break };
            if self.piece_max < usize::MAX {
                // An error shows itself again in the write.
                let _ = queue.until_stop(file.writable()).await?;
            }
            let moved = finish(queue, file.write(piece.take())).await;
            *piece = moved.buffers;
            match moved.result {
                Ok(0) => rest(queue).await?,
                Ok(written) => piece.advance(written).ok()?,
                Err(error) if Errno::from_io_error(&error) == Some(Errno::AGAIN) => {
                    let _ = queue.until_stop(file.writable()).await?;
                }
                Err(error) if is_passing(&error) => rest(queue).await?,
                Err(error) => {
                    self.lose(&error);
                    break;
                }
            }
        }
        Some(())
    }

    /// Gives up what was to be written, and the output with it unless that may come back.
    fn lose(&self, error: &io::Error) {
        let full = [Errno::NOSPC, Errno::DQUOT, Errno::FBIG];
        let is_full = Errno::from_io_error(error).is_some_and(|errno| full.contains(&errno));
        if !is_full && !is_memory_lost(error) {
            log::warn!("the output is gone, what the guest prints is thrown away: {error}");
            self.file.take();
            return;
        }
        // A full disk stays full for a while, and so does lost memory; a guest prints without end.
        let losses = self.losses.get().saturating_add(1);
        self.losses.set(losses);
        if losses.is_power_of_two() {
            log::warn!("output was lost ({losses} times so far): {error}");
        }
    }
}
