//! A `vudev` with one device that tries to break out of its jail, for tests. It is built as an
//! author outside this workspace would build one: a kind, its policies, a registry, `run`. Never
//! to be installed.
//!
//! Writing a number to the first byte of its configuration space makes the device do what
//! [`Attempt`] says; the four bytes after it then hold the result, 0 or a negative errno. Writing
//! attempt, member (two bytes each) and number outside (four) to byte 8 makes an attempt of
//! [`intruder`]'s table.
//!
//! The same device is there under its own policies and under those of the real ones; and there is a
//! process of [`bare`], without a host.

use std::cell::{Cell, RefCell};
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::ExitCode;
use std::rc::Rc;

use serde::{Deserialize, Serialize};
use vudev_executor::{File, Handle, Registered, Task};
use vudev_host::options::{FRONT_ENDS, OptionError, Table, Values};
use vudev_host::{CreateError, DeviceKind, Given, Opened, Registry};
use vudev_tests::attempt::{Attempt, RESULT_PENDING};
use vudev_tests::intruder::leaks::{LEAKS, Leaked, leaks};
use vudev_tests::intruder::vfio::Vfio;
use vudev_tests::intruder::{self, Hands, Outside, ring::RawRing};
use vudev_virtio::{ConfigReadOnly, Device, Identity, Queue, QueueError};

mod bare;

fn main() -> ExitCode {
    let mut arguments = std::env::args();
    if arguments.next().as_deref() == Some(bare::NAME) {
        return bare::main(arguments);
    }
    let registry = Registry::new()
        .with::<EscapeKind>()
        .with::<AsBlock>()
        .with::<AsSerial>()
        .with::<AsVvuProxy>()
        .with_policies(POLICIES);
    vudev_host::run(&registry)
}

/// What a device needs, and no more: the embedded parts, and a ring that may not allocate.
const POLICIES: &[(&str, &str)] = &[
    ("x86_64/escape_device_vhost_user.policy", CALLS),
    ("aarch64/escape_device_vhost_user.policy", CALLS),
    ("arm/escape_device_vhost_user.policy", CALLS),
    (
        "ring/escape_device_vhost_user.ring",
        "@include ./vhost_user.ring\n@include ./common_device.ring\n",
    ),
];

const CALLS: &str = "@include ./vhost_user.policy\n@include ./common_device.policy\n";

/// It has no options.
#[derive(Serialize, Deserialize)]
struct Description {}

/// A kind of the device, by its name and the name of its policies.
macro_rules! kind {
    ($kind:ident, $name:literal, $policy:literal) => {
        struct $kind;

        impl DeviceKind for $kind {
            const NAME: &'static str = $name;
            const POLICY: &'static str = $policy;
            type Description = Description;
            type Device = Escape;

            fn table() -> &'static Table {
                static TABLE: Table = Table {
                    device: $name,
                    about: "a device that tries to break out of its jail",
                    keys: &[],
                    front_ends: FRONT_ENDS,
                    joins: false,
                    example: "vhost=/tmp/vu-escape",
                };
                &TABLE
            }

            fn open(values: &Values) -> Result<Opened<Description>, OptionError> {
                open(values)
            }

            fn operations(_: &Description) -> u32 {
                OPERATIONS
            }

            fn create(given: Given<Description>) -> Result<Escape, CreateError> {
                create(&given.handle, given.descriptors)
            }
        }
    };
}

kind!(EscapeKind, "escape", "escape");
kind!(AsBlock, "as-block", "block");
kind!(AsSerial, "as-serial", "serial");
kind!(AsVvuProxy, "as-vvu-proxy", "vvu_proxy");

/// A file of its own; what leaks to it; and the terminal that it was started from, if it was: a
/// console has one.
fn open(values: &Values) -> Result<Opened<Description>, OptionError> {
    let file = tempfile::tempfile().map_err(|error| values.error("vhost", error))?;
    let mut descriptors = vec![file.into()];
    descriptors.extend(leaks(std::process::id()).map_err(|error| values.error("vhost", error))?);
    let input = io::stdin();
    if input.is_terminal() {
        let terminal = input.as_fd().try_clone_to_owned();
        descriptors.push(terminal.map_err(|error| values.error("vhost", error))?);
    }
    Ok(Opened::new(Description {}, descriptors))
}

fn create(handle: &Handle, mut descriptors: Vec<OwnedFd>) -> Result<Escape, CreateError> {
    let got = descriptors.len();
    let expected = 1 + LEAKS;
    let terminal = match got.checked_sub(expected) {
        Some(0) => None,
        Some(1) => descriptors.pop(),
        _ => return Err(CreateError::Descriptors { expected, got }),
    };
    let leaked = descriptors.split_off(1);
    let file = descriptors.swap_remove(0);
    Escape::new(handle, file, leaked, terminal).map_err(|source| CreateError::Io {
        step: "find the ring",
        source,
    })
}

/// Ring operations that it has in flight at most.
const OPERATIONS: u32 = 8;

/// The control channel's number in every role.
const CHANNEL: i32 = 3;

/// Bytes of its configuration space.
const CONFIG_SIZE: usize = 16;

/// No such number in the table.
const NO_ATTEMPT: i64 = i32::MIN as i64;

struct Escape {
    handle: Handle,
    file: File,
    leaked: Vec<OwnedFd>,
    terminal: Option<OwnedFd>,
    ring: RawRing,
    /// A direct disk has some.
    _registered: Option<Registered>,
    vfio: Vfio,
    result: Rc<Cell<i32>>,
    running: RefCell<Option<Task<()>>>,
}

impl Escape {
    fn new(
        handle: &Handle,
        file: OwnedFd,
        leaked: Vec<OwnedFd>,
        terminal: Option<OwnedFd>,
    ) -> io::Result<Self> {
        Ok(Self {
            handle: handle.clone(),
            file: File::new(handle, file),
            leaked,
            terminal,
            // Before the jail closes, as an intruder who comes later could not: generous to it.
            ring: RawRing::of_this_process(None)?,
            // Where its policy lists the operations for it.
            _registered: handle.registered().ok(),
            vfio: Vfio::of_this_process(),
            result: Rc::new(Cell::new(0)),
            running: RefCell::new(None),
        })
    }

    fn attempt(&self, attempt: Attempt) {
        self.result.set(RESULT_PENDING);
        let result = match attempt {
            Attempt::Open => std::fs::File::open("/etc/passwd").map(drop),
            Attempt::Socket => std::os::unix::net::UnixDatagram::unbound().map(drop),
            Attempt::RingOpcode => return self.allocate(),
            Attempt::Panic => panic!("as the test asked"),
            Attempt::Hang => loop {
                std::hint::spin_loop();
            },
            Attempt::Exit => std::process::exit(7),
            Attempt::Smuggle => {
                let sent = self.ring.send(CHANNEL, self.file.as_fd().as_raw_fd());
                return self.result.set(i32::try_from(sent).unwrap_or(0));
            }
            Attempt::Flood => {
                (0..100_000).for_each(|number| log::info!("flood {number}\u{1b}[2J"));
                Ok(())
            }
        };
        self.finish(result);
    }

    /// One of the table's.
    fn intrude(&self, [a, b, c, d, outside @ ..]: [u8; 8]) {
        let leaked = Leaked::of(&self.leaked, None).expect("it was given all of them");
        let hands = Hands {
            ring: self.ring,
            file: self.file.as_fd().as_raw_fd(),
            terminal: self.terminal.as_ref().map(AsRawFd::as_raw_fd),
            vfio: self.vfio,
            outside: Outside(u32::from_le_bytes(outside)),
            leaked,
            member: u16::from_le_bytes([c, d]),
        };
        let number = usize::from(u16::from_le_bytes([a, b]));
        let result = intruder::attempts()
            .get(number)
            .map_or(NO_ATTEMPT, |attempt| attempt.make(&hands));
        self.result.set(i32::try_from(result).unwrap_or(0));
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
            config_size: CONFIG_SIZE,
            operations: OPERATIONS,
        }
    }

    fn read_config(&self, offset: usize, into: &mut [u8]) {
        let mut space = [0; CONFIG_SIZE];
        space[1..5].copy_from_slice(&self.result.get().to_le_bytes());
        into.copy_from_slice(&space[offset..offset + into.len()]);
    }

    fn write_config(&self, offset: usize, from: &[u8]) -> Result<(), ConfigReadOnly> {
        if let (8, Ok(intrusion)) = (offset, from.try_into()) {
            self.intrude(intrusion);
            return Ok(());
        }
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
