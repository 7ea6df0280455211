//! What a kind of device is to the host: its option, how its resources are opened outside the
//! jail, and how the device is made of them inside. It is not the device, which knows neither
//! options nor processes.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use vudev_executor::Handle;
use vudev_virtio::{Device, IdentityError};

use crate::broker::Broker;
use crate::options::{OptionError, Table, Values};

/// One kind of device: `--NAME key=value,…` on the command line, `NAME-0`, `NAME-1` … in the logs.
///
/// `table` and `open` run in the supervisor with all its privileges. `operations` and `create` run
/// in the device's own process, before its jail closes; whatever the device needs afterwards must
/// have come in the description and the descriptors. Nothing is submitted to the ring in `create`:
/// it runs only once the jail has closed, and a task spawned before that waits until then.
pub trait DeviceKind: 'static {
    /// The option without its dashes, the first part of each instance's name, and the same as its
    /// table's [`Table::device`].
    const NAME: &'static str;

    /// The first part of its policies' names, `foo` of `foo_device_vhost_user.policy` and of
    /// `foo_device_vhost_user.ring`. The transport chooses the rest: `foo_device_vvu` are those of
    /// `vhost=PCI-ADDRESS`.
    const POLICY: &'static str;

    /// What crosses to the device's process beside descriptors, as JSON: plain data that serde can
    /// write so, with text for keys of maps. Never a path, which means nothing in the jail.
    type Description: Serialize + DeserializeOwned + 'static;

    /// The device itself.
    type Device: Device;

    /// The keys of its option.
    fn table() -> &'static Table;

    /// Opens everything the device needs. Nothing may be created that an error later on would
    /// leave behind.
    ///
    /// # Errors
    /// A value that makes no sense, or a resource that cannot be opened, with its key and column.
    fn open(values: &Values) -> Result<Opened<Self::Description>, OptionError>;

    /// How many ring operations the device has in flight at most: the ring is made before the
    /// device, whose `Identity::operations` must not be more. Let both call one function.
    fn operations(description: &Self::Description) -> u32;

    /// Makes the device of what it is given.
    ///
    /// # Errors
    /// A descriptor is missing or cannot be used.
    fn create(given: Given<Self::Description>) -> Result<Self::Device, CreateError>;

    /// Tells the device of a change outside. Most have nothing to do with any.
    fn hear(device: &Self::Device, notice: Notice) {
        let _ = (device, notice);
    }
}

/// What [`DeviceKind::open`] hands to the supervisor.
#[derive(Debug)]
pub struct Opened<D> {
    /// Sent to the device's process as JSON.
    pub description: D,
    /// Sent to the device's process, at most [`DESCRIPTORS_MAX`].
    pub descriptors: Vec<OwnedFd>,
    /// Sockets that the device listens on, beside the one for front-ends. They are bound once
    /// everything has been opened, their descriptors come after those above, in this order, and
    /// their names are removed at the end.
    pub listens: Vec<Listen>,
    /// Symbolic links to what was opened, made when everything is, and removed at the end.
    pub aliases: Vec<Alias>,
    /// What the device may be connected to while it runs, by its place in this list, see
    /// [`Broker`]. At most 256.
    pub reach: Vec<Target>,
    /// Terminals that the device reads keys from. The supervisor puts them into raw mode while
    /// the devices run and restores them on every way out; what is not a terminal is left alone.
    pub terminals: Vec<OwnedFd>,
    /// Terminals whose size the device is told when it changes, by their place in this list, see
    /// [`Notice::Window`]. The size at the start is the description's to tell.
    pub windows: Vec<OwnedFd>,
    /// What the user should know about values that were accepted but have no effect here; each
    /// is logged once.
    pub notes: Vec<String>,
    /// What was made under a name that the user does not know yet; logged under the device's name.
    pub made: Vec<String>,
}

/// A stream socket that a device listens on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listen {
    /// In whose argument it is named: 0 is the device's first flag, and others are its
    /// [`Values::further`] ones, counted from 1.
    pub part: usize,
    /// The key that names its path. A key of [`crate::options::Kind::Path`] which two devices
    /// cannot share should be exclusive.
    pub key: &'static str,
}

/// A symbolic link that leads to something of the device's for as long as it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alias {
    /// In whose argument it is named, as [`Listen::part`].
    pub part: usize,
    /// The key that names its path, of [`crate::options::Kind::Path`].
    pub key: &'static str,
    /// Where it leads.
    pub target: PathBuf,
}

/// A host path that a device may be connected to. The device names its place in
/// [`Opened::reach`], and never the path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A SOCK_STREAM socket.
    Stream(PathBuf),
    /// A SOCK_STREAM socket whose path ends in an underscore and a decimal number, which the
    /// device names.
    NumberedStream(PathBuf),
    /// A SOCK_DGRAM socket.
    Datagram(PathBuf),
}

/// A change outside that a device may want to know of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Notice {
    /// The operator says (by SIGUSR1 to the supervisor) that sizes are to be read again.
    Refresh,
    /// A terminal has another size.
    Window {
        /// Its place in [`Opened::windows`].
        place: u8,
        /// Characters in a row.
        columns: u16,
        /// Rows.
        rows: u16,
    },
}

/// What [`DeviceKind::create`] makes a device of.
pub struct Given<D> {
    /// The executor of the device's process.
    pub handle: Handle,
    /// What `open` said.
    pub description: D,
    /// What `open` opened, in the same order.
    pub descriptors: Vec<OwnedFd>,
    /// Connects the device to what is in its reach.
    pub broker: Broker,
}

impl<D> Given<D> {
    /// Without anything in reach: for tests, and for devices in one's own process.
    pub fn new(handle: &Handle, description: D, descriptors: Vec<OwnedFd>) -> Self {
        Self {
            handle: handle.clone(),
            description,
            descriptors,
            broker: Broker::unreachable(),
        }
    }

    /// The descriptors, if they are `N`.
    ///
    /// # Errors
    /// `open` and `create` disagree.
    pub fn take_descriptors<const N: usize>(&mut self) -> Result<[OwnedFd; N], CreateError> {
        let descriptors = std::mem::take(&mut self.descriptors);
        let got = descriptors.len();
        <[OwnedFd; N]>::try_from(descriptors)
            .map_err(|_| CreateError::Descriptors { expected: N, got })
    }
}

impl<D> Opened<D> {
    /// A description and its descriptors, and nothing else.
    pub fn new(description: D, descriptors: Vec<OwnedFd>) -> Self {
        Self {
            description,
            descriptors,
            listens: Vec::new(),
            aliases: Vec::new(),
            reach: Vec::new(),
            terminals: Vec::new(),
            windows: Vec::new(),
            notes: Vec::new(),
            made: Vec::new(),
        }
    }

    /// The same with another description.
    pub(crate) fn map<E>(self, describe: impl FnOnce(D) -> E) -> Opened<E> {
        let Self {
            description,
            descriptors,
            listens,
            aliases,
            reach,
            terminals,
            windows,
            notes,
            made,
        } = self;
        Opened {
            description: describe(description),
            descriptors,
            listens,
            aliases,
            reach,
            terminals,
            windows,
            notes,
            made,
        }
    }
}

/// The most descriptors one device may be given: with those of its wire they travel in one
/// message, and the kernel takes 253 in one (SCM_MAX_FD).
pub const DESCRIPTORS_MAX: usize = 64;

/// The device could not be made in its process.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// `open` and `create` disagree about the descriptors.
    #[error("`open` gave {got} descriptors, and `create` takes {expected}")]
    Descriptors {
        /// How many `create` wants.
        expected: usize,
        /// How many came.
        got: usize,
    },
    /// A system call on one of the resources failed.
    #[error("{step}: {source}")]
    Io {
        /// What was being done.
        step: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The device contradicts the specification.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The description does not describe a device.
    #[error("{0}")]
    Description(String),
}
