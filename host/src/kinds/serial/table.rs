//! The keys of `--serial`: those of `crosvm run`, and our own for ends that come and go. What they
//! come to is [`super`]'s.

use crate::kinds::{MAX_QUEUE_SIZES, PCI_ADDRESS, VMM_ONLY};
use crate::options::{Choice, FRONT_ENDS, Key, Kind, Table};

pub(super) const COMMAND_LINE: &str =
    "a VMM writes the guest's kernel command line; add console=hvc0 there";
const NO_UART: &str = "an emulated UART is part of a VMM, only a virtio console can leave it";

pub(super) static TABLE: Table = Table {
    device: "serial",
    about: "a console (virtio-console), or ports with names",
    keys: &[
        Key::new(
            "type",
            Kind::Choice(&[
                Choice::new("stdout"),
                Choice::new("file"),
                Choice::new("sink"),
                Choice::new("syslog"),
                Choice::new("unix"),
                Choice::new("unix-stream"),
                Choice::new("pty"),
            ]),
            "where the output goes: standard output, the file of path, nowhere, the system's log, \
             a Unix socket (a line a datagram, or a stream), or a new terminal, which has a name \
             in the log and gives input too",
        )
        .default("sink")
        .positional(),
        Key::new(
            "path",
            Kind::Path,
            "of type=file the file, made if need be and appended to; of unix and unix-stream the \
             socket; of syslog its socket instead of /dev/log; of pty a symbolic link to be made",
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
        Key::flag(
            "input-unix-stream",
            "read input from the socket of type=unix-stream",
        ),
        Key::flag(
            "listen",
            "of type=unix-stream: clients connect to path, and are served one after another",
        ),
        Key::new(
            "overflow",
            Kind::Choice(&[Choice::new("block"), Choice::new("drop")]),
            "output that nobody takes holds up the guest, or is thrown away after a second, which \
             the log tells; block for stdout and file and drop for the others unless given; of \
             several ports one that nobody has connected to is closed, and a Linux guest waits",
        ),
        Key::flag("out-timestamp", "put the time (UTC) before each line"),
        Key::new(
            "name",
            Kind::Text { max: 256 },
            "the name of the port, /dev/virtio-ports/NAME in a Linux guest; flags with one vhost \
             are ports of one device",
        ),
        Key::flag(
            "console",
            "of a device of several ports: this one is a console (as is one without a name)",
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
        Key::new(
            "num",
            Kind::Number { min: 1, max: 255 },
            "which of the guest's consoles it is",
        )
        .default("1")
        .noted(VMM_ONLY),
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
        PCI_ADDRESS,
        MAX_QUEUE_SIZES,
    ],
    front_ends: FRONT_ENDS,
    joins: true,
    example: "type=stdout,stdin,vhost=/tmp/vu-serial",
};
