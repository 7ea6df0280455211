//! What the kinds promise about opening: each resource rightly, each mistake as one line with its
//! column, and nothing changed by a mistake.

mod block;

use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags};
use vudev_devices::block::BlockConfig;
use vudev_executor::Executor;
use vudev_virtio::Device as _;

use super::{Block, Serial, SerialDescription};
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
fn the_example_of_crosvm_is_accepted() {
    let scene = Scene::new();
    let opened = scene
        .open::<Serial>("hardware=virtio-console,console,stdin,type=stdout,earlycon")
        .expect("accepted");
    let expected = SerialDescription {
        input: true,
        output: true,
    };
    assert_eq!(
        (opened.description, opened.descriptors.len()),
        (expected, 2)
    );
    assert!(opened.descriptors.iter().all(is_cloexec));
    assert_eq!(opened.notes.len(), 2, "{:?}", opened.notes);
}

#[test]
fn a_console_of_defaults_has_neither_input_nor_output() {
    let opened = Scene::new().open::<Serial>("num=1").expect("accepted");
    let expected = SerialDescription {
        input: false,
        output: false,
    };
    assert_eq!(
        (opened.description, opened.descriptors.len()),
        (expected, 0)
    );
    assert!(opened.terminals.is_empty() && opened.notes.is_empty());
}

#[test]
fn the_output_file_is_made_and_appended_to() {
    let scene = Scene::new();
    for text in ["one", "two"] {
        let mut opened = scene
            .open::<Serial>("type=file,path=DIR/log")
            .expect("accepted");
        let mut file = std::fs::File::from(opened.descriptors.remove(0));
        file.write_all(text.as_bytes()).expect("written");
        assert!(is_cloexec(&file) && !flags(&file).contains(OFlags::NONBLOCK));
    }
    assert_eq!(std::fs::read(scene.path("log")).expect("there"), b"onetwo");
}

#[test]
fn input_comes_from_a_file() {
    let scene = Scene::new();
    std::fs::write(scene.path("keys"), "ls\n").expect("written");
    let mut opened = scene.open::<Serial>("input=DIR/keys").expect("accepted");
    assert_eq!(
        opened.description,
        SerialDescription {
            input: true,
            output: false
        }
    );
    let mut text = String::new();
    std::fs::File::from(opened.descriptors.remove(0))
        .read_to_string(&mut text)
        .expect("read");
    assert_eq!(text, "ls\n");
}

#[test]
fn a_fifo_is_opened_without_waiting_and_survives_its_writers() {
    let scene = Scene::new();
    let path = scene.fifo("fifo");
    let mut opened = scene.open::<Serial>("input=DIR/fifo").expect("accepted");
    let input = opened.descriptors.remove(0);
    let writer = || {
        let mut options = std::fs::OpenOptions::new();
        options
            .write(true)
            .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
            .open(&path)
    };
    writer()
        .expect("there is a reader")
        .write_all(b"a")
        .expect("written");
    // No end of file between one writer and the next: the second read would see it.
    let mut reader = std::fs::File::from(input);
    let mut byte = [0; 1];
    reader.read_exact(&mut byte).expect("read");
    writer()
        .expect("there is a reader")
        .write_all(b"b")
        .expect("written");
    reader.read_exact(&mut byte).expect("read");
    assert_eq!(&byte, b"b");
}

#[test]
fn what_is_no_console_is_one_line_with_the_cause() {
    let scene = Scene::new();
    let no_uart = "is not available: an emulated UART is part of a VMM, only a virtio console can \
                   leave it: write one of virtio-console, legacy-virtio-console";
    let cases = [
        (
            "hardware=serial",
            format!("hardware: column 10: serial {no_uart}"),
        ),
        (
            "hardware=debugcon",
            format!("hardware: column 10: debugcon {no_uart}"),
        ),
        (
            "type=syslog",
            "type: column 6: syslog is not available: not built yet: \
            write one of stdout, file, sink"
                .to_owned(),
        ),
        (
            "type=file",
            "path: column 18: type=file needs the path of its file: add path=FILE".to_owned(),
        ),
        (
            "type=stdout,path=x",
            "path: column 18: type=stdout has no path: \
            give type=file, or leave path out"
                .to_owned(),
        ),
        (
            "stdin,type=sink,input=x",
            "input: column 23: there are two inputs, stdin is given too: \
            leave one of them out"
                .to_owned(),
        ),
    ];
    for (argument, text) in cases {
        assert_eq!(
            scene.refusal::<Serial>(argument),
            format!("--serial: {text}"),
            "{argument}"
        );
    }
}

#[test]
fn a_console_whose_files_cannot_be_opened_is_one_line_with_the_cause() {
    let scene = Scene::new();
    scene.fifo("fifo");
    let cases = [
        (
            "input=DIR",
            "input: column 7: \"DIR\" is a directory: \
            write the path of a file, a FIFO or a character device"
                .to_owned(),
        ),
        (
            "input=DIR/none",
            "input: column 7: cannot open \"DIR/none\": No such file or directory: \
            write the path of a file that exists"
                .to_owned(),
        ),
        (
            "type=file,path=DIR",
            "path: column 16: cannot open \"DIR\": Is a directory: \
            write the path of a file in it"
                .to_owned(),
        ),
        (
            "type=file,path=DIR/no/log",
            "path: column 16: cannot open \"DIR/no/log\": \
            No such file or directory: make its directory, or write another path"
                .to_owned(),
        ),
        (
            "type=file,path=DIR/fifo",
            "path: column 16: cannot open \"DIR/fifo\": \
            No such device or address: a FIFO needs a reader first, and a socket cannot be opened"
                .to_owned(),
        ),
    ];
    for (argument, text) in cases {
        assert_eq!(
            scene.refusal::<Serial>(argument),
            format!("--serial: {text}"),
            "{argument}"
        );
    }
}

#[test]
fn a_mistake_in_the_input_makes_no_output_file() {
    let scene = Scene::new();
    scene.refusal::<Serial>("type=file,path=DIR/log,input=DIR/none");
    assert!(!scene.path("log").exists());
}

#[test]
fn every_key_of_a_console_is_honoured_noted_or_refused() {
    let scene = Scene::new();
    let refused = [
        "input-unix-stream",
        "out_timestamp",
        "name=x",
        "type=unix",
        "type=unix-stream",
    ];
    for refused in refused {
        let error = scene.refusal::<Serial>(refused);
        assert!(error.contains("is not available: "), "{refused}: {error}");
    }
    let noted = [
        "num=2",
        "console",
        "earlycon",
        "debugcon_port=0x403",
        "pci-address=00:05.0",
        "max-queue-sizes=[64,64]",
    ];
    for noted in noted {
        let opened = scene
            .open::<Serial>(&format!("type=sink,{noted}"))
            .expect(noted);
        assert_eq!(opened.notes.len(), 1, "{noted}");
    }
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
    let console = Serial::create(Given::new(handle, description, descriptors)).expect("made");
    assert_eq!(
        console.identity().operations,
        Serial::operations(&description)
    );
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
    let description = SerialDescription {
        input: true,
        output: true,
    };
    let error = Serial::create(Given::new(handle, description, none())).err();
    assert!(matches!(
        error,
        Some(CreateError::Descriptors {
            expected: 2,
            got: 0
        })
    ));
}
