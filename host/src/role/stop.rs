//! What a running device hears of the outside beside its front-end: the supervisor, and signals.
//! Both can say one thing, stop. How a stop is done is not here.

use std::rc::Rc;

use vudev_executor::{Latch, Message, Signals, Socket};

use crate::channel::Down;

/// What a running device takes: a stop is one byte.
const PACKET_MAX: usize = 64;

/// Until the supervisor says stop or is gone. A message that is none ends nothing: a device's
/// guests must not suffer from a supervisor of another version.
pub(super) async fn watch_channel(channel: Socket, stop: Rc<Latch>) {
    let mut message = Message::with_capacity(PACKET_MAX);
    loop {
        let (received, buffer) = channel.receive(message).await;
        message = buffer;
        match received {
            Ok(0) | Err(_) => break,
            Ok(_) if message.truncated() => log::error!("control channel: a packet is too large"),
            Ok(_) => match Down::decode(message.bytes()) {
                Ok(Down::Stop) => break,
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
