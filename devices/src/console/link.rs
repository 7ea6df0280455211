//! The other end of a port: a descriptor that is there until it breaks, or one that comes and goes
//! (a client, a server that restarts, whoever opens a terminal). What is read and written there is
//! [`super::input`]'s and [`super::output`]'s.
//!
//! Who comes, says something and leaves at once has said it: the connection takes no more output,
//! but stays until its input is read to the end, or the guest reads none of it for a while. Only
//! then the port closes, and the next one is served.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::OwnedFd;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use futures_util::future::{poll_immediate, select};
use rustix::io::Errno;
use vudev_executor::{Bytes, File, Handle, Notify, Socket};

/// Asks somebody outside of the jail for a connected socket: a device cannot connect by itself.
pub type Connect = Box<dyn Fn() -> Connecting>;

/// What a [`Connect`] gives.
pub type Connecting = Pin<Box<dyn Future<Output = io::Result<OwnedFd>>>>;

/// How long to wait before a connection is asked for again: at first, and at most. A logger that
/// restarts is away for a moment, one that was never installed for ever.
const RETRY_MIN: Duration = Duration::from_millis(20);
const RETRY_MAX: Duration = Duration::from_secs(1);

/// How often a peer that has shut down its sending side is looked after: the kernel tells of that
/// again and again, and so cannot be waited for with what comes after it.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// How long a connection that has left stays for a guest that takes nothing of its input: long
/// beside a busy guest's pauses, and short for whoever waits to be the next.
const UNREAD_LIMIT: Duration = Duration::from_secs(5);

/// Bytes of inotify events read at once. What they say does not matter, only that there are some.
const EVENTS_BYTES: usize = 1024;

/// The other end of a port.
pub enum End {
    /// There is none, and what is written is thrown away.
    Nothing,
    /// A file, pipe, terminal or device.
    File(OwnedFd),
    /// A socket that is made by somebody else, again and again.
    Connect(Connect),
    /// A listening stream socket, whose clients are served one after the other.
    Listen(OwnedFd),
    /// A pseudo-terminal of our own that anybody may open.
    Terminal {
        /// Its master, with O_NONBLOCK. Nobody here has the slave open, so that the master says
        /// whether anybody has.
        master: OwnedFd,
        /// An inotify descriptor, with O_NONBLOCK, that tells when the slave is opened.
        opens: OwnedFd,
    },
}

/// A connection to the other end.
#[derive(Clone)]
pub(super) struct Connection {
    pub(super) file: File,
    /// Tells it from those before it.
    pub(super) generation: u64,
}

/// The other end, as it is now.
pub(super) struct Link {
    handle: Handle,
    presence: RefCell<Presence>,
    /// Of the present connection that takes output, or else of the next.
    generation: Cell<u64>,
    kind: Kind,
    /// Somebody reads its input.
    is_read: bool,
    /// The last connection whose input has ended. It may take output still.
    input_ended: Cell<Option<u64>>,
    /// A read is on its way: what it takes is not the guest's yet.
    is_reading: Cell<bool>,
    changed: Notify,
    /// Of the whole device: ports have opened or closed.
    news: Rc<Notify>,
    /// Names the port in the log.
    label: String,
}

/// Who is at the other end.
#[derive(Default)]
enum Presence {
    #[default]
    Nobody,
    /// It takes output, and gives input.
    There(Connection),
    /// It takes no more output, and its input is not read to the end yet.
    Leaving(Connection),
}

/// How an end comes to be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// From the beginning, and once gone, for ever.
    Fixed,
    /// It is looked for.
    Sought,
    /// It comes when it likes.
    Awaited,
}

/// What keeps a link: a task of the device's.
pub(super) type Keeper = Pin<Box<dyn Future<Output = ()>>>;

impl Link {
    /// A link to `end`, whose input somebody reads if `is_read`, and what has to run for it.
    pub(super) fn new(
        handle: &Handle,
        end: End,
        is_read: bool,
        news: &Rc<Notify>,
        label: String,
    ) -> (Rc<Self>, Option<Keeper>) {
        let kind = match end {
            End::Nothing | End::File(_) => Kind::Fixed,
            End::Connect(_) => Kind::Sought,
            End::Listen(_) | End::Terminal { .. } => Kind::Awaited,
        };
        let link = Rc::new(Self {
            handle: handle.clone(),
            presence: RefCell::default(),
            generation: Cell::new(0),
            kind,
            is_read,
            input_ended: Cell::new(None),
            is_reading: Cell::new(false),
            changed: Notify::new(),
            news: Rc::clone(news),
            label,
        });
        let keeper = Rc::clone(&link).begin(handle.clone(), end);
        (link, keeper)
    }

    /// Takes up its end, and gives what has to run for it.
    fn begin(self: Rc<Self>, handle: Handle, end: End) -> Option<Keeper> {
        match end {
            End::Nothing => None,
            End::File(fd) => {
                self.set(File::new(&handle, fd));
                None
            }
            End::Connect(connect) => Some(Box::pin(self.keep_connected(handle, connect))),
            End::Listen(listener) => {
                let listener = Socket::new(&handle, listener);
                Some(Box::pin(self.keep_accepting(handle, listener)))
            }
            End::Terminal { master, opens } => {
                let (master, opens) = (File::new(&handle, master), File::new(&handle, opens));
                Some(Box::pin(self.keep_terminal(handle, master, opens)))
            }
        }
    }

    /// The connection that takes output.
    pub(super) fn current(&self) -> Option<Connection> {
        match &*self.presence.borrow() {
            Presence::There(connection) => Some(connection.clone()),
            Presence::Nobody | Presence::Leaving(_) => None,
        }
    }

    /// The connection that gives input.
    pub(super) fn input(&self) -> Option<Connection> {
        let presence = self.presence.borrow();
        let connection = match &*presence {
            Presence::Nobody => return None,
            Presence::There(connection) | Presence::Leaving(connection) => connection,
        };
        (self.input_ended.get() != Some(connection.generation)).then(|| connection.clone())
    }

    /// Whether somebody is there, or what somebody has said.
    pub(super) fn is_open(&self) -> bool {
        !matches!(*self.presence.borrow(), Presence::Nobody)
    }

    /// How many connections there were before the one that takes output, or before the next.
    pub(super) fn generation(&self) -> u64 {
        self.generation.get()
    }

    /// Whether a connection may come yet.
    pub(super) fn may_come(&self) -> bool {
        self.kind != Kind::Fixed
    }

    /// Whether a connection is being looked for, so that it may come very soon.
    pub(super) fn is_sought(&self) -> bool {
        self.kind == Kind::Sought
    }

    /// Completes when a connection has come or gone, or one that has gone has been read on.
    pub(super) fn changed(&self) -> impl Future<Output = ()> + '_ {
        self.changed.notified()
    }

    /// Completes once there is a connection that takes output.
    pub(super) async fn present(&self) {
        while self.current().is_none() {
            self.changed().await;
        }
    }

    /// Gives a connection up for output; nothing happens if it is another one already.
    pub(super) fn leave(&self, generation: u64) {
        let Some(connection) = self.current() else {
            return;
        };
        if connection.generation != generation {
            return;
        }
        let is_unread = self.is_read && self.input_ended.get() != Some(generation);
        let next = match self.kind {
            Kind::Sought | Kind::Awaited if is_unread => Presence::Leaving(connection),
            Kind::Fixed | Kind::Sought | Kind::Awaited => Presence::Nobody,
        };
        self.presence.replace(next);
        self.generation.set(generation + 1);
        self.tell();
    }

    /// A read of the input begins.
    pub(super) fn reading(&self) {
        self.is_reading.set(true);
    }

    /// It has ended; what it took is the guest's.
    pub(super) fn read(&self, took_some: bool) {
        self.is_reading.set(false);
        if took_some && self.leaving().is_some() {
            self.changed.notify();
        }
    }

    /// A connection's input has been read to its end.
    pub(super) fn end_input(&self, generation: u64) {
        self.input_ended.set(Some(generation));
        let left = self.leaving();
        if left.is_some_and(|left| left.generation == generation) {
            self.forget();
        }
    }

    fn leaving(&self) -> Option<Connection> {
        match &*self.presence.borrow() {
            Presence::Leaving(connection) => Some(connection.clone()),
            Presence::Nobody | Presence::There(_) => None,
        }
    }

    /// Ends the input of a connection that has left.
    fn forget(&self) {
        if self.leaving().is_some() {
            self.presence.take();
            self.tell();
        }
    }

    fn set(&self, file: File) {
        let generation = self.generation.get();
        let connection = Connection { file, generation };
        self.presence.replace(Presence::There(connection));
        self.tell();
    }

    fn tell(&self) {
        self.changed.notify();
        self.news.notify();
    }

    /// Until the present connection has left: hung up by its other side, or given up by our output.
    async fn until_left(&self) {
        let Some(Connection { file, generation }) = self.current() else {
            return;
        };
        let lost = async {
            while self.generation.get() == generation {
                self.changed().await;
            }
        };
        let hung_up = async {
            // A side that will only read is there still, and asked after now and then.
            while let Ok(false) = file.hung_up().await {
                self.handle.sleep(LOOK_AGAIN).await;
            }
        };
        let (mut hung_up, mut lost) = (pin!(hung_up), pin!(lost));
        poll_fn(|cx| {
            let ended = hung_up.as_mut().poll(cx).is_ready();
            if ended || lost.as_mut().poll(cx).is_ready() {
                return Poll::Ready(());
            }
            Poll::Pending
        })
        .await;
        self.leave(generation);
    }

    /// Until the input of a connection that has left is read to its end, or given up.
    async fn until_read(&self) {
        while let Some(Connection { file, .. }) = self.leaving() {
            // From here on, so that none is missed while the kernel is asked.
            let changed = self.changed();
            // Who only takes no more may say more.
            let is_gone = !is_open(&self.handle, &file).await;
            if is_gone && !self.is_reading.get() && !has_unread(&self.handle, &file).await {
                break;
            }
            let read_on = self.handle.timeout(UNREAD_LIMIT, changed).await;
            if read_on.is_none() {
                if has_unread(&self.handle, &file).await {
                    log::warn!(
                        "{}the guest has not read the input to its end: it has taken nothing of it \
                         for {UNREAD_LIMIT:?}",
                        self.label
                    );
                }
                break;
            }
        }
        self.forget();
    }

    /// Until the present connection has left, and nothing of it is left.
    async fn until_gone(&self) {
        self.until_left().await;
        self.until_read().await;
    }

    async fn keep_connected(self: Rc<Self>, handle: Handle, connect: Connect) {
        let mut pause = RETRY_MIN;
        loop {
            match connect().await {
                Ok(socket) => {
                    log::info!("{}connected to the other end", self.label);
                    pause = RETRY_MIN;
                    self.set(File::new(&handle, socket));
                    self.until_gone().await;
                    log::info!("{}the other end is gone", self.label);
                }
                Err(error) if pause == RETRY_MIN => {
                    log::warn!(
                        "{}the other end cannot be reached, and is tried again until somebody \
                         listens at its path: {error}",
                        self.label
                    );
                }
                Err(error) => log::debug!("{}the other end cannot be reached: {error}", self.label),
            }
            handle.sleep(pause).await;
            pause = (pause * 2).min(RETRY_MAX);
        }
    }

    async fn keep_accepting(self: Rc<Self>, handle: Handle, listener: Socket) {
        loop {
            match listener.accept().await {
                Ok(client) => {
                    log::info!("{}a client has come", self.label);
                    self.set(File::new(&handle, client));
                    self.until_gone().await;
                    log::info!("{}the client has left", self.label);
                }
                Err(error) => {
                    log::warn!("{}accept: {error}", self.label);
                    handle.sleep(RETRY_MAX).await;
                }
            }
        }
    }

    async fn keep_terminal(self: Rc<Self>, handle: Handle, master: File, opens: File) {
        let mut events = Bytes::zeroed(EVENTS_BYTES);
        loop {
            while !is_open(&handle, &master).await {
                let _ = opens.readable().await;
                let (read, buffer) = opens.read(events).await;
                events = buffer;
                if let Err(error) = read {
                    log::debug!("{}inotify: {error}", self.label);
                    handle.sleep(RETRY_MIN).await;
                }
                // Whoever opened it may have closed it already.
                if self.is_read && has_unread(&handle, &master).await {
                    break;
                }
            }
            log::info!("{}the terminal has been opened", self.label);
            self.set(master.clone());
            self.until_left().await;
            // What was opened until here is open still, or has left its input with the others'.
            // (A read of none would wait for the next, whatever the descriptor's flags say.)
            if at_once(&handle, opens.readable()).await.is_some() {
                (_, events) = opens.read(events).await;
            }
            // The next one's input comes behind it, by the same descriptor.
            select(pin!(self.until_read()), opens.readable()).await;
            self.forget();
            log::info!("{}the terminal has been closed", self.label);
        }
    }
}

/// Whether somebody has this terminal, or the other side of this socket, open. The kernel answers
/// at once that nobody has, when the ring is entered at the end of a turn, and else not.
async fn is_open(handle: &Handle, file: &File) -> bool {
    at_once(handle, file.hung_up()).await.is_none()
}

/// Whether there is something to read now.
async fn has_unread(handle: &Handle, file: &File) -> bool {
    match file.has_unread().await {
        Ok(has_unread) => has_unread,
        Err(error) if Errno::from_io_error(&error) == Some(Errno::NOTSOCK) => {
            matches!(at_once(handle, file.has_input()).await, Some(Ok(true)))
        }
        Err(_) => false,
    }
}

/// What the kernel answers at once.
async fn at_once<F: Future + Unpin>(handle: &Handle, mut asked: F) -> Option<F::Output> {
    for _ in 0..2 {
        if let Some(answer) = poll_immediate(&mut asked).await {
            return Some(answer);
        }
        handle.yield_now().await;
    }
    poll_immediate(asked).await
}
