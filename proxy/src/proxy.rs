//! The whole: a socket for the VMM of the device VM, a socket for the front-end of the driver VM,
//! and the function between them. One client and one front-end at a time; the next wait in the
//! backlogs.

use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use futures_util::future::poll_fn;
use vudev_executor::{Handle, Latch, Socket};
use vudev_virtio::install_sigbus_guard;

use crate::device::{Device, SharedMemory, SharedMemoryError};
use crate::pci::Identity;
use crate::vfio_user;
use crate::vhost_user::{self, SessionError};

/// Operations that a proxy has under way at once, at most: the kicks of all queues, and both ends'
/// sockets.
pub const OPERATIONS: u32 = 96;

/// Between two tries to accept where the kernel has refused: it is out of descriptors or memory.
const ACCEPT_INTERVAL: Duration = Duration::from_secs(1);

/// What a proxy is made of.
pub struct Parts {
    /// A listening Unix stream socket, for the VMM of the device VM.
    pub clients: OwnedFd,
    /// The driver VM's memory.
    pub shared_memory: SharedMemory,
    /// Which PCI device it says it is.
    pub identity: Identity,
    /// Which device of several, for the driver to tell; all zeros say nothing.
    pub uuid: [u8; 16],
}

/// Why a proxy cannot start.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// The driver VM's memory cannot be shown.
    #[error(transparent)]
    SharedMemory(#[from] SharedMemoryError),
    /// No guard against files that shrink.
    #[error("the SIGBUS handler: {0}")]
    Guard(#[source] io::Error),
}

/// A proxy. Several may share an executor.
pub struct Proxy {
    device: Rc<Device>,
    clients: Socket,
}

impl Proxy {
    /// A proxy that nobody is connected to.
    ///
    /// # Errors
    ///
    /// When the memory of the driver VM cannot be shown. Later there are no errors but for those
    /// of one client or one front-end, which the log tells.
    pub fn new(handle: &Handle, parts: Parts) -> Result<Self, ProxyError> {
        let Parts {
            clients,
            shared_memory,
            identity,
            uuid,
        } = parts;
        install_sigbus_guard().map_err(ProxyError::Guard)?;
        Ok(Self {
            device: Device::new(handle, identity, uuid, shared_memory)?,
            clients: Socket::new(handle, clients),
        })
    }

    /// Serves for ever. `front_ends` is a listening Unix stream socket, for those of the driver VM.
    ///
    /// Dropped, it closes all connections at once.
    pub async fn run(&self, front_ends: OwnedFd) {
        let Self { device, clients } = self;
        let handle = device.handle().clone();
        let front_ends = Socket::new(&handle, front_ends);
        let sessions = handle.spawn(serve_front_ends(device.clone(), front_ends));
        loop {
            let connection = accept(device, clients).await;
            let end = vfio_user::serve(&handle, connection, &**device).await;
            let was_client = device.client_left();
            match end {
                Ok(()) if was_client => log::info!("the device VM's VMM has left"),
                Ok(()) => log::debug!("somebody looked whether a proxy listens"),
                Err(error) => device.complain(format_args!("the vfio-user client: {error}")),
            }
            debug_assert!(!sessions.is_finished(), "front-ends are served for ever");
        }
    }
}

/// One front-end after the other, each when the driver is ready for it.
async fn serve_front_ends(device: Rc<Device>, listening: Socket) {
    loop {
        let connection = accept(&device, &listening).await;
        let over = if device.is_backend_up() {
            log::info!("a front-end has connected, and is served");
            device.wait_backend_up().await
        } else {
            log::info!("a front-end has connected, and waits for vudev in the device VM");
            let over = device.wait_backend_up().await;
            log::info!("the front-end is served");
            over
        };
        device.front_end_up();
        device.take_traps();
        let session = vhost_user::serve(&device, connection);
        let ended = until(&over, pin!(session)).await;
        log::debug!("traps of this session: {}", device.take_traps());
        let Some(error) = ended else {
            log::info!("the front-end's session is over: vudev in the device VM has ended it");
            continue;
        };
        match error {
            SessionError::Driver(_) | SessionError::Transmission(_) => {
                log::info!("the front-end has lost its device");
                device.needs_reset(&error);
            }
            SessionError::Left => {
                log::info!("the front-end has left");
                device.front_end_left();
            }
            _ => {
                // Not rarer than the line of its coming.
                log::warn!("the front-end has left: {error}");
                device.front_end_left();
            }
        }
    }
}

/// The next connection.
async fn accept(device: &Device, listening: &Socket) -> OwnedFd {
    loop {
        match listening.accept().await {
            Ok(connection) => return connection,
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                device.complain(format_args!("accept: {error}"));
                device.handle().sleep(ACCEPT_INTERVAL).await;
            }
        }
    }
}

/// `future`'s output, or `None` once `over` is set: then it is not polled again.
async fn until<F: Future>(over: &Latch, mut future: Pin<&mut F>) -> Option<F::Output> {
    let mut over = over.wait();
    poll_fn(|cx| match Pin::new(&mut over).poll(cx) {
        Poll::Ready(()) => Poll::Ready(None),
        Poll::Pending => future.as_mut().poll(cx).map(Some),
    })
    .await
}
