//! Real guests with our sockets and our entropy: what the stock drivers of Linux make of them. What
//! can be shown without a guest is tested in `vsock` and `rng`, faster.

#![expect(
    clippy::unwrap_used,
    reason = "a suite whose own set-up fails has nothing to test"
)]

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::Path;

use tempfile::TempDir;
use vudev_tests::streams::{call, exchange_all};
use vudev_tests::{Assets, Guest, VudevCommand};

/// Connections at once, and sectors that each sends, in both directions.
const CONNECTIONS: u32 = 20;
const SECTORS: u32 = 400;

fn folder() -> TempDir {
    tempfile::Builder::new().prefix("vudev-").tempdir().unwrap()
}

#[test]
fn a_guests_sockets_and_the_hosts_exchange_data_whoever_connects() {
    let folder = folder();
    let (socket, path) = (folder.path().join("vhost"), folder.path().join("v"));
    let options = format!("cid=77,uds-path={}", path.display());
    let command = VudevCommand::new().unwrap();
    let vudev = command.device("vsock", &options, &socket).start().unwrap();
    let listener = UnixListener::bind(folder.path().join("v_1024")).unwrap();
    let script = format!(
        "vudev-sockets connect 1024 {CONNECTIONS} {SECTORS} >/tmp/theirs
         vudev-sockets connect 1025 1 1 >/tmp/refused
         vudev-sockets listen 5000 {CONNECTIONS} {SECTORS} >/tmp/ours &
         until grep -q listening /tmp/ours; do sleep 0.1; done
         echo listening; wait
         sort /tmp/theirs; cat /tmp/refused; sort /tmp/ours"
    );
    let guest = Guest::new(&Assets::find().unwrap()).vsock(&socket);
    let guest = guest.program(Path::new(env!("CARGO_BIN_EXE_vudev-sockets")));
    let mut guest = guest.script(&script).start().unwrap();
    let programs: Vec<_> = (0..CONNECTIONS)
        .map(|_| listener.accept().unwrap().0)
        .collect();
    let theirs = exchange_all(programs, 1000, SECTORS);
    guest.wait_for("listening").unwrap();
    let programs: Vec<_> = (0..CONNECTIONS).map(|_| call(&path, 5000)).collect();
    let mut ours = exchange_all(programs, 2000, SECTORS);
    ours.push("listening".to_owned());
    let report = guest.finish().unwrap();
    let lines: Vec<_> = report
        .output
        .lines()
        .filter(|line| !line.is_empty())
        .collect();
    let many = usize::try_from(CONNECTIONS).unwrap();
    assert_eq!(lines[0], "listening", "{}", report.output);
    assert_eq!(lines[1..=many], theirs, "{}", report.output);
    assert!(lines[many + 1].contains("Connection reset by peer"));
    assert_eq!(lines[many + 2..], ours);
    vudev.stop().unwrap();
}

#[test]
fn a_guest_reads_the_kernels_bytes_a_files_and_no_more_than_a_limit() {
    let folder = folder();
    let path = |name: &str| folder.path().join(name);
    let numbers: String = (0..100_000).map(|number| format!("{number:07}.")).collect();
    fs::write(path("numbers"), &numbers).unwrap();
    let source = format!("source={}", path("numbers").display());
    let sockets = ["r0", "r1", "r2"].map(path);
    let vudev = VudevCommand::new()
        .unwrap()
        .device("rng", "max-bytes=1G", &sockets[0])
        .device("rng", &source, &sockets[1])
        .device("rng", "max-bytes=64,period=36000000", &sockets[2])
        .start()
        .unwrap();
    let script = "
        cd /sys/class/misc/hw_random
        cat rng_available | tr ' ' '\\n' | grep -c virtio_rng
        echo virtio_rng.0 >rng_current
        head -c 1024 /dev/hwrng | wc -c
        echo virtio_rng.1 >rng_current
        head -c 64 /dev/hwrng; echo
        echo virtio_rng.2 >rng_current
        timeout 3 dd if=/dev/hwrng bs=1 count=1000 2>/dev/null | wc -c";
    let mut guest = Guest::new(&Assets::find().unwrap()).script(script);
    for socket in &sockets {
        guest = guest.rng(socket);
    }
    let report = guest.run().unwrap();
    // A guest's emulated serial port adds empty ones now and then.
    let lines = report.output.lines().filter(|line| !line.is_empty());
    let lines: Vec<_> = lines.collect();
    let [count, bytes, number, ref rest @ ..] = lines[..] else {
        panic!("three lines and more: {}", report.output);
    };
    assert_eq!([count, bytes], ["3", "1024"], "{}", report.output);
    assert!(number.len() == 64 && numbers.contains(number), "{number}");
    // The shell says `Terminated` of `dd`, before or after it.
    let limited = rest.iter().find_map(|line| line.parse::<u64>().ok());
    assert!(limited.is_some_and(|it| it <= 64), "{}", report.output);
    vudev.stop().unwrap();
}
