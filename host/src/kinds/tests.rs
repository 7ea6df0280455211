//! What the kinds promise about opening: each resource rightly, each mistake as one line with its
//! column, and nothing changed by a mistake.

mod block;
mod net;
mod serial;

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags};
use vudev_devices::block::BlockConfig;
use vudev_executor::Executor;
use vudev_virtio::Device as _;

use super::{Block, Serial};
use crate::kind::{CreateError, DeviceKind, Given, Opened};
use crate::options::Values;

struct Scene {
    directory: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        Self {
            directory: tempfile::tempdir().expect("a directory"),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A sparse file of this size.
    fn file(&self, name: &str, size: u64) -> PathBuf {
        let file = std::fs::File::create(self.path(name)).expect("made");
        file.set_len(size).expect("sized");
        self.path(name)
    }

    fn fifo(&self, name: &str) -> PathBuf {
        let (kind, mode) = (rustix::fs::FileType::Fifo, Mode::from(0o600));
        rustix::fs::mknodat(rustix::fs::CWD, self.path(name), kind, mode, 0).expect("made");
        self.path(name)
    }

    /// Opens with `DIR/` in the argument standing for this directory.
    fn open<K: DeviceKind>(&self, argument: &str) -> Result<Opened<K::Description>, String> {
        let argument = argument.replace("DIR", self.name());
        let values = Values::parse(K::table(), &format!("{argument},vhost=s"));
        let opened = values.and_then(|values| K::open(&values));
        opened.map_err(|error| error.to_string().replace(self.name(), "DIR"))
    }

    /// As [`Scene::open`], of a device with several flags.
    fn open_all<K: DeviceKind>(
        &self,
        arguments: &[&str],
    ) -> Result<Opened<K::Description>, String> {
        let parse = |argument: &&str| {
            let argument = argument.replace("DIR", self.name());
            Values::parse(K::table(), &format!("{argument},vhost=s"))
        };
        let mut parts = arguments.iter().map(parse);
        let mut values = parts
            .next()
            .expect("one")
            .map_err(|error| error.to_string())?;
        for part in parts {
            values.join(part.map_err(|error| error.to_string())?);
        }
        let opened = K::open(&values);
        opened.map_err(|error| error.to_string().replace(self.name(), "DIR"))
    }

    fn refusal<K: DeviceKind>(&self, argument: &str) -> String {
        match self.open::<K>(argument) {
            Ok(_) => panic!("{argument} is accepted"),
            Err(error) => error,
        }
    }

    fn disk(&self, argument: &str) -> (BlockConfig, std::fs::File) {
        let Opened {
            description,
            mut descriptors,
            terminals,
            ..
        } = self.open::<Block>(argument).expect(argument);
        assert!(descriptors.len() == 1 && terminals.is_empty());
        (description, descriptors.remove(0).into())
    }

    fn name(&self) -> &str {
        self.directory.path().to_str().expect("UTF-8")
    }
}

fn flags(descriptor: &impl std::os::fd::AsFd) -> OFlags {
    rustix::fs::fcntl_getfl(descriptor).expect("open")
}

fn is_cloexec(descriptor: &impl std::os::fd::AsFd) -> bool {
    let flags = rustix::io::fcntl_getfd(descriptor).expect("open");
    flags.contains(rustix::io::FdFlags::CLOEXEC)
}

#[test]
fn a_device_is_made_of_what_was_opened_for_it() {
    let scene = Scene::new();
    scene.file("disk", 8192);
    let executor = Executor::simulated(1, vudev_executor::Faults::default());
    let handle = executor.handle();

    let Opened {
        description,
        descriptors,
        ..
    } = scene.open::<Block>("DIR/disk").expect("good");
    let operations = Block::operations(&description);
    let disk = Block::create(Given::new(handle, description, descriptors)).expect("made");
    assert_eq!(disk.identity().operations, operations);

    let Opened {
        description,
        descriptors,
        ..
    } = scene.open::<Serial>("stdin").expect("good");
    let operations = Serial::operations(&description);
    let console = Serial::create(Given::new(handle, description, descriptors)).expect("made");
    assert_eq!(console.identity().operations, operations);
}

#[test]
fn a_device_is_not_made_of_other_descriptors_than_its_own() {
    let scene = Scene::new();
    scene.file("disk", 8192);
    let executor = Executor::simulated(1, vudev_executor::Faults::default());
    let handle = executor.handle();
    let Opened { description, .. } = scene.open::<Block>("DIR/disk").expect("good");
    let none = Vec::<OwnedFd>::new;
    let error = Block::create(Given::new(handle, description, none())).err();
    assert!(matches!(
        error,
        Some(CreateError::Descriptors {
            expected: 1,
            got: 0
        })
    ));
    let Opened { description, .. } = scene.open::<Serial>("stdin,type=stdout").expect("good");
    let error = Serial::create(Given::new(handle, description, none())).err();
    assert!(matches!(
        error,
        Some(CreateError::Descriptors {
            expected: 2,
            got: 0
        })
    ));
}
