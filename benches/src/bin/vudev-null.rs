//! A disk of nothing, jailed and supervised as any device: it reads what is in memory already, and
//! forgets what is written. What a request costs here is what it costs without its data: socket,
//! queue, loop and calls. For comparisons with the disks of nothing that others have, and with
//! other devices: what is no request of a disk's comes back as quickly, said to be full.

use std::process::ExitCode;
use std::rc::Rc;

use serde::{Deserialize, Serialize};
use vudev_host::options::{FRONT_ENDS, Key, Kind, OptionError, Table, Values};
use vudev_host::{CreateError, DeviceKind, Given, Opened, Registry};
use vudev_virtio::spec::device_id;
use vudev_virtio::{Chain, Device, Identity, Queue, QueueError};

fn main() -> ExitCode {
    vudev_host::run(&Registry::new().with::<NullKind>())
}

struct NullKind;

static TABLE: Table = Table {
    device: NullKind::NAME,
    about: "a disk of nothing",
    keys: &[Key::new(
        "size",
        Kind::Number {
            min: 1,
            max: 1 << 40,
        },
        "bytes of the disk",
    )
    .required()],
    joins: false,
    front_ends: FRONT_ENDS,
    example: "size=1073741824,vhost=/tmp/vu-null",
};

#[derive(Serialize, Deserialize)]
struct Description {
    size: u64,
}

impl DeviceKind for NullKind {
    const NAME: &'static str = "null";
    /// What the disk may, of which this one uses next to nothing.
    const POLICY: &'static str = "block";
    type Description = Description;
    type Device = Null;

    fn table() -> &'static Table {
        &TABLE
    }

    fn open(values: &Values) -> Result<Opened<Description>, OptionError> {
        let size = values.number("size");
        Ok(Opened::new(Description { size }, Vec::new()))
    }

    fn operations(_: &Description) -> u32 {
        OPERATIONS
    }

    fn create(given: Given<Description>) -> Result<Null, CreateError> {
        Ok(Null {
            sectors: given.description.size / 512,
        })
    }
}

/// As a disk's, though none is ever in flight.
const OPERATIONS: u32 = 128;
const DEPTH: usize = 128;

/// Bytes of the configuration space up to the number of queues (5.2.4), which is the last.
const SPACE: usize = 36;
const QUEUES: u8 = 4;

/// VIRTIO_BLK_F_FLUSH and VIRTIO_BLK_F_MQ
const FEATURES: u64 = 1 << 9 | 1 << 12;

/// A status of a request, and that of one that is none.
const OK: u8 = 0;
const IO_ERROR: u8 = 1;

struct Null {
    sectors: u64,
}

impl Device for Null {
    fn identity(&self) -> Identity {
        Identity {
            device_id: device_id::BLOCK,
            features: FEATURES,
            queue_sizes: vec![256; QUEUES.into()],
            config_size: SPACE,
            operations: OPERATIONS,
        }
    }

    fn read_config(&self, offset: usize, into: &mut [u8]) {
        let mut space = [0; SPACE];
        space[..8].copy_from_slice(&self.sectors.to_le_bytes());
        space[SPACE - 2] = QUEUES;
        into.copy_from_slice(&space[offset..offset + into.len()]);
    }

    async fn serve(self: Rc<Self>, queue: Queue) -> Result<(), QueueError> {
        queue
            .serve(DEPTH, async |chain: &mut Chain| answer(chain))
            .await
    }
}

/// All of it done, as soon as it was looked at.
fn answer(chain: &mut Chain) -> u32 {
    let Some(status) = chain.writable.split_last() else {
        return 0;
    };
    let known = chain.readable.read_array::<16>().is_ok();
    status.write(if known { OK } else { IO_ERROR });
    u32::try_from(chain.writable.len() + 1).unwrap_or(u32::MAX)
}
