//! The event loop of a device's process: one front-end after another on the same listener, until
//! the supervisor says stop. What a front-end says is the session's business.

use std::future::Future;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::{Either, select};
use vudev_executor::{Handle, Latch};
use vudev_transports::Session;
use vudev_transports::unix::{Listener, UnixTransport};
use vudev_virtio::Device;

use crate::kind::{DeviceKind, Notice};

/// How long requests in flight may take to end at a stop. Less than the supervisor's deadline, so
/// that a slow disk is reported as such and not as a hung device.
pub(crate) const DRAIN_LIMIT: Duration = Duration::from_millis(1200);

/// How long to wait after a failed accept: its causes (no descriptors, no memory) do not go away
/// at once, and the listener stays readable meanwhile.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Requests were still in flight when [`DRAIN_LIMIT`] had passed.
#[derive(Debug, thiserror::Error)]
#[error("requests were still in flight {} ms after the stop", DRAIN_LIMIT.as_millis())]
pub(crate) struct Undrained;

/// A device without its type.
pub(crate) trait Served {
    /// `Identity::operations`.
    fn operations(&self) -> u32;

    /// [`DeviceKind::hear`].
    fn hear(&self, notice: Notice);

    /// Serves front-ends until `stop`.
    fn serve(self: Rc<Self>, handle: Handle, listener: Listener, stop: Rc<Latch>) -> Serve;
}

/// The future of [`Served::serve`].
pub(crate) type Serve = Pin<Box<dyn Future<Output = Result<(), Undrained>>>>;

/// A device with its type.
pub(crate) struct Serving<K: DeviceKind> {
    device: Rc<K::Device>,
}

impl<K: DeviceKind> Serving<K> {
    pub(crate) fn new(device: K::Device) -> Self {
        Self {
            device: Rc::new(device),
        }
    }

    /// One front-end, from its connect to its leave.
    async fn attend(
        &self,
        handle: &Handle,
        transport: UnixTransport,
        stop: &Latch,
    ) -> Result<(), Undrained> {
        let session = Session::new(handle, transport, Rc::clone(&self.device));
        let stopper = session.stopper();
        let mut run = pin!(session.run());
        let ended = match select(run.as_mut(), stop.wait()).await {
            Either::Left((ended, _)) => ended,
            Either::Right(((), _)) => {
                stopper.stop();
                handle.timeout(DRAIN_LIMIT, run).await.ok_or(Undrained)?
            }
        };
        match ended {
            Ok(()) => log::info!("the front-end has left"),
            Err(error) => log::warn!("the connection has ended: {error}"),
        }
        Ok(())
    }
}

impl<K: DeviceKind> Served for Serving<K> {
    fn operations(&self) -> u32 {
        self.device.identity().operations
    }

    fn hear(&self, notice: Notice) {
        K::hear(&self.device, notice);
    }

    fn serve(self: Rc<Self>, handle: Handle, listener: Listener, stop: Rc<Latch>) -> Serve {
        Box::pin(async move {
            loop {
                match select(pin!(listener.accept()), stop.wait()).await {
                    Either::Left((Ok(transport), _)) => {
                        log::info!("a front-end has connected");
                        self.attend(&handle, transport, &stop).await?;
                    }
                    Either::Left((Err(error), _)) => {
                        log::error!("accept: {error}");
                        handle.sleep(ACCEPT_PAUSE).await;
                    }
                    Either::Right(((), _)) => return Ok(()),
                }
            }
        })
    }
}
