//! All connections of one device, and the order in which the guest hears of them: each that has
//! something for it stands once in one line, whatever it is, so that none waits for more than one
//! packet of every other.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use vudev_executor::{Handle, Notify, Task};
use vudev_virtio::{Chain, Queue};

use super::CONNECTIONS_MAX;
use super::connection::Connection;
use super::credit::{BUFFER_MAX, BUFFER_MIN};
use super::packet::{Header, Op, Ports};

/// How a port of the host is connected to.
pub type Connect = Box<dyn Fn(u32) -> Pin<Box<dyn Future<Output = io::Result<OwnedFd>>>>>;

/// While there are fewer connections than this, one that is new is given the larger buffer.
const LARGE_BUFFERS: usize = 256;

/// Resets that wait for a receive buffer at most. A guest that gives none and asks for more is not
/// answered.
const RESETS_MAX: usize = 1024;

/// How long a line may get before those are left out whose connection has ended: a guest that takes
/// no packets, or ends its connections faster than the host grants them, makes it no longer. Less
/// than half of this can be waiting for anything.
const LINE_MAX: usize = 2 * (CONNECTIONS_MAX + RESETS_MAX);

/// Connections that the supervisor is asked for at once: they fit into its channel.
const ASKED_MAX: usize = 64;

/// How long a host program's full backlog is borne, or a busy supervisor.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// And how often it is tried again.
const CONNECT_PAUSE: Duration = Duration::from_millis(10);

/// The first port that stands for a program of the host that connects by itself: far from those
/// that programs listen on.
const FIRST_PORT: u32 = 1 << 30;

/// The state that all queues share.
pub(super) struct Hub {
    pub(super) handle: Handle,
    pub(super) guest_cid: u64,
    connect: Connect,
    connections: RefCell<HashMap<Ports, Rc<Connection>>>,
    /// What has no connection: greetings, and data that outlives its connection.
    errands: RefCell<HashMap<u64, Task<()>>>,
    next_errand: Cell<u64>,
    line: RefCell<VecDeque<Work>>,
    resets: Cell<usize>,
    /// Receive buffers that connections have filled.
    filled: RefCell<Vec<(Chain, u32)>>,
    /// How many receive buffers are with connections.
    lent: Cell<usize>,
    /// The receive queue is told of all of this.
    pub(super) news: Notify,
    /// Whether there is a driver that can hear of a connection.
    pub(super) running: Cell<bool>,
    asked: Cell<usize>,
    to_ask: RefCell<VecDeque<Rc<Connection>>>,
    next_port: Cell<u32>,
}

/// What the guest is to hear.
pub(super) enum Work {
    /// A reset of what is no connection.
    Reset(Header),
    /// Whatever the connection has for it.
    Of(Rc<Connection>),
}

impl Work {
    fn is_over(&self) -> bool {
        match self {
            Self::Reset(_) => false,
            Self::Of(connection) => connection.is_done(),
        }
    }
}

impl Hub {
    pub(super) fn new(handle: &Handle, guest_cid: u32, connect: Connect) -> Self {
        Self {
            handle: handle.clone(),
            guest_cid: guest_cid.into(),
            connect,
            connections: RefCell::default(),
            errands: RefCell::default(),
            next_errand: Cell::new(0),
            line: RefCell::default(),
            resets: Cell::new(0),
            filled: RefCell::default(),
            lent: Cell::new(0),
            news: Notify::new(),
            running: Cell::new(false),
            asked: Cell::new(0),
            to_ask: RefCell::default(),
            next_port: Cell::new(FIRST_PORT),
        }
    }

    pub(super) fn find(&self, ports: Ports) -> Option<Rc<Connection>> {
        self.connections.borrow().get(&ports).cloned()
    }

    /// Whether one more connection would be too many.
    pub(super) fn is_full(&self) -> bool {
        self.count() >= CONNECTIONS_MAX
    }

    /// How much the next connection may keep of what its guest sends.
    pub(super) fn buffer(&self) -> u32 {
        match self.count() < LARGE_BUFFERS {
            true => BUFFER_MAX,
            false => BUFFER_MIN,
        }
    }

    fn count(&self) -> usize {
        self.connections.borrow().len() + self.errands.borrow().len()
    }

    pub(super) fn insert(&self, connection: &Rc<Connection>) {
        let mut connections = self.connections.borrow_mut();
        connections.insert(connection.ports, connection.clone());
    }

    /// Ports for a connection that the host begins to the guest's `port`.
    pub(super) fn free_ports(&self, port: u32) -> Ports {
        let connections = self.connections.borrow();
        loop {
            let host = self.next_port.get();
            self.next_port.set(FIRST_PORT | ((host + 1) % FIRST_PORT));
            let ports = Ports { host, guest: port };
            // There are more ports than connections.
            if !connections.contains_key(&ports) {
                return ports;
            }
        }
    }

    /// The guest has something to hear of this connection.
    pub(super) fn enqueue(&self, connection: &Rc<Connection>) {
        if !connection.is_done() && !connection.queued.replace(true) {
            let work = Work::Of(connection.clone());
            push(&self.line, work, Work::is_over);
            self.news.notify();
        }
    }

    /// The same, if it is owed a packet.
    pub(super) fn enqueue_if_owed(&self, connection: &Rc<Connection>) {
        if connection.state.borrow().owes() {
            self.enqueue(connection);
        }
    }

    /// The guest is to get this reset, if there is room for it.
    pub(super) fn send_reset(&self, reset: Header) {
        if self.resets.get() >= RESETS_MAX {
            return log::debug!("a guest that takes no resets causes too many");
        }
        self.resets.set(self.resets.get() + 1);
        self.line.borrow_mut().push_back(Work::Reset(reset));
        self.news.notify();
    }

    /// Answers a packet that has no connection, or cannot have one.
    pub(super) fn refuse(&self, packet: &Header) {
        if packet.op != Op::Reset {
            self.send_reset(packet.reset_of());
        }
    }

    /// Ends a connection, by a word to the guest.
    pub(super) fn reset(&self, connection: &Connection) {
        if self.remove(connection) {
            let reset = connection.state.borrow().reset();
            self.send_reset(reset);
        }
        connection.end();
    }

    /// Ends a connection of which the guest knows no more.
    pub(super) fn forget(&self, connection: &Connection) {
        self.remove(connection);
        connection.end();
    }

    /// The guest may use its ports anew. Whether it was there.
    pub(super) fn remove(&self, connection: &Connection) -> bool {
        let mut connections = self.connections.borrow_mut();
        let Some(found) = connections.get(&connection.ports) else {
            return false;
        };
        let same = std::ptr::eq(Rc::as_ptr(found), connection);
        if same {
            connections.remove(&connection.ports);
        }
        same
    }

    /// Ends everything that is the driver's.
    pub(super) fn clear(&self) {
        self.to_ask.take();
        let connections = self.connections.take();
        connections.values().for_each(|it| it.end());
        self.line.take();
        self.resets.set(0);
        debug_assert!(self.lent.get() == 0, "no queue runs");
    }

    /// Does something beside all connections, which counts as one.
    pub(super) fn errand(self: &Rc<Self>, errand: impl Future<Output = ()> + 'static) {
        let number = self.next_errand.get();
        self.next_errand.set(number + 1);
        let hub = Rc::downgrade(self);
        let task = self.handle.spawn(async move {
            errand.await;
            if let Some(hub) = hub.upgrade() {
                let done = hub.errands.borrow_mut().remove(&number);
                drop(done);
            }
        });
        self.errands.borrow_mut().insert(number, task);
    }

    pub(super) fn has_work(&self) -> bool {
        !self.line.borrow().is_empty()
    }

    pub(super) fn next_work(&self) -> Option<Work> {
        let work = self.line.borrow_mut().pop_front()?;
        match &work {
            Work::Reset(_) => self.resets.set(self.resets.get() - 1),
            Work::Of(connection) => connection.queued.set(false),
        }
        Some(work)
    }

    /// A receive buffer goes to a connection.
    pub(super) fn lend(&self) {
        self.lent.set(self.lent.get() + 1);
    }

    /// It comes back with so many bytes.
    pub(super) fn give_back(&self, chain: Chain, written: u32) {
        self.lent.set(self.lent.get() - 1);
        self.filled.borrow_mut().push((chain, written));
        self.news.notify();
    }

    /// Hands what came back to the guest; how many are still out.
    pub(super) fn settle(&self, queue: &Queue) -> usize {
        for (chain, written) in self.filled.borrow_mut().drain(..) {
            queue.complete(chain, written);
        }
        self.lent.get()
    }

    /// Has the host connected for a connection, when its turn comes.
    pub(super) fn ask_host(self: &Rc<Self>, connection: Rc<Connection>) {
        if self.asked.get() >= ASKED_MAX {
            return push(&self.to_ask, connection, |it| it.is_done());
        }
        let asking = Asking::new(self);
        let hub = self.clone();
        let asker = connection.clone();
        let task = self.handle.spawn(async move {
            let answer = (hub.connect)(asker.ports.host).await;
            drop(asking);
            let waited = hub.handle.now() - asker.begun;
            match answer {
                Ok(socket) => asker.granted(hub, socket).await,
                Err(error) if may_pass(&error) && waited < CONNECT_LIMIT => {
                    hub.handle.sleep(CONNECT_PAUSE).await;
                    hub.ask_host(asker);
                }
                Err(error) => {
                    log::debug!("port {}: {error}", asker.ports.host);
                    hub.reset(&asker);
                }
            }
        });
        connection.set_task(task);
    }
}

/// Puts one more at the end of a line of [`LINE_MAX`].
fn push<T>(line: &RefCell<VecDeque<T>>, last: T, is_over: impl Fn(&T) -> bool) {
    let mut line = line.borrow_mut();
    if line.len() >= LINE_MAX {
        line.retain(|it| !is_over(it));
    }
    line.push_back(last);
}

/// A full backlog, or a full channel.
fn may_pass(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
}

/// One wish at the supervisor; the next is asked when it is over, however it ends.
struct Asking(Rc<Hub>);

impl Asking {
    fn new(hub: &Rc<Hub>) -> Self {
        hub.asked.set(hub.asked.get() + 1);
        Self(hub.clone())
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        let hub = &self.0;
        hub.asked.set(hub.asked.get() - 1);
        loop {
            let next = hub.to_ask.borrow_mut().pop_front();
            match next {
                Some(next) if next.is_done() => {}
                Some(next) => return hub.ask_host(next),
                None => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use vudev_executor::Executor;

    use super::super::packet::STREAM;
    use super::*;

    fn request(guest: u32) -> Header {
        Header {
            from: 3,
            to: 2,
            from_port: guest,
            to_port: 1,
            length: 0,
            kind: STREAM,
            op: Op::Request,
            flags: 0,
            buffer: 0,
            forwarded: 0,
        }
    }

    /// A hub whose supervisor never answers.
    fn hub(executor: &Executor) -> Rc<Hub> {
        let connect: Connect = Box::new(|_| Box::pin(pending()));
        Rc::new(Hub::new(executor.handle(), 3, connect))
    }

    fn connect(hub: &Rc<Hub>, port: u32) -> Rc<Connection> {
        let connection = Connection::asked(hub, &request(port));
        hub.insert(&connection);
        connection
    }

    #[test]
    fn connections_that_end_unheard_do_not_pile_up_where_a_guest_takes_no_packets() {
        let executor = Executor::with_operations(8).unwrap();
        let hub = hub(&executor);
        for port in 0..100_000 {
            let connection = connect(&hub, port);
            hub.enqueue(&connection);
            hub.forget(&connection);
            assert!(hub.line.borrow().len() <= LINE_MAX);
        }
        let live = connect(&hub, 1);
        hub.enqueue(&live);
        let last = std::iter::from_fn(|| hub.next_work()).last();
        assert!(matches!(last, Some(Work::Of(it)) if Rc::ptr_eq(&it, &live)));
    }

    #[test]
    fn the_first_connections_have_more_credit_than_those_behind_them() {
        let executor = Executor::with_operations(8).unwrap();
        let hub = hub(&executor);
        let buffer = |port| connect(&hub, port).state.borrow().buffer();
        assert!((0..256).all(|port| buffer(port) == BUFFER_MAX));
        assert_eq!(buffer(256), BUFFER_MIN);
        let first = hub.find(request(0).ports()).unwrap();
        hub.forget(&first);
        assert_eq!(buffer(257), BUFFER_MIN);
        hub.clear();
        assert_eq!(buffer(0), BUFFER_MAX);
    }

    #[test]
    fn connections_that_end_unasked_do_not_pile_up_behind_those_that_are_asked_for() {
        let executor = Executor::with_operations(8).unwrap();
        let hub = hub(&executor);
        let live: Vec<_> = (0..100).map(|port| connect(&hub, port)).collect();
        live.iter().for_each(|it| hub.ask_host(it.clone()));
        for port in 100..100_000 {
            let connection = connect(&hub, port);
            hub.ask_host(connection.clone());
            hub.forget(&connection);
            assert!(hub.to_ask.borrow().len() <= LINE_MAX);
        }
        let waiting = hub.to_ask.borrow();
        let waiting = waiting.iter().filter(|it| !it.is_done());
        assert_eq!(waiting.count(), live.len() - ASKED_MAX);
    }
}
