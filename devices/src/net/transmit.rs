//! The way out: each chain is a frame behind its header. The header is read once, checked, and a
//! copy of ours goes to the kernel in front of the guest's own memory. What cannot be sent is
//! dropped, as a real device drops it: the chain is completed all the same.
//!
//! A tap takes a frame when it is given one, so that frames are written in the turn in which their
//! chains are taken, by a system call each. The ring is for what the tap would have to wait for,
//! and for what a turn has no time for.

use std::future::pending;
use std::io;

use rustix::io::Errno;
use vudev_executor::{File, IoBuffers as _};
use vudev_virtio::{Chain, Headed, Queue, QueueError};

use super::Net;
use super::header::{self, Header, Malformed};
use super::spec::HEADER_SIZE;
use crate::passing::{cut_short_by, is_passing};

/// What one operation takes (`UIO_MAXIOV`).
pub(super) const PIECES_MAX: usize = 1024;

/// How often a frame is tried that the tap had no room for.
const TRIES_MAX: usize = 8;

/// A header of ours before a guest's frame.
type Frame = Headed<HEADER_SIZE>;

impl Net {
    /// Serves a transmit queue.
    pub(super) async fn transmit(&self, mut queue: Queue, pair: u16) -> Result<(), QueueError> {
        let mut frame = Frame::new();
        while let Some(mut chain) = queue.next().await? {
            match self.header_of(&mut chain) {
                Ok(header) => {
                    frame.set(header, chain);
                    if !self.is_sent(&frame, pair) {
                        let (sent, back) = write(self.tap(pair), frame, &queue).await;
                        self.count_unsent(sent);
                        frame = back;
                    }
                    if let Some(chain) = frame.take() {
                        queue.complete(chain, 0);
                    }
                }
                Err(malformed) => {
                    self.drops.malformed.count(&malformed);
                    queue.complete(chain, 0);
                }
            }
        }
        Ok(())
    }

    /// Reads the header of a frame; what is left of the chain is the frame. What comes back is for
    /// the kernel.
    fn header_of(&self, chain: &mut Chain) -> Result<Header, Malformed> {
        let header = chain.readable.read_array();
        let header = header.map_err(|_| Malformed::NoHeader)?;
        // One is the header's.
        match chain.readable.iovecs().len() + 1 {
            0..=PIECES_MAX => header::check(&header, chain.readable.len(), self.features.get()),
            pieces => Err(Malformed::Pieces(pieces)),
        }
    }

    /// Where the frames of a pair go. A queue of the tap that was let go of takes nothing; the
    /// first one never is.
    fn tap(&self, pair: u16) -> &File {
        let attached = self.taps.get(usize::from(pair));
        let attached = attached.filter(|_| self.is_attached(pair));
        attached.unwrap_or(&self.taps[0])
    }

    /// Whether a frame has left, or there is no way out any more. Else it is one for the ring.
    fn is_sent(&self, frame: &Frame, pair: u16) -> bool {
        if !self.link.get() {
            return true;
        }
        let sent = self.writes.attempt(|| self.tap(pair).try_write(frame));
        let is_sent = sent.is_some();
        if let Some(sent) = sent {
            self.count_unsent(sent.map(drop));
        }
        is_sent
    }

    fn count_unsent(&self, sent: io::Result<()>) {
        let Err(error) = sent else {
            return;
        };
        if Errno::from_io_error(&error) == Some(Errno::BADFD) {
            self.tap_is_gone(&error);
        } else {
            // EIO: the interface is down; EINVAL: the kernel understands the frame otherwise.
            self.drops.unsent.count(&error);
        }
    }
}

/// Writes a frame on the ring. One that the tap takes its time for is given up at a stop or a
/// recall.
async fn write(tap: &File, mut frame: Frame, queue: &Queue) -> (io::Result<()>, Frame) {
    let mut tries = 0;
    loop {
        let end = queue.until_recall(pending::<()>());
        let ((result, back), given_up) = cut_short_by(end, tap.write(frame)).await;
        frame = back;
        tries += 1;
        match result {
            // A recall is told of once: another wait would last until the tap has room.
            Err(error) if is_passing(&error) && tries < TRIES_MAX && given_up.is_none() => {
                if queue.until_recall(tap.writable()).await.is_none() {
                    return (Err(error), frame);
                }
            }
            result => return (result.map(drop), frame),
        }
    }
}
