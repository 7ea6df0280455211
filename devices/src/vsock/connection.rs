//! One connection and its socket: what the host sends goes from the socket into receive buffers of
//! the guest's, what the guest sends goes from its transmit buffers into the socket. Bytes are
//! copied only when a program of the host does not keep up.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use vudev_executor::{Bytes, Half, Handle, Notify, Stream, Task};
use vudev_virtio::{Chain, GuestBuffers};

use super::backlog::Backlog;
use super::hub::Hub;
use super::packet::{HEADER_LENGTH, Header, Ports};
use super::state::{Phase, State};
use super::turns::Turns;
use crate::passing::{PAUSE, is_memory_lost, is_passing};

/// How long a guest may take to say yes or no to a program of the host.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// How long a guest may take to reset a connection that has ended, before we do: as Linux has it
/// (`VSOCK_CLOSE_TIMEOUT`).
const CLOSE_LIMIT: Duration = Duration::from_secs(8);

/// How long a program of the host may read nothing of what a guest that has ended its connection
/// sent before.
const LINGER_LIMIT: Duration = Duration::from_secs(60);

/// A connection.
pub(super) struct Connection {
    pub(super) ports: Ports,
    pub(super) state: RefCell<State>,
    pub(super) begun: Instant,
    /// It stands in the hub's line.
    pub(super) queued: Cell<bool>,
    /// Its end has been told to the guest, and something goes on to the host.
    silent: Cell<bool>,
    /// It wants a receive buffer.
    pub(super) wants_buffer: Cell<bool>,
    /// Tells the task that reads of: an answer, a receive buffer, credit, the guest's end.
    pub(super) changed: Notify,
    /// The order of what is sent to the host. Over when the connection is.
    pub(super) turns: Turns,
    stream: RefCell<Option<Stream>>,
    backlog: RefCell<Backlog>,
    /// What a program of the host said at once with its greeting.
    early: RefCell<Vec<u8>>,
    lent: Cell<Option<Lent>>,
    /// A receive buffer is with it.
    holds_buffer: Cell<bool>,
    reading: RefCell<Option<Task<()>>>,
    draining: RefCell<Option<Task<()>>>,
}

/// A receive buffer: `chain` keeps the room for the header.
pub(super) struct Lent {
    pub(super) chain: Chain,
    pub(super) data: GuestBuffers,
}

impl Connection {
    /// One that the guest asks for.
    pub(super) fn asked(hub: &Hub, request: &Header) -> Rc<Self> {
        let state = State::asked(hub.guest_cid, request);
        Self::new(hub, request.ports(), state, None, Vec::new())
    }

    /// One that the host asks for.
    pub(super) fn offered(hub: &Hub, port: u32, stream: Stream, early: Vec<u8>) -> Rc<Self> {
        let ports = hub.free_ports(port);
        let state = State::offered(hub.guest_cid, ports);
        Self::new(hub, ports, state, Some(stream), early)
    }

    fn new(
        hub: &Hub,
        ports: Ports,
        state: State,
        stream: Option<Stream>,
        early: Vec<u8>,
    ) -> Rc<Self> {
        Rc::new(Self {
            ports,
            state: RefCell::new(state),
            begun: hub.handle.now(),
            queued: Cell::new(false),
            silent: Cell::new(false),
            wants_buffer: Cell::new(false),
            changed: Notify::new(),
            turns: Turns::default(),
            stream: RefCell::new(stream),
            backlog: RefCell::default(),
            early: RefCell::new(early),
            lent: Cell::new(None),
            holds_buffer: Cell::new(false),
            reading: RefCell::default(),
            draining: RefCell::default(),
        })
    }

    /// The task that leads it, in place of the one before.
    pub(super) fn set_task(&self, task: Task<()>) {
        let before = self.reading.replace(Some(task));
        drop(before);
    }

    /// Lets go of everything. A receive buffer that is with it comes back first: the transfer into
    /// it does not wait. What is left of it may stand in a line for long.
    pub(super) fn end(&self) {
        self.turns.end();
        self.stop_reading();
        self.close_stream();
        self.changed.notify();
    }

    fn stop_reading(&self) {
        self.wants_buffer.set(false);
        if !self.holds_buffer.get() {
            let reading = self.reading.take();
            drop(reading);
        }
    }

    pub(super) fn lend(&self, lent: Lent) {
        self.wants_buffer.set(false);
        self.holds_buffer.set(true);
        self.lent.set(Some(lent));
        self.changed.notify();
    }

    /// The supervisor has connected it: the guest is told, and data flows.
    pub(super) async fn granted(self: Rc<Self>, hub: Rc<Hub>, socket: OwnedFd) {
        self.stream.replace(Some(Stream::new(&hub.handle, socket)));
        self.state.borrow_mut().granted();
        hub.enqueue(&self);
        self.lead(&hub).await;
    }

    /// A program of the host waits for the guest's answer; then data flows.
    pub(super) async fn answered(self: Rc<Self>, hub: Rc<Hub>) {
        let answer = async {
            while self.state.borrow().phase() == Phase::Offered {
                self.changed.notified().await;
            }
        };
        match hub.handle.timeout(ANSWER_LIMIT, answer).await {
            Some(()) => self.lead(&hub).await,
            None => hub.reset(&self),
        }
    }

    /// From the opening to the end.
    async fn lead(self: &Rc<Self>, hub: &Rc<Hub>) {
        let Some(stream) = self.stream.borrow().clone() else {
            return;
        };
        if let Err(error) = self.read(hub, &stream).await {
            log::debug!("port {}: {error}", self.ports.host);
            return hub.reset(self);
        }
        if self.is_done() {
            return;
        }
        while let Err(error) = stream.hung_up().await {
            if !is_passing(&error) {
                return hub.reset(self);
            }
            hub.handle.sleep(PAUSE).await;
        }
        // Neither half goes on: the guest is told, and has the last word.
        {
            let mut state = self.state.borrow_mut();
            state.host_sends_no_more();
            state.host_receives_no_more();
        }
        self.close_stream();
        hub.enqueue_if_owed(self);
        hub.handle.sleep(CLOSE_LIMIT).await;
        hub.reset(self);
    }

    fn close_stream(&self) {
        let draining = self.draining.take();
        self.stream.take();
        self.backlog.borrow_mut().clear();
        drop(draining);
    }

    /// Until the host, or the guest, ends this half.
    async fn read(self: &Rc<Self>, hub: &Rc<Hub>, stream: &Stream) -> io::Result<()> {
        let mut more = false;
        loop {
            if let Some(lent) = self.lent.take() {
                more = match self.fill(hub, stream, lent).await? {
                    Filled::Some { more } => more,
                    Filled::End => return Ok(()),
                };
                continue;
            }
            if self.state.borrow().guest_receives_no_more() && !self.holds_buffer.get() {
                self.wants_buffer.set(false);
                return shut_down(hub, stream, Half::Receiving).await;
            }
            if self.wants_buffer.get() || self.holds_buffer.get() {
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
            self.wants_buffer.set(true);
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
        self.holds_buffer.set(false);
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
        self.holds_buffer.set(false);
        hub.give_back(chain, 0);
        Filled::End
    }

    /// Whether the guest is to hear nothing more of it.
    pub(super) fn is_done(&self) -> bool {
        self.silent.get() || self.turns.is_over()
    }

    /// Sends a packet's data to the host, in its turn: at once what there is room for, and the
    /// rest when the host reads.
    pub(super) async fn forward(self: &Rc<Self>, hub: &Rc<Hub>, data: &mut GuestBuffers) {
        let place = self.turns.place();
        if !place.wait().await {
            return;
        }
        let stream = self.stream.borrow().clone();
        let Some(stream) = stream else { return };
        if self.backlog.borrow().is_empty() {
            let (result, rest) = stream.send(data.take()).await;
            *data = rest;
            match result {
                Ok(count) => {
                    self.count(hub, count);
                    let _ = data.advance(count);
                }
                Err(error) if is_passing(&error) => {}
                Err(error) => return self.lost_host(hub, &error),
            }
        }
        if data.is_empty() || self.turns.is_over() {
            return;
        }
        if !self.backlog.borrow_mut().append(data) {
            // The credit that was given is the room that there is.
            log::error!("port {}: a backlog that overflows", self.ports.host);
            return hub.reset(self);
        }
        self.start_draining(hub, stream);
    }

    fn count(self: &Rc<Self>, hub: &Hub, bytes: usize) {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        self.state.borrow_mut().forwarded(bytes);
        hub.enqueue_if_owed(self);
    }

    /// Nobody reads on the host any more. What it still has to say is read on.
    fn lost_host(self: &Rc<Self>, hub: &Hub, error: &io::Error) {
        // A front-end's lost memory is not the host's fault, but no less the end of this.
        if is_memory_lost(error) {
            return hub.reset(self);
        }
        self.backlog.borrow_mut().clear();
        self.state.borrow_mut().host_receives_no_more();
        hub.enqueue_if_owed(self);
    }

    fn start_draining(self: &Rc<Self>, hub: &Rc<Hub>, stream: Stream) {
        let runs = self
            .draining
            .borrow()
            .as_ref()
            .is_some_and(|it| !it.is_finished());
        if runs {
            return;
        }
        let (connection, drains) = (self.clone(), hub.clone());
        let drain = async move { connection.drain(&drains, &stream).await };
        let task = hub.handle.spawn(drain);
        self.draining.replace(Some(task));
    }

    /// Sends the backlog whenever there is room, until nothing is left of it.
    async fn drain(self: &Rc<Self>, hub: &Hub, stream: &Stream) {
        let mut room = stream.room();
        loop {
            // What is wrong with the socket shows itself again in the transfer.
            if room.wait().await.is_err() {
                hub.handle.sleep(PAUSE).await;
            }
            let place = self.turns.place();
            if !place.wait().await {
                return;
            }
            let Some(bytes) = self.backlog.borrow_mut().take() else {
                return;
            };
            let (result, bytes) = stream.send(bytes).await;
            let sent = result.as_ref().map_or(0, |count| *count);
            self.backlog.borrow_mut().sent(bytes, sent);
            match result {
                Ok(_) => self.count(hub, sent),
                Err(error) if is_passing(&error) => {}
                Err(error) => return self.lost_host(hub, &error),
            }
            if self.backlog.borrow().is_empty() {
                return self.ended_by_guest(hub, stream).await;
            }
        }
    }

    /// The guest has ended a half, or both are to be: what it sent goes first.
    pub(super) async fn ended(self: &Rc<Self>, hub: &Hub) {
        // The task that reads sees to the other half.
        self.changed.notify();
        let place = self.turns.place();
        if !place.wait().await {
            return;
        }
        let stream = self.stream.borrow().clone();
        if let Some(stream) = stream
            && self.backlog.borrow().is_empty()
        {
            self.ended_by_guest(hub, &stream).await;
        }
    }

    /// Tells the host that nothing more comes, if that is so.
    async fn ended_by_guest(&self, hub: &Hub, stream: &Stream) {
        if self.state.borrow().guest_sends_no_more() {
            let ended = shut_down(hub, stream, Half::Sending).await;
            // A host that is gone knows it.
            let _ = ended;
        }
    }

    /// The guest has ended both halves. It is answered once its data is with the host, or with us;
    /// what is with us goes on to the host for as long as that takes some of it now and then.
    pub(super) async fn finished(self: &Rc<Self>, hub: &Rc<Hub>) {
        let was_there = hub.remove(self);
        self.silent.set(true);
        self.stop_reading();
        let place = self.turns.place();
        place.wait().await;
        if was_there {
            let reset = self.state.borrow().reset();
            hub.send_reset(reset);
        }
        drop(place);
        let draining = self.draining.take();
        if self.turns.is_over() || self.backlog.borrow().is_empty() {
            drop(draining);
            return self.end();
        }
        if let Some(draining) = draining {
            let (connection, handle) = (self.clone(), hub.handle.clone());
            hub.errand(async move { connection.linger(&handle, draining).await });
        }
    }

    async fn linger(&self, handle: &Handle, mut draining: Task<()>) {
        loop {
            let held = self.state.borrow().held();
            match handle.timeout(LINGER_LIMIT, &mut draining).await {
                None if self.state.borrow().held() < held => {}
                None => {
                    let held = self.state.borrow().held();
                    log::debug!("port {}: {held} bytes that nobody took", self.ports.host);
                    break;
                }
                Some(()) => break,
            }
        }
        drop(draining);
        self.end();
    }

    /// The guest has said yes: the program of the host hears so before anything else (the
    /// convention of Firecracker and cloud-hypervisor).
    pub(super) async fn opened(self: &Rc<Self>, hub: &Hub) {
        let place = self.turns.place();
        if !place.wait().await {
            return;
        }
        let stream = self.stream.borrow().clone();
        let Some(stream) = stream else { return };
        let line = Bytes::from(format!("OK {}\n", self.ports.host).into_bytes());
        let length = line.as_slice().len();
        let (result, _line) = stream.send(line).await;
        match result {
            // Nothing was sent before it, so there is room.
            Ok(count) if count == length => self.changed.notify(),
            _ => hub.reset(self),
        }
    }
}

/// What has become of a receive buffer.
enum Filled {
    /// It has data, or nothing to speak of; whether there may be more.
    Some { more: bool },
    /// The host sends no more.
    End,
}

async fn shut_down(hub: &Hub, stream: &Stream, half: Half) -> io::Result<()> {
    loop {
        match stream.shut_down(half).await {
            Err(error) if is_passing(&error) => hub.handle.sleep(PAUSE).await,
            // ENOTCONN: the host has gone before.
            Err(error) if Errno::from_io_error(&error) == Some(Errno::NOTCONN) => return Ok(()),
            other => return other,
        }
    }
}
