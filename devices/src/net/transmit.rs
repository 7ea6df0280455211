//! The way out: each chain is a frame behind its header. The header is read once, checked, and a
//! copy of ours goes to the kernel in front of the guest's own memory. What cannot be sent is
//! dropped, as a real device drops it: the chain is completed all the same.

use std::cell::RefCell;
use std::io;

use rustix::io::Errno;
use vudev_executor::File;
use vudev_virtio::{Chain, Framed, Queue, QueueError};

use super::Net;
use super::header::{self, Malformed};
use super::spec::HEADER_SIZE;
use crate::passing::is_passing;

/// What one operation takes (`UIO_MAXIOV`).
pub(super) const PIECES_MAX: usize = 1024;

/// How often a frame is tried that the tap had no room for.
const TRIES_MAX: usize = 8;

/// A header of ours before a guest's frame.
type Frame = Framed<HEADER_SIZE, 0>;

/// Spare frames, so that sending allocates nothing.
#[derive(Default)]
pub(super) struct Frames(RefCell<Vec<Frame>>);

impl Frames {
    fn lend(&self) -> Frame {
        self.0.borrow_mut().pop().unwrap_or_default()
    }

    fn keep(&self, mut frame: Frame) {
        frame.edit_guest(|guest| guest.clear());
        self.0.borrow_mut().push(frame);
    }
}

impl Net {
    /// Serves a transmit queue.
    pub(super) async fn transmit(&self, queue: Queue, pair: u16) -> Result<(), QueueError> {
        let depth = usize::from(self.config.sends_per_queue());
        let send = async |chain: &mut Chain| {
            if let Err(malformed) = self.send(chain, pair).await {
                self.drops.malformed.count(&malformed);
            }
            0
        };
        queue.serve(depth, send).await
    }

    async fn send(&self, chain: &mut Chain, pair: u16) -> Result<(), Malformed> {
        let header = chain.readable.read_array();
        let header = header.map_err(|_| Malformed::NoHeader)?;
        let header = header::check(&header, chain.readable.len(), self.features.get())?;
        let mut frame = self.frames.lend();
        frame.set_head(header);
        frame.edit_guest(|guest| guest.push_back(chain.readable.take()));
        let pieces = frame.pieces();
        if pieces > PIECES_MAX {
            self.frames.keep(frame);
            return Err(Malformed::Pieces(pieces));
        }
        // A queue of the tap that was let go of takes nothing; the first one never is.
        let tap = match self.is_attached(pair) {
            true => pair,
            false => 0,
        };
        let Some(tap) = self.taps.get(usize::from(tap)).filter(|_| self.link.get()) else {
            self.frames.keep(frame);
            return Ok(());
        };
        let (sent, frame) = write(tap, frame).await;
        self.frames.keep(frame);
        if let Err(error) = sent {
            self.not_sent(&error);
        }
        Ok(())
    }

    fn not_sent(&self, error: &io::Error) {
        if Errno::from_io_error(error) == Some(Errno::BADFD) {
            self.tap_is_gone(error);
        } else {
            // EIO: the interface is down; EINVAL: the kernel understands the frame otherwise.
            self.drops.unsent.count(error);
        }
    }
}

async fn write(tap: &File, mut frame: Frame) -> (io::Result<()>, Frame) {
    let mut tries = 0;
    loop {
        let (result, back) = tap.write(frame).await;
        frame = back;
        tries += 1;
        match result {
            Err(error) if is_passing(&error) && tries < TRIES_MAX => {
                let _ = tap.writable().await;
            }
            result => return (result.map(drop), frame),
        }
    }
}
