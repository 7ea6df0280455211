//! What a running device hears of the outside beside its front-end: the supervisor, and signals.
//! Both can say one thing, stop. How a stop is done is not here.

use std::cell::Cell;
use std::rc::Rc;

use vudev_executor::{Message, Notify, Signals, Socket};

use crate::channel::Down;

/// That the supervisor wants the device to end. Set once, seen by all.
#[derive(Default)]
pub(crate) struct Stop {
    asked: Cell<bool>,
    changed: Notify,
}

impl Stop {
    /// Ends everything that awaits [`Stop::asked`].
    pub(crate) fn ask(&self) {
        self.asked.set(true);
        self.changed.notify();
    }

    /// Until somebody asks.
    pub(crate) async fn asked(&self) {
        while !self.asked.get() {
            self.changed.notified().await;
        }
    }
}

/// What a running device takes: a stop is one byte.
const PACKET_MAX: usize = 64;

/// Until the supervisor says stop or is gone. A message that is none ends nothing: a device's
/// guests must not suffer from a supervisor of another version.
pub(super) async fn watch_channel(channel: Socket, stop: Rc<Stop>) {
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
    stop.ask();
}

/// Until one of the signals comes.
pub(super) async fn watch_signals(mut signals: Signals, stop: Rc<Stop>) {
    match signals.next().await {
        Ok(_) => stop.ask(),
        Err(error) => log::error!("signalfd: {error}"),
    }
}
