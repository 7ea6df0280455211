//! The opening of a console's inputs and ends, outside of the jail. What may make a file or a name
//! comes last, so that a mistake anywhere leaves nothing behind.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, OFlags};
use rustix::termios::{isatty, tcgetwinsize};
use vudev_devices::console::{Framing, Overflow, PORTS_MAX, Window, detached};

use super::table::COMMAND_LINE;
use super::{EndDescription, PortDescription, SerialDescription, pty};
use crate::kind::{Alias, Listen, Opened, Target};
use crate::kinds::{Open, open};
use crate::listen::{PATH_MAX, describe};
use crate::options::{OptionError, Values, reason, shown};

/// Descriptors 0 to 2 stay free for what they stand for.
const FIRST_DESCRIPTOR: i32 = 3;

/// Where syslog(3) sends to.
const SYSTEM_LOG: &str = "/dev/log";

/// Whose lines they are in the system's log, where the port has no name.
const TAG: &str = "vudev";

/// A console that is being opened.
pub(super) struct Opening<'a> {
    parts: Vec<Part<'a>>,
    opened: Opened<SerialDescription>,
}

/// One flag.
struct Part<'a> {
    values: &'a Values,
    input: Option<OwnedFd>,
}

impl<'a> Opening<'a> {
    /// Looks at all flags, and opens what input comes from. Makes nothing.
    pub(super) fn of(values: &'a Values) -> Result<Self, OptionError> {
        let all = || std::iter::once(values).chain(values.further());
        if let Some(beyond) = all().nth(PORTS_MAX) {
            let error = beyond.error("vhost", format!("more than {PORTS_MAX} ports"));
            return Err(error.remedy("make a second device of the others"));
        }
        let description = SerialDescription {
            multiport: values.is_given("name") || !values.further().is_empty(),
            ports: Vec::new(),
        };
        let mut opened = Opened::new(description, Vec::new());
        opened.notes = values.notes();
        if values.flag("console") && !opened.description.multiport {
            let note = "--serial: console: accepted, but changes nothing here";
            opened.notes.push(format!("{note}: {COMMAND_LINE}"));
        }
        let mut parts: Vec<Part<'_>> = Vec::new();
        for values in all() {
            check_name(values, &parts)?;
            check_type(values)?;
            opened.terminals.extend(terminal(values)?);
            let input = input(values)?;
            parts.push(Part { values, input });
        }
        Ok(Self { parts, opened })
    }

    /// Opens the rest.
    pub(super) fn finish(self) -> Result<Opened<SerialDescription>, OptionError> {
        let Self { parts, mut opened } = self;
        for (number, Part { values, input }) in parts.into_iter().enumerate() {
            let port = port(values, number, input, &mut opened)?;
            opened.description.ports.push(port);
        }
        Ok(opened)
    }
}

/// What a flag comes to; its descriptors and whatever else is added to `opened`.
fn port(
    values: &Values,
    number: usize,
    input: Option<OwnedFd>,
    opened: &mut Opened<SerialDescription>,
) -> Result<PortDescription, OptionError> {
    let to = values.choice("type");
    let name = values.optional_text("name").map(str::to_owned);
    let drops = match values.is_given("overflow") {
        true => values.choice("overflow") == "drop",
        false => !matches!(to, "stdout" | "file" | "sink"),
    };
    let mut port = PortDescription {
        is_console: values.flag("console") || name.is_none(),
        window: None,
        input: input.is_some(),
        end: EndDescription::Nothing,
        is_both_ways: values.flag("input-unix-stream"),
        framing: framing(to, name.as_deref()),
        timestamps: values.flag("out-timestamp"),
        overflow: match drops {
            true => Overflow::Drop,
            false => Overflow::Block,
        },
        name,
    };
    let mut window = window_of_standard(values)?;
    // A terminal is opened anew, so that a reader who is slow holds up the guest's console and
    // not the whole device, and O_NONBLOCK is not forced upon whoever shares the old one.
    opened.descriptors.extend(input.map(detached));
    match to {
        "sink" => {}
        "stdout" | "file" => {
            let output = match to {
                "stdout" => standard(values, "type", rustix::stdio::stdout())?,
                _ => output_file(values)?,
            };
            opened.descriptors.push(detached(output));
            port.end = EndDescription::File;
        }
        "pty" => {
            let terminal = open_terminal(values, number, opened)?;
            window = Some(terminal);
            port.end = EndDescription::Terminal;
            port.is_both_ways = true;
        }
        "unix-stream" if values.flag("listen") => {
            opened.listens.push(Listen {
                part: number,
                key: "path",
            });
            port.end = EndDescription::Listen;
        }
        socket => port.end = EndDescription::Connect(reach(values, socket, opened)),
    }
    if let Some(terminal) = window {
        let size = tcgetwinsize(&terminal).map(|size| Window {
            columns: size.ws_col,
            rows: size.ws_row,
        });
        port.window = Some(size.unwrap_or_default());
        opened.windows.push(terminal);
    }
    Ok(port)
}

/// How output is cut that goes there.
fn framing(to: &str, name: Option<&str>) -> Framing {
    match to {
        "unix" => Framing::Lines,
        "syslog" => Framing::Syslog {
            tag: name.unwrap_or(TAG).to_owned(),
        },
        _ => Framing::Bytes,
    }
}

/// Adds a socket to what is in reach; its place there.
fn reach(values: &Values, to: &str, opened: &mut Opened<SerialDescription>) -> u8 {
    let path = socket_path(values).to_owned();
    opened.reach.push(match to {
        "unix-stream" => Target::Stream(path),
        "unix" | "syslog" => Target::Datagram(path),
        other => unreachable!("the table has no type {other}"),
    });
    u8::try_from(opened.reach.len() - 1).expect("fewer ports than 256")
}

fn socket_path(values: &Values) -> &Path {
    let path = values.optional_path("path");
    path.unwrap_or_else(|| Path::new(SYSTEM_LOG))
}

/// Makes a terminal; gives it once more, for its size.
fn open_terminal(
    values: &Values,
    number: usize,
    opened: &mut Opened<SerialDescription>,
) -> Result<OwnedFd, OptionError> {
    let fault = |errno| {
        let problem = format!("cannot make a terminal: {}", reason(errno));
        let remedy = "see that /dev/pts is mounted and has room (kernel.pty.max), and inotify too \
                      (fs.inotify.max_user_instances)";
        values.error("type", problem).remedy(remedy)
    };
    let pty::Pty {
        name,
        master,
        opens,
    } = pty::Pty::make().map_err(fault)?;
    let again = rustix::io::fcntl_dupfd_cloexec(&master, FIRST_DESCRIPTOR).map_err(fault)?;
    opened.made.push(match values.optional_path("path") {
        Some(path) => format!("its terminal is {name}, and {}", shown(path)),
        None => format!("its terminal is {name}"),
    });
    if values.is_given("path") {
        opened.aliases.push(Alias {
            part: number,
            key: "path",
            target: name.into(),
        });
    }
    opened.descriptors.extend([master, opens]);
    Ok(again)
}

fn check_name(values: &Values, others: &[Part<'_>]) -> Result<(), OptionError> {
    let Some(name) = values.optional_text("name") else {
        return Ok(());
    };
    if name.is_empty() || name == "." || name == ".." {
        let error = values.error("name", "is no name of a file in /dev/virtio-ports");
        return Err(error.remedy("write a word"));
    }
    if name.contains(|letter: char| letter == '/' || letter.is_control()) {
        let error = values.error("name", "has a slash or a control character");
        return Err(error.remedy("write a word"));
    }
    let same = |other: &&Part<'_>| other.values.optional_text("name") == Some(name);
    if others.iter().any(|other| same(&other)) {
        let error = values.error("name", "another port of the device has it already");
        return Err(error.remedy("give each port its own"));
    }
    Ok(())
}

/// Whether the keys fit each other.
fn check_type(values: &Values) -> Result<(), OptionError> {
    let to = values.choice("type");
    let wants_path = matches!(to, "file" | "unix" | "unix-stream");
    if wants_path && !values.is_given("path") {
        let (what, remedy) = match to {
            "file" => ("file", "add path=FILE"),
            _ => ("socket", "add path=SOCKET"),
        };
        let error = values.error("path", format!("type={to} needs the path of its {what}"));
        return Err(error.remedy(remedy));
    }
    if matches!(to, "stdout" | "sink") && values.is_given("path") {
        let error = values.error("path", format!("type={to} has no path"));
        return Err(error.remedy("give type=file, or leave path out"));
    }
    for key in ["input-unix-stream", "listen"] {
        if values.flag(key) && to != "unix-stream" {
            let error = values.error(key, format!("type={to} is no stream socket"));
            return Err(error.remedy("give type=unix-stream, or leave it out"));
        }
    }
    let length = socket_path(values).as_os_str().len();
    if matches!(to, "unix" | "unix-stream" | "syslog") && length > PATH_MAX {
        let problem = format!("the path has {length} bytes, more than {PATH_MAX}");
        let error = values.error("path", problem);
        return Err(error.remedy("use a shorter path, or one relative to the directory you are in"));
    }
    check_inputs(values)
}

/// There is one input, or none.
fn check_inputs(values: &Values) -> Result<(), OptionError> {
    let given = [
        (
            "type",
            values.choice("type") == "pty",
            "a terminal gives input",
        ),
        ("stdin", values.flag("stdin"), "stdin is given"),
        (
            "input-unix-stream",
            values.flag("input-unix-stream"),
            "input-unix-stream is given",
        ),
        ("input", values.is_given("input"), "input is given"),
    ];
    let mut given = given.iter().filter(|(_, given, _)| *given);
    match (given.next(), given.next()) {
        (Some((_, _, first)), Some((second, _, _))) => {
            let error = values.error(second, format!("there are two inputs, {first} too"));
            Err(error.remedy("leave one of them out"))
        }
        _ => Ok(()),
    }
}

fn input(values: &Values) -> Result<Option<OwnedFd>, OptionError> {
    if values.flag("stdin") {
        return standard(values, "stdin", rustix::stdio::stdin()).map(Some);
    }
    let given = values.is_given("input");
    given.then(|| input_file(values)).transpose()
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

fn output_file(values: &Values) -> Result<OwnedFd, OptionError> {
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
    let what = describe(file_type);
    let problem = format!("{} is {what}", shown(values.path(key)));
    values
        .error(key, problem)
        .remedy("write the path of a file, a FIFO or a character device")
}

/// The terminal to be put into raw mode, if that is what the input is.
fn terminal(values: &Values) -> Result<Option<OwnedFd>, OptionError> {
    let stdin = rustix::stdio::stdin();
    let wanted = values.flag("stdin") && isatty(stdin);
    wanted.then(|| standard(values, "stdin", stdin)).transpose()
}

/// The terminal that the user sits at: where the guest reads keys from, or what it prints on.
fn window_of_standard(values: &Values) -> Result<Option<OwnedFd>, OptionError> {
    let (stdin, stdout) = (rustix::stdio::stdin(), rustix::stdio::stdout());
    if values.flag("stdin") && isatty(stdin) {
        return standard(values, "stdin", stdin).map(Some);
    }
    let prints = values.choice("type") == "stdout" && isatty(stdout);
    prints.then(|| standard(values, "type", stdout)).transpose()
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
