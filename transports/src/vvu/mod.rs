//! vhost-user through a virtio-vhost-user PCI function, from inside a device VM: one buffer of a
//! virtqueue is one message, a kick is an interrupt of the function, a call a store to one of its
//! doorbells, and memory a part of its bar. No byte stream and no helper thread.
//!
//! A [`Function`] is opened before the jail closes. After that there are loads and stores, eventfds
//! through the ring, and a mapping of the bar for each region of memory.
//!
//! The function is as foreign as the front-end behind it. What it writes is read once and checked;
//! a function that breaks the rules loses its session, and is reset for the next one.

mod address;
mod capabilities;
mod error;
mod function;
mod ioctls;
mod mapped;
mod mmio;
mod resources;
mod rings;
mod set_up;
#[cfg(feature = "testing")]
pub mod software;
mod sysfs;
mod transmit;
mod vfio;

use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::select;
use vudev_executor::{Handle, Kick};

pub use address::{AddressError, PciAddress};
pub use capabilities::{BARS, CONFIGURATION_SIZE, Layout, LayoutError, Range, What, Window};
pub use error::FunctionError;
pub use function::{Function, Width};
pub use mapped::{MappedFunction, Parts};
pub use resources::MemoryPlacement;
pub use rings::{DMA_ADDRESS, DMA_SIZE};
pub use vfio::{Opened, VfioError};

use self::resources::{Windows, Wiring};
use self::set_up::{CONFIG_VECTOR, Queue, RECEIVE_VECTOR, VECTORS_MIN, Working};
use self::transmit::Transmitter;
use crate::message::{
    BackendChannel, FrameError, HEADER_SIZE, Header, Incoming, ProtocolFeatures, Reply, Request,
    parse_with,
};
use crate::transport::{Transport, TransportError};

/// Bits of the status (VVU: `VIRTIO_VHOST_USER_STATUS_*`).
const BACKEND_UP: u32 = 1 << 0;
const FRONTEND_UP: u32 = 1 << 1;

/// Between a front-end that has left before it was served and the wait for the next: a function can
/// say so without end.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);

/// A function that waits for front-ends. One is served at a time.
pub struct Listener {
    handle: Handle,
    function: Rc<dyn Function>,
    queues: u16,
    vectors: u16,
    placement: MemoryPlacement,
}

impl Listener {
    /// Takes a function for a device of `queues` queues: as many as [`Opened::map`] was told, and
    /// as the device's `Identity::queue_sizes` has.
    ///
    /// # Errors
    ///
    /// When it has too few vectors, or forwards fewer queues.
    pub fn new(
        handle: &Handle,
        function: Rc<dyn Function>,
        queues: u16,
        placement: MemoryPlacement,
    ) -> Result<Self, FunctionError> {
        let actual = function.vectors().len();
        let vectors = u16::try_from(actual).unwrap_or(u16::MAX);
        if vectors < VECTORS_MIN {
            return Err(FunctionError::Vectors {
                actual,
                least: VECTORS_MIN,
            });
        }
        set_up::check_queues(&*function, queues)?;
        Ok(Self {
            handle: handle.clone(),
            function,
            queues,
            vectors,
            placement,
        })
    }

    /// The next front-end. The function is reset and set up anew for it. May be dropped half-way.
    ///
    /// # Errors
    ///
    /// When the function is not what it says, or does not do what it is told.
    pub async fn accept(&self) -> Result<VvuTransport, FunctionError> {
        loop {
            let mut transport = self.set_up().await?;
            if transport.front_end_came().await? {
                return Ok(transport);
            }
            log::debug!("a front-end came and went");
            self.handle.sleep(ACCEPT_PAUSE).await;
        }
    }

    async fn set_up(&self) -> Result<VvuTransport, FunctionError> {
        let function = &self.function;
        let working = set_up::set_up(&self.handle, function, self.queues, self.vectors).await?;
        let Working {
            receive,
            transmit,
            vhost_queues,
        } = working;
        let mut transport = VvuTransport {
            handle: self.handle.clone(),
            wiring: Wiring {
                function: function.clone(),
                placement: self.placement,
                queues: self.queues,
                vectors: self.vectors,
                vhost_queues,
            },
            signals: Signals {
                receive: self.watch(RECEIVE_VECTOR)?,
                config: self.watch(CONFIG_VECTOR)?,
            },
            receive,
            transmitter: Rc::new(Transmitter::new(&self.handle, function, transmit)),
            connection: Connection::Awaited,
            status_due: true,
            has_channel: false,
        };
        transport.fill()?;
        set_up::STATUS.write(&**function, BACKEND_UP);
        Ok(transport)
    }

    fn watch(&self, vector: u16) -> Result<Kick, FunctionError> {
        let event = &self.function.vectors()[usize::from(vector)];
        let copy = event.try_clone().map_err(FunctionError::io("dup"))?;
        Ok(Kick::new(&self.handle, copy)?)
    }
}

/// A front-end, through a function that has been set up for it.
pub struct VvuTransport {
    handle: Handle,
    wiring: Wiring,
    signals: Signals,
    receive: Queue,
    transmitter: Rc<Transmitter>,
    connection: Connection,
    /// Whether the function may have news of the connection.
    status_due: bool,
    /// Whether the front-end may answer requests of ours.
    has_channel: bool,
}

/// How far a front-end is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Connection {
    /// None has come, as far as we know.
    Awaited,
    /// The function says that one is there. Not all functions do.
    There,
    /// It has left. What it said before may still be in the queue.
    Left,
}

/// A buffer as it came.
enum Received {
    Nothing,
    Message(Vec<u8>),
    /// A buffer without a byte: how crosvm's device says that the front-end has left.
    End,
}

/// The two vectors that a session waits for.
struct Signals {
    receive: Kick,
    config: Kick,
}

impl Signals {
    /// Waits for either. Tells whether it was the configuration's.
    async fn wait(&mut self) -> Result<bool, FunctionError> {
        let wait = |cx: &mut Context<'_>| {
            // Both are asked, so that both wake us.
            let (receive, config) = (self.receive.poll_wait(cx), self.config.poll_wait(cx));
            match (receive, config) {
                (Poll::Pending, Poll::Pending) => Poll::Pending,
                (Poll::Ready(Err(error)), _) | (_, Poll::Ready(Err(error))) => {
                    Poll::Ready(Err(error))
                }
                (_, config) => Poll::Ready(Ok(config.is_ready())),
            }
        };
        poll_fn(wait)
            .await
            .map_err(FunctionError::io("poll of a vector"))
    }
}

impl VvuTransport {
    /// Waits for a first sign of a front-end. `false`: it has left already.
    async fn front_end_came(&mut self) -> Result<bool, FunctionError> {
        loop {
            self.look_at_status()?;
            match self.connection {
                Connection::There => return Ok(true),
                Connection::Left => return Ok(false),
                Connection::Awaited => {}
            }
            // crosvm's device says nothing, and its first message says it all.
            if self.receive.ring.has_used()? {
                return Ok(true);
            }
            self.status_due |= self.signals.wait().await?;
        }
    }

    /// Looks at the status if it may have changed: each look is a way out of the VM and back.
    fn look_at_status(&mut self) -> Result<(), FunctionError> {
        if !std::mem::take(&mut self.status_due) || self.connection == Connection::Left {
            return Ok(());
        }
        let function = &*self.wiring.function;
        set_up::check_status(function)?;
        let status = set_up::STATUS.read(function);
        let front_end = status & FRONTEND_UP != 0;
        self.connection = match self.connection {
            // The function takes back both bits when the front-end leaves.
            _ if status & BACKEND_UP == 0 => Connection::Left,
            Connection::There if !front_end => Connection::Left,
            _ if front_end => Connection::There,
            unchanged => unchanged,
        };
        Ok(())
    }

    /// Gives the function all buffers that are ours.
    fn fill(&mut self) -> Result<(), FunctionError> {
        let Queue { ring, notify } = &mut self.receive;
        while let Some(buffer) = { ring.free().next() } {
            ring.lend(buffer, &[])?;
        }
        notify.write(&*self.wiring.function, 0);
        Ok(())
    }

    /// The next buffer; it is copied and goes back at once.
    fn receive(&mut self) -> Result<Received, FunctionError> {
        let Some(used) = self.receive.ring.take_used()? else {
            return Ok(Received::Nothing);
        };
        if used.length == 0 {
            return Ok(Received::End);
        }
        let bytes = self.receive.ring.contents(used)?;
        self.fill()?;
        Ok(Received::Message(bytes))
    }

    /// Understands a message. `None`: an answer of the front-end to a request of ours, which wanted
    /// none.
    fn understand(&mut self, bytes: &[u8]) -> Result<Option<Incoming>, TransportError> {
        let Some((header, payload)) = bytes.split_first_chunk::<HEADER_SIZE>() else {
            return Err(TransportError::Truncated {
                received: bytes.len(),
                expected: HEADER_SIZE,
            });
        };
        let header = match Header::parse(*header) {
            Err(FrameError::UnexpectedReply { .. }) if self.has_channel => return Ok(None),
            header => header?,
        };
        if payload.len() != header.payload_size() {
            return Err(TransportError::Truncated {
                received: bytes.len(),
                expected: HEADER_SIZE + header.payload_size(),
            });
        }
        let mut windows = Windows::new(&self.wiring, &self.transmitter, &header);
        let content = parse_with(&header, payload, &mut windows);
        if let Ok(Request::BackendChannel(BackendChannel::Requests(_))) = &content {
            self.has_channel = true;
        }
        Ok(Some(Incoming { header, content }))
    }
}

impl Transport for VvuTransport {
    fn protocol_features(&self) -> ProtocolFeatures {
        ProtocolFeatures::OFFERED_WITHOUT_DESCRIPTORS
    }

    async fn recv(&mut self) -> Result<Option<Incoming>, TransportError> {
        loop {
            // A front-end that never ends its messages leaves time for the rings.
            self.handle.yield_now().await;
            // Before the queue, so that what was said before the end is heard.
            self.look_at_status()?;
            match self.receive()? {
                Received::Message(bytes) => match self.understand(&bytes)? {
                    Some(incoming) => return Ok(Some(incoming)),
                    None => continue,
                },
                Received::End => return Ok(None),
                Received::Nothing if self.connection == Connection::Left => return Ok(None),
                Received::Nothing => {}
            }
            self.status_due |= self.signals.wait().await?;
        }
    }

    async fn reply(&mut self, reply: Reply) -> Result<(), TransportError> {
        let bytes = reply.encode();
        let mut watch = None;
        while !self.transmitter.try_send(&bytes)? {
            if self.connection == Connection::Left {
                return Err(TransportError::FrontEndLeft);
            }
            let watch = match &mut watch {
                Some(watch) => watch,
                watch => watch.insert(self.transmitter.watch()?),
            };
            let room = async {
                let waited = watch.wait().await;
                waited
                    .map(|()| false)
                    .map_err(FunctionError::io("poll of a vector"))
            };
            let (news, _) = select(pin!(room), pin!(self.signals.wait()))
                .await
                .factor_first();
            self.status_due |= news?;
            self.look_at_status()?;
        }
        Ok(())
    }
}

impl Drop for VvuTransport {
    /// Tells the other side that we have left.
    fn drop(&mut self) {
        set_up::STATUS.write(&*self.wiring.function, 0);
    }
}
