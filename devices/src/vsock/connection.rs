//! One connection and its socket, from the opening to the end. What goes from the host to the guest
//! is `reading`'s, what goes from the guest to the host is `sending`'s.

mod reading;
mod sending;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use vudev_executor::{Half, Notify, Stream, Task};
use vudev_virtio::GuestBuffers;

use self::reading::Buffer;
pub(super) use self::reading::Lent;
use super::backlog::Backlog;
use super::hub::Hub;
use super::packet::{Header, Ports};
use super::state::{Phase, State};
use super::turns::Turns;
use crate::passing::{PAUSE, is_passing};

/// How long a guest may take to say yes or no to a program of the host.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// How long a guest may take to reset a connection that has ended, before we do: as Linux has it
/// (`VSOCK_CLOSE_TIMEOUT`).
const CLOSE_LIMIT: Duration = Duration::from_secs(8);

/// A connection.
pub(super) struct Connection {
    pub(super) ports: Ports,
    pub(super) state: RefCell<State>,
    pub(super) begun: Instant,
    /// It stands in the hub's line.
    pub(super) queued: Cell<bool>,
    /// Its end has been told to the guest, and something goes on to the host.
    silent: Cell<bool>,
    buffer: RefCell<Buffer>,
    /// Tells the task that reads of: an answer, a receive buffer, credit, the guest's end.
    pub(super) changed: Notify,
    /// The order of what is sent to the host. Over when the connection is.
    pub(super) turns: Turns,
    /// Data of the guest's whose turn to be sent has not come, and in which place it waits.
    waiting: RefCell<VecDeque<(u64, GuestBuffers)>>,
    stream: RefCell<Option<Stream>>,
    backlog: RefCell<Backlog>,
    /// What a program of the host said at once with its greeting.
    early: RefCell<Vec<u8>>,
    reading: RefCell<Option<Task<()>>>,
    draining: RefCell<Option<Task<()>>>,
}

impl Connection {
    /// One that the guest asks for.
    pub(super) fn asked(hub: &Hub, request: &Header) -> Rc<Self> {
        let state = State::asked(hub.guest_cid, request, hub.buffer());
        Self::new(hub, request.ports(), state, None, Vec::new())
    }

    /// One that the host asks for.
    pub(super) fn offered(hub: &Hub, port: u32, stream: Stream, early: Vec<u8>) -> Rc<Self> {
        let ports = hub.free_ports(port);
        let state = State::offered(hub.guest_cid, ports, hub.buffer());
        Self::new(hub, ports, state, Some(stream), early)
    }

    fn new(
        hub: &Hub,
        ports: Ports,
        state: State,
        stream: Option<Stream>,
        early: Vec<u8>,
    ) -> Rc<Self> {
        let buffer = state.buffer() as usize;
        Rc::new(Self {
            ports,
            state: RefCell::new(state),
            begun: hub.handle.now(),
            queued: Cell::new(false),
            silent: Cell::new(false),
            buffer: RefCell::default(),
            changed: Notify::new(),
            turns: Turns::default(),
            waiting: RefCell::default(),
            stream: RefCell::new(stream),
            backlog: RefCell::new(Backlog::of(buffer)),
            early: RefCell::new(early),
            reading: RefCell::default(),
            draining: RefCell::default(),
        })
    }

    /// The task that leads it, in place of the one before.
    pub(super) fn set_task(&self, task: Task<()>) {
        let before = self.reading.replace(Some(task));
        drop(before);
    }

    /// Lets go of everything, but for a receive buffer that is with it: that comes back first. What
    /// is left of it may stand in a line for long.
    pub(super) fn end(&self) {
        self.turns.end();
        let waiting = self.waiting.take();
        drop(waiting);
        self.stop_reading();
        self.close_stream();
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

    /// Whether the guest is to hear nothing more of it.
    pub(super) fn is_done(&self) -> bool {
        self.silent.get() || self.turns.is_over()
    }
}

async fn shut_down(hub: &Hub, turns: &Turns, stream: &Stream, half: Half) -> io::Result<()> {
    loop {
        match stream.shut_down(half).await {
            // A connection that is over is closed anyway, and others wait behind this.
            Err(error) if is_passing(&error) && !turns.is_over() => {
                hub.handle.sleep(PAUSE).await;
            }
            // ENOTCONN: the host has gone before.
            Err(error) if Errno::from_io_error(&error) == Some(Errno::NOTCONN) => return Ok(()),
            other => return other,
        }
    }
}
