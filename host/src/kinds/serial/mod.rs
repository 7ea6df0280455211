//! `--serial`: what its flags come to, and the making of the console. Always a virtio console: an
//! emulated UART cannot leave the VMM.

mod open;
mod pty;
mod table;

use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};
use vudev_devices::console::{
    self, Connect, Console, ConsoleConfig, End, Framing, Overflow, PORTS_MAX, PortConfig, Window,
};

use self::open::Opening;
use crate::broker::Broker;
use crate::kind::{CreateError, DeviceKind, Given, Notice, Opened};
use crate::options::{OptionError, Table, Values};

/// The kind of `--serial`.
#[derive(Debug)]
pub struct Serial;

/// A console, by its ports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SerialDescription {
    /// Whether the guest is told of ports and their names.
    pub multiport: bool,
    /// Port 0 first.
    pub ports: Vec<PortDescription>,
}

/// A port. Its descriptors are its input's, if it has one, and its end's; those of the ends that
/// listen come after those of all ports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortDescription {
    /// Its name.
    pub name: Option<String>,
    /// Whether the guest makes a console of it.
    pub is_console: bool,
    /// The size of its terminal, if it has one.
    pub window: Option<Window>,
    /// Whether there is a descriptor to read input from.
    pub input: bool,
    /// Where output goes.
    pub end: EndDescription,
    /// Whether input comes from there.
    pub is_both_ways: bool,
    /// How output is cut.
    pub framing: Framing,
    /// Whether the time stands before each line.
    pub timestamps: bool,
    /// What becomes of output that nobody takes.
    pub overflow: Overflow,
}

/// The end of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EndDescription {
    /// There is none.
    Nothing,
    /// A descriptor.
    File,
    /// What is in reach at this place.
    Connect(u8),
    /// A listening socket.
    Listen,
    /// A terminal's master, and what tells that it is opened.
    Terminal,
}

impl DeviceKind for Serial {
    const NAME: &'static str = "serial";
    const POLICY: &'static str = "serial";

    type Description = SerialDescription;
    type Device = Console;

    fn table() -> &'static Table {
        &table::TABLE
    }

    fn open(values: &Values) -> Result<Opened<SerialDescription>, OptionError> {
        Opening::of(values)?.finish()
    }

    fn operations(description: &SerialDescription) -> u32 {
        console::operations(description.ports.len())
    }

    fn create(given: Given<SerialDescription>) -> Result<Console, CreateError> {
        let SerialDescription { multiport, ports } = given.description;
        if ports.is_empty() || ports.len() > PORTS_MAX || (ports.len() > 1 && !multiport) {
            let text = format!("a console of {} ports", ports.len());
            return Err(CreateError::Description(text));
        }
        let got = given.descriptors.len();
        let expected = ports.iter().map(PortDescription::descriptors).sum();
        if got != expected {
            return Err(CreateError::Descriptors { expected, got });
        }
        let listening = ports
            .iter()
            .filter(|port| port.end == EndDescription::Listen);
        let mut own = given.descriptors;
        let listeners = own.split_off(got - listening.count());
        let mut parts = Parts {
            broker: given.broker,
            own: own.into_iter(),
            listeners: listeners.into_iter(),
        };
        let short = || CreateError::Descriptors { expected, got };
        let ports = ports
            .into_iter()
            .map(|port| parts.port(port).ok_or_else(short));
        let ports = ports.collect::<Result<_, _>>()?;
        Ok(Console::with_ports(
            &given.handle,
            ConsoleConfig { ports, multiport },
        ))
    }

    fn hear(device: &Console, notice: Notice) {
        match notice {
            Notice::Window {
                place,
                columns,
                rows,
            } => device.resize(place.into(), Window { columns, rows }),
            // Its windows come with it, each by itself.
            Notice::Refresh => {}
        }
    }
}

impl PortDescription {
    /// How many descriptors it has.
    fn descriptors(&self) -> usize {
        let of_end = match self.end {
            EndDescription::Nothing | EndDescription::Connect(_) => 0,
            EndDescription::File | EndDescription::Listen => 1,
            EndDescription::Terminal => 2,
        };
        usize::from(self.input) + of_end
    }
}

/// What ports are made of.
struct Parts {
    broker: Broker,
    own: std::vec::IntoIter<OwnedFd>,
    listeners: std::vec::IntoIter<OwnedFd>,
}

impl Parts {
    /// `None` without enough descriptors.
    fn port(&mut self, described: PortDescription) -> Option<PortConfig> {
        let PortDescription {
            name,
            is_console,
            window,
            input,
            end,
            is_both_ways,
            framing,
            timestamps,
            overflow,
        } = described;
        let input = match input {
            true => Some(self.own.next()?),
            false => None,
        };
        let end = match end {
            EndDescription::Nothing => End::Nothing,
            EndDescription::File => End::File(self.own.next()?),
            EndDescription::Connect(target) => End::Connect(self.connect(target)),
            EndDescription::Listen => End::Listen(self.listeners.next()?),
            EndDescription::Terminal => End::Terminal {
                master: self.own.next()?,
                opens: self.own.next()?,
            },
        };
        Some(PortConfig {
            name,
            is_console,
            window,
            end,
            is_both_ways,
            input,
            framing,
            timestamps,
            overflow,
        })
    }

    fn connect(&self, target: u8) -> Connect {
        let broker = self.broker.clone();
        Box::new(move || Box::pin(broker.connect(target, 0)))
    }
}
