//! The way in: one read at a time, into as many receive buffers as the longest frame needs. Buffers
//! that a frame did not fill stay for the next one, and go back to the guest, newest first, when
//! the queue stops or its memory changes. Frames that wait in the tap are read in one turn, by a
//! system call each; a read on the ring waits for the next one.
//!
//! The kernel's header comes into memory of ours, and goes to the guest from there, fitted to what
//! was negotiated and with the number of buffers, which a tap does not write. A byte of ours behind
//! the buffers tells a frame that was longer than they are.

use std::io;
use std::pin::pin;
use std::time::Duration;

use futures_util::future::{Either, select};
use rustix::io::Errno;
use vudev_executor::{File, Notify};
use vudev_virtio::{Framed, Queue, QueueError, Taken};

use super::Net;
use super::filter::LOOKED_AT;
use super::header;
use super::spec::{ETHERNET_HEADER, FRAME_MAX, HEADER_SIZE, VLAN_TAG, feature};
use super::transmit::PIECES_MAX;
use crate::passing::{PAUSE, cut_short_by, is_passing};

/// The kernel's header, room for a frame in the buffers of these chains, and a byte that is written
/// when the room was too small.
type Frame = Framed<HEADER_SIZE, 1>;

/// Buffers are not added to a read beyond so many pieces: what is left is for the last chain's.
const PIECES_WANTED_MAX: usize = PIECES_MAX / 2;

/// What is wrong with buffers that are given back empty.
const UNUSABLE: &str = "too small for a header, or in too many pieces";

/// Frames that are read without the ring before all others have their turn, even if the guest wants
/// none of them.
const FRAMES_IN_A_ROW_MAX: usize = 128;

/// How long a read waits for as many buffers as the longest frame needs. A driver that refills in
/// batches does it within that; one that never has so many is not waited for again.
const PATIENCE: Duration = Duration::from_millis(2);

/// The same for a driver that has had so many: its processor may have to wait for its turn, and a
/// frame that is dropped meanwhile costs its sender more. Once this was in vain it is not done
/// again: the driver may keep fewer buffers ready than it had at first.
const PATIENCE_WITH_TRUSTED: Duration = Duration::from_millis(200);

impl Net {
    /// Serves a receive queue.
    pub(super) async fn receive(&self, mut queue: Queue, pair: u16) -> Result<(), QueueError> {
        let _served = self.served(pair);
        let mergeable = queue.features() & feature::MRG_RXBUF != 0;
        let mut window = Window::new(mergeable);
        let ended = self.receive_into(&mut queue, &mut window, pair).await;
        queue.put_back_all(window.frame_mut());
        ended
    }

    async fn receive_into(
        &self,
        queue: &mut Queue,
        window: &mut Window,
        pair: u16,
    ) -> Result<(), QueueError> {
        let switched = &self.switched[usize::from(pair)];
        let mut in_a_row = 0;
        while !queue.is_stopping() {
            let tap = match self.taps.get(usize::from(pair)) {
                Some(tap) if self.link.get() && self.is_attached(pair) => tap,
                _ => {
                    queue.put_back_all(window.frame_mut());
                    queue.until_stop(switched.notified()).await;
                    continue;
                }
            };
            if !window.is_filled(self, queue)? && !window.fill(self, queue).await? {
                queue.put_back_all(window.frame_mut());
                continue;
            }
            if in_a_row == FRAMES_IN_A_ROW_MAX {
                in_a_row = 0;
                let turn = queue.handle().yield_now();
                if queue.until_recall(turn).await.is_none() {
                    queue.put_back_all(window.frame_mut());
                }
                continue;
            }
            let waiting = self.reads.attempt(|| tap.try_read(window.frame_mut()));
            let (result, end) = match waiting {
                Some(result) => {
                    in_a_row += 1;
                    (result, None)
                }
                None => {
                    in_a_row = 0;
                    read(tap, window, queue, self.longest_frame(), switched).await
                }
            };
            let recalled = match result {
                Ok(bytes) => {
                    self.deliver(bytes, window, queue);
                    false
                }
                // What it was cut short for comes first, and an error comes again.
                Err(_) if end.is_some() => false,
                Err(error) => self.not_read(&error, tap, queue, pair).await,
            };
            // A chain that it was cut short for is taken next.
            if recalled || end.transpose()? == Some(false) {
                queue.put_back_all(window.frame_mut());
            }
        }
        Ok(())
    }

    /// Hands a frame to the guest, if it is one that it wants and can take.
    #[inline]
    fn deliver(&self, bytes: usize, window: &mut Window, queue: &Queue) {
        let Some(payload) = bytes.checked_sub(HEADER_SIZE) else {
            return;
        };
        let room = window.room();
        if payload > room {
            return self.drops.too_long.count(&room);
        }
        let Some(mut header) = header::fit(window.frame().head(), self.offloads.get()) else {
            return self
                .drops
                .unfit
                .count(&"an offload that it has not, or not any more");
        };
        let filter = self.filter.borrow();
        if !filter.is_open() && !filter.passes(&window.begin()) {
            return;
        }
        window.complete(&mut header, payload, queue);
    }

    /// Waits for what a read that failed makes worth waiting for; whether the buffers were recalled
    /// meanwhile.
    async fn not_read(&self, error: &io::Error, tap: &File, queue: &Queue, pair: u16) -> bool {
        match Errno::from_io_error(error) {
            // Cancelled: a stop, or something like it.
            Some(Errno::CANCELED) => {}
            // A descriptor that does not wait by itself.
            Some(_) if is_passing(error) => {
                return queue.until_recall(tap.readable()).await.is_none();
            }
            // Let go of, on purpose.
            Some(Errno::BADFD) if !self.is_attached(pair) => {}
            Some(Errno::BADFD) => self.tap_is_gone(error),
            // EFAULT, of memory that shrank or of a tap that just goes, and the unforeseen.
            _ => {
                self.drops.unread.count(error);
                let pause = queue.handle().sleep(PAUSE);
                return queue.until_recall(pause).await.is_none();
            }
        }
        false
    }

    /// Bytes of the longest frame that may come, without its header. By what was negotiated, and
    /// not by the offloads of the moment: a read that is under way must fit those of the next.
    fn longest_frame(&self) -> usize {
        let large = feature::GUEST_OFFLOADS & !feature::GUEST_CSUM;
        match self.features.get() & large {
            0 => usize::from(self.config.mtu) + ETHERNET_HEADER + VLAN_TAG,
            _ => FRAME_MAX,
        }
    }
}

/// Reads a frame into the window. A stop, a recall or `switched` cuts it short, and so does a
/// chain where there is no room for the longest frame: the second answer, true of a chain. Even
/// then a frame may have come.
async fn read(
    tap: &File,
    window: &mut Window,
    queue: &mut Queue,
    longest: usize,
    switched: &Notify,
) -> (io::Result<usize>, Option<Result<bool, QueueError>>) {
    let takes_more = window.takes_more(longest);
    let frame = window.frame.take().expect(FRAME_IS_HERE);
    let end = async {
        if !takes_more {
            queue.until_recall(switched.notified()).await;
            return Ok(false);
        }
        let next = pin!(queue.available_until_recall());
        match select(next, pin!(switched.notified())).await {
            Either::Left((next, _)) => next,
            Either::Right(_) => Ok(false),
        }
    };
    let ((result, frame), end) = cut_short_by(end, tap.read(frame)).await;
    window.frame = Some(frame);
    (result, end)
}

/// Why a window has its frame: only `read` takes it, and nothing else runs meanwhile.
const FRAME_IS_HERE: &str = "a frame is out only while it is read";

/// The receive buffers that the next frame goes into.
struct Window {
    mergeable: bool,
    /// The chains, in the order they were taken. The place of the guest's header is left out.
    /// `None` while it is read.
    frame: Option<Frame>,
    /// What the driver has shown that it can give, if that is less than the longest frame.
    ceiling: usize,
    /// The most that it has given.
    most: usize,
    /// Whether it was never waited for in vain that had given as much before.
    trusted: bool,
}

impl Window {
    fn new(mergeable: bool) -> Self {
        Self {
            mergeable,
            frame: Some(Frame::skipping(HEADER_SIZE)),
            ceiling: usize::MAX,
            most: 0,
            trusted: true,
        }
    }

    fn frame(&self) -> &Frame {
        self.frame.as_ref().expect(FRAME_IS_HERE)
    }

    fn frame_mut(&mut self) -> &mut Frame {
        self.frame.as_mut().expect(FRAME_IS_HERE)
    }

    /// Bytes of a frame that there are buffers for.
    fn room(&self) -> usize {
        self.frame().room()
    }

    fn has_none(&self) -> bool {
        self.frame().chains() == 0
    }

    /// Takes the buffers that there are until the longest frame fits; whether it does, or fits as
    /// far as it ever will.
    #[inline]
    fn is_filled(&mut self, net: &Net, queue: &mut Queue) -> Result<bool, QueueError> {
        let longest = net.longest_frame();
        let mut has_more = true;
        while has_more && self.takes_more(longest) {
            match queue.take_into(self.frame_mut())? {
                Taken::Chain => {}
                Taken::Unfit => net.drops.unusable.count(&UNUSABLE),
                Taken::Elsewhere => queue.put_back_all(self.frame_mut()),
                Taken::None => has_more = false,
            }
        }
        let room = self.room();
        self.most = self.most.max(room);
        self.ceiling = self.ceiling.max(room);
        // What takes no more has enough.
        Ok(has_more || self.is_enough(longest, queue))
    }

    /// Waits for buffers until the longest frame fits, or the driver has no more; false when those
    /// that it has are to be let go of.
    async fn fill(&mut self, net: &Net, queue: &mut Queue) -> Result<bool, QueueError> {
        let longest = net.longest_frame();
        loop {
            let available = if self.has_none() {
                queue.available_until_recall().await?
            } else {
                let trusted = self.trusted && self.most >= longest.min(self.ceiling);
                let patience = match trusted {
                    true => PATIENCE_WITH_TRUSTED,
                    false => PATIENCE,
                };
                let handle = queue.handle().clone();
                let next = pin!(queue.available_until_recall());
                match select(next, pin!(handle.sleep(patience))).await {
                    Either::Left((next, _)) => next?,
                    Either::Right(_) => {
                        self.trusted &= !trusted;
                        self.ceiling = self.room();
                        return Ok(true);
                    }
                }
            };
            if !available {
                return Ok(false);
            }
            if self.is_filled(net, queue)? {
                return Ok(true);
            }
        }
    }

    fn is_enough(&self, longest: usize, queue: &Queue) -> bool {
        let frame = self.frame();
        let has_all = frame.chains() >= usize::from(queue.size());
        let full = frame.pieces() >= PIECES_WANTED_MAX;
        !self.has_none()
            && (!self.mergeable || has_all || full || frame.room() >= longest.min(self.ceiling))
    }

    /// Whether another chain is of use to a frame of `longest` bytes.
    fn takes_more(&self, longest: usize) -> bool {
        let frame = self.frame();
        self.has_none()
            || self.mergeable && frame.room() < longest && frame.pieces() < PIECES_WANTED_MAX
    }

    /// The first bytes of the frame, as far as there are any.
    fn begin(&self) -> [u8; LOOKED_AT] {
        let mut begin = [0; HEADER_SIZE + LOOKED_AT];
        self.frame().peek(&mut begin);
        let mut frame = [0; LOOKED_AT];
        frame.copy_from_slice(&begin[HEADER_SIZE..]);
        frame
    }

    /// Gives the driver a frame in the first chains, and them.
    #[inline]
    fn complete(&mut self, header: &mut [u8; HEADER_SIZE], payload: usize, queue: &Queue) {
        let bytes = HEADER_SIZE + payload;
        let frame = self.frame_mut();
        let count = frame.chains_for(bytes);
        let [.., low, high] = header;
        // A queue has fewer chains.
        [*low, *high] = u16::try_from(count).unwrap_or(u16::MAX).to_le_bytes();
        // Every chain has room for one.
        let _ = frame.write_front(header);
        queue.complete_first(frame, count, bytes);
    }
}
