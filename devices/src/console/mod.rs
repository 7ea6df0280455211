//! The console device (virtio 1.3, 5.3): what a guest prints on a port goes to the port's other
//! end, what comes from there the guest reads. Not a terminal: bytes pass as they are, and raw mode
//! is the business of whoever owns the terminal.
//!
//! A console has one port and two queues, or with F_MULTIPORT several ports with names, and control
//! queues to tell of them ([`ConsoleConfig::multiport`]). Ends that come and go ([`End`]) open and
//! close their ports, and a guest is told so. Descriptors that came with their flags keep them,
//! since others may share them.
//!
//! What a chain cannot have: a receive chain without writable bytes, or a transmit chain without
//! readable ones, is completed with nothing moved; bytes in the wrong direction are not looked at.
//! Control messages: see `control.rs`. A write to the configuration space is refused but for
//! `emerg_wr`, whose low byte goes to port 0's end at once, beside its queue: 4096 bytes of these
//! wait at most, and what is beyond is lost and counted in the log.
//!
//! No byte is lost or doubled when a front-end leaves and comes back. Input is asked for only when
//! there is some and a chain to put it in; output that was written in part goes on where it was.
//!
//! # Output that nobody takes
//!
//! | | [`Overflow::Block`] | [`Overflow::Drop`] |
//! |---|---|---|
//! | the reader is slow | the guest waits | it waits for a second, then output is lost |
//! | no client, or nobody at a terminal | the guest waits | it is lost at once |
//! | a server that is looked for | the guest waits | it waits for a second, then output is lost |
//! | the descriptor is gone for ever | it is lost | it is lost |
//! | the disk is full | it is lost | it is lost |
//!
//! One port of several is closed while it has no client, and a Linux guest waits there anyway. A
//! client that has left, but has said what the guest has not read yet, takes no output and keeps
//! the port open (`link.rs`).
//!
//! The log says that output is lost, how much so far whenever that has doubled, and how much it was
//! when output is written again. A guest that waits holds up only its own queue: a stop, the other
//! ports and emergency writes go on.

mod control;
mod framing;
mod input;
mod link;
mod losses;
mod output;
mod stamp;
mod terminal;

use std::os::fd::OwnedFd;
use std::rc::Rc;

use serde::{Deserialize, Serialize};
use vudev_executor::{Handle, Notify, Task};
use vudev_virtio::spec::device_id;
use vudev_virtio::{ConfigReadOnly, Device, Identity, Queue, QueueError};

use self::control::Control;
pub use self::framing::Framing;
use self::input::Input;
use self::link::Link;
pub use self::link::{Connect, Connecting, End};
use self::output::{BLOCKING_PIECE, Manner, Output};
pub use self::terminal::detached;

/// The control queues (virtio 1.3, 5.3.2): device to driver, and driver to device. Around them,
/// each port has its receiveq and transmitq: port 0 before, the others behind.
const CONTROL_RECEIVE: u16 = 2;
const CONTROL_TRANSMIT: u16 = 3;

/// Feature bits (5.3.3).
const F_SIZE: u64 = 1 << 0;
const F_MULTIPORT: u64 = 1 << 1;
const F_EMERG_WRITE: u64 = 1 << 2;

/// cols, rows, max_nr_ports, emerg_wr: `struct virtio_console_config` (virtio 1.3, 5.3.4).
const CONFIG_SIZE: usize = 12;
/// Where `emerg_wr` is.
const EMERGENCY_AT: usize = 8;

/// The greatest size of a queue. A guest prints line by line, and posts few receive buffers.
const QUEUE_SIZE_MAX: u16 = 256;

/// The most ports: what QEMU has by default. Their descriptors fit into the one message that
/// brings them to a jailed device.
pub const PORTS_MAX: usize = 31;

/// What a port has in flight: what its input and its output wait for, an emergency write, the end
/// itself; and of each a wait that was dropped and that the kernel has yet to let go of.
const OPERATIONS_OF_PORT: u32 = 8;

/// What becomes of output that nobody takes. See the [module](self).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Overflow {
    /// The guest waits.
    Block,
    /// It is thrown away after a while, and the log says how much.
    Drop,
}

/// The size of a terminal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// Characters in a row.
    pub columns: u16,
    /// Rows.
    pub rows: u16,
}

/// A port.
pub struct PortConfig {
    /// What the guest finds it by (`/dev/virtio-ports/NAME`). Only with several ports.
    pub name: Option<String>,
    /// Whether the guest makes a console of it (`hvc0`), and not a plain port.
    pub is_console: bool,
    /// The size of its terminal, if it has one.
    pub window: Option<Window>,
    /// Where output goes, and input comes from if `is_both_ways`.
    pub end: End,
    /// Whether input comes from `end`.
    pub is_both_ways: bool,
    /// Where input comes from otherwise, if there is any.
    pub input: Option<OwnedFd>,
    /// How output is cut.
    pub framing: Framing,
    /// Whether the time stands before each line.
    pub timestamps: bool,
    /// What becomes of output that nobody takes.
    pub overflow: Overflow,
}

impl PortConfig {
    /// A plain console port that writes to `end` and reads nothing.
    pub fn new(end: End) -> Self {
        Self {
            name: None,
            is_console: true,
            window: None,
            end,
            is_both_ways: false,
            input: None,
            framing: Framing::Bytes,
            timestamps: false,
            overflow: Overflow::Block,
        }
    }
}

/// A console's ports.
pub struct ConsoleConfig {
    /// One or more, and at most [`PORTS_MAX`].
    pub ports: Vec<PortConfig>,
    /// Whether the guest is told of ports and their names: with several, and for a name.
    pub multiport: bool,
}

/// A console.
pub struct Console {
    inputs: Vec<Input>,
    outputs: Vec<Rc<Output>>,
    /// The ports with windows, in their order.
    windows: Vec<usize>,
    control: Control,
    is_multiport: bool,
    config_changed: Notify,
    /// They end with the device.
    _keepers: Vec<Task<()>>,
}

/// How many operations a console of so many ports has in flight at most.
pub fn operations(ports: usize) -> u32 {
    let ports = u32::try_from(ports.min(PORTS_MAX)).unwrap_or(0);
    OPERATIONS_OF_PORT * ports
}

impl Console {
    /// A console of one port that reads `input` (`None`: there is never any) and writes to `output`
    /// (`None`: what the guest prints is thrown away). Terminals should be [`detached`] before.
    pub fn new(handle: &Handle, input: Option<OwnedFd>, output: Option<OwnedFd>) -> Self {
        let port = PortConfig {
            input,
            ..PortConfig::new(output.map_or(End::Nothing, End::File))
        };
        let config = ConsoleConfig {
            ports: vec![port],
            multiport: false,
        };
        Self::with_ports(handle, config)
    }

    /// A console of these ports. What keeps their ends is spawned, and runs when the executor does.
    ///
    /// # Panics
    ///
    /// If there is no port, or more than [`PORTS_MAX`], or several without `multiport`.
    pub fn with_ports(handle: &Handle, config: ConsoleConfig) -> Self {
        let ConsoleConfig { ports, multiport } = config;
        assert!(!ports.is_empty() && ports.len() <= PORTS_MAX);
        assert!(multiport || ports.len() == 1, "several ports");
        let news = Rc::new(Notify::new());
        let windows = (0..ports.len()).filter(|at| ports[*at].window.is_some());
        let windows = windows.collect();
        let mut made = Made::default();
        for (number, port) in ports.into_iter().enumerate() {
            made.add(handle, &news, number, port, multiport);
        }
        let Made {
            inputs,
            outputs,
            ports,
            keepers,
        } = made;
        Self {
            inputs,
            outputs,
            windows,
            control: Control::new(ports, &news),
            is_multiport: multiport,
            config_changed: Notify::new(),
            _keepers: keepers,
        }
    }

    /// A terminal has another size: the one of the port that is at this place among those with a
    /// [`PortConfig::window`].
    pub fn resize(&self, place: usize, window: Window) {
        let Some(&port) = self.windows.get(place) else {
            return log::debug!("no window {place}");
        };
        self.control.resize(port, window);
        if port == 0 {
            self.config_changed.notify();
        }
    }

    fn config(&self) -> [u8; CONFIG_SIZE] {
        let Window { columns, rows } = self.control.window(0).unwrap_or_default();
        let ports = if self.is_multiport {
            self.inputs.len()
        } else {
            0
        };
        let ports = u32::try_from(ports).unwrap_or(0);
        let mut space = [0; CONFIG_SIZE];
        space[..2].copy_from_slice(&columns.to_le_bytes());
        space[2..4].copy_from_slice(&rows.to_le_bytes());
        space[4..8].copy_from_slice(&ports.to_le_bytes());
        space
    }

    async fn receive(&self, port: usize, queue: Queue) -> Result<(), QueueError> {
        // A driver reads the size when it hears of a change (Linux), and only then.
        if port == 0 && self.control.window(0).is_some() {
            self.config_changed.notify();
        }
        let gate = self.control.gate(port);
        self.inputs[port].serve(queue, &gate).await
    }
}

/// The parts of a console that is being made.
#[derive(Default)]
struct Made {
    inputs: Vec<Input>,
    outputs: Vec<Rc<Output>>,
    ports: Vec<control::Port>,
    keepers: Vec<Task<()>>,
}

impl Made {
    fn add(
        &mut self,
        handle: &Handle,
        news: &Rc<Notify>,
        number: usize,
        port: PortConfig,
        multiport: bool,
    ) {
        let PortConfig {
            name,
            is_console,
            window,
            end,
            is_both_ways,
            input,
            framing,
            timestamps,
            overflow,
        } = port;
        let label = match (&name, multiport) {
            (_, false) => String::new(),
            (Some(name), true) => format!("port {number} ({name}): "),
            (None, true) => format!("port {number}: "),
        };
        let can_block = matches!(&end, End::File(fd) if terminal::can_block(fd));
        let is_read = is_both_ways && input.is_none();
        let (link, keeper) = Link::new(handle, end, is_read, news, label.clone());
        let input = match input {
            Some(input) => Some(Link::new(handle, End::File(input), true, news, label.clone()).0),
            None => is_both_ways.then(|| Rc::clone(&link)),
        };
        // Datagrams arrive or do not; it is no connection that opens the port.
        let opener = (link.may_come() && framing == Framing::Bytes).then(|| Rc::clone(&link));
        let manner = Manner {
            overflow,
            framing,
            timestamps,
            piece_max: if can_block {
                BLOCKING_PIECE
            } else {
                usize::MAX
            },
            label: label.clone(),
        };
        let output = Rc::new(Output::new(handle, &link, manner));
        self.keepers
            .extend(keeper.map(|keeper| handle.spawn(keeper)));
        if number == 0 {
            self.keepers
                .push(handle.spawn(Rc::clone(&output).keep_emergencies()));
        }
        self.inputs.push(Input::new(input, label));
        self.outputs.push(output);
        self.ports.push(control::Port {
            name,
            is_console,
            window: window.into(),
            opener,
            marks: control::Marks::default(),
        });
    }
}

impl Device for Console {
    fn identity(&self) -> Identity {
        let mut features = F_EMERG_WRITE;
        if !self.windows.is_empty() {
            features |= F_SIZE;
        }
        let mut queues = 2 * self.inputs.len();
        if self.is_multiport {
            features |= F_MULTIPORT;
            queues += 2;
        }
        Identity {
            device_id: device_id::CONSOLE,
            features,
            queue_sizes: vec![QUEUE_SIZE_MAX; queues],
            config_size: CONFIG_SIZE,
            operations: operations(self.inputs.len()),
        }
    }

    fn read_config(&self, offset: usize, into: &mut [u8]) {
        let space = self.config();
        into.copy_from_slice(&space[offset..offset + into.len()]);
    }

    fn write_config(&self, offset: usize, from: &[u8]) -> Result<(), ConfigReadOnly> {
        match from {
            [byte, rest @ ..] if offset == EMERGENCY_AT && rest.len() < 4 => {
                self.outputs[0].write_in_emergency(*byte);
                Ok(())
            }
            _ => Err(ConfigReadOnly { offset }),
        }
    }

    async fn config_changed(&self) {
        self.config_changed.notified().await;
    }

    fn negotiated(&self, features: u64) {
        let has = |feature| features & feature != 0;
        self.control.negotiated(has(F_MULTIPORT), has(F_SIZE));
    }

    async fn serve(self: Rc<Self>, queue: Queue) -> Result<(), QueueError> {
        match Role::of(queue.index()) {
            Role::Receive(port) => self.receive(port, queue).await,
            Role::Transmit(port) => self.outputs[port].serve(queue).await,
            Role::Tell => self.control.tell(queue).await,
            Role::Hear => self.control.hear(queue).await,
        }
    }

    fn reset(&self) {
        self.control.reset();
    }
}

/// What a queue is for.
enum Role {
    Receive(usize),
    Transmit(usize),
    Tell,
    Hear,
}

impl Role {
    fn of(queue: u16) -> Self {
        let port = match queue {
            CONTROL_RECEIVE => return Self::Tell,
            CONTROL_TRANSMIT => return Self::Hear,
            0 | 1 => 0,
            further => usize::from(further / 2 - 1),
        };
        match queue % 2 {
            0 => Self::Receive(port),
            _ => Self::Transmit(port),
        }
    }
}

/// `future`'s output, or `None` when the queue, if there is one, is told to stop, or its memory was
/// replaced: the chain in hand is to be put back.
async fn until<F: Future>(queue: Option<&Queue>, future: F) -> Option<F::Output> {
    match queue {
        Some(queue) => queue.until_recall(future).await,
        None => Some(future.await),
    }
}
