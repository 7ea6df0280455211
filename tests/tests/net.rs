//! The network card in its jail, on taps in a network of the test's own, driven by a front-end:
//! frames and their offloads. Needs root; what does not is in `devices/tests/net.rs`.

#[path = "support/card.rs"]
mod card;
#[path = "support/network.rs"]
mod network;

use std::time::{Duration, Instant};

use vudev_frontend::net::{Frame, Header, feature};
use vudev_frontend::{Buffer, LIMIT, Net, Step};

use card::{ALL, Card, GUEST, HOST, PLAIN, comes_in, frame, goes_out};
use network::{Protocol, Wire, ip, large, tap};

/// What Linux fragments, and no longer hands to anyone in one piece.
const FRAGMENTED: Protocol = Protocol::UDP4_FRAGMENTS;

/// Every kind of large frame but that, each as large as it can be.
fn large_frames() -> [(&'static str, Protocol, usize, u16); 5] {
    // What the kernel leaves whole is shorter than 64 KiB, its Ethernet header included.
    [
        ("TCP over IPv4", Protocol::TCP4, 65_535, 1460),
        ("TCP over IPv4 with ECN", Protocol::TCP4_ECN, 65_535, 1460),
        ("TCP over IPv6", Protocol::TCP6, 65_535, 1440),
        ("UDP over IPv4", Protocol::UDP4_SEGMENTS, 65_535, 1400),
        ("UDP over IPv6", Protocol::UDP6_SEGMENTS, 65_535, 1400),
    ]
}

#[test]
fn frames_go_both_ways_and_the_ring_needs_no_worker() {
    if !network::enter() {
        return;
    }
    tap("tap0", false);
    let card = Card::new("tap-name=tap0");
    let wire = Wire::on("tap0");
    let mut net = card.driver(0, 64, 2048);
    for mark in 0..100 {
        goes_out(&mut net, &wire, mark);
        comes_in(&mut net, &wire, mark);
    }
    assert_eq!(card.threads(), 1, "a read of a tap waits without a worker");
    card.vudev.stop().unwrap();
}

#[test]
fn frames_of_64_kib_go_out_as_they_are() {
    if !network::enter() {
        return;
    }
    tap("tap0", false);
    let card = Card::new("tap-name=tap0");
    let wire = Wire::on("tap0");
    let mut net = card.driver(HOST, 4, 2048);
    for (name, protocol, size, segment) in large_frames() {
        let (header, bytes) = large(protocol, size, segment);
        net.send(0, &header, &bytes).unwrap();
        let (told, came) = wire.receive(LIMIT).expect(name);
        assert!(came == bytes, "{name}: other bytes");
        assert_eq!(told[1..6], header.bytes()[1..6], "{name}");
        assert_eq!(told[6..10], header.bytes()[6..10], "{name}");
        // However it is cut: an odd header, a piece a byte.
        let cuts = [5, 7, 1, 1, 1, 4096, 1, 60_000, size - 64_100];
        net.send_cut(0, &header, &bytes, &cuts).unwrap();
        assert!(wire.receive(LIMIT).expect(name).1 == bytes, "{name}, cut");
    }
    let wire = Wire::without_headers("tap0");
    let (header, bytes) = large(FRAGMENTED, 65_535, 1480);
    net.send(0, &header, &bytes).unwrap();
    assert!(
        wire.receive(LIMIT).unwrap().1 == bytes,
        "UDP to be fragmented"
    );
}

#[test]
fn more_frames_than_a_turn_has_time_for_go_out_all_the_same() {
    if !network::enter() {
        return;
    }
    tap("tap0", false);
    let card = Card::new("tap-name=tap0");
    let mut front = card.front(HOST).queues(2).start().unwrap();
    let (header, bytes) = large(Protocol::TCP4, 65_535, 1460);
    let bytes = [&header.bytes()[..], &bytes].concat();
    let length = u32::try_from(bytes.len()).unwrap();
    // A turn moves a megabyte; what is more goes by the ring.
    for _ in 0..40 {
        let address = front.memory().allocate(length.into(), 16).unwrap();
        front.memory().write(address, &bytes).unwrap();
        let buffer = Buffer::new(address, length);
        front.ring(1).add(&[buffer], &[]).unwrap();
    }
    front.ring(1).kick().unwrap();
    for _ in 0..40 {
        let _ = front.ring(1).wait_used(LIMIT).unwrap();
    }
    let interfaces = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    let words = interfaces
        .lines()
        .find_map(|line| line.trim().strip_prefix("tap0:"));
    let packets = words.unwrap().split_whitespace().nth(1);
    assert_eq!(packets, Some("40"), "{interfaces}");
    card.vudev.stop().unwrap();
}

#[test]
fn frames_of_64_kib_come_in_over_as_many_buffers_as_they_need() {
    if !network::enter() {
        return;
    }
    tap("tap0", false);
    let card = Card::new("tap-name=tap0");
    let wire = Wire::on("tap0");
    let mut net = card.driver(GUEST | feature::MRG_RXBUF, 120, 1526);
    for (name, protocol, size, segment) in large_frames() {
        let (header, bytes) = large(protocol, size, segment);
        wire.send(&header.bytes(), &bytes);
        let Frame {
            header: told,
            bytes: came,
        } = net.receive(0, LIMIT).expect(name);
        assert!(came == bytes, "{name}: other bytes");
        assert_eq!(
            told.num_buffers, 43,
            "{name}: of 1526 bytes, the first less its header"
        );
        assert_eq!((told.flags, told.gso_type), (1, header.gso_type), "{name}");
        assert_eq!(told.gso_size, segment, "{name}");
        // What was not filled is used for the next.
        comes_in(&mut net, &wire, 7);
    }
}

#[test]
fn a_large_frame_comes_in_one_buffer_where_buffers_are_not_merged() {
    if !network::enter() {
        return;
    }
    tap("tap0", false);
    let card = Card::new("tap-name=tap0");
    let wire = Wire::on("tap0");
    let mut net = card.driver(GUEST, 8, 65_562);
    for (name, protocol, size, segment) in large_frames() {
        let (header, bytes) = large(protocol, size, segment);
        wire.send(&header.bytes(), &bytes);
        let came = net.receive(0, LIMIT).expect(name);
        assert!(came.bytes == bytes, "{name}: other bytes");
        assert_eq!(came.header.num_buffers, 1, "{name}");
    }
}

#[test]
fn a_driver_without_offloads_gets_whole_frames_with_their_checksums() {
    if !network::enter() {
        return;
    }
    tap("tap0", false);
    let card = Card::new("tap-name=tap0");
    let wire = Wire::on("tap0");
    let mut net = card.driver(feature::MRG_RXBUF, 120, 1526);
    let fragmented = ("UDP to be fragmented", FRAGMENTED, 65_535, 1480);
    for (name, protocol, size, segment) in large_frames().into_iter().chain([fragmented]) {
        let (header, bytes) = large(protocol, size, segment);
        wire.send(&header.bytes(), &bytes);
        // All fragments but the first are without a UDP header, and all of it is data of theirs.
        let headers = match header.gso_type {
            3 => 34,
            _ => usize::from(header.hdr_len),
        };
        let mut data = 0;
        while data < size - headers {
            let came = net.receive(0, LIMIT).expect(name);
            assert!(
                came.bytes.len() <= 1514,
                "{name}: {} bytes",
                came.bytes.len()
            );
            let num_buffers = came.header.num_buffers;
            let plain = Header {
                num_buffers,
                ..Header::default()
            };
            assert_eq!(came.header, plain, "{name}");
            data += came.bytes.len() - headers;
        }
        assert_eq!(data, size - headers, "{name}");
    }
}

#[test]
fn a_frame_longer_than_its_buffers_is_dropped_and_counted() {
    if !network::enter() {
        return;
    }
    tap("tap0", false);
    let card = Card::new("tap-name=tap0");
    let wire = Wire::on("tap0");
    let mut net = card.driver(0, 8, 12 + 60);
    let mut long = frame(ALL, 1);
    long.push(1);
    for count in [1, 2] {
        wire.send(&PLAIN, &long);
        comes_in(&mut net, &wire, 2);
        card.wait_for(&format!("longer than its buffers: {count} so far"));
    }
    assert_eq!(net.posted(0), 8, "no buffer is lost");
    // Nor is one that cannot hold a header.
    let useless = net.front().memory().allocate(11, 1).unwrap();
    let buffer = Buffer::new(useless, 11);
    drop(net);
    let mut net = card.driver(0, 0, 64);
    let ring = net.front().ring(0);
    let _ = ring.add(&[], &[buffer]).unwrap();
    ring.kick().unwrap();
    assert_eq!(ring.wait_used(LIMIT).unwrap().written, 0);
    card.wait_for("receive buffers that cannot be used: 1 so far");
}

/// What is wrong, and the header of a large TCP frame of 4000 bytes with it.
fn bad_headers(good: Header) -> Vec<(&'static str, Header)> {
    type Spoil = fn(&mut Header);
    let bad: [(&'static str, Spoil); 13] = [
        ("UFO, which was not negotiated", |it| {
            (it.gso_type, it.csum_offset) = (3, 6);
        }),
        ("an unknown kind", |it| it.gso_type = 2),
        ("ECN alone", |it| it.gso_type = 0x80),
        ("no checksum", |it| it.flags = 0),
        ("no segment size", |it| it.gso_size = 0),
        ("a tiny segment size", |it| it.gso_size = 7),
        ("headers longer than all", |it| it.hdr_len = 4001),
        ("a checksum behind the end", |it| it.csum_start = 3999),
        ("a checksum far behind", |it| it.csum_start = 0xffff),
        ("a checksum elsewhere", |it| it.csum_offset = 15),
        ("a checksum in the address", |it| it.csum_start = 2),
        ("as above, of a small frame", |it| {
            (it.gso_type, it.csum_start) = (0, 2);
        }),
        ("behind, of a small frame", |it| {
            (it.gso_type, it.csum_offset) = (0, 3999);
        }),
    ];
    let spoilt = |(name, spoil): (&'static str, Spoil)| {
        let mut header = good;
        spoil(&mut header);
        (name, header)
    };
    bad.into_iter().map(spoilt).collect()
}

#[test]
fn each_bad_header_is_dropped_and_counted_and_the_next_frame_goes_out() {
    if !network::enter() {
        return;
    }
    tap("tap0", false);
    let card = Card::new("tap-name=tap0");
    let wire = Wire::on("tap0");
    let mut net = card.driver(HOST & !feature::HOST_UFO, 4, 2048);
    let (good, bytes) = large(Protocol::TCP4, 4000, 1460);
    for (count, (name, header)) in (1_u32..).zip(bad_headers(good)) {
        net.send(0, &header, &bytes).unwrap();
        goes_out(&mut net, &wire, 3);
        if count.is_power_of_two() {
            card.wait_for(&format!("malformed: {count} so far"));
        }
        assert!(wire.receive(Duration::ZERO).is_none(), "{name}");
    }
    for (name, lengths) in [
        ("no header", &[11][..]),
        ("no frame", &[12]),
        ("no type", &[12, 13]),
    ] {
        net.send_cut(0, &Header::default(), &bytes, lengths)
            .unwrap();
        goes_out(&mut net, &wire, 4);
        assert!(wire.receive(Duration::ZERO).is_none(), "{name}");
    }
    card.wait_for("malformed: 16 so far");
    net.send(0, &good, &bytes).unwrap();
    assert!(wire.receive(LIMIT).unwrap().1 == bytes, "the good one");
}

#[test]
fn buffers_that_wait_are_given_back_at_a_stop_and_taken_again() {
    if !network::enter() {
        return;
    }
    tap("tap0", false);
    let card = Card::new("tap-name=tap0");
    let wire = Wire::on("tap0");
    let mut net = card.driver(GUEST | feature::MRG_RXBUF, 64, 2048);
    comes_in(&mut net, &wire, 1);
    for round in 1..=3_u16 {
        let parked = net.leave().unwrap();
        assert_eq!(
            parked.bases(),
            [round, 0, 0],
            "only what was filled was used"
        );
        net = parked.resume().unwrap();
        let (header, bytes) = large(Protocol::TCP4, 1000 + usize::from(round), 200);
        wire.send(&header.bytes(), &bytes);
        assert!(net.receive(0, LIMIT).unwrap().bytes == bytes);
    }
    // A front-end that just goes leaves nothing behind for the next.
    drop(net);
    let mut net = card.driver(0, 64, 2048);
    comes_in(&mut net, &wire, 2);
    goes_out(&mut net, &wire, 2);
}

#[test]
fn memory_that_is_replaced_is_let_go_of_while_buffers_wait() {
    if !network::enter() {
        return;
    }
    tap("tap0", false);
    let card = Card::new("tap-name=tap0");
    let wire = Wire::on("tap0");
    let mut net = card.driver(GUEST | feature::MRG_RXBUF, 64, 2048);
    let started = Instant::now();
    for mark in 0..20 {
        comes_in(&mut net, &wire, mark);
        // It is answered when nobody uses the old memory any more.
        net.front().take(Step::MemoryTable).unwrap();
        goes_out(&mut net, &wire, mark);
    }
    assert!(started.elapsed() < LIMIT, "{:?}", started.elapsed());
}

#[test]
fn a_driver_with_few_buffers_gets_small_frames_all_the_same() {
    if !network::enter() {
        return;
    }
    tap("tap0", false);
    let card = Card::new("tap-name=tap0");
    let wire = Wire::on("tap0");
    let mut net = card.driver(GUEST | feature::MRG_RXBUF, 2, 2048);
    (0..100).for_each(|mark| comes_in(&mut net, &wire, mark));
    let (header, bytes) = large(Protocol::TCP4, 65_535, 1460);
    wire.send(&header.bytes(), &bytes);
    comes_in(&mut net, &wire, 1);
    card.wait_for("longer than its buffers: 1 so far");
}

#[test]
fn an_interface_that_is_down_loses_frames_and_nothing_else() {
    if !network::enter() {
        return;
    }
    tap("tap0", false);
    let card = Card::new("tap-name=tap0");
    let mut net = card.driver(0, 8, 2048);
    ip("link set tap0 down");
    net.send(0, &Header::default(), &frame(ALL, 1)).unwrap();
    card.wait_for("which the kernel did not take: 1 so far");
    ip("link set tap0 up");
    let wire = Wire::on("tap0");
    goes_out(&mut net, &wire, 2);
    comes_in(&mut net, &wire, 2);
}

#[test]
fn a_tap_that_goes_away_takes_the_link_down_and_the_process_lives() {
    if !network::enter() {
        return;
    }
    tap("tap0", false);
    let card = Card::new("tap-name=tap0");
    let mut net = card.driver(feature::STATUS | feature::MRG_RXBUF, 8, 2048);
    assert_eq!(net.config().unwrap().status, 1);
    let channel = net.front().connection().backend_channel().unwrap();
    ip("link del tap0");
    assert_eq!(channel.backend_request().unwrap(), 2, "CONFIG_CHANGE");
    assert_eq!(net.config().unwrap().status, 0);
    card.wait_for("the tap is gone, and the link down");
    net.send(0, &Header::default(), &frame(ALL, 1)).unwrap();
    let parked = net.leave().unwrap();
    assert_eq!(parked.bases(), [0, 1, 0]);
    let mut net: Net = parked.resume().unwrap();
    assert_eq!(
        net.config().unwrap().status,
        0,
        "a front-end that comes later is told as well"
    );
    card.vudev.stop().unwrap();
}
