//! The guest's side: a script, which uses all devices at once, and what it must have printed.

use std::path::Path;

use vudev_harness::Guest;

use super::{CONNECTIONS, DATA, DISK, GUEST, HOST, SECTORS, Seen, TO_GUEST, TO_HOST, pattern};
use crate::streams::md5;

/// Each part is a function, all run at once, each with its output in a file; `net` is left out
/// where there is no card. Within them 9 is standard output, and 8 the port that was opened before
/// the host is told to use it.
const SCRIPT: &str = r#"
    console() {
        exec 3<>/dev/hvc0
        echo the guest has opened its console >&3
        read -r line <&3
        echo "the guest has heard: $line" >&3
        echo "heard: $line"
    }
    ports() {
        ls -1 /dev/virtio-ports
        cat /tmp/data >/dev/virtio-ports/org.example.file
        # Until the guest has heard of the client, a read ends at once.
        until read -r line <&8; do sleep 0.1; done
        cat /tmp/data >&8 &
        head -c $(wc -c </tmp/data) <&8 | md5sum
        wait
    }
    disk() {
        echo queues: $(ls /sys/block/vda/mq | wc -l)
        vudev-verify /dev/vda 40 1
        sync
        echo 3 >/proc/sys/vm/drop_caches
        md5sum </dev/vda
    }
    net() {
        ip addr add GUEST/24 dev eth0
        ip link set eth0 up
        nc HOST TO_HOST </tmp/data &
        # It waits only twice as long as for the answers before, if there were any.
        for packet in 1 2 3; do ping -c 1 -W 30 HOST | grep 'packets received'; done
        nc -l -p TO_GUEST </dev/null | md5sum
        wait
        grep -h -e Icmp: -e Tcp: -e eth0: /proc/net/snmp /proc/net/dev >/tmp/counters
    }
    rng() {
        cat /sys/class/misc/hw_random/rng_current
        head -c 64 /dev/hwrng; echo
        head -c 4096 /dev/hwrng | wc -c
    }
    vsock() {
        vudev-sockets listen 5000 CONNECTIONS SECTORS >/tmp/ours &
        until grep -qs listening /tmp/ours; do sleep 0.1; done
        echo listening >&9
        vudev-sockets connect 1024 CONNECTIONS SECTORS >/tmp/theirs || cat /tmp/theirs
        wait
        sort /tmp/theirs
        grep -v listening /tmp/ours | sort
    }
    run() {
        from=$(cut -d ' ' -f 1 /proc/uptime)
        ( set -e; $1 ) >/tmp/$1 2>&1
        echo "status $?, from $from s to $(cut -d ' ' -f 1 /proc/uptime) s" >>/tmp/$1
    }

    # As udev's rule does (50-udev-default.rules): a port is found by its name.
    links() {
        mkdir -p /dev/virtio-ports
        for port in /sys/class/virtio-ports/*; do
            name=$(cat $port/name 2>/dev/null)
            [ -n "$name" ] && ln -sf ../$(basename $port) /dev/virtio-ports/$name
        done
        [ $(ls /dev/virtio-ports | wc -l) = 2 ]
    }
    until links; do sleep 0.1; done
    head -c DATA /dev/urandom >/tmp/data
    exec 8<>/dev/virtio-ports/org.example.door 9>&1
    for part in PARTS; do run $part & done
    wait
    echo "data: $(md5sum </tmp/data)"
    # What the card has carried and dropped, for whoever misses a frame.
    [ ! -e /tmp/counters ] || sed 's/^/counters: /' /tmp/counters
    for part in PARTS; do sed "s/^/$part: /" /tmp/$part; done
"#;

/// Gives a guest all devices, whose front-ends connect to `vu-serial`, `vu-block`, `vu-rng`,
/// `vu-vsock` and `vu-net` in this folder, and the script that uses them. It needs `vudev-verify`
/// and `vudev-sockets`, and prints `listening` when it may be called.
pub fn with_devices(guest: Guest, folder: &Path, net: bool) -> Guest {
    let guest = guest
        .console_ports(&folder.join("vu-serial"), 3)
        .block(&folder.join("vu-block"), 2)
        .rng(&folder.join("vu-rng"))
        .vsock(&folder.join("vu-vsock"));
    let guest = match net {
        true => guest.net(&folder.join("vu-net"), 1, ""),
        false => guest,
    };
    guest.processors(2).script(&script(net))
}

fn script(net: bool) -> String {
    let net = if net { "net" } else { "" };
    [
        ("PARTS", format!("console ports disk {net} rng vsock")),
        ("TO_GUEST", TO_GUEST.to_string()),
        ("TO_HOST", TO_HOST.to_string()),
        ("GUEST", GUEST.to_owned()),
        ("HOST", HOST.to_owned()),
        ("CONNECTIONS", CONNECTIONS.to_string()),
        ("SECTORS", SECTORS.to_string()),
        ("DATA", DATA.to_string()),
    ]
    .iter()
    .fold(SCRIPT.to_owned(), |script, (name, value)| {
        script.replace(name, value)
    })
}

/// What went in on either side must have come out on the other.
pub fn assert_same(output: &str, seen: &Seen) {
    let data = output.lines().find_map(|line| line.strip_prefix("data: "));
    let data = data.unwrap();

    assert_eq!(said(output, "console"), ["heard: hello"]);
    let names = ["org.example.door", "org.example.file"];
    let ports = said(output, "ports");
    assert_eq!(ports, [names[0], names[1], &md5(&pattern(3))]);
    assert_eq!(seen.door, data);
    assert_eq!(seen.file, data);

    let disk = said(output, "disk");
    let sum = format!("checksum: {} of {} sectors", seen.disk_sum, DISK / 512);
    assert_eq!(disk[0], "queues: 2");
    assert_eq!(disk[7..], ["wrong sectors: 0", &sum, &seen.disk_md5]);

    if let Some((received, sent)) = &seen.net {
        let ping = "1 packets transmitted, 1 packets received, 0% packet loss";
        assert_eq!(said(output, "net"), [ping, ping, ping, sent]);
        assert_eq!(received, data);
    }
    let rng = said(output, "rng");
    assert_eq!((rng[0], rng[2]), ("virtio_rng.0", "4096"));
    assert!(rng[1].len() == 64 && super::numbers().contains(rng[1]));
    assert_eq!(said(output, "vsock"), seen.sockets);
}

/// What a part of the script has printed; it must have succeeded.
fn said<'o>(output: &'o str, part: &str) -> Vec<&'o str> {
    let prefix = format!("{part}: ");
    let lines = output.lines().filter_map(|line| line.strip_prefix(&prefix));
    let mut lines: Vec<_> = lines.collect();
    let status = lines.pop().unwrap_or_default();
    assert!(status.starts_with("status 0, "), "{part}: {output}");
    lines
}
