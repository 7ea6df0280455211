//! The other end of a port: a descriptor that is there until it breaks, or one that comes and goes
//! (a client, a server that restarts, whoever opens a terminal). What is read and written there is
//! [`super::input`]'s and [`super::output`]'s.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::OwnedFd;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use futures_util::future::poll_immediate;
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

/// The present connection to the other end.
#[derive(Clone)]
pub(super) struct Connection {
    pub(super) file: File,
    /// Tells it from those before it.
    pub(super) generation: u64,
}

/// The other end, as it is now.
pub(super) struct Link {
    handle: Handle,
    current: RefCell<Option<File>>,
    generation: Cell<u64>,
    kind: Kind,
    changed: Notify,
    /// Of the whole device: ports have opened or closed.
    news: Rc<Notify>,
    /// Names the port in the log.
    label: String,
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
    /// A link to `end`, and what has to run for it.
    pub(super) fn new(
        handle: &Handle,
        end: End,
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
            current: RefCell::default(),
            generation: Cell::new(0),
            kind,
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
                self.current.replace(Some(File::new(&handle, fd)));
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

    /// The present connection.
    pub(super) fn current(&self) -> Option<Connection> {
        let file = self.current.borrow().clone()?;
        let generation = self.generation.get();
        Some(Connection { file, generation })
    }

    /// Whether somebody is there.
    pub(super) fn is_open(&self) -> bool {
        self.current.borrow().is_some()
    }

    /// How many connections there were before the present one, or before the next.
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

    /// Completes when a connection has come or gone.
    pub(super) fn changed(&self) -> impl Future<Output = ()> + '_ {
        self.changed.notified()
    }

    /// Completes once there is a connection.
    pub(super) async fn present(&self) {
        while !self.is_open() {
            self.changed().await;
        }
    }

    /// Gives a connection up; nothing happens if it is another one already.
    pub(super) fn lose(&self, generation: u64) {
        if self.generation.get() == generation && self.current.take().is_some() {
            self.generation.set(generation + 1);
            self.tell();
        }
    }

    fn set(&self, file: File) {
        self.current.replace(Some(file));
        self.tell();
    }

    fn tell(&self) {
        self.changed.notify();
        self.news.notify();
    }

    /// Until the present connection is gone: hung up by its other side, or lost by ours.
    async fn until_gone(&self) {
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
        self.lose(generation);
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
            if is_open(&handle, &master).await {
                log::info!("{}the terminal has been opened", self.label);
                self.set(master.clone());
                self.until_gone().await;
                log::info!("{}the terminal has been closed", self.label);
            }
            let _ = opens.readable().await;
            let (read, buffer) = opens.read(events).await;
            events = buffer;
            if let Err(error) = read {
                log::debug!("{}inotify: {error}", self.label);
                handle.sleep(RETRY_MIN).await;
            }
        }
    }
}

/// Whether somebody has this terminal open. The kernel answers at once that nobody has, when the
/// ring is entered at the end of a turn, and else not.
async fn is_open(handle: &Handle, master: &File) -> bool {
    let mut hung_up = master.hung_up();
    for _ in 0..2 {
        if poll_immediate(&mut hung_up).await.is_some() {
            return false;
        }
        handle.yield_now().await;
    }
    poll_immediate(hung_up).await.is_none()
}
