//! From the host to the guest: what comes from the socket goes into a receive buffer of the
//! guest's, which is asked for once there is something to read, and comes back at once.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;

use vudev_executor::{Half, Stream};
use vudev_virtio::{Chain, GuestBuffers};

use super::super::hub::Hub;
use super::super::packet::HEADER_LENGTH;
use super::{Connection, shut_down};
use crate::passing::is_passing;

/// Where a connection is with a receive buffer.
#[derive(Default)]
pub(super) enum Buffer {
    /// It has none, and no use for one.
    #[default]
    None,
    /// It wants one.
    Wanted,
    /// It has one that it has not looked at yet.
    Lent(Lent),
    /// It is reading into one, which does not wait.
    Filling,
}

/// A receive buffer: `chain` keeps the room for the header.
pub(in super::super) struct Lent {
    pub(in super::super) chain: Chain,
    pub(in super::super) data: GuestBuffers,
}

/// What has become of a receive buffer.
enum Filled {
    /// It has data, or nothing to speak of; whether there may be more.
    Some { more: bool },
    /// The host sends no more.
    End,
}

impl Connection {
    /// Whether it wants a receive buffer.
    pub(in super::super) fn wants_buffer(&self) -> bool {
        matches!(*self.buffer.borrow(), Buffer::Wanted)
    }

    /// Gives it the receive buffer that it wants.
    pub(in super::super) fn lend(&self, lent: Lent) {
        self.buffer.replace(Buffer::Lent(lent));
        self.changed.notify();
    }

    /// There is nothing that a receive buffer could have now, whatever it wanted: it looks again.
    pub(in super::super) fn look_again(&self) {
        self.buffer.replace(Buffer::None);
        self.changed.notify();
    }

    /// Ends the reading. A receive buffer that is with it comes back first: the transfer into it
    /// does not wait.
    pub(super) fn stop_reading(&self) {
        let mut buffer = self.buffer.borrow_mut();
        match *buffer {
            Buffer::Lent(_) | Buffer::Filling => return,
            Buffer::None | Buffer::Wanted => *buffer = Buffer::None,
        }
        drop(buffer);
        let reading = self.reading.take();
        drop(reading);
    }

    /// Until the host, or the guest, ends this half.
    pub(super) async fn read(self: &Rc<Self>, hub: &Rc<Hub>, stream: &Stream) -> io::Result<()> {
        let mut more = false;
        loop {
            if let Some(lent) = self.take_lent() {
                more = match self.fill(hub, stream, lent).await? {
                    Filled::Some { more } => more,
                    Filled::End => return Ok(()),
                };
                continue;
            }
            if self.state.borrow().guest_receives_no_more() {
                self.buffer.replace(Buffer::None);
                return shut_down(hub, &self.turns, stream, Half::Receiving).await;
            }
            if self.wants_buffer() {
                self.changed.notified().await;
                continue;
            }
            if !more && self.early.borrow().is_empty() && !self.readable(stream).await? {
                continue;
            }
            if self.state.borrow().room() == 0 {
                self.state.borrow_mut().lacks_credit();
                hub.enqueue_if_owed(self);
                self.changed.notified().await;
                continue;
            }
            self.buffer.replace(Buffer::Wanted);
            hub.enqueue(self);
        }
    }

    /// Whether there is something to read; if not, something has changed.
    async fn readable(&self, stream: &Stream) -> io::Result<bool> {
        let mut readable = pin!(stream.readable());
        let mut changed = pin!(self.changed.notified());
        let ready = poll_fn(|cx| match readable.as_mut().poll(cx) {
            Poll::Ready(result) => Poll::Ready(result.map(|()| true)),
            // The guest may want nothing more: its reader looks at that first.
            Poll::Pending => changed.as_mut().poll(cx).map(|()| Ok(false)),
        });
        match ready.await {
            Err(error) if is_passing(&error) => Ok(false),
            other => other,
        }
    }

    /// Reads into a receive buffer, and gives it back with whatever the guest is to hear.
    async fn fill(&self, hub: &Hub, stream: &Stream, lent: Lent) -> io::Result<Filled> {
        let Lent {
            mut chain,
            mut data,
        } = lent;
        if self.is_done() {
            return Ok(self.unused(hub, chain));
        }
        let room = data.len();
        let result = if self.early.borrow().is_empty() {
            let (result, _data) = stream.receive(data).await;
            result
        } else {
            let mut early = self.early.borrow_mut();
            let count = early.len().min(room);
            let bytes: Vec<u8> = early.drain(..count).collect();
            data.write(&bytes).map(|()| count).map_err(io::Error::other)
        };
        if self.is_done() {
            return Ok(self.unused(hub, chain));
        }
        self.buffer.replace(Buffer::None);
        let (header, filled) = {
            let mut state = self.state.borrow_mut();
            match result {
                Ok(0) => {
                    state.host_sends_no_more();
                    let header = state.next_owed().unwrap_or_else(|| state.update());
                    (header, Ok(Filled::End))
                }
                Ok(count) => {
                    let length = u32::try_from(count).unwrap_or(u32::MAX);
                    // A full buffer was perhaps not all there is; else the socket is waited for.
                    let more = count == room;
                    (state.data(length), Ok(Filled::Some { more }))
                }
                Err(error) if is_passing(&error) => {
                    (state.update(), Ok(Filled::Some { more: false }))
                }
                Err(error) => (state.update(), Err(error)),
            }
        };
        let written = header.length + HEADER_LENGTH;
        let written = match chain.writable.write(&header.bytes()) {
            Ok(()) => written,
            Err(_) => 0,
        };
        hub.give_back(chain, written);
        filled
    }

    /// The guest wants nothing more of this connection.
    fn unused(&self, hub: &Hub, chain: Chain) -> Filled {
        self.buffer.replace(Buffer::None);
        hub.give_back(chain, 0);
        Filled::End
    }

    fn take_lent(&self) -> Option<Lent> {
        let mut buffer = self.buffer.borrow_mut();
        match std::mem::replace(&mut *buffer, Buffer::Filling) {
            Buffer::Lent(lent) => Some(lent),
            other => {
                *buffer = other;
                None
            }
        }
    }
}
