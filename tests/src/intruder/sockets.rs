//! Sockets of every family that leads somewhere, and what pipes and terminals could smuggle.

use super::hands::{at, call};
use super::{Attempt, Hands, by_seccomp, by_seccomp_if_there, refused};

const STREAM: i64 = libc::SOCK_STREAM as i64;
const DATAGRAM: i64 = libc::SOCK_DGRAM as i64;
const RAW: i64 = libc::SOCK_RAW as i64;

/// The network namespace is empty: not even the loopback is up.
const NO_NETWORK: &[i32] = &[libc::ENETUNREACH, libc::EACCES];

pub(super) static ATTEMPTS: &[Attempt] = &[
    by_seccomp(
        "socket AF_UNIX",
        "a socket of its own in an empty network namespace, with no path to bind to",
        |_| call(libc::SYS_socket, &[libc::AF_UNIX.into(), STREAM, 0]),
    ),
    refused(
        "socket AF_UNIX, connect to an abstract name outside",
        &[libc::ECONNREFUSED, libc::EPERM],
        connect_outside,
    ),
    refused(
        "connect of what is no socket to an abstract name outside",
        &[
            libc::EINVAL,
            libc::ECONNREFUSED,
            libc::EPERM,
            libc::ENOTSOCK,
        ],
        |hands| {
            let (address, length) = abstract_address(hands);
            call(
                libc::SYS_connect,
                &[hands.file.into(), at(&raw const address), length],
            )
        },
    ),
    refused("socket AF_INET, connect", NO_NETWORK, |_| {
        connect_internet(STREAM)
    }),
    refused("socket AF_INET of datagrams, connect", NO_NETWORK, |_| {
        connect_internet(DATAGRAM)
    }),
    refused("socket AF_INET raw", &[libc::EPERM], |_| {
        call(libc::SYS_socket, &[libc::AF_INET.into(), RAW, 1])
    }),
    refused(
        "socket AF_INET6 raw",
        &[libc::EPERM, libc::EAFNOSUPPORT],
        |_| call(libc::SYS_socket, &[libc::AF_INET6.into(), RAW, 58]),
    ),
    by_seccomp(
        "socket AF_NETLINK",
        "it speaks of its own, empty network namespace, and may change nothing there",
        |_| call(libc::SYS_socket, &[libc::AF_NETLINK.into(), RAW, 0]),
    ),
    by_seccomp_if_there(
        "socket AF_VSOCK, connect to the host",
        "vsock knew no network namespaces for long: only seccomp refuses it",
        &[libc::EAFNOSUPPORT],
        connect_vsock,
    ),
    refused(
        "socket AF_PACKET",
        &[libc::EPERM, libc::EAFNOSUPPORT],
        |_| call(libc::SYS_socket, &[libc::AF_PACKET.into(), RAW, 0]),
    ),
    by_seccomp_if_there(
        "socket AF_ALG",
        "ciphers of the kernel, where it has them, and nobody's data",
        &[libc::EAFNOSUPPORT],
        |_| call(libc::SYS_socket, &[libc::AF_ALG.into(), 5, 0]),
    ),
    by_seccomp("socketpair", "both ends are its own", |_| {
        let mut pair = [0_i32; 2];
        call(
            libc::SYS_socketpair,
            &[libc::AF_UNIX.into(), STREAM, 0, at(&raw mut pair)],
        )
    }),
    refused("bind the device's file", &[libc::ENOTSOCK], |hands| {
        call(libc::SYS_bind, &[hands.file.into(), 0, 0])
    }),
    refused("listen on the device's file", &[libc::ENOTSOCK], |hands| {
        call(libc::SYS_listen, &[hands.file.into(), 1])
    }),
    refused(
        "accept4 from what is no socket",
        &[libc::ENOTSOCK],
        |hands| call(libc::SYS_accept4, &[hands.file.into(), 0, 0, 0]),
    ),
    refused("sendmsg to what is no socket", &[libc::ENOTSOCK], |hands| {
        let header = [0_u64; 7];
        call(
            libc::SYS_sendmsg,
            &[hands.file.into(), at(&raw const header), 0],
        )
    }),
    refused("vmsplice into what is no pipe", &[libc::EBADF], |hands| {
        let (byte, length) = (0_u8, 1);
        let vector = [at(&raw const byte), length];
        call(
            libc::SYS_vmsplice,
            &[hands.file.into(), at(&raw const vector), 1, 0],
        )
    }),
    refused("splice of the channel", &[libc::EINVAL], |hands| {
        call(
            libc::SYS_splice,
            &[
                CHANNEL,
                0,
                hands.file.into(),
                0,
                16,
                libc::SPLICE_F_NONBLOCK.into(),
            ],
        )
    }),
    refused("tee of the channel", &[libc::EINVAL], |hands| {
        call(libc::SYS_tee, &[CHANNEL, hands.file.into(), 16, 0])
    }),
    refused(
        "ioctl TIOCSTI",
        &[libc::EIO, libc::EPERM, libc::ENOTTY],
        |hands| terminal(hands, libc::TIOCSTI.cast_signed()),
    ),
    // It leads a session that has none; the supervisor's is not to be taken.
    refused("ioctl TIOCSCTTY", &[libc::EPERM], |hands| {
        terminal(hands, libc::TIOCSCTTY.cast_signed())
    }),
    refused("ioctl TIOCSPGRP", &[libc::ENOTTY], |hands| {
        terminal(hands, libc::TIOCSPGRP.cast_signed())
    }),
    refused("ioctl TIOCLINUX", &[libc::ENOTTY, libc::EPERM], |hands| {
        terminal(hands, TIOCLINUX)
    }),
    refused("ioctl TIOCCONS", &[libc::EPERM, libc::ENOTTY], |hands| {
        terminal(hands, TIOCCONS)
    }),
];

/// The control channel's number in every role.
const CHANNEL: i64 = 3;

/// `asm-generic/ioctls.h`.
const TIOCLINUX: i64 = 0x541c;
const TIOCCONS: i64 = 0x541d;

/// `struct sockaddr_un` of the abstract name that is listened on outside, and its length.
fn abstract_address(hands: &Hands) -> ([u8; 64], i64) {
    let mut address = [0; 64];
    address[0] = 1;
    let name = hands.outside.abstract_name();
    address[3..3 + name.len()].copy_from_slice(name.as_bytes());
    (address, 3 + i64::try_from(name.len()).unwrap_or(0))
}

fn connect_outside(hands: &Hands) -> i64 {
    let socket = call(libc::SYS_socket, &[libc::AF_UNIX.into(), STREAM, 0]);
    let (address, length) = abstract_address(hands);
    call(libc::SYS_connect, &[socket, at(&raw const address), length])
}

/// `struct sockaddr_in` of 127.0.0.1, port 1.
fn connect_internet(kind: i64) -> i64 {
    let socket = call(libc::SYS_socket, &[libc::AF_INET.into(), kind, 0]);
    let address = [2_u8, 0, 0, 1, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0];
    call(libc::SYS_connect, &[socket, at(&raw const address), 16])
}

/// `struct sockaddr_vm` of port 1 of the host (2). That an answer is awaited is a pass.
fn connect_vsock(_: &Hands) -> i64 {
    let socket = call(
        libc::SYS_socket,
        &[libc::AF_VSOCK.into(), STREAM | 0o4000, 0],
    );
    if socket < 0 {
        return socket;
    }
    let address = [40_u32, 1, 2, 0];
    match call(libc::SYS_connect, &[socket, at(&raw const address), 16]) {
        AWAITED => 0,
        result => result,
    }
}

const AWAITED: i64 = -(libc::EINPROGRESS as i64);

/// A command to the terminal if there is one, and else to `/dev/null`.
fn terminal(hands: &Hands, command: i64) -> i64 {
    let byte = b'#';
    let terminal = hands.terminal.unwrap_or(0);
    call(
        libc::SYS_ioctl,
        &[terminal.into(), command, at(&raw const byte)],
    )
}
