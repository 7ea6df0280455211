//! `--serial`: its keys, the opening of its input and output, and the making of the console.
//! Always a virtio console: an emulated UART cannot leave the VMM.

use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{FileType, OFlags};
use serde::{Deserialize, Serialize};
use vudev_devices::console::{self, Console};

use super::{Open, open, reason, shown};
use crate::kind::{CreateError, DeviceKind, Given, Opened};
use crate::options::{Choice, Key, Kind, OptionError, Table, Values};

/// The kind of `--serial`.
#[derive(Debug)]
pub struct Serial;

/// Which descriptors a console has been given, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SerialDescription {
    /// The guest reads from the first one.
    pub input: bool,
    /// The guest writes to the last one; without it, what it writes is thrown away.
    pub output: bool,
}

/// Descriptors 0 to 2 stay free for what they stand for.
const FIRST_DESCRIPTOR: i32 = 3;

const VMM_ONLY: &str = "it tells a VMM how to attach the device to the guest";
const COMMAND_LINE: &str = "a VMM writes the guest's kernel command line; add console=hvc0 there";
const NO_UART: &str = "an emulated UART is part of a VMM, only a virtio console can leave it";
const UNBUILT: &str = "not built yet";

static TABLE: Table = Table {
    device: "serial",
    about: "a console (virtio-console): hvc0 of a Linux guest",
    keys: &[
        Key::new(
            "type",
            Kind::Choice(&[
                Choice::new("stdout"),
                Choice::new("file"),
                Choice::new("sink"),
                Choice::refused("syslog", UNBUILT),
                Choice::refused("unix", UNBUILT),
                Choice::refused("unix-stream", UNBUILT),
                Choice::refused("pty", UNBUILT),
            ]),
            "where the output goes: standard output, the file of path, or nowhere",
        )
        .default("sink")
        .positional(),
        Key::new(
            "path",
            Kind::Path,
            "the file of type=file; made if need be, and appended to",
        ),
        Key::flag(
            "stdin",
            "read input from standard input; a terminal is put into raw mode",
        )
        .exclusive(),
        Key::new(
            "input",
            Kind::Path,
            "read input from this file, FIFO or device; not with stdin",
        ),
        Key::new(
            "hardware",
            Kind::Choice(&[
                Choice::new("virtio-console"),
                Choice::new("legacy-virtio-console"),
                Choice::refused("serial", NO_UART),
                Choice::refused("debugcon", NO_UART),
            ]),
            "what the guest sees, by either word",
        )
        .default("virtio-console"),
        Key::flag(
            "input-unix-stream",
            "read input from the socket of type=unix-stream",
        )
        .refused(UNBUILT),
        Key::flag("out-timestamp", "put the time before each line").refused(UNBUILT),
        Key::new("name", Kind::Text { max: 256 }, "the name of the port")
            .refused("ports have names with the multiport feature only, which is not built yet"),
        Key::new(
            "num",
            Kind::Number { min: 1, max: 255 },
            "which of the guest's consoles it is",
        )
        .default("1")
        .noted(VMM_ONLY),
        Key::flag("console", "the guest's console").noted(COMMAND_LINE),
        Key::flag("earlycon", "the guest's early console").noted(COMMAND_LINE),
        Key::new(
            "debugcon-port",
            Kind::Number {
                min: 0,
                max: 65_535,
            },
            "the port of a debugcon",
        )
        .default("0x402")
        .noted("only hardware=debugcon has a port"),
        Key::new("pci-address", Kind::PciAddress, "where the guest finds it").noted(VMM_ONLY),
        Key::new(
            "max-queue-sizes",
            Kind::Numbers {
                min: 1,
                max: 32_768,
            },
            "the greatest size of each queue",
        )
        .noted("a front-end sets the sizes of the queues"),
    ],
    joins: false,
    example: "type=stdout,stdin,vhost=/tmp/vu-serial",
};

impl DeviceKind for Serial {
    const NAME: &'static str = "serial";
    const POLICY: &'static str = "serial";

    type Description = SerialDescription;
    type Device = Console;

    fn table() -> &'static Table {
        &TABLE
    }

    fn open(values: &Values) -> Result<Opened<SerialDescription>, OptionError> {
        let input = input(values)?;
        let terminal = terminal(values)?;
        // Last, because it is all that may make a file.
        let output = output(values)?;
        let description = SerialDescription {
            input: input.is_some(),
            output: output.is_some(),
        };
        // A terminal is opened anew, so that a reader who is slow holds up the guest's console and
        // not the whole device, and O_NONBLOCK is not forced upon whoever shares the old one.
        let descriptors = input.into_iter().chain(output);
        let descriptors = descriptors.map(console::detached).collect();
        Ok(Opened {
            terminals: terminal.into_iter().collect(),
            notes: values.notes(),
            ..Opened::new(description, descriptors)
        })
    }

    fn operations(_description: &SerialDescription) -> u32 {
        console::operations(1)
    }

    fn create(given: Given<SerialDescription>) -> Result<Console, CreateError> {
        let SerialDescription { input, output } = given.description;
        let (expected, got) = (
            usize::from(input) + usize::from(output),
            given.descriptors.len(),
        );
        if got != expected {
            return Err(CreateError::Descriptors { expected, got });
        }
        let mut descriptors = given.descriptors.into_iter();
        let input = if input { descriptors.next() } else { None };
        Ok(Console::new(&given.handle, input, descriptors.next()))
    }
}

fn input(values: &Values) -> Result<Option<OwnedFd>, OptionError> {
    match (values.flag("stdin"), values.optional_path("input")) {
        (false, None) => Ok(None),
        (true, None) => standard(values, "stdin", rustix::stdio::stdin()).map(Some),
        (false, Some(_)) => input_file(values).map(Some),
        (true, Some(_)) => {
            let error = values.error("input", "there are two inputs, stdin is given too");
            Err(error.remedy("leave one of them out"))
        }
    }
}

fn input_file(values: &Values) -> Result<OwnedFd, OptionError> {
    let Open {
        descriptor,
        file_type,
    } = open(values, "input", OFlags::RDONLY)?;
    match file_type {
        FileType::RegularFile | FileType::CharacterDevice => Ok(descriptor),
        // With a writer of our own a FIFO does not end when its writers leave, nor before one has
        // come. Who may only read it has to do with what there is.
        FileType::Fifo => Ok(match open(values, "input", OFlags::RDWR) {
            Ok(Open {
                descriptor,
                file_type: FileType::Fifo,
            }) => descriptor,
            Ok(_) | Err(_) => descriptor,
        }),
        other => Err(unfit(values, "input", other)),
    }
}

fn output(values: &Values) -> Result<Option<OwnedFd>, OptionError> {
    let to = values.choice("type");
    if to != "file" && values.is_given("path") {
        let error = values.error("path", format!("type={to} has no path"));
        return Err(error.remedy("give type=file, or leave path out"));
    }
    match to {
        "sink" => Ok(None),
        "stdout" => standard(values, "type", rustix::stdio::stdout()).map(Some),
        "file" => output_file(values).map(Some),
        other => unreachable!("the table has no type {other}"),
    }
}

fn output_file(values: &Values) -> Result<OwnedFd, OptionError> {
    if !values.is_given("path") {
        let error = values.error("path", "type=file needs the path of its file");
        return Err(error.remedy("add path=FILE"));
    }
    let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE;
    let Open {
        descriptor,
        file_type,
    } = open(values, "path", flags)?;
    match file_type {
        FileType::RegularFile | FileType::CharacterDevice | FileType::Fifo => Ok(descriptor),
        other => Err(unfit(values, "path", other)),
    }
}

fn unfit(values: &Values, key: &str, file_type: FileType) -> OptionError {
    let what = crate::options::listen::describe(file_type);
    let problem = format!("{} is {what}", shown(values.path(key)));
    values
        .error(key, problem)
        .remedy("write the path of a file, a FIFO or a character device")
}

/// The terminal to be put into raw mode, if that is what the input is.
fn terminal(values: &Values) -> Result<Option<OwnedFd>, OptionError> {
    let stdin = rustix::stdio::stdin();
    let wanted = values.flag("stdin") && rustix::termios::isatty(stdin);
    wanted.then(|| standard(values, "stdin", stdin)).transpose()
}

fn standard(
    values: &Values,
    key: &str,
    descriptor: BorrowedFd<'_>,
) -> Result<OwnedFd, OptionError> {
    rustix::io::fcntl_dupfd_cloexec(descriptor, FIRST_DESCRIPTOR).map_err(|errno| {
        let problem = format!("cannot use it: {}", reason(errno));
        values
            .error(key, problem)
            .remedy("start with standard input and output open")
    })
}
