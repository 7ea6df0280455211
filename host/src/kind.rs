//! What a kind of device is to the host: its option, how its resources are opened outside the
//! jail, and how the device is made of them inside. It is not the device, which knows neither
//! options nor processes.

use std::os::fd::OwnedFd;

use serde::Serialize;
use serde::de::DeserializeOwned;
use vudev_executor::Handle;
use vudev_virtio::{Device, IdentityError};

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
    /// `foo_device_vhost_user.ring`. The transport chooses the rest.
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

    /// Makes the device of the descriptors that `open` gave, in the same order.
    ///
    /// # Errors
    /// A descriptor is missing or cannot be used.
    fn create(
        handle: &Handle,
        description: Self::Description,
        descriptors: Vec<OwnedFd>,
    ) -> Result<Self::Device, CreateError>;
}

/// What [`DeviceKind::open`] hands to the supervisor.
#[derive(Debug)]
pub struct Opened<D> {
    /// Sent to the device's process as JSON.
    pub description: D,
    /// Sent to the device's process, at most [`DESCRIPTORS_MAX`].
    pub descriptors: Vec<OwnedFd>,
    /// A terminal that the device reads keys from. The supervisor puts it into raw mode while
    /// the devices run and restores it on every way out; ignored when it is not a terminal.
    pub terminal: Option<OwnedFd>,
    /// What the user should know about values that were accepted but have no effect here; each
    /// is logged once.
    pub notes: Vec<String>,
}

impl<D> Opened<D> {
    /// A description and its descriptors, without a terminal or notes.
    pub fn new(description: D, descriptors: Vec<OwnedFd>) -> Self {
        Self {
            description,
            descriptors,
            terminal: None,
            notes: Vec::new(),
        }
    }
}

/// The most descriptors one device may be given: with its listening socket they travel in one
/// message, and the kernel takes 253 in one (SCM_MAX_FD).
pub const DESCRIPTORS_MAX: usize = 64;

/// The device could not be made in its process.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// `open` and `create` disagree about the descriptors.
    #[error("expected {expected} descriptors, got {got}")]
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
