//! `--block`: its keys, the opening, locking and measuring of its image, and the making of the
//! device. Raw images and block devices only: one that begins as another format does is refused.

use std::os::fd::OwnedFd;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use vudev_devices::block::{self, BlockConfig, BlockError, Measure, measure};

use super::format;
use super::{Open, PACKED_QUEUE, PCI_ADDRESS, VMM_ONLY, open};
use crate::kind::{CreateError, DeviceKind, Given, Notice, Opened};
use crate::listen::describe;
use crate::options::{Choice, FRONT_ENDS, Key, Kind, OptionError, Table, Values, reason, shown};

/// The kind of `--block`.
#[derive(Debug)]
pub struct Block;

/// VIRTIO_BLK_ID_BYTES: virtio 1.3, 5.2.6.
const ID_SIZE: usize = 20;

/// Where it cannot be told what O_DIRECT wants: enough for nearly all disks, and right for those
/// that want less.
const DIRECT_ALIGNMENT_USUAL: u32 = 4096;

/// How long a disk may still be locked by a process that has just ended.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);
const LOCK_PAUSE: Duration = Duration::from_millis(10);

const FORMAT_REMEDY: &str = "only raw images are read; qemu-img convert -O raw makes one";

static TABLE: Table = Table {
    device: "block",
    about: "a disk (virtio-blk) on a raw image or a block device",
    keys: &[
        Key::new("path", Kind::Path, "the image or block device")
            .required()
            .positional(),
        Key::flag("ro", "the guest can only read"),
        Key::new(
            "format",
            Kind::Choice(&[
                Choice::new("raw"),
                Choice::refused("qcow2", FORMAT_REMEDY),
                Choice::refused("vmdk", FORMAT_REMEDY),
                Choice::refused("vhdx", FORMAT_REMEDY),
            ]),
            "raw: the disk is the bytes of the image even where they begin as another format's do, \
             which is refused else",
        ),
        Key::new(
            "sparse",
            Kind::Flag,
            "the guest can give back space (DISCARD, and WRITE_ZEROES with unmap)",
        )
        .default("true"),
        Key::flag("direct", "bypass the host's page cache (O_DIRECT)").aliases(&["o-direct"]),
        Key::new(
            "cache",
            Kind::Choice(&[
                Choice::new("writeback"),
                Choice::new("writethrough"),
                Choice::refused("none", "it is two things: direct, and cache=writeback"),
                Choice::refused(
                    "directsync",
                    "it is two things: direct, and cache=writethrough",
                ),
                Choice::refused("unsafe", "what a guest flushes is made durable"),
            ]),
            "whether a write is durable when the guest flushes or already when it is complete; \
             the guest can switch",
        )
        .default("writeback"),
        Key::new(
            "block-size",
            Kind::Size {
                min: 512,
                max: 65_536,
            },
            "the logical block size, a power of two; most Linux guests take no more than 4k",
        )
        .default("512"),
        Key::new(
            "id",
            Kind::Text { max: ID_SIZE },
            "the serial number that the guest can read",
        ),
        Key::new(
            "queues",
            Kind::Number { min: 1, max: 256 },
            "how many request queues there are; a guest uses one for each of its processors",
        )
        .default("16"),
        Key::new(
            "queue-size",
            Kind::Number { min: 4, max: 1024 },
            "the greatest number of buffers in a queue, a power of two",
        )
        .default("256"),
        Key::new(
            "lock",
            Kind::Flag,
            "lock the image (flock), shared if ro and else exclusive; QEMU's own locks are others, \
             and are not seen",
        )
        .default("true"),
        Key::new(
            "async-executor",
            Kind::Choice(&[
                Choice::new("uring"),
                Choice::refused("epoll", "every device runs on one io_uring"),
            ]),
            "what carries out the requests",
        )
        .default("uring"),
        PACKED_QUEUE,
        Key::flag(
            "dontcache",
            "drop what was read or written from the page cache",
        )
        .refused("it is not built yet; direct bypasses the cache"),
        Key::flag("multiple-workers", "one thread for each queue")
            .noted("a device is one thread here, and its ring does requests of all queues at once"),
        Key::flag("root", "the guest's root is on this disk").noted(VMM_ONLY),
        Key::new(
            "bootindex",
            Kind::Number {
                min: 0,
                max: u32::MAX as u64,
            },
            "the boot order",
        )
        .noted(VMM_ONLY),
        PCI_ADDRESS,
    ],
    front_ends: FRONT_ENDS,
    joins: false,
    example: "path=disk.img,vhost=/tmp/vu-block",
};

impl DeviceKind for Block {
    const NAME: &'static str = "block";
    const POLICY: &'static str = "block";

    type Description = BlockConfig;
    type Device = block::Block;

    fn table() -> &'static Table {
        &TABLE
    }

    fn open(values: &Values) -> Result<Opened<BlockConfig>, OptionError> {
        let mut config = config(values)?;
        let image = image(values, &config)?;
        lock(values, &config, &image)?;
        refuse_formats(values, &image)?;
        let measured = measure(&image).map_err(|error| {
            let problem = format!("cannot measure {}: {}", named(values), reason(error));
            values.error("path", problem)
        })?;
        config.capacity = capacity(values, &config, &measured)?;
        set_blocks(&mut config, &measured);
        config
            .check()
            .map_err(|error| out_of_range(values, &error))?;
        let mut notes = values.notes();
        notes.extend(notes_on_blocks(values, &config));
        Ok(Opened {
            notes,
            ..Opened::new(config, vec![image])
        })
    }

    fn operations(description: &BlockConfig) -> u32 {
        description.operations()
    }

    fn create(mut given: Given<BlockConfig>) -> Result<block::Block, CreateError> {
        let [image] = given.take_descriptors()?;
        block::Block::new(&given.handle, &given.description, image)
            .map_err(|error| CreateError::Description(error.to_string()))
    }

    fn hear(device: &block::Block, notice: Notice) {
        match notice {
            Notice::Refresh => device.refresh(),
            Notice::Window { .. } => {}
        }
    }
}

/// What the options alone tell.
fn config(values: &Values) -> Result<BlockConfig, OptionError> {
    for key in ["block-size", "queue-size"] {
        let number = values.number(key);
        if !number.is_power_of_two() {
            let error = values.error(key, format!("{number} is not a power of two"));
            let (below, above) = (number.next_power_of_two() / 2, number.next_power_of_two());
            return Err(error.remedy(format!("write {below} or {above}")));
        }
    }
    Ok(BlockConfig {
        read_only: values.flag("ro"),
        sparse: values.flag("sparse"),
        write_through: values.choice("cache") == "writethrough",
        block_size: values.number_as("block-size"),
        physical_block_size: values.number_as("block-size"),
        capacity: 0,
        direct: values.flag("direct"),
        direct_alignment: 512,
        id: values.optional_text("id").map(str::to_owned),
        queues: values.number_as("queues"),
        queue_size: values.number_as("queue-size"),
    })
}

fn image(values: &Values, config: &BlockConfig) -> Result<OwnedFd, OptionError> {
    let access = if config.read_only {
        OFlags::RDONLY
    } else {
        OFlags::RDWR
    };
    let direct = if config.direct {
        OFlags::DIRECT
    } else {
        OFlags::empty()
    };
    let Open {
        descriptor,
        file_type,
    } = open(values, "path", access | direct).map_err(|error| explain(values, config, error))?;
    match file_type {
        FileType::RegularFile | FileType::BlockDevice => {
            leave_access_time(&descriptor);
            Ok(descriptor)
        }
        other => Err(unfit(values, other)),
    }
}

/// When a disk was read last says nothing, and to keep account of it costs each cached read 2 %.
/// Only the file's owner and root may ask for that; for others it is kept.
fn leave_access_time(image: &OwnedFd) {
    if let Ok(flags) = rustix::fs::fcntl_getfl(image) {
        let _ = rustix::fs::fcntl_setfl(image, flags | OFlags::NOATIME);
    }
}

/// Looks for the cause of a failed open that the user would not guess.
fn explain(values: &Values, config: &BlockConfig, error: OptionError) -> OptionError {
    let path = values.path("path");
    if let Ok(stat) = rustix::fs::stat(path) {
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile | FileType::BlockDevice => {}
            other => return unfit(values, other),
        }
    }
    let opens = |flags| {
        let flags = flags | OFlags::CLOEXEC | OFlags::NONBLOCK;
        rustix::fs::open(path, flags, Mode::empty()).is_ok()
    };
    if config.direct && opens(OFlags::RDONLY) && !opens(OFlags::RDONLY | OFlags::DIRECT) {
        let problem = format!("the file system of {} has no direct access", named(values));
        return values.error("direct", problem).remedy("leave direct out");
    }
    if !config.read_only && opens(OFlags::RDONLY) {
        return error
            .remedy("give ro for a disk that is only read, or start as a user who may write it");
    }
    error
}

fn unfit(values: &Values, file_type: FileType) -> OptionError {
    let what = describe(file_type);
    let problem = format!("{} is {what}", named(values));
    values
        .error("path", problem)
        .remedy("write the path of a raw image or a block device")
}

/// Locks, and waits a moment if it is locked: the kernel takes a ring down after its process has
/// ended, and lets go of the disk only then.
#[expect(
    clippy::disallowed_methods,
    reason = "the supervisor, before any device is there to wait for it"
)]
fn flock(image: &OwnedFd, operation: FlockOperation) -> Result<(), Errno> {
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        match rustix::fs::flock(image, operation) {
            Err(Errno::AGAIN) if Instant::now() < deadline => thread::sleep(LOCK_PAUSE),
            result => return result,
        }
    }
}

fn lock(values: &Values, config: &BlockConfig, image: &OwnedFd) -> Result<(), OptionError> {
    if !values.flag("lock") {
        return Ok(());
    }
    let (operation, other) = match config.read_only {
        true => (
            FlockOperation::NonBlockingLockShared,
            "has it open to write",
        ),
        false => (FlockOperation::NonBlockingLockExclusive, "has it open"),
    };
    flock(image, operation).map_err(|errno| match errno {
        Errno::AGAIN => {
            let problem = format!(
                "{} is locked: another disk of this command or another process {other}",
                named(values)
            );
            let remedy = "end the other one; lock=false risks the data";
            values.error("path", problem).remedy(remedy)
        }
        errno => {
            let problem = format!("cannot lock {}: {}", named(values), reason(errno));
            let remedy = "give lock=false, and see to it that nobody else writes to it";
            values.error("path", problem).remedy(remedy)
        }
    })
}

/// An image of another format would be written over, and a guest would see its header for a disk.
/// The reverse is possible too: a guest can write such a header to its raw disk, and have its image
/// taken for one with a backing file of its choice by a program that guesses. Here nothing is
/// guessed: such an image is not started again without `format=raw`.
fn refuse_formats(values: &Values, image: &OwnedFd) -> Result<(), OptionError> {
    if values.is_given("format") {
        return Ok(());
    }
    let found = format::recognise(image).map_err(|errno| {
        let problem = format!("cannot read {}: {}", named(values), reason(errno));
        let remedy = "write the path of an image, or give format=raw";
        values.error("path", problem).remedy(remedy)
    })?;
    match found {
        None => Ok(()),
        Some(name) => {
            let problem = format!("{} looks like a {name} image", named(values));
            let remedy = "convert it by qemu-img convert -O raw, or give format=raw if the guest \
                          is to see it as it is";
            Err(values.error("path", problem).remedy(remedy))
        }
    }
}

/// A disk is a whole number of blocks; what would be cut off could be data.
fn capacity(values: &Values, config: &BlockConfig, measured: &Measure) -> Result<u64, OptionError> {
    let Measure {
        capacity,
        physical_block_size: _,
        direct_alignment: _,
    } = *measured;
    let block_size = config.block_size;
    if capacity == 0 {
        let error = values.error("path", format!("{} is empty", named(values)));
        return Err(error.remedy("give it a size, by truncate -s 1G FILE say"));
    }
    if !capacity.is_multiple_of(u64::from(block_size)) {
        let problem = format!(
            "the size of {}, {capacity} bytes, is not a multiple of its block size {block_size}",
            named(values)
        );
        let remedy = format!("fill it up with zeros by truncate -s %{block_size} FILE");
        return Err(values.error("path", problem).remedy(remedy));
    }
    Ok(capacity)
}

/// Which blocks are written as a whole, and what direct access needs.
fn set_blocks(config: &mut BlockConfig, measured: &Measure) {
    if config.direct {
        config.direct_alignment = measured.direct_alignment.unwrap_or(DIRECT_ALIGNMENT_USUAL);
    }
    let coarsest = config.block_size.max(measured.physical_block_size);
    config.physical_block_size = match config.direct {
        true => coarsest.max(config.direct_alignment),
        false => coarsest,
    };
}

/// What direct access with blocks greater than the guest's comes to.
fn notes_on_blocks(values: &Values, config: &BlockConfig) -> Vec<String> {
    let (alignment, block_size) = (config.direct_alignment, config.block_size);
    if !config.direct || alignment <= block_size {
        return Vec::new();
    }
    let mut notes = vec![format!(
        "direct access to {} is in blocks of {alignment} bytes: what is written in blocks of \
         {block_size} is slower; block-size={alignment} avoids that",
        named(values)
    )];
    let rest = config.capacity % u64::from(alignment);
    if rest != 0 {
        notes.push(format!(
            "the last {rest} bytes of {} are no whole block of direct access, and left out",
            named(values)
        ));
    }
    notes
}

/// The device knows best what it can be; here is only the key that it speaks of.
fn out_of_range(values: &Values, error: &BlockError) -> OptionError {
    let key = match error {
        BlockError::BlockSize(_) => "block-size",
        BlockError::PhysicalBlockSize(_) => "path",
        BlockError::DirectAlignment(_) => "direct",
        BlockError::Id(_) => "id",
        BlockError::Queues(_) => "queues",
        BlockError::QueueSize(_) => "queue-size",
    };
    values.error(key, error)
}

fn named(values: &Values) -> impl std::fmt::Display {
    shown(values.path("path"))
}
