//! A whole program with a device of its own, to copy: an entropy source (virtio 1.3, 5.4) that
//! reads a file, on the command line, jailed and supervised. `docs/writing-a-device.md` explains
//! it.

use std::fs::File as StdFile;
use std::process::ExitCode;
use std::rc::Rc;

use serde::{Deserialize, Serialize};
use vudev_executor::File;
use vudev_host::options::{FRONT_ENDS, Key, Kind, OptionError, Table, Values};
use vudev_host::{CreateError, DeviceKind, Given, Opened, PolicySource, Registry};
use vudev_virtio::spec::device_id;
use vudev_virtio::{Chain, Device, Identity, Queue, QueueError};

fn main() -> ExitCode {
    vudev_host::run(
        &Registry::new()
            .with::<EntropyKind>()
            .with_policies(POLICIES),
    )
}

/// System calls, and what the ring may do: what every device does, what the transport adds, and
/// what this device adds.
const POLICIES: &[PolicySource] = &[
    ("x86_64/entropy_device_vhost_user.policy", CALLS),
    ("aarch64/entropy_device_vhost_user.policy", CALLS),
    ("arm/entropy_device_vhost_user.policy", CALLS),
    (
        "ring/entropy_device_vhost_user.ring",
        "@include ./common_device.ring\n@include ./vhost_user.ring\nIORING_OP_READV: 1\n",
    ),
];

const CALLS: &str = "@include ./common_device.policy\n@include ./vhost_user.policy\n";

struct EntropyKind;

static TABLE: Table = Table {
    device: EntropyKind::NAME,
    about: "an entropy source",
    keys: &[
        Key::new("path", Kind::Path, "where the bytes come from").default("/dev/urandom"),
        Key::new(
            "most",
            Kind::Size {
                min: 1,
                max: 65_536,
            },
            "given to one request",
        )
        .default("4k"),
    ],
    front_ends: FRONT_ENDS,
    joins: false,
    example: "vhost=/tmp/vu-entropy",
};

/// What crosses to the device's process, beside descriptors.
#[derive(Serialize, Deserialize)]
struct Description {
    most: u64,
}

impl DeviceKind for EntropyKind {
    const NAME: &'static str = "entropy";
    const POLICY: &'static str = "entropy";
    type Description = Description;
    type Device = Entropy;

    fn table() -> &'static Table {
        &TABLE
    }

    /// Outside of the jail, with the rights of whoever has typed the command.
    fn open(values: &Values) -> Result<Opened<Description>, OptionError> {
        let path = values.path("path");
        let source = StdFile::open(path)
            .map_err(|error| values.error("path", format!("cannot open {path:?}: {error}")))?;
        let most = values.number("most");
        Ok(Opened::new(Description { most }, vec![source.into()]))
    }

    fn operations(_: &Description) -> u32 {
        OPERATIONS
    }

    /// In the device's process.
    fn create(mut given: Given<Description>) -> Result<Entropy, CreateError> {
        let [source] = given.take_descriptors()?;
        Ok(Entropy {
            source: File::new(&given.handle, source),
            most: usize::try_from(given.description.most).unwrap_or(usize::MAX),
        })
    }
}

/// Requests worked on at once, and with one read for each, operations on the ring.
const DEPTH: usize = 4;
const OPERATIONS: u32 = 4;

struct Entropy {
    source: File,
    most: usize,
}

impl Device for Entropy {
    fn identity(&self) -> Identity {
        Identity {
            device_id: device_id::ENTROPY,
            features: 0,
            queue_sizes: vec![64],
            config_size: 0,
            operations: OPERATIONS,
        }
    }

    fn read_config(&self, _offset: usize, _into: &mut [u8]) {}

    async fn serve(self: Rc<Self>, queue: Queue) -> Result<(), QueueError> {
        let answer = async |chain: &mut Chain| self.fill(chain).await;
        queue.serve(DEPTH, answer).await
    }
}

impl Entropy {
    /// The kernel writes into the guest's memory; fewer bytes than there is room for are lawful
    /// (5.4.6.1).
    async fn fill(&self, chain: &mut Chain) -> u32 {
        chain.writable.truncate(self.most);
        let (result, buffers) = self.source.read(chain.writable.take()).await;
        chain.writable = buffers;
        match result {
            Ok(count) => u32::try_from(count).unwrap_or(u32::MAX),
            Err(error) => {
                // At `debug`, since a guest decides how often.
                log::debug!("read: {error}");
                0
            }
        }
    }
}
