//! The transmit queue: each packet goes to its connection, or is answered with a reset. Packets of
//! one connection keep their order; no packet waits for the host to read.

use std::rc::Rc;

use vudev_virtio::Chain;

use super::connection::Connection;
use super::hub::Hub;
use super::packet::{HEADER_BYTES, HOST_CID, Header, Op, STREAM};
use super::state::Heard;

/// Takes one packet of the guest's. Nothing is written into its chain.
pub(super) async fn take(hub: &Rc<Hub>, chain: &mut Chain) -> u32 {
    let Ok(bytes) = chain.readable.read_array::<HEADER_BYTES>() else {
        log::debug!("a packet of {} bytes", chain.readable.len());
        return 0;
    };
    let packet = Header::parse(&bytes);
    // Linux's own device drops what is not its guest's, or not for the host.
    if packet.from != hub.guest_cid || packet.to != HOST_CID {
        log::debug!("a packet from {} to {}", packet.from, packet.to);
        return 0;
    }
    if packet.kind != STREAM {
        hub.refuse(&packet);
        return 0;
    }
    match (hub.find(packet.ports()), packet.op) {
        (Some(connection), _) => hear(hub, &connection, &packet, chain).await,
        (None, Op::Request) if !hub.is_full() => {
            let connection = Connection::asked(hub, &packet);
            hub.insert(&connection);
            hub.ask_host(connection);
        }
        (None, _) => hub.refuse(&packet),
    }
    0
}

async fn hear(hub: &Rc<Hub>, connection: &Rc<Connection>, packet: &Header, chain: &mut Chain) {
    let length = usize::try_from(packet.length).unwrap_or(usize::MAX);
    if packet.op == Op::Data && length > chain.readable.len() {
        log::debug!(
            "a packet of {length} bytes that has {}",
            chain.readable.len()
        );
        return hub.reset(connection);
    }
    let (heard, had_room) = {
        let mut state = connection.state.borrow_mut();
        let had_room = state.room() > 0;
        (state.hear(packet), had_room)
    };
    match heard {
        Ok(Heard::Nothing) => {}
        Ok(Heard::Opened) => connection.opened(hub).await,
        Ok(Heard::Data) => {
            chain.readable.truncate(length);
            if length > 0 {
                connection.forward(hub, &mut chain.readable).await;
            }
        }
        Ok(Heard::Ended) => connection.ended(hub).await,
        Ok(Heard::Finished) => connection.finished(hub).await,
        Ok(Heard::Gone) => hub.forget(connection),
        Err(refused) => {
            log::debug!("port {}: {refused}", connection.ports.host);
            return hub.reset(connection);
        }
    }
    if !had_room && connection.state.borrow().room() > 0 {
        connection.changed.notify();
    }
    hub.enqueue_if_owed(connection);
}
