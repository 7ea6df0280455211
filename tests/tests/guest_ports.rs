//! A console of several ports in a real guest: what its stock driver makes of names, sizes, and a
//! host that comes and goes.

#![expect(
    clippy::unwrap_used,
    reason = "a suite whose own set-up fails has nothing to test"
)]

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::process::Signal;
use rustix::termios::{Winsize, tcsetwinsize};
use vudev_tests::{Assets, Guest, Terminal, VudevCommand};

/// A guest answers within a second; a machine that runs all tests at once is slower.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// How long vudev may take from SIGTERM to its end.
const STOP_LIMIT: Duration = Duration::from_secs(2);

/// As udev's rule does (50-udev-default.rules): a port is found by its name.
const SCRIPT: &str = "
    wait_for() { until eval \"$1\"; do sleep 0.1; done; }
    links() {
        mkdir -p /dev/virtio-ports
        for port in /sys/class/virtio-ports/*; do
            name=$(cat $port/name 2>/dev/null)
            [ -n \"$name\" ] && ln -sf ../$(basename $port) /dev/virtio-ports/$name
        done
        [ $(ls /dev/virtio-ports | wc -l) = 2 ]
    }
    wait_for links
    ls -1 /dev/virtio-ports
    cat /sys/class/tty/console/active

    # Somebody has to have it open, or each stty would find a terminal that is new.
    sleep 1000 </dev/hvc0 &
    wait_for '[ \"$(stty size </dev/hvc0)\" = \"43 132\" ]'
    echo sized; read line
    wait_for '[ \"$(stty size </dev/hvc0)\" = \"50 200\" ]'
    echo on the console >/dev/hvc0
    echo into a file >/dev/virtio-ports/org.example.file

    exec 3<>/dev/virtio-ports/org.example.door
    echo resized; read line
    # Until the guest has heard of the client, a read ends at once.
    until read line <&3; do sleep 0.1; done
    echo heard: $line
    echo and you >&3
    # A read of a port whose other side is closed ends.
    cat <&3
    echo closed; read line
    until read line <&3; do sleep 0.1; done
    echo heard: $line";

#[test]
fn three_ports_appear_by_name_carry_data_and_follow_the_host() {
    let folder = tempfile::Builder::new().prefix("vudev-").tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let mut terminal = Terminal::open().unwrap();
    let user = terminal.program_end().unwrap();
    resize(&user, 132, 43);
    let (socket, door) = (path("vhost"), path("door"));
    let vhost = format!("vhost={}", socket.display());
    let further = [
        format!(
            "type=file,path={},name=org.example.file,{vhost}",
            path("file").display()
        ),
        format!(
            "type=unix-stream,path={},listen,input-unix-stream,name=org.example.door,{vhost}",
            door.display()
        ),
    ];
    let mut command = VudevCommand::new()
        .unwrap()
        .serial("type=stdout,stdin,console", &socket)
        .input(terminal.program_end().unwrap())
        .output(terminal.program_end().unwrap());
    for port in further {
        command = command.argument("--serial").argument(port);
    }
    let mut vudev = command.start().unwrap();
    let guest = Guest::new(&Assets::find().unwrap());
    let mut guest = guest
        .console_ports(&socket, 3)
        .script(SCRIPT)
        .start()
        .unwrap();

    for line in ["org.example.door", "org.example.file", "hvc0", "sized"] {
        assert_eq!(guest.wait_for(line).unwrap(), line);
    }
    resize(&user, 200, 50);
    vudev.signal(Signal::WINCH).unwrap();
    guest.send("").unwrap();
    guest.wait_for("resized").unwrap();
    terminal.until("on the console", ANSWER_LIMIT).unwrap();

    for word in ["hello", "again"] {
        let mut client = UnixStream::connect(&door).unwrap();
        guest.send("").unwrap();
        writeln!(client, "{word}").unwrap();
        guest.wait_for(&format!("heard: {word}")).unwrap();
        if word == "hello" {
            let answer = BufReader::new(&client).lines().next().unwrap().unwrap();
            assert_eq!(answer, "and you");
            drop(client);
            guest.wait_for("closed").unwrap();
        }
    }
    let report = guest.finish().unwrap();
    let expected = "org.example.door\norg.example.file\nhvc0\nsized\nresized\nheard: hello\n\
                    closed\nheard: again";
    // Serial ports of this QEMU may add an empty line when the guest switches itself off.
    assert_eq!(
        (report.status, report.output.trim_end()),
        (Some(0), expected)
    );
    vudev.signal(Signal::TERM).unwrap();
    let status = vudev.wait(STOP_LIMIT).unwrap();
    assert!(status.success(), "{}", vudev.log().unwrap());
    assert_eq!(fs::read_to_string(path("file")).unwrap(), "into a file\n");
    assert!(!door.exists() && !socket.exists());
}

#[test]
fn a_plain_console_has_the_size_of_its_terminal_and_follows_it() {
    let folder = tempfile::Builder::new().prefix("vudev-").tempdir().unwrap();
    let socket = folder.path().join("vhost");
    let terminal = Terminal::open().unwrap();
    let user = terminal.program_end().unwrap();
    resize(&user, 132, 43);
    let vudev = VudevCommand::new()
        .unwrap()
        .serial("type=stdout,stdin", &socket)
        .input(terminal.program_end().unwrap())
        .output(terminal.program_end().unwrap())
        .start()
        .unwrap();
    let script = "
        until [ \"$(stty size </dev/hvc0)\" = \"43 132\" ]; do sleep 0.1; done
        echo sized
        until [ \"$(stty size </dev/hvc0)\" = \"50 200\" ]; do sleep 0.1; done";
    let script = format!("sleep 1000 </dev/hvc0 &{script}");
    let guest = Guest::new(&Assets::find().unwrap()).console(&socket);
    let mut guest = guest.script(&script).start().unwrap();
    guest.wait_for("sized").unwrap();
    resize(&user, 200, 50);
    vudev.signal(Signal::WINCH).unwrap();
    assert_eq!(guest.finish().unwrap().status, Some(0));
    vudev.stop().unwrap();
}

fn resize(terminal: &File, columns: u16, rows: u16) {
    let size = Winsize {
        ws_col: columns,
        ws_row: rows,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(terminal, size).unwrap();
}
