//! The server's side of vfio-user: messages of a VMM in, answers out. What the function behind it
//! does is not known here.
//!
//! "The specification" in comments below is QEMU's `docs/interop/vfio-user.rst`, protocol version
//! 0.0; its integers have the byte order of the machine that both ends share. The contract is
//! *parse, don't validate*: a [`Request`] has fields within their ranges, as many descriptors as it
//! asks for, and a size that agrees with its contents. A message that is none is answered with an
//! errno, its descriptors are closed, and what follows it is read as if nothing had happened; only
//! behind a [`FrameError`] the stream is lost.

mod error;
mod header;
mod reply;
mod request;
mod server;
mod version;

pub use error::{FrameError, MapError, RequestError};
pub use header::{CommandName, HEADER_SIZE, Header, PAYLOAD_MAX, SKIPPED_MAX};
pub use reply::{RegionInfo, Reply, encode, encode_error};
pub use request::{
    Command, DATA_MAX, DESCRIPTORS_MAX, DmaMap, DmaUnmap, InterruptAction, Request, SetInterrupts,
    Which, parse,
};
pub use server::{Function, INTERRUPTS, REGIONS, ServerError, serve};
pub use version::{Proposal, answer};
