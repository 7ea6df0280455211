//! The event loop of a process that serves: one front-end after another through the same wire,
//! until the supervisor says stop. What a front-end says is the session's business, or the proxy's.

use std::fmt::Display;
use std::future::Future;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::{Either, select};
use vudev_executor::{Handle, Latch};
use vudev_proxy::pci::layout::VHOST_QUEUES_MAX;
use vudev_proxy::{OPERATIONS, Proxy};
use vudev_transports::{Session, Transport, unix};
use vudev_virtio::Device;

use super::wire::Wire;
use crate::kind::{DeviceKind, Notice};

/// How long requests in flight may take to end at a stop. Less than the supervisor's deadline, so
/// that a slow disk is reported as such and not as a hung device.
pub(crate) const DRAIN_LIMIT: Duration = Duration::from_millis(1200);

/// How long to wait after a failed accept, and after each further one twice as long: its causes (no
/// descriptors, no memory, a function whose other side is gone) do not go away at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
const ACCEPT_PAUSE_MAX: Duration = Duration::from_secs(2);

/// Why a device does not serve any more, if not as it was asked to.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    /// Requests were still in flight when [`DRAIN_LIMIT`] had passed.
    #[error("requests were still in flight {} ms after the stop", DRAIN_LIMIT.as_millis())]
    Undrained,
    /// The supervisor is another binary: it opens no function for what is to serve a socket.
    #[error("it serves front-ends at a socket only, and was given a function")]
    NoSocket,
}

/// What serves front-ends in a process of its own: a device without its type, or a proxy.
pub(crate) trait Served {
    /// Ring operations in flight at most; of a device, `Identity::operations`.
    fn operations(&self) -> u32;

    /// How many queues front-ends may use.
    fn queues(&self) -> u16;

    /// [`DeviceKind::hear`].
    fn hear(&self, notice: Notice);

    /// Serves front-ends until `stop`.
    fn serve(self: Rc<Self>, handle: Handle, wire: Wire, stop: Rc<Latch>) -> Serve;
}

/// The future of [`Served::serve`].
pub(crate) type Serve = Pin<Box<dyn Future<Output = Result<(), ServeError>>>>;

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

    /// Front-ends one after another, until `stop`.
    async fn attend<T: Transport, E: Display>(
        &self,
        handle: &Handle,
        stop: &Latch,
        accept: impl AsyncFn() -> Result<T, E>,
    ) -> Result<(), ServeError> {
        while let Some(transport) = next(handle, stop, &accept).await {
            log::info!("a front-end has connected");
            self.attend_to_one(handle, stop, transport).await?;
        }
        Ok(())
    }

    /// One front-end, from its connect to its leave.
    async fn attend_to_one(
        &self,
        handle: &Handle,
        stop: &Latch,
        transport: impl Transport,
    ) -> Result<(), ServeError> {
        let session = Session::new(handle, transport, Rc::clone(&self.device));
        let stopper = session.stopper();
        let mut run = pin!(session.run());
        let ended = match select(run.as_mut(), stop.wait()).await {
            Either::Left((ended, _)) => ended,
            Either::Right(((), _)) => {
                stopper.stop();
                let drained = handle.timeout(DRAIN_LIMIT, run).await;
                drained.ok_or(ServeError::Undrained)?
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

    fn queues(&self) -> u16 {
        let queues = self.device.identity().queue_sizes.len();
        u16::try_from(queues).unwrap_or(u16::MAX)
    }

    fn hear(&self, notice: Notice) {
        K::hear(&self.device, notice);
    }

    fn serve(self: Rc<Self>, handle: Handle, wire: Wire, stop: Rc<Latch>) -> Serve {
        Box::pin(async move {
            match wire {
                Wire::Socket(listening) => {
                    let listener = unix::Listener::new(&handle, listening);
                    let accept = async || listener.accept().await;
                    self.attend(&handle, &stop, accept).await
                }
                Wire::Function(listener) => {
                    let accept = async || listener.accept().await;
                    self.attend(&handle, &stop, accept).await
                }
            }
        })
    }
}

/// The next front-end, however often it takes; none after `stop`, which waits for no pause.
async fn next<T, E: Display>(
    handle: &Handle,
    stop: &Latch,
    accept: impl AsyncFn() -> Result<T, E>,
) -> Option<T> {
    let mut pause = ACCEPT_PAUSE;
    loop {
        match select(pin!(accept()), pin!(stop.wait())).await {
            Either::Left((Ok(transport), _)) => return Some(transport),
            Either::Left((Err(error), _)) => {
                log::error!("accept: {error}");
                let (mut paused, mut stopped) = (pin!(handle.sleep(pause)), pin!(stop.wait()));
                let ended = select(&mut paused, &mut stopped).await;
                if matches!(ended, Either::Right(_)) {
                    return None;
                }
                pause = (pause * 2).min(ACCEPT_PAUSE_MAX);
            }
            Either::Right(((), _)) => return None,
        }
    }
}

impl Served for Proxy {
    fn operations(&self) -> u32 {
        OPERATIONS
    }

    /// Those that a device of the device VM's may have.
    fn queues(&self) -> u16 {
        VHOST_QUEUES_MAX
    }

    /// Nothing that a notice tells of is a proxy's.
    fn hear(&self, _notice: Notice) {}

    fn serve(self: Rc<Self>, _handle: Handle, wire: Wire, stop: Rc<Latch>) -> Serve {
        Box::pin(async move {
            let Wire::Socket(front_ends) = wire else {
                return Err(ServeError::NoSocket);
            };
            // Nothing is in flight that somebody would miss: both ends see their sockets close.
            select(pin!(self.run(front_ends)), pin!(stop.wait())).await;
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use vudev_executor::{Executor, Faults};

    use super::*;

    #[test]
    fn after_each_failed_accept_the_pause_doubles_up_to_two_seconds_and_a_stop_ends_it() {
        let executor = Executor::simulated(1, Faults::default());
        let (handle, stop) = (executor.handle(), Latch::new());
        let tries = RefCell::new(Vec::new());
        let accept = async || -> Result<(), &str> {
            tries.borrow_mut().push(handle.now());
            // What follows this one is not slept.
            if tries.borrow().len() == 9 {
                stop.set();
            }
            Err("its other side is gone")
        };
        let before = handle.now();
        assert!(executor.run(next(handle, &stop, accept)).unwrap().is_none());
        assert!(handle.now() - before < Duration::from_secs(10));
        let tries = tries.take();
        let pauses = tries.windows(2).map(|pair| (pair[1] - pair[0]).as_millis());
        let expected = [100, 200, 400, 800, 1600, 2000, 2000, 2000];
        assert_eq!(pauses.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_front_end_that_has_come_begins_the_pauses_anew() {
        let executor = Executor::simulated(1, Faults::default());
        let (handle, stop) = (executor.handle(), Latch::new());
        let tries = RefCell::new(Vec::new());
        let accept = async || {
            tries.borrow_mut().push(handle.now());
            match tries.borrow().len() % 4 {
                0 => Ok(()),
                _ => Err("no memory"),
            }
        };
        let run = executor.run(async {
            for _ in 0..2 {
                assert_eq!(next(handle, &stop, &accept).await, Some(()));
            }
        });
        run.unwrap();
        let tries = tries.take();
        let pauses = tries.windows(2).map(|pair| (pair[1] - pair[0]).as_millis());
        let pauses: Vec<_> = pauses.collect();
        assert_eq!(pauses, [100, 200, 400, 0, 100, 200, 400]);
    }
}
