//! The network card's control queue, in its jail: each command by its answer and by what it does to
//! frames; pairs of queues; announcements. Needs root.

#![expect(
    clippy::unwrap_used,
    reason = "a suite whose own set-up fails has nothing to test"
)]

#[path = "support/card.rs"]
mod card;
#[path = "support/network.rs"]
mod network;

use std::collections::BTreeSet;

use rustix::process::Signal;
use vudev_frontend::net::{Header, feature};
use vudev_frontend::{LIMIT, Net};

use card::{ALL, CONTROL, Card, GUEST, OURS, PLAIN, SHORTLY, comes_in, frame, passes, tagged};
use network::{Protocol, Wire, large, tap};

const OK: u8 = 0;
const ERR: u8 = 1;

const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 2];
const GROUP: [u8; 6] = [1, 0, 0x5e, 0, 0, 1];

/// Receive modes (class 0).
const PROMISC: u8 = 0;
const ALLMULTI: u8 = 1;
const ALLUNI: u8 = 2;
const NOMULTI: u8 = 3;
const NOUNI: u8 = 4;
const NOBCAST: u8 = 5;

fn started() -> Option<(Card, Wire, Net)> {
    if !network::enter() {
        return None;
    }
    tap("tap0", false);
    let card = Card::new("tap-name=tap0,mac=02:00:00:00:00:01");
    let net = card.driver(
        CONTROL | GUEST | feature::MAC | feature::MRG_RXBUF,
        100,
        2048,
    );
    Some((card, Wire::on("tap0"), net))
}

fn mode(net: &mut Net, mode: u8, on: bool) {
    assert_eq!(net.command(0, mode, &[on.into()]).unwrap(), OK);
}

/// A table of addresses.
fn table(addresses: &[[u8; 6]]) -> Vec<u8> {
    let count = u32::try_from(addresses.len()).unwrap();
    [&count.to_le_bytes()[..], &addresses.concat()].concat()
}

fn passing(net: &mut Net, wire: &Wire) -> [bool; 3] {
    [OURS, OTHER, GROUP].map(|to| passes(net, wire, &frame(to, 1)))
}

#[test]
fn each_receive_mode_does_to_frames_what_it_says() {
    let Some((_card, wire, mut net)) = started() else {
        return;
    };
    assert_eq!(passing(&mut net, &wire), [true; 3], "nothing was said yet");
    mode(&mut net, PROMISC, false);
    assert_eq!(passing(&mut net, &wire), [true, false, false]);
    for (which, expected) in [
        (ALLMULTI, [true, false, true]),
        (ALLUNI, [true, true, false]),
        (NOUNI, [false; 3]),
        (PROMISC, [true; 3]),
    ] {
        mode(&mut net, which, true);
        assert_eq!(passing(&mut net, &wire), expected, "mode {which}");
        mode(&mut net, which, false);
    }
    mode(&mut net, ALLMULTI, true);
    mode(&mut net, NOMULTI, true);
    assert_eq!(passing(&mut net, &wire), [true, false, false]);
    mode(&mut net, NOBCAST, true);
    wire.send(&PLAIN, &frame(ALL, 1));
    wire.send(&PLAIN, &frame(OURS, 2));
    assert_eq!(net.receive(0, LIMIT).unwrap().bytes, frame(OURS, 2));
}

#[test]
fn tables_of_addresses_and_the_own_address_decide_what_passes() {
    let Some((_card, wire, mut net)) = started() else {
        return;
    };
    mode(&mut net, PROMISC, false);
    let tables = [table(&[OTHER]), table(&[GROUP])].concat();
    assert_eq!(net.command(1, 0, &tables).unwrap(), OK);
    assert_eq!(passing(&mut net, &wire), [true; 3]);
    let empty = [table(&[]), table(&[])].concat();
    assert_eq!(net.command(1, 0, &empty).unwrap(), OK);
    assert_eq!(passing(&mut net, &wire), [true, false, false]);
    assert_eq!(net.command(1, 1, &OTHER).unwrap(), OK);
    assert_eq!(passing(&mut net, &wire), [false, true, false]);
    assert_eq!(net.config().unwrap().mac, OTHER);
    // More than we keep: everything of the kind passes.
    let many = [table(&[OURS; 65]), table(&[])].concat();
    assert_eq!(net.command(1, 0, &many).unwrap(), OK);
    assert_eq!(passing(&mut net, &wire), [true, true, false]);
}

#[test]
fn vlans_pass_as_they_are_added() {
    let Some((_card, wire, mut net)) = started() else {
        return;
    };
    mode(&mut net, PROMISC, false);
    let passing = |net: &mut Net| [7, 4095].map(|id| passes(net, &wire, &tagged(OURS, id, 1)));
    assert_eq!(passing(&mut net), [false; 2]);
    assert_eq!(net.command(2, 0, &7_u16.to_le_bytes()).unwrap(), OK);
    assert_eq!(passing(&mut net), [true, false]);
    assert_eq!(net.command(2, 0, &4095_u16.to_le_bytes()).unwrap(), OK);
    assert_eq!(net.command(2, 1, &7_u16.to_le_bytes()).unwrap(), OK);
    assert_eq!(passing(&mut net), [false, true]);
    comes_in(&mut net, &wire, 1);
}

#[test]
fn guest_offloads_are_switched_while_the_driver_runs() {
    let Some((_card, wire, mut net)) = started() else {
        return;
    };
    let (header, bytes) = large(Protocol::TCP4, 40_000, 1460);
    let whole = |net: &mut Net| {
        wire.send(&header.bytes(), &bytes);
        let mut frames = 0;
        let mut data = 0;
        while data < bytes.len() - 54 {
            let frame = net.receive(0, LIMIT).unwrap();
            data += frame.bytes.len() - 54;
            frames += 1;
        }
        frames == 1
    };
    assert!(whole(&mut net));
    for (offloads, expected) in [
        (0, false),
        (GUEST, true),
        (feature::GUEST_CSUM, false),
        (feature::GUEST_CSUM | feature::GUEST_TSO4, true),
        (feature::GUEST_CSUM | feature::GUEST_TSO6, false),
    ] {
        assert_eq!(net.command(5, 0, &offloads.to_le_bytes()).unwrap(), OK);
        assert_eq!(whole(&mut net), expected, "{offloads:#x}");
    }
    let more = GUEST | feature::CSUM;
    assert_eq!(net.command(5, 0, &more.to_le_bytes()).unwrap(), ERR);
}

#[test]
fn each_command_that_cannot_be_carried_out_is_answered_with_an_error() {
    let Some((_card, wire, mut net)) = started() else {
        return;
    };
    let refused: [(&str, u8, u8, Vec<u8>); 24] = [
        ("a mode without a value", 0, PROMISC, vec![]),
        ("a mode of 2", 0, PROMISC, vec![2]),
        ("a mode and more", 0, PROMISC, vec![0, 0]),
        ("an unknown mode", 0, 6, vec![0]),
        ("no table", 1, 0, vec![]),
        ("one table", 1, 0, table(&[OTHER])),
        (
            "a table cut short",
            1,
            0,
            [&[2, 0, 0, 0][..], &OTHER].concat(),
        ),
        ("an absurd table", 1, 0, vec![0xff; 300]),
        ("tables and more", 1, 0, vec![0; 9]),
        (
            "a group among machines",
            1,
            0,
            [table(&[GROUP]), table(&[])].concat(),
        ),
        (
            "a machine among groups",
            1,
            0,
            [table(&[]), table(&[OTHER])].concat(),
        ),
        ("a short address", 1, 1, vec![2; 5]),
        ("a group's address", 1, 1, GROUP.to_vec()),
        ("no address", 1, 1, vec![0; 6]),
        ("an unknown table", 1, 2, vec![0; 6]),
        ("a VLAN of 4096", 2, 0, vec![0, 16]),
        ("half a VLAN", 2, 1, vec![1]),
        ("an unknown VLAN command", 2, 2, vec![1, 0]),
        ("an announcement nobody asked for", 3, 0, vec![]),
        ("pairs without MQ", 4, 0, vec![1, 0]),
        ("RSS", 4, 1, vec![0; 64]),
        ("half of the offloads", 5, 0, vec![0; 4]),
        ("an unknown offload command", 5, 1, vec![0; 8]),
        ("an unknown class", 6, 0, vec![]),
    ];
    mode(&mut net, PROMISC, false);
    for (name, class, command, data) in refused {
        assert_eq!(net.command(class, command, &data).unwrap(), ERR, "{name}");
        assert_eq!(passing(&mut net, &wire), [true, false, false], "{name}");
    }
    assert_eq!(net.raw_command(&[0]).unwrap(), ERR, "a byte");
    // Without room for an answer there is none.
    let nothing = net.front().memory().allocate(2, 1).unwrap();
    let queue = net.control_queue();
    let ring = net.front().ring(queue);
    let _ = ring
        .add(&[vudev_frontend::Buffer::new(nothing, 2)], &[])
        .unwrap();
    ring.kick().unwrap();
    assert_eq!(ring.wait_used(LIMIT).unwrap().written, 0);
    comes_in(&mut net, &wire, 1);
}

#[test]
fn a_driver_is_asked_to_announce_itself_when_the_operator_says_so() {
    let Some((card, _wire, mut net)) = started() else {
        return;
    };
    let channel = net.front().connection().backend_channel().unwrap();
    assert_eq!(net.config().unwrap().status, 1);
    card.vudev.signal(Signal::USR1).unwrap();
    assert_eq!(channel.backend_request().unwrap(), 2, "CONFIG_CHANGE");
    assert_eq!(net.config().unwrap().status, 3);
    assert_eq!(net.command(3, 0, &[]).unwrap(), OK);
    assert_eq!(net.config().unwrap().status, 1);
    assert_eq!(net.command(3, 0, &[]).unwrap(), ERR);
}

#[test]
fn what_one_driver_set_up_the_next_does_not_find() {
    let Some((card, wire, mut net)) = started() else {
        return;
    };
    mode(&mut net, PROMISC, false);
    assert_eq!(net.command(1, 1, &OTHER).unwrap(), OK);
    card.vudev.signal(Signal::USR1).unwrap();
    while net.config().unwrap().status != 3 {}
    drop(net);
    let mut net = card.driver(CONTROL | feature::MAC, 100, 2048);
    assert_eq!(passing(&mut net, &wire), [true; 3]);
    let config = net.config().unwrap();
    assert_eq!((config.mac, config.status), (OURS, 1));
    // Nor are frames in one piece any more.
    let (header, bytes) = large(Protocol::TCP4, 4000, 1460);
    wire.send(&header.bytes(), &bytes);
    assert_eq!(net.receive(0, LIMIT).unwrap().bytes.len(), 1514);
}

/// An IPv4 and UDP frame of a flow of its own.
fn flow(port: u16) -> Vec<u8> {
    let (_, mut frame) = large(Protocol::UDP4_SEGMENTS, 100, 1400);
    frame[34..36].copy_from_slice(&port.to_be_bytes());
    frame
}

/// Sends so many flows in; which pairs they came to.
fn pairs_used(net: &mut Net, wire: &Wire, pairs: u16) -> BTreeSet<u16> {
    const FLOWS: u16 = 64;
    for port in 0..FLOWS {
        wire.send(&PLAIN, &flow(port));
    }
    let mut used = BTreeSet::new();
    let mut came = 0;
    for pair in (0..pairs).cycle() {
        while net
            .receive(pair, std::time::Duration::from_millis(1))
            .is_ok()
        {
            used.insert(pair);
            came += 1;
        }
        if came == FLOWS {
            return used;
        }
    }
    used
}

#[test]
fn frames_come_to_as_many_pairs_as_the_driver_has_set_and_none_is_lost() {
    if !network::enter() {
        return;
    }
    tap("tap0", true);
    let card = Card::new("tap-name=tap0,vq-pairs=4");
    let wire = Wire::on("tap0");
    let features = CONTROL | feature::MQ | feature::MRG_RXBUF;
    let mut net = Net::start(card.front(features), 4, 100, 2048).unwrap();
    assert_eq!(net.config().unwrap().pairs, 4);
    assert_eq!(
        pairs_used(&mut net, &wire, 4),
        BTreeSet::from([0]),
        "one, until it says more"
    );
    for pairs in [4_u16, 2, 1, 3] {
        assert_eq!(net.command(4, 0, &pairs.to_le_bytes()).unwrap(), OK);
        let used = pairs_used(&mut net, &wire, 4);
        assert!(used.iter().all(|pair| *pair < pairs), "{used:?} of {pairs}");
        assert!(pairs == 1 || used.len() > 1, "64 flows are in {used:?}");
        // Each pair sends.
        for pair in 0..pairs {
            let out = frame(ALL, 1);
            net.send(pair, &Header::default(), &out).unwrap();
            assert_eq!(wire.receive(LIMIT).unwrap().1, out);
        }
    }
    for pairs in [0_u16, 5, 0xffff] {
        assert_eq!(net.command(4, 0, &pairs.to_le_bytes()).unwrap(), ERR);
    }
    assert!(net.receive(0, SHORTLY).is_err(), "nothing is left");
    drop(net);
    // A driver that knows of one pair has its control queue behind that (5.1.2).
    let mut net = card.driver(CONTROL, 100, 2048);
    mode(&mut net, PROMISC, false);
    assert_eq!(pairs_used(&mut net, &wire, 1), BTreeSet::from([0]));
}

#[test]
fn a_front_end_with_a_control_queue_of_its_own_uses_the_pairs_that_it_enables() {
    if !network::enter() {
        return;
    }
    tap("tap0", true);
    let card = Card::new("tap-name=tap0,vq-pairs=4");
    let wire = Wire::on("tap0");
    // As QEMU does: all data queues, and the last one never.
    let features = CONTROL | feature::MQ | feature::MRG_RXBUF;
    let steps = |front: vudev_frontend::Builder| {
        use vudev_frontend::Step;
        let mut steps = vec![
            Step::Features,
            Step::Protocol,
            Step::Owner,
            Step::SetFeatures,
            Step::MemoryTable,
        ];
        steps.extend((0..8).map(Step::WholeRing));
        front.script(&steps)
    };
    let mut net = Net::start(steps(card.front(features)), 4, 100, 2048).unwrap();
    let used = pairs_used(&mut net, &wire, 4);
    assert!(used.len() > 1, "{used:?}");
    for ring in 2..8 {
        net.front()
            .connection()
            .set_ring_enable(ring, false)
            .unwrap();
    }
    assert_eq!(pairs_used(&mut net, &wire, 4), BTreeSet::from([0]));
    for ring in 2..8 {
        net.front()
            .connection()
            .set_ring_enable(ring, true)
            .unwrap();
    }
    let used = pairs_used(&mut net, &wire, 4);
    assert!(used.len() > 1, "{used:?}");
}
