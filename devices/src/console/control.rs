//! What the device and a driver tell each other about ports, over the control queues (virtio 1.3,
//! 5.3.6.2). Not the ports themselves.
//!
//! What is to be told is kept as marks on each port, and never as a list of messages: a driver that
//! asks without end, or that never posts a buffer for the answers, costs no memory.
//!
//! A control chain shorter than a message, one for a port that there is not, or of an event that is
//! the device's to send, is completed and changes nothing. A message that does not fit into the
//! buffer that the driver posted for it is not sent, and said once.

use std::cell::Cell;
use std::rc::Rc;

use vudev_executor::Notify;
use vudev_virtio::{Queue, QueueError};

use super::Window;
use super::input::Gate;
use super::link::Link;

/// `struct virtio_console_control`: le32 id, le16 event, le16 value.
const MESSAGE_BYTES: usize = 8;

/// Events (5.3.6.2).
const DEVICE_READY: u16 = 0;
const PORT_ADD: u16 = 1;
const PORT_READY: u16 = 3;
const CONSOLE_PORT: u16 = 4;
const RESIZE: u16 = 5;
const PORT_OPEN: u16 = 6;
const PORT_NAME: u16 = 7;

/// The other side of all ports, and what the driver knows of them.
pub(super) struct Control {
    ports: Vec<Port>,
    news: Rc<Notify>,
    /// The driver has taken F_MULTIPORT.
    negotiated: Cell<bool>,
    /// The driver has taken F_SIZE.
    has_sizes: Cell<bool>,
    /// The driver has shaken hands since the last reset. Without it we do not know what it knows: a
    /// front-end may have come back with a guest that runs on. Its ports are believed to be open
    /// then, since a driver that has not shaken hands posts no buffer for them.
    met: Cell<bool>,
    /// It has been said that a message did not fit.
    told_misfit: Cell<bool>,
    /// It has been said that the driver failed.
    told_failure: Cell<bool>,
}

/// One port.
pub(super) struct Port {
    pub(super) name: Option<String>,
    pub(super) is_console: bool,
    pub(super) window: Cell<Option<Window>>,
    /// Whose coming and going opens and closes the port; `None` if it is always open.
    pub(super) opener: Option<Rc<Link>>,
    pub(super) marks: Marks,
}

/// What the driver is still to be told of a port, and what it has told.
#[derive(Default)]
pub(super) struct Marks {
    add: Cell<bool>,
    console: Cell<bool>,
    name: Cell<bool>,
    resize: Cell<bool>,
    /// Whether it was told that the port is open here.
    told_open: Cell<bool>,
    /// The driver has the port.
    is_ready: Cell<bool>,
    /// The guest has opened it.
    is_open: Cell<bool>,
}

/// A message on its way: its number, its value, and what follows.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Message {
    port: u32,
    event: u16,
    value: u16,
}

impl Port {
    fn is_open_here(&self) -> bool {
        self.opener.as_ref().is_none_or(|link| link.is_open())
    }
}

impl Control {
    pub(super) fn new(ports: Vec<Port>, news: &Rc<Notify>) -> Self {
        let this = Self {
            ports,
            news: Rc::clone(news),
            negotiated: Cell::new(false),
            has_sizes: Cell::new(false),
            met: Cell::new(false),
            told_misfit: Cell::new(false),
            told_failure: Cell::new(false),
        };
        this.reset();
        this
    }

    pub(super) fn negotiated(&self, multiport: bool, sizes: bool) {
        self.negotiated.set(multiport);
        self.has_sizes.set(sizes);
    }

    /// The next driver has been told nothing.
    pub(super) fn reset(&self) {
        self.negotiated.set(false);
        self.has_sizes.set(false);
        self.met.set(false);
        self.told_misfit.set(false);
        self.told_failure.set(false);
        for port in &self.ports {
            let Marks {
                add,
                console,
                name,
                resize,
                told_open,
                is_ready,
                is_open,
            } = &port.marks;
            for mark in [add, console, name, resize, is_ready, is_open] {
                mark.set(false);
            }
            // A guest that runs on hears of what changes from now on, and of no more.
            told_open.set(port.is_open_here());
        }
        self.news.notify();
    }

    pub(super) fn window(&self, port: usize) -> Option<Window> {
        self.ports.get(port)?.window.get()
    }

    /// A terminal has another size.
    pub(super) fn resize(&self, port: usize, window: Window) {
        let Some(port) = self.ports.get(port) else {
            return;
        };
        port.window.set(Some(window));
        if port.marks.is_ready.get() || !self.met.get() {
            port.marks.resize.set(true);
            self.news.notify();
        }
    }

    /// What a port's input waits for.
    pub(super) fn gate(&self, port: usize) -> PortGate<'_> {
        PortGate {
            control: self,
            port,
        }
    }

    /// Serves the control transmit queue: what the driver says.
    pub(super) async fn hear(&self, mut queue: Queue) -> Result<(), QueueError> {
        while let Some(mut chain) = queue.next().await? {
            match chain.readable.read_array::<MESSAGE_BYTES>() {
                Ok(bytes) => self.take(&Message::parse(bytes)),
                Err(error) => log::debug!("control queue: no message: {error}"),
            }
            queue.complete(chain, 0);
        }
        Ok(())
    }

    fn take(&self, message: &Message) {
        let &Message { port, event, value } = message;
        if event == DEVICE_READY {
            if value != 1 {
                self.tell_failure(message);
            }
            return self.meet(value);
        }
        let port = usize::try_from(port).ok();
        let Some(port) = port.and_then(|port| self.ports.get(port)) else {
            return log::debug!("control queue: a message for no port: {message:?}");
        };
        let marks = &port.marks;
        match event {
            PORT_READY if value == 1 => {
                marks.is_ready.set(true);
                marks.console.set(port.is_console);
                marks.name.set(port.name.is_some());
                marks.resize.set(true);
                marks.told_open.set(false);
            }
            PORT_READY => {
                marks.is_ready.set(false);
                self.tell_failure(message);
            }
            PORT_OPEN => {
                marks.is_open.set(value != 0);
            }
            _ => log::debug!("control queue: not for a driver to say: {message:?}"),
        }
        self.news.notify();
    }

    /// The driver begins anew.
    fn meet(&self, value: u16) {
        self.met.set(true);
        for Port { marks, .. } in &self.ports {
            marks.add.set(value == 1);
            for mark in [&marks.console, &marks.name, &marks.resize] {
                mark.set(false);
            }
            for mark in [&marks.is_ready, &marks.is_open, &marks.told_open] {
                mark.set(false);
            }
        }
        self.news.notify();
    }

    /// A driver can fail without end, so it is said once.
    fn tell_failure(&self, message: &Message) {
        if !self.told_failure.replace(true) {
            log::warn!("the driver cannot set up the device, or a port of it: {message:?}");
        }
    }

    /// Serves the control receive queue: what the driver is told.
    pub(super) async fn tell(&self, mut queue: Queue) -> Result<(), QueueError> {
        let mut bytes = Vec::new();
        loop {
            if self.next_message().is_none() {
                match queue.until_stop(self.news.notified()).await {
                    Some(()) => continue,
                    None => return Ok(()),
                }
            }
            let Some(mut chain) = queue.next().await? else {
                return Ok(());
            };
            // What there was to tell may have changed meanwhile.
            let Some(message) = self.next_message() else {
                queue.put_back(chain);
                continue;
            };
            self.told(&message);
            self.encode(&message, &mut bytes);
            let written = match chain.writable.write(&bytes) {
                Ok(()) => u32::try_from(bytes.len()).unwrap_or(0),
                Err(error) => {
                    if !self.told_misfit.replace(true) {
                        log::warn!("the driver's buffer is too small for {message:?}: {error}");
                    }
                    0
                }
            };
            queue.complete(chain, written);
        }
    }

    /// What is to be told next.
    fn next_message(&self) -> Option<Message> {
        (0..)
            .zip(&self.ports)
            .find_map(|(number, port)| self.next_of(number, port))
    }

    fn next_of(&self, number: u32, port: &Port) -> Option<Message> {
        let marks = &port.marks;
        let message = |event, value| {
            Some(Message {
                port: number,
                event,
                value,
            })
        };
        if marks.add.get() {
            return message(PORT_ADD, 0);
        }
        if !marks.is_ready.get() && self.met.get() {
            return None;
        }
        let open = port.is_open_here();
        if marks.console.get() {
            message(CONSOLE_PORT, 1)
        } else if marks.name.get() {
            message(PORT_NAME, 0)
        } else if marks.resize.get() && self.may_resize(port) {
            message(RESIZE, 0)
        } else if marks.told_open.get() != open {
            message(PORT_OPEN, open.into())
        } else {
            None
        }
    }

    fn may_resize(&self, port: &Port) -> bool {
        self.has_sizes.get() && port.is_console && port.window.get().is_some()
    }

    fn told(&self, message: &Message) {
        let port = usize::try_from(message.port).ok();
        let Some(port) = port.and_then(|port| self.ports.get(port)) else {
            return;
        };
        let marks = &port.marks;
        match message.event {
            PORT_ADD => marks.add.set(false),
            CONSOLE_PORT => marks.console.set(false),
            PORT_NAME => marks.name.set(false),
            RESIZE => marks.resize.set(false),
            PORT_OPEN => marks.told_open.set(message.value != 0),
            other => unreachable!("event {other} is never told"),
        }
    }

    fn encode(&self, message: &Message, into: &mut Vec<u8>) {
        let &Message { port, event, value } = message;
        into.clear();
        into.extend(port.to_le_bytes());
        into.extend(event.to_le_bytes());
        into.extend(value.to_le_bytes());
        let port = usize::try_from(port).ok();
        let Some(port) = port.and_then(|port| self.ports.get(port)) else {
            return;
        };
        match (event, &port.name, port.window.get()) {
            (PORT_NAME, Some(name), _) => into.extend(name.as_bytes()),
            // Columns first, as the specification has it (5.3.6.2). Linux read rows first until
            // its stable kernels of early 2026 (6.12.65): no device can suit both.
            (RESIZE, _, Some(window)) => {
                into.extend(window.columns.to_le_bytes());
                into.extend(window.rows.to_le_bytes());
            }
            _ => {}
        }
    }
}

impl Message {
    fn parse(bytes: [u8; MESSAGE_BYTES]) -> Self {
        let [a, b, c, d, e, f, g, h] = bytes;
        Self {
            port: u32::from_le_bytes([a, b, c, d]),
            event: u16::from_le_bytes([e, f]),
            value: u16::from_le_bytes([g, h]),
        }
    }
}

/// Whether a port takes input.
pub(super) struct PortGate<'c> {
    control: &'c Control,
    port: usize,
}

impl Gate for PortGate<'_> {
    fn is_open(&self) -> bool {
        let Control {
            ports,
            negotiated,
            met,
            ..
        } = self.control;
        // A driver without F_MULTIPORT has one port, which is always open.
        let port = ports.get(self.port);
        !negotiated.get() || !met.get() || port.is_some_and(|port| port.marks.is_open.get())
    }

    fn news(&self) -> &Notify {
        &self.control.news
    }
}
