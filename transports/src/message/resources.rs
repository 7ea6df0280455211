//! What a message carries beside its bytes: descriptors on a socket, registers and memory of a
//! device elsewhere. Not what it is used for.

use std::fmt;
use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::rc::Rc;
use std::vec::IntoIter;

use vudev_executor::CallTarget;
use vudev_virtio::RegionLayout;

use super::error::MessageError;
use super::header::HEADER_SIZE;

/// Turns what a message speaks of into what can be used. One is made for each message, and asked in
/// the order of the message, after the codec has compared [`Resources::count`] with what the
/// message calls for.
pub(crate) trait Resources {
    /// Memory.
    type Memory;

    /// Descriptors that came along; `None` on a wire that has none.
    fn count(&self) -> Option<usize>;

    /// The next region.
    fn memory(&mut self, layout: RegionLayout) -> Result<Self::Memory, MessageError>;

    /// The eventfd of a ring's kick.
    fn kick(&mut self, index: u16) -> Result<OwnedFd, MessageError>;

    /// What calls the driver of a ring.
    fn call(&mut self, index: u16) -> Result<CallTarget, MessageError>;

    /// What tells the driver that a ring has failed.
    fn error(&mut self, index: u16) -> Result<CallTarget, MessageError>;

    /// Where requests of ours go.
    fn channel(&mut self) -> Result<BackendChannel, MessageError>;
}

/// Where a back-end's own requests go.
#[derive(Debug)]
pub enum BackendChannel {
    /// A socket that the front-end gave. It may be anything else that it had at hand.
    Socket(OwnedFd),
    /// The way on which answers go as well.
    Requests(Rc<dyn BackendRequests>),
}

/// A wire that takes a back-end's own requests.
pub trait BackendRequests: fmt::Debug {
    /// Sends one, which has no payload and wants no answer.
    fn send(&self, request: [u8; HEADER_SIZE]) -> Sending<'_>;
}

/// A request on its way.
pub type Sending<'a> = Pin<Box<dyn Future<Output = io::Result<()>> + 'a>>;

/// Memory as a message describes it: where it lies, and the file behind it.
#[derive(Debug)]
pub struct MemoryFile {
    /// Where it lies.
    pub layout: RegionLayout,
    /// The file, not yet mapped or looked at.
    pub file: OwnedFd,
}

/// The descriptors of one message, as they came over a socket.
pub(super) struct Descriptors(IntoIter<OwnedFd>);

impl Descriptors {
    pub(super) fn new(descriptors: Vec<OwnedFd>) -> Self {
        Self(descriptors.into_iter())
    }

    fn take(&mut self) -> OwnedFd {
        self.0.next().expect("the codec has counted them")
    }
}

impl Resources for Descriptors {
    type Memory = MemoryFile;

    fn count(&self) -> Option<usize> {
        Some(self.0.len())
    }

    fn memory(&mut self, layout: RegionLayout) -> Result<MemoryFile, MessageError> {
        let file = self.take();
        Ok(MemoryFile { layout, file })
    }

    fn kick(&mut self, _: u16) -> Result<OwnedFd, MessageError> {
        Ok(self.take())
    }

    fn call(&mut self, _: u16) -> Result<CallTarget, MessageError> {
        Ok(self.take().into())
    }

    fn error(&mut self, _: u16) -> Result<CallTarget, MessageError> {
        Ok(self.take().into())
    }

    fn channel(&mut self) -> Result<BackendChannel, MessageError> {
        Ok(BackendChannel::Socket(self.take()))
    }
}
