//! The session over a real socket, against a front-end that shares no code with it.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests, outside of any #[test]"
)]

#[path = "../common/mod.rs"]
mod common;

mod hostile;
mod lawful;
mod memory;
mod oracle;

/// What the tests of this binary run over; `vvu` runs them over the other.
const WIRE: common::Wire = common::Wire::Socket;
