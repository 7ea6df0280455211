//! What the console's kind promises: each key's effect or its refusal, and what is no console.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;

use rustix::fs::OFlags;
use vudev_devices::console::{Framing, Overflow, Window};

use super::{Scene, flags, is_cloexec};
use crate::kind::{Listen, Opened, Target};
use crate::kinds::{EndDescription, PortDescription, Serial, SerialDescription};

/// A port that nothing was said of.
fn plain() -> PortDescription {
    PortDescription {
        name: None,
        is_console: true,
        window: None,
        input: false,
        end: EndDescription::Nothing,
        is_both_ways: false,
        framing: Framing::Bytes,
        timestamps: false,
        overflow: Overflow::Block,
    }
}

/// The description of a device of this one port.
fn single(port: PortDescription) -> SerialDescription {
    SerialDescription {
        multiport: false,
        ports: vec![port],
    }
}

#[test]
fn the_example_of_crosvm_is_accepted() {
    let scene = Scene::new();
    let opened = scene
        .open::<Serial>("hardware=virtio-console,console,stdin,type=stdout,earlycon")
        .expect("accepted");
    let expected = single(PortDescription {
        input: true,
        end: EndDescription::File,
        ..plain()
    });
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
    let expected = single(plain());
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
        single(PortDescription {
            input: true,
            ..plain()
        })
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
fn keys_that_do_not_fit_each_other_are_one_line_with_the_cause() {
    let scene = Scene::new();
    let long = "x".repeat(108);
    let cases = [
        (
            "type=unix".to_owned(),
            "path: column 18: type=unix needs the path of its socket: add path=SOCKET",
        ),
        (
            "type=unix-stream".to_owned(),
            "path: column 25: type=unix-stream needs the path of its socket: add path=SOCKET",
        ),
        (
            "type=unix,path=x,listen".to_owned(),
            "listen: column 18: type=unix is no stream socket: give type=unix-stream, or leave it \
             out",
        ),
        (
            "type=file,path=x,input-unix-stream".to_owned(),
            "input-unix-stream: column 18: type=file is no stream socket: give type=unix-stream, \
             or leave it out",
        ),
        (
            "type=unix-stream,path=x,input-unix-stream,stdin".to_owned(),
            "input-unix-stream: column 25: there are two inputs, stdin is given too: leave one of \
             them out",
        ),
        (
            "type=pty,input=x".to_owned(),
            "input: column 16: there are two inputs, a terminal gives input too: leave one of \
             them out",
        ),
        (
            "name=a/b".to_owned(),
            "name: column 6: has a slash or a control character: write a word",
        ),
        (
            "name=..".to_owned(),
            "name: column 6: is no name of a file in /dev/virtio-ports: write a word",
        ),
        (
            "overflow=wait".to_owned(),
            "overflow: column 10: \"wait\" is not one of its values: write one of block, drop",
        ),
    ];
    for (argument, text) in cases {
        assert_eq!(
            scene.refusal::<Serial>(&argument),
            format!("--serial: {text}"),
            "{argument}"
        );
    }
    let error = scene.refusal::<Serial>(&format!("type=unix,path={long}"));
    assert!(
        error.contains("the path has 108 bytes, more than 107"),
        "{error}"
    );
}

#[test]
fn sockets_are_connected_to_later_and_named_now() {
    let scene = Scene::new();
    let cases = [
        ("type=syslog", Target::Datagram("/dev/log".into())),
        (
            "type=syslog,path=DIR/log",
            Target::Datagram(scene.path("log")),
        ),
        ("type=unix,path=DIR/s", Target::Datagram(scene.path("s"))),
        (
            "type=unix-stream,path=DIR/s",
            Target::Stream(scene.path("s")),
        ),
    ];
    for (argument, target) in cases {
        let opened = scene.open::<Serial>(argument).expect(argument);
        assert_eq!(opened.reach, [target], "{argument}");
        let [port] = &opened.description.ports[..] else {
            panic!("{argument}: one port");
        };
        assert_eq!(port.end, EndDescription::Connect(0));
        assert_eq!(
            port.framing == Framing::Lines,
            argument.starts_with("type=unix,")
        );
        let is_syslog = matches!(port.framing, Framing::Syslog { .. });
        assert_eq!(is_syslog, argument.starts_with("type=syslog"));
        assert!(port.overflow == Overflow::Drop && opened.descriptors.is_empty());
    }
    let opened = scene
        .open::<Serial>("type=unix-stream,path=DIR/s,listen,input-unix-stream,overflow=block")
        .expect("accepted");
    let path = Listen {
        part: 0,
        key: "path",
    };
    assert_eq!(opened.listens, [path]);
    let expected = single(PortDescription {
        end: EndDescription::Listen,
        is_both_ways: true,
        ..plain()
    });
    assert_eq!(opened.description, expected);
    // Whoever binds it comes later.
    assert!(!scene.path("s").exists());
}

#[test]
fn a_terminal_has_its_name_told_and_is_raw_and_nobodys() {
    let scene = Scene::new();
    let opened = scene.open::<Serial>("type=pty,path=DIR/tty").expect("made");
    let Opened {
        description,
        descriptors,
        aliases,
        windows,
        made,
        ..
    } = opened;
    let expected = single(PortDescription {
        end: EndDescription::Terminal,
        is_both_ways: true,
        overflow: Overflow::Drop,
        window: Some(Window::default()),
        ..plain()
    });
    assert_eq!(description, expected);
    assert_eq!((descriptors.len(), windows.len()), (2, 1));
    assert!(descriptors.iter().all(is_cloexec));
    assert!(
        descriptors
            .iter()
            .all(|fd| flags(fd).contains(OFlags::NONBLOCK))
    );
    let target = aliases[0].target.to_str().expect("UTF-8").to_owned();
    assert!(made[0].contains(&target), "{made:?}");
    let mut master = std::fs::File::from(descriptors.into_iter().next().expect("two"));
    // Nobody has it open, so there is no input, and no waiting for any.
    assert!(master.read(&mut [0]).is_err());
    let user = std::fs::File::options().write(true).open(&target);
    user.expect("opened").write_all(b"a\nb").expect("written");
    let mut bytes = [0; 3];
    master.read_exact(&mut bytes).expect("read");
    assert_eq!(&bytes, b"a\nb");
}

#[test]
fn flags_of_one_device_are_its_ports() {
    let scene = Scene::new();
    let opened = scene
        .open_all::<Serial>(&[
            "type=sink",
            "type=file,path=DIR/a,name=org.example.0,out_timestamp",
            "type=sink,name=second,console,overflow=drop",
        ])
        .expect("accepted");
    let expected = SerialDescription {
        multiport: true,
        ports: vec![
            plain(),
            PortDescription {
                name: Some("org.example.0".to_owned()),
                is_console: false,
                end: EndDescription::File,
                timestamps: true,
                ..plain()
            },
            PortDescription {
                name: Some("second".to_owned()),
                overflow: Overflow::Drop,
                ..plain()
            },
        ],
    };
    assert_eq!(opened.description, expected);
    assert!(opened.notes.is_empty(), "{:?}", opened.notes);
    let single = scene.open::<Serial>("name=alone").expect("accepted");
    assert!(single.description.multiport);
    let error = scene.open_all::<Serial>(&["name=a", "name=b", "name=a"]);
    let error = error.expect_err("refused");
    assert!(
        error.contains("another port of the device has it already"),
        "{error}"
    );
    let error = scene
        .open_all::<Serial>(&["sink"; 32])
        .expect_err("refused");
    assert!(error.contains("more than 31 ports"), "{error}");
}

#[test]
fn a_mistake_in_a_later_port_makes_no_file_of_an_earlier_one() {
    let scene = Scene::new();
    let error = scene.open_all::<Serial>(&["type=file,path=DIR/log", "input=DIR/none"]);
    assert!(error.is_err() && !scene.path("log").exists());
}

#[test]
fn keys_that_concern_a_vmm_are_noted_once() {
    let scene = Scene::new();
    let noted = [
        "hardware=legacy-virtio-console,num=3",
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
