//! A `vudev` with one device that tries to break out of its jail, for tests. It is built as an
//! author outside this workspace would build one: a kind, its policies, a registry, `run`. Never
//! to be installed.
//!
//! Writing a number to the first byte of its configuration space makes the device do what
//! [`Attempt`] says; the four bytes after it then hold the result, 0 or a negative errno.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
use std::rc::Rc;

use serde::{Deserialize, Serialize};
use vudev_executor::{File, Handle, Task};
use vudev_host::options::{OptionError, Table, Values};
use vudev_host::{CreateError, DeviceKind, Opened, Registry};
use vudev_tests::attempt::{Attempt, RESULT_PENDING};
use vudev_virtio::{ConfigReadOnly, Device, Identity, Queue, QueueError};

use self::ring::RawRing;

mod ring;

fn main() -> ExitCode {
    vudev_host::run(&Registry::new().with::<EscapeKind>().with_policies(POLICIES))
}

/// What a device needs, and no more: the embedded parts, and a ring that may not allocate.
const POLICIES: &[(&str, &str)] = &[
    (
        "x86_64/escape_device_vhost_user.policy",
        "@include ./vhost_user.policy\n@include ./common_device.policy\n",
    ),
    (
        "ring/escape_device_vhost_user.ring",
        "@include ./vhost_user.ring\n@include ./common_device.ring\n",
    ),
];

struct EscapeKind;

static TABLE: Table = Table {
    device: "escape",
    about: "a device that tries to break out of its jail",
    keys: &[],
    example: "vhost=/tmp/vu-escape",
};

/// It has no options.
#[derive(Serialize, Deserialize)]
struct Description {}

impl DeviceKind for EscapeKind {
    const NAME: &'static str = "escape";
    const POLICY: &'static str = "escape";
    type Description = Description;
    type Device = Escape;

    fn table() -> &'static Table {
        &TABLE
    }

    fn open(values: &Values) -> Result<Opened<Description>, OptionError> {
        let file = tempfile::tempfile().map_err(|error| values.error("vhost", error))?;
        Ok(Opened::new(Description {}, vec![file.into()]))
    }

    fn operations(_: &Description) -> u32 {
        OPERATIONS
    }

    fn create(
        handle: &Handle,
        _: Description,
        descriptors: Vec<OwnedFd>,
    ) -> Result<Escape, CreateError> {
        let got = descriptors.len();
        let Ok([file]) = <[OwnedFd; 1]>::try_from(descriptors) else {
            return Err(CreateError::Descriptors { expected: 1, got });
        };
        Escape::new(handle, file).map_err(|source| CreateError::Io {
            step: "find the ring",
            source,
        })
    }
}

/// Ring operations that it has in flight at most.
const OPERATIONS: u32 = 8;

struct Escape {
    handle: Handle,
    file: File,
    ring: RawRing,
    result: Rc<Cell<i32>>,
    running: RefCell<Option<Task<()>>>,
}

impl Escape {
    fn new(handle: &Handle, file: OwnedFd) -> io::Result<Self> {
        Ok(Self {
            handle: handle.clone(),
            file: File::new(handle, file),
            // Before the jail closes, as an intruder who comes later could not: generous to it.
            ring: RawRing::of_this_process()?,
            result: Rc::new(Cell::new(0)),
            running: RefCell::new(None),
        })
    }

    fn attempt(&self, attempt: Attempt) {
        self.result.set(RESULT_PENDING);
        let result = match attempt {
            Attempt::Open => std::fs::File::open("/etc/passwd").map(drop),
            Attempt::Socket => std::os::unix::net::UnixDatagram::unbound().map(drop),
            Attempt::Execute => Err(ring::execute()),
            Attempt::RingSetup => Err(ring::set_up_another()),
            Attempt::RingRegister => self.ring.register(),
            Attempt::RingOpcode => return self.allocate(),
            Attempt::RingFlag => self.ring.submit_with_flag(self.file.as_fd()),
            Attempt::Panic => panic!("as the test asked"),
            Attempt::Hang => loop {
                std::hint::spin_loop();
            },
            Attempt::Exit => std::process::exit(7),
            Attempt::Flood => {
                (0..100_000).for_each(|number| log::info!("flood {number}\u{1b}[2J"));
                Ok(())
            }
        };
        self.finish(result);
    }

    fn finish(&self, result: io::Result<()>) {
        self.result.set(code(result));
    }

    /// An operation that the executor knows and this device's ring list lacks.
    fn allocate(&self) {
        let (file, result) = (self.file.clone(), Rc::clone(&self.result));
        let task = self.handle.spawn(async move {
            result.set(code(file.allocate(0, 0, 4096).await));
        });
        self.running.replace(Some(task));
    }
}

fn code(result: io::Result<()>) -> i32 {
    match result {
        Ok(()) => 0,
        Err(error) => error.raw_os_error().map_or(i32::MIN, |errno| -errno),
    }
}

impl Device for Escape {
    fn identity(&self) -> Identity {
        Identity {
            // An id that no driver binds to: virtio 1.3, 5, "reserved".
            device_id: 63,
            features: 0,
            queue_sizes: vec![16],
            config_size: 8,
            operations: OPERATIONS,
        }
    }

    fn read_config(&self, offset: usize, into: &mut [u8]) {
        let mut space = [0; 8];
        space[1..5].copy_from_slice(&self.result.get().to_le_bytes());
        into.copy_from_slice(&space[offset..offset + into.len()]);
    }

    fn write_config(&self, offset: usize, from: &[u8]) -> Result<(), ConfigReadOnly> {
        match (offset, from.first().copied().and_then(Attempt::from_number)) {
            (0, Some(attempt)) => {
                self.attempt(attempt);
                Ok(())
            }
            _ => Err(ConfigReadOnly { offset }),
        }
    }

    async fn serve(self: Rc<Self>, queue: Queue) -> Result<(), QueueError> {
        queue.serve(1, async |_| 0).await
    }
}
