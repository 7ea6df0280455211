//! The vhost-user codec: bytes and descriptors in, a [`Request`] out, a [`Reply`] back to bytes.
//! It is not a connection and knows no state: what a message means at this moment is decided by
//! [`crate::session`].
//!
//! The contract is *parse, don't validate*. A [`Request`] has the right number of descriptors,
//! fields within their ranges and a size that agrees with its contents, so nothing behind this
//! module looks at a wire byte again. A message that breaks a rule of the table of [`Rule`]s
//! becomes a [`MessageError`] that names it, and every descriptor that came with it is closed.
//!
//! "The spec" in comments below is QEMU's `docs/interop/vhost-user.rst`. Its integers have the byte
//! order of the machine that both ends share.

mod code;
mod error;
mod header;
mod reply;
mod request;
mod resources;

pub use code::{Answer, Code, Gate, MessageName, ProtocolFeatures, Rule};
pub use error::{FrameError, MessageError};
pub use header::{HEADER_SIZE, Header, PAYLOAD_SIZE_MAX};
pub use reply::{Body, Reply};
pub(crate) use request::parse_with;
pub use request::{
    CONFIG_SIZE_MAX, ConfigRequest, FeatureRequest, LifecycleRequest, MEMORY_TABLE_REGIONS_MAX,
    MemoryRequest, Request, RingRequest, UserAddresses, parse,
};
pub(crate) use resources::Resources;
pub use resources::{BackendChannel, BackendRequests, MemoryFile, Sending};

use vudev_virtio::Region;

/// One message as it came: what it is, whether it wants an answer, and its contents or what was
/// wrong with them.
///
/// A message whose contents are wrong is still a whole message: the stream behind it is intact, and
/// a front-end that asked for an answer gets one.
#[derive(Debug)]
pub struct Incoming<M = Region> {
    /// The header, which is always right.
    pub header: Header,
    /// The contents.
    pub content: Result<Request<M>, MessageError>,
}
