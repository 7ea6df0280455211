//! The way out: from the guest's transmit chains to the other end of the port, one chain after the
//! other. What becomes of output that nobody takes is [`Overflow`]'s; it is never lost in silence.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use rustix::io::Errno;
use vudev_executor::{File, Handle, Notify, Vectored};
use vudev_virtio::{Chain, Queue, QueueError};

use super::framing::{Framer, Framing, Outgoing, Source};
use super::link::{Connection, Link};
use super::losses::Losses;
use super::{Overflow, until};
use crate::no_wait::NoWait;
use crate::passing::{PAUSE, is_memory_lost, is_passing};

/// How many bytes go at once to a terminal that is not ours alone ([`super::terminal`]). A write
/// waits inside the kernel when there is less room, so it is little, and done only when the
/// terminal says that it has room: that is at least one byte, and mostly some thousand.
pub(super) const BLOCKING_PIECE: usize = 256;

/// How long output that may be thrown away waits for a reader that takes nothing, or for a
/// connection that is being looked for: long enough for a restart, short for a guest.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long the end of a queue waits for its last line, which has no end.
const UNFINISHED: Duration = Duration::from_millis(100);

/// Writes in a row that did not wait, before others have their turn: one chain may be many lines.
const IN_A_ROW_MAX: u32 = 128;

/// How often a frame is tried on a new connection before it is thrown away.
const ATTEMPTS_MAX: u32 = 3;

/// Bytes of emergency writes that wait to be written. A guest in an emergency writes byte by byte,
/// and cannot wait for us.
const EMERGENCY_MAX: usize = 4096;

/// How output is written.
pub(super) struct Manner {
    pub(super) overflow: Overflow,
    pub(super) framing: Framing,
    pub(super) timestamps: bool,
    /// How much may be written at once.
    pub(super) piece_max: usize,
    /// Names the port in the log.
    pub(super) label: String,
}

impl Manner {
    /// Whether there has to be room before anything is written: to a terminal that is not ours
    /// alone.
    fn is_asked_first(&self) -> bool {
        self.piece_max < usize::MAX
    }
}

/// Where output goes.
pub(super) struct Output {
    handle: Handle,
    link: Rc<Link>,
    /// Nobody is to get it, and so nobody misses it.
    is_sink: bool,
    manner: Manner,
    /// How writes are tried before the ring is asked.
    no_wait: NoWait,
    /// Writes that did not wait, since one did or others had their turn.
    in_a_row: Cell<u32>,
    /// Taken while it is in use; made anew after a queue that did not end in time.
    framer: Cell<Option<Framer>>,
    /// The chain that a stop came in the middle of.
    begun: Cell<Option<Begun>>,
    /// The connection that has taken nothing for too long, or the one that did not come.
    stalled: Cell<Option<u64>>,
    losses: Losses,
    emergency: Emergency,
}

/// A chain that was written in part and put back: at a stop, or so that its memory can be replaced.
/// A front-end that comes back gives it again, and another one, with another guest, does not:
/// position, head and length tell them apart. (A reset says nothing, since every front-end that
/// leaves is followed by one.)
#[derive(Clone, Copy, PartialEq, Eq)]
struct Begun {
    chain: (u16, u16, usize),
    written: usize,
}

/// A stop or a recall came before all was written, or thrown away.
struct Interrupted;

/// What a guest says in an emergency (`emerg_wr`, virtio 1.3, 5.3.4).
#[derive(Default)]
struct Emergency {
    bytes: RefCell<VecDeque<u8>>,
    written: Notify,
}

impl Output {
    pub(super) fn new(handle: &Handle, link: &Rc<Link>, manner: Manner) -> Self {
        Self {
            handle: handle.clone(),
            link: Rc::clone(link),
            is_sink: !link.is_open() && !link.may_come(),
            framer: Cell::new(Framer::new(&manner.framing, manner.timestamps)),
            begun: Cell::new(None),
            stalled: Cell::new(None),
            no_wait: match manner.is_asked_first() {
                // It is not trusted to heed the flag.
                true => NoWait::never(),
                false => NoWait::of_file(),
            },
            in_a_row: Cell::new(0),
            losses: Losses::new(manner.label.clone()),
            emergency: Emergency::default(),
            manner,
        }
    }

    /// Serves the transmit queue.
    pub(super) async fn serve(&self, mut queue: Queue) -> Result<(), QueueError> {
        while let Some(mut chain) = queue.next().await? {
            match self.emit(&queue, &mut chain).await {
                Ok(()) => queue.complete(chain, 0),
                Err(Interrupted) => {
                    queue.put_back(chain);
                    if queue.is_stopping() {
                        return Ok(());
                    }
                }
            }
        }
        // A line that waits for its end has none when its guest is gone.
        self.emit_unfinished().await;
        Ok(())
    }

    async fn emit(&self, queue: &Queue, chain: &mut Chain) -> Result<(), Interrupted> {
        if self.is_sink {
            return Ok(());
        }
        let length = chain.readable.len();
        let this = (chain.position(), chain.head(), length);
        if let Some(begun) = self.begun.take()
            && begun.chain == this
        {
            // Less than its length, so it cannot fail.
            let _ = chain.readable.advance(begun.written);
        }
        let ended = if self.is_framed() {
            self.emit_frames(queue, chain).await
        } else {
            self.emit_pieces(queue, chain).await
        };
        ended.map_err(|left| {
            let written = length - left;
            let begun = Begun {
                chain: this,
                written,
            };
            self.begun.set(Some(begun));
            Interrupted
        })
    }

    /// Straight out of guest memory. `Err` has the bytes not written when a stop came.
    async fn emit_pieces(&self, queue: &Queue, chain: &mut Chain) -> Result<(), usize> {
        while !chain.readable.is_empty() {
            let mut piece = chain.readable.take();
            if let Ok(rest) = piece.split_off(self.manner.piece_max) {
                chain.readable = rest;
            }
            let ended = self.write(Some(queue), &mut piece).await;
            let left = chain.readable.len() + piece.len();
            if ended.is_err() && left > 0 {
                return Err(left);
            }
        }
        Ok(())
    }

    /// By a copy, cut into frames. `Err` has the bytes not copied when a stop came.
    async fn emit_frames(&self, queue: &Queue, chain: &mut Chain) -> Result<(), usize> {
        let mut framer = self.take_framer();
        let mut ended = Ok(());
        while ended.is_ok() && framer.fill(&mut chain.readable) {
            ended = self.write_frame(Some(queue), &mut framer).await;
        }
        self.framer.set(Some(framer));
        ended.map_err(|Interrupted| chain.readable.len())
    }

    async fn emit_unfinished(&self) {
        if self.is_framed() {
            let mut framer = self.take_framer();
            if let Some(bytes) = framer.finish_line() {
                let write = self.write_frame(None, &mut framer);
                if self.handle.timeout(UNFINISHED, write).await.is_none() {
                    return self
                        .losses
                        .add(bytes, &"its reader does not read at the end");
                }
            }
            self.framer.set(Some(framer));
        }
    }

    fn is_framed(&self) -> bool {
        self.manner.timestamps || self.manner.framing != Framing::Bytes
    }

    fn take_framer(&self) -> Framer {
        let framer = self.framer.take();
        let manner = &self.manner;
        let new = || Framer::new(&manner.framing, manner.timestamps);
        framer.or_else(new).expect("it is framed")
    }

    async fn write_frame(
        &self,
        queue: Option<&Queue>,
        framer: &mut Framer,
    ) -> Result<(), Interrupted> {
        let mut frame = framer.take_frame();
        let ended = self.write(queue, &mut frame).await;
        match ended {
            Ok(()) => framer.written(frame),
            Err(Interrupted) => framer.take_back(frame),
        }
        ended
    }

    /// Writes all of it or gives it up, or what is taken before a stop.
    async fn write<O: Outgoing>(
        &self,
        queue: Option<&Queue>,
        outgoing: &mut O,
    ) -> Result<(), Interrupted> {
        let mut attempts = 0;
        while outgoing.remaining() > 0 {
            let Some(end) = self.other_end(queue).await? else {
                self.losses
                    .add(outgoing.remaining(), &"nobody is there to read it");
                return Ok(());
            };
            let limit = self.limit(&end);
            if self.manner.is_asked_first() {
                // An error shows itself again in the write.
                let _ = until(queue, end.file.writable()).await.ok_or(Interrupted)?;
            }
            let moved = self.write_once(queue, limit, &end.file, outgoing).await;
            let error = match moved {
                Moved::Some => {
                    self.stalled.set(None);
                    self.losses.end();
                    continue;
                }
                Moved::Nothing => {
                    self.pause(queue).await?;
                    continue;
                }
                Moved::Stopped => return Err(Interrupted),
                Moved::TooLate => {
                    self.stalled.set(Some(end.generation));
                    self.losses
                        .add(outgoing.remaining(), &"its reader does not read");
                    return Ok(());
                }
                Moved::Error(error) => error,
            };
            attempts += 1;
            if self.is_given_up(&error, &end, attempts) {
                self.losses.add(outgoing.remaining(), &error);
                return Ok(());
            }
        }
        Ok(())
    }

    /// One write, and where the descriptor says that it would wait, a wait.
    async fn write_once<O: Outgoing>(
        &self,
        queue: Option<&Queue>,
        limit: Option<Duration>,
        file: &File,
        outgoing: &mut O,
    ) -> Moved {
        if self.in_a_row.get() == IN_A_ROW_MAX {
            self.in_a_row.set(0);
            if until(queue, self.handle.yield_now()).await.is_none() {
                return Moved::Stopped;
            }
        }
        let buffers = outgoing.hand_out();
        let written = self.no_wait.attempt(|| file.try_write(&buffers));
        let (end, (result, buffers)) = match written {
            Some(result) => {
                self.in_a_row.update(|count| count + 1);
                (None, (result, buffers))
            }
            None => {
                self.in_a_row.set(0);
                self.write_on_ring(queue, limit, file.write(buffers)).await
            }
        };
        outgoing.take_back(buffers, *result.as_ref().unwrap_or(&0));
        match (result, end) {
            (Ok(0), None) => Moved::Nothing,
            (Ok(written), None | Some(Moved::TooLate)) if written > 0 => Moved::Some,
            (_, Some(end)) => end,
            (Err(error), None) if Errno::from_io_error(&error) == Some(Errno::AGAIN) => {
                match self.within(queue, limit, file.writable()).await {
                    Ok(_) => Moved::Nothing,
                    Err(end) => end,
                }
            }
            (Err(error), None) if is_passing(&error) => Moved::Nothing,
            (Err(error), None) => Moved::Error(error),
            (Ok(_), None) => Moved::Nothing,
        }
    }

    /// What a write came to that may wait, and what has ended it before its time.
    async fn write_on_ring<B>(
        &self,
        queue: Option<&Queue>,
        limit: Option<Duration>,
        mut write: impl Vectored<B>,
    ) -> (Option<Moved>, (io::Result<usize>, B)) {
        // It is polled before the stop is looked at, so it has begun: only then can it be
        // cancelled. Either way its answer counts: bytes may have moved before the end came.
        match self.within(queue, limit, &mut write).await {
            Ok(output) => (None, output),
            Err(end) => {
                write.cancel();
                (Some(end), write.await)
            }
        }
    }

    /// `future`'s output, unless a stop or the limit comes first.
    async fn within<F: Future>(
        &self,
        queue: Option<&Queue>,
        limit: Option<Duration>,
        future: F,
    ) -> Result<F::Output, Moved> {
        let limited = async {
            match limit {
                Some(limit) => self.handle.timeout(limit, future).await,
                None => Some(future.await),
            }
        };
        match until(queue, limited).await {
            Some(Some(output)) => Ok(output),
            Some(None) => Err(Moved::TooLate),
            None => Err(Moved::Stopped),
        }
    }

    /// The other end; `None` if there is none worth waiting for.
    async fn other_end(&self, queue: Option<&Queue>) -> Result<Option<Connection>, Interrupted> {
        loop {
            if let Some(end) = self.link.current() {
                return Ok(Some(end));
            }
            if !self.link.may_come() {
                return Ok(None);
            }
            let missed = self.link.generation();
            match self.manner.overflow {
                Overflow::Block => until(queue, self.link.present()).await.ok_or(Interrupted)?,
                Overflow::Drop if self.link.is_sought() && self.stalled.get() != Some(missed) => {
                    let present = self.handle.timeout(PATIENCE, self.link.present());
                    let came = until(queue, present).await.ok_or(Interrupted)?;
                    if came.is_none() {
                        self.stalled.set(Some(missed));
                    }
                }
                Overflow::Drop => return Ok(None),
            }
        }
    }

    /// How long a write to this connection may wait.
    fn limit(&self, end: &Connection) -> Option<Duration> {
        let tried = self.stalled.get() == Some(end.generation);
        match self.manner.overflow {
            Overflow::Block => None,
            // Just a try, until it takes something again.
            Overflow::Drop if tried => Some(Duration::ZERO),
            Overflow::Drop => Some(PATIENCE),
        }
    }

    async fn pause(&self, queue: Option<&Queue>) -> Result<(), Interrupted> {
        let pause = self.handle.sleep(PAUSE);
        until(queue, pause).await.ok_or(Interrupted)
    }

    /// Whether what was to be written is given up; the connection is, unless it may work again.
    fn is_given_up(&self, error: &io::Error, end: &Connection, attempts: u32) -> bool {
        // A full disk stays full for a while, and so does lost memory; a datagram does not shrink.
        let passing = [Errno::NOSPC, Errno::DQUOT, Errno::FBIG, Errno::MSGSIZE];
        let errno = Errno::from_io_error(error);
        if errno.is_some_and(|errno| passing.contains(&errno)) || is_memory_lost(error) {
            return true;
        }
        if !self.link.may_come() {
            let label = &self.manner.label;
            log::warn!("{label}the output is gone, what the guest prints is thrown away: {error}");
        }
        self.link.leave(end.generation);
        self.manner.overflow == Overflow::Drop && attempts == ATTEMPTS_MAX
    }

    /// A byte that the guest cannot wait with.
    pub(super) fn write_in_emergency(&self, byte: u8) {
        if self.is_sink {
            return;
        }
        let mut bytes = self.emergency.bytes.borrow_mut();
        if bytes.len() == EMERGENCY_MAX {
            self.losses.add(1, &"too many emergency writes at once");
        } else {
            bytes.push_back(byte);
            self.emergency.written.notify();
        }
    }

    /// Writes what comes in emergencies, for as long as the device lives. Beside the transmit
    /// queue, which may be stuck: that may well be the emergency.
    pub(super) async fn keep_emergencies(self: Rc<Self>) {
        let manner = &self.manner;
        let mut framer = Framer::always(&manner.framing, manner.timestamps);
        loop {
            self.emergency.written.notified().await;
            while framer.fill(&mut Taken(&self.emergency.bytes)) {
                // Without a queue nothing stops it.
                let _ = self.write_frame(None, &mut framer).await;
            }
        }
    }
}

/// What has become of a write.
enum Moved {
    /// Bytes have moved.
    Some,
    /// None has, and it can be tried again.
    Nothing,
    /// A stop came, or a recall, which is told but once.
    Stopped,
    /// None has in the time there was.
    TooLate,
    /// None will.
    Error(io::Error),
}

struct Taken<'b>(&'b RefCell<VecDeque<u8>>);

impl Source for Taken<'_> {
    fn take_bytes(&mut self, into: &mut [u8]) -> usize {
        let mut bytes = self.0.borrow_mut();
        let count = bytes.len().min(into.len());
        for (to, from) in into.iter_mut().zip(bytes.drain(..count)) {
            *to = from;
        }
        count
    }
}
