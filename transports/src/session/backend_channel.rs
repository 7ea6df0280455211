//! The way from a back-end to its front-end without being asked (SET_BACKEND_REQ_FD). One thing is
//! said on it: the configuration space has changed.

use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use rustix::net::sockopt::{socket_domain, socket_type};
use rustix::net::{AddressFamily, SocketType};
use vudev_executor::{Handle, Message, Socket, Task};
use vudev_virtio::Device;

use super::error::Reason;
use crate::message::{BackendChannel, BackendRequests, HEADER_SIZE, Header, Sending};

/// `VHOST_USER_BACKEND_CONFIG_CHANGE_MSG` (spec, "Back-end message types").
const CONFIG_CHANGE: u32 = 2;

/// Tells a front-end of changes until it is dropped. A front-end that does not read is waited for
/// by this alone, and hears of all changes by one message once it reads.
pub(super) struct ConfigNews(#[expect(dead_code, reason = "ends with this")] Task<()>);

impl ConfigNews {
    pub(super) fn new<D: Device>(
        handle: &Handle,
        device: &Rc<D>,
        channel: BackendChannel,
    ) -> Result<Self, Reason> {
        let requests: Rc<dyn BackendRequests> = match channel {
            BackendChannel::Requests(requests) => requests,
            BackendChannel::Socket(socket) => Rc::new(Channel::new(handle, socket)?),
        };
        Ok(Self(handle.spawn(tell_changes(device.clone(), requests))))
    }
}

async fn tell_changes<D: Device>(device: Rc<D>, requests: Rc<dyn BackendRequests>) {
    loop {
        device.config_changed().await;
        if let Err(error) = requests.send(Header::request_bytes(CONFIG_CHANGE)).await {
            return log::debug!("the front-end does not want to hear of changes: {error}");
        }
        log::debug!("the front-end was told that the configuration has changed");
    }
}

/// A socket of the front-end's.
struct Channel(Socket);

impl Channel {
    fn new(handle: &Handle, socket: OwnedFd) -> Result<Self, Reason> {
        // A front-end can hold a socket of another family in its hands, and then even a message
        // that must not wait waits for it, beyond the reach of a SIGKILL.
        let kind = (socket_domain(&socket), socket_type(&socket));
        if kind != (Ok(AddressFamily::UNIX), Ok(SocketType::STREAM)) {
            return Err(Reason::NotASocket);
        }
        Ok(Self(Socket::new(handle, socket)))
    }
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Channel").field(&self.0.as_fd()).finish()
    }
}

impl BackendRequests for Channel {
    fn send(&self, request: [u8; HEADER_SIZE]) -> Sending<'_> {
        let mut message = Message::with_capacity(HEADER_SIZE);
        message.set(&request, Vec::new());
        let sending = self.0.send(message);
        Box::pin(async move { sending.await.0.map(drop) })
    }
}
