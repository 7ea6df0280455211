//! The tests of `vhost_user`, the same code, over a virtio-vhost-user function in software. What
//! such a session cannot do is said where a test looks at `WIRE`.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests, outside of any #[test]"
)]

#[path = "../common/mod.rs"]
mod common;

#[path = "../vhost_user/hostile.rs"]
mod hostile;
#[path = "../vhost_user/lawful.rs"]
mod lawful;
#[path = "../vhost_user/memory.rs"]
mod memory;
#[path = "../vhost_user/oracle.rs"]
mod oracle;

/// What the tests of this binary run over.
const WIRE: common::Wire = common::Wire::Vvu;
