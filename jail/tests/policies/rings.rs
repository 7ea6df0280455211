//! The ring lists: the half of a policy that seccomp does not see.

use std::collections::{BTreeMap, BTreeSet};

use vudev_jail::{Embedded, ring};

use crate::table::{DEVICES, loaded};

/// Operations that open, connect or make a socket: said here again, so that a slip in the list of
/// the crate is seen.
const OPENS_OR_CONNECTS: [&str; 6] = [
    "IORING_OP_OPENAT",
    "IORING_OP_OPENAT2",
    "IORING_OP_SOCKET",
    "IORING_OP_CONNECT",
    "IORING_OP_BIND",
    "IORING_OP_LISTEN",
];

#[test]
fn no_ring_list_allows_what_opens_or_connects() {
    for name in OPENS_OR_CONNECTS {
        assert!(ring::FORBIDDEN.contains(&name), "{name}");
    }
    let forbidden: BTreeSet<_> = ring::FORBIDDEN
        .iter()
        .map(|op| ring::opcode(op).unwrap())
        .collect();
    for name in loaded() {
        let list = ring::allow_list(&name, &Embedded).unwrap();
        let opcodes: BTreeSet<_> = list.opcodes.iter().copied().collect();
        let found: Vec<_> = opcodes.intersection(&forbidden).collect();
        assert!(found.is_empty(), "{name}: {found:?}");
        assert_eq!(list.flags, 1 << 6, "{name}: IOSQE_CQE_SKIP_SUCCESS alone");
    }
}

/// Devices with clients of their own, beside the transport's.
const ACCEPT_CLIENTS: [&str; 3] = ["serial_", "vsock_", "vvu_proxy_"];

#[test]
fn only_the_socket_transport_and_devices_with_clients_accept() {
    let accept = ring::opcode("IORING_OP_ACCEPT").unwrap();
    for name in loaded() {
        let list = ring::allow_list(&name, &Embedded).unwrap();
        let socket = name.ends_with("_vhost_user");
        let clients = ACCEPT_CLIENTS.iter().any(|device| name.starts_with(device));
        let accepts = list.opcodes.contains(&accept);
        assert_eq!(accepts, socket || clients, "{name}");
    }
}

#[test]
fn a_vvu_transport_adds_no_operation_to_that_of_a_socket() {
    for device in DEVICES {
        let list = |ending| ring::allow_list(&format!("{device}_device_{ending}"), &Embedded);
        let (vvu, socket) = (list("vvu").unwrap(), list("vhost_user").unwrap());
        assert_eq!(vvu.flags, socket.flags, "{device}");
        for opcode in vvu.opcodes {
            assert!(socket.opcodes.contains(&opcode), "{device}: {opcode}");
        }
    }
}

#[test]
fn a_wrong_ring_list_says_where_and_why() {
    let lists = [
        ("IORING_OP_NOPE: 1", "1:1: `IORING_OP_NOPE` is no"),
        (
            "IORING_OP_READV: arg0 == 1",
            "1:1: expected `IORING_OP_READV: 1`",
        ),
        (
            "IORING_OP_READV: 1\nIORING_OP_READV: 1",
            "2:1: `IORING_OP_READV` is on line 1 already",
        ),
        ("@default kill", "a ring list has no `@default`"),
    ];
    for (text, expected) in lists {
        let source = BTreeMap::from([("ring/a_device.ring".to_owned(), text.to_owned())]);
        let error = ring::allow_list("a_device", &source)
            .unwrap_err()
            .to_string();
        assert!(error.contains(expected), "{error}");
    }
}
