//! What a running device hears of the outside beside its front-end: the supervisor, and signals. It
//! says stop, tells of changes, and brings sockets that the device asked for. How a stop is done is
//! not here.

use std::rc::Rc;

use vudev_executor::{Latch, Message, Signals, Socket};

use super::serve::Served;
use crate::broker::Broker;
use crate::channel::{Down, RUNNING_DOWN_MAX};

/// Until the supervisor says stop or is gone. A message that is none ends nothing: a device's
/// guests must not suffer from a supervisor of another version.
pub(super) async fn watch_channel(
    channel: Socket,
    device: Rc<dyn Served>,
    broker: Broker,
    stop: Rc<Latch>,
) {
    let mut message = Message::with_capacity(RUNNING_DOWN_MAX);
    loop {
        let (received, buffer) = channel.receive(message).await;
        message = buffer;
        let mut descriptors = message.take_descriptors();
        match received {
            Ok(0) | Err(_) => break,
            Ok(_) if message.truncated() => log::error!("control channel: a packet is too large"),
            Ok(_) => match Down::decode(message.bytes()) {
                Ok(Down::Stop) => break,
                Ok(Down::Notice(notice)) => device.hear(notice),
                Ok(Down::Connected { ticket, errno }) => {
                    broker.connected(ticket, errno, descriptors.pop());
                }
                Ok(Down::Start(_)) => log::error!("control channel: a second start"),
                Err(error) => log::error!("control channel: {error}"),
            },
        }
    }
    stop.set();
}

/// Until one of the signals comes.
pub(super) async fn watch_signals(mut signals: Signals, stop: Rc<Latch>) {
    match signals.next().await {
        Ok(_) => stop.set(),
        Err(error) => log::error!("signalfd: {error}"),
    }
}
