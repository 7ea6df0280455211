//! The way from a back-end to its front-end without being asked (SET_BACKEND_REQ_FD). One thing is
//! said on it: the configuration space has changed.

use std::os::fd::OwnedFd;
use std::rc::Rc;

use rustix::net::sockopt::{socket_domain, socket_type};
use rustix::net::{AddressFamily, SocketType};
use vudev_executor::{Handle, Message, Socket, Task};
use vudev_virtio::Device;

use super::error::Reason;
use crate::message::{HEADER_SIZE, Header};

/// `VHOST_USER_BACKEND_CONFIG_CHANGE_MSG` (spec, "Back-end message types").
const CONFIG_CHANGE: u32 = 2;

/// Tells a front-end of changes until it is dropped. A front-end that does not read is waited for
/// by this alone, and hears of all changes by one message once it reads.
pub(super) struct BackendChannel(#[expect(dead_code, reason = "ends with this")] Task<()>);

impl BackendChannel {
    pub(super) fn new<D: Device>(
        handle: &Handle,
        device: &Rc<D>,
        socket: OwnedFd,
    ) -> Result<Self, Reason> {
        // A front-end can hold a socket of another family in its hands, and then even a message
        // that must not wait waits for it, beyond the reach of a SIGKILL.
        let kind = (socket_domain(&socket), socket_type(&socket));
        if kind != (Ok(AddressFamily::UNIX), Ok(SocketType::STREAM)) {
            return Err(Reason::NotASocket);
        }
        let task = tell_changes(Rc::clone(device), Socket::new(handle, socket));
        Ok(Self(handle.spawn(task)))
    }
}

async fn tell_changes<D: Device>(device: Rc<D>, socket: Socket) {
    let mut message = Message::with_capacity(HEADER_SIZE);
    loop {
        device.config_changed().await;
        message.set(&Header::request_bytes(CONFIG_CHANGE), Vec::new());
        let (sent, buffer) = socket.send(message).await;
        message = buffer;
        if let Err(error) = sent {
            return log::debug!("the front-end does not want to hear of changes: {error}");
        }
        log::debug!("the front-end was told that the configuration has changed");
    }
}
