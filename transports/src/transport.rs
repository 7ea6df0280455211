//! What a session asks of a wire: whole messages whose resources are already usable. Not how they
//! get here, which differs from wire to wire.

use std::future::Future;
use std::io;

use crate::message::{FrameError, Incoming, ProtocolFeatures, Reply};
use crate::vvu::FunctionError;

/// A connection to one front-end, message by message.
pub trait Transport {
    /// What may be offered over this wire.
    fn protocol_features(&self) -> ProtocolFeatures {
        ProtocolFeatures::OFFERED
    }

    /// The next message, or `None` when the front-end has left. What it carries is ready for use:
    /// memory is mapped, descriptors are ours.
    ///
    /// # Errors
    ///
    /// When nothing more can be received. What is wrong with a single message is inside
    /// [`Incoming`].
    fn recv(&mut self) -> impl Future<Output = Result<Option<Incoming>, TransportError>>;

    /// Sends an answer.
    ///
    /// # Errors
    ///
    /// [`TransportError::FrontEndLeft`] when nobody is there to receive it.
    fn reply(&mut self, reply: Reply) -> impl Future<Output = Result<(), TransportError>>;
}

/// Why a connection cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The front-end has closed its end while we were sending.
    #[error("the front-end has left")]
    FrontEndLeft,
    /// It left in the middle of a message.
    #[error("the connection ended after {received} of {expected} bytes of a message")]
    Truncated {
        /// Bytes that came.
        received: usize,
        /// Bytes that were due.
        expected: usize,
    },
    /// More descriptors than a message may carry, or than this process may have. The kernel has
    /// dropped some, so nothing that follows means what it says.
    #[error("descriptors were lost: more than {max} on one message, or none left to give")]
    DescriptorsLost {
        /// The most on one message.
        max: usize,
    },
    /// A header that cannot be followed.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The virtio-vhost-user function does what none may do.
    #[error(transparent)]
    Function(#[from] FunctionError),
    /// The kernel refused.
    #[error("{operation}: {source}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
}
