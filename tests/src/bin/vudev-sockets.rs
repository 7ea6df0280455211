//! Connects to the host's AF_VSOCK ports, or waits for the host to connect, many times at once, and
//! moves data both ways over each connection: for a guest of the tests, which has no such tool.
//!
//!     vudev-sockets connect|listen PORT CONNECTIONS SECTORS
//!
//! Each connection sends so many sectors of its own and ends its half; then it reads to the other
//! end's. For each it prints the checksums of what it sent and of what it got.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::ExitCode;
use std::sync::{Arc, Barrier};
use std::thread::{self, JoinHandle};

use rustix::net::{
    AddressFamily, Shutdown, SocketFlags, SocketType, accept, listen, shutdown, socket_with,
};
use vudev_tests::sums::{SECTOR, Sum, fill};

/// The host's context identifier, and any (linux/vm_sockets.h).
const HOST: u32 = 2;
const ANY: u32 = u32::MAX;

/// `SO_VM_SOCKETS_CONNECT_TIMEOUT` of the same.
const CONNECT_TIMEOUT: libc::c_int = 6;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, what, port, connections, sectors] = arguments.as_slice() else {
        eprintln!("usage: vudev-sockets connect|listen PORT CONNECTIONS SECTORS");
        return ExitCode::from(2);
    };
    let number = |text: &str| -> u32 { text.parse().expect("a number") };
    let (port, connections, sectors) = (number(port), number(connections), number(sectors));
    let sockets = match what.as_str() {
        "connect" => connected(port, connections),
        _ => accepted(port, connections),
    };
    match sockets.and_then(|sockets| exchange(sockets, sectors)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn connected(port: u32, connections: u32) -> io::Result<Vec<OwnedFd>> {
    let connect = |_| {
        let socket = stream()?;
        be_patient(&socket)?;
        address(&socket, HOST, port, libc::connect)?;
        Ok(socket)
    };
    (0..connections).map(connect).collect()
}

fn accepted(port: u32, connections: u32) -> io::Result<Vec<OwnedFd>> {
    let listener = stream()?;
    address(&listener, ANY, port, libc::bind)?;
    listen(&listener, 128)?;
    println!("listening");
    let accept = |_| Ok(accept(&listener)?);
    (0..connections).map(accept).collect()
}

fn stream() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    Ok(socket_with(
        AddressFamily::VSOCK,
        SocketType::STREAM,
        flags,
        None,
    )?)
}

/// Linux waits 2 s for a connection, which is too little for a host that is very busy.
#[expect(unsafe_code, reason = "no crate of ours has this option")]
fn be_patient(socket: &OwnedFd) -> io::Result<()> {
    let limit = libc::timeval {
        tv_sec: 60,
        tv_usec: 0,
    };
    let size = size_of::<libc::timeval>();
    let size = size.try_into().map_err(io::Error::other)?;
    let (raw, option) = (socket.as_raw_fd(), CONNECT_TIMEOUT);
    // SAFETY: the value is a live local of that size, and the descriptor is open.
    let result =
        unsafe { libc::setsockopt(raw, libc::AF_VSOCK, option, (&raw const limit).cast(), size) };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Calls connect(2) or bind(2) with an address of AF_VSOCK.
#[expect(unsafe_code, reason = "no crate of ours has these addresses")]
fn address(
    socket: &OwnedFd,
    cid: u32,
    port: u32,
    call: unsafe extern "C" fn(i32, *const libc::sockaddr, libc::socklen_t) -> i32,
) -> io::Result<()> {
    // SAFETY: all-zero is a valid sockaddr_vm.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = libc::AF_VSOCK
        .cast_unsigned()
        .try_into()
        .map_err(io::Error::other)?;
    (address.svm_cid, address.svm_port) = (cid, port);
    let length = size_of::<libc::sockaddr_vm>();
    let length = length.try_into().map_err(io::Error::other)?;
    // SAFETY: the address is a live local of that length, and the descriptor is open.
    let result = unsafe { call(socket.as_raw_fd(), (&raw const address).cast(), length) };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// All at once: nobody sends before all are connected.
fn exchange(sockets: Vec<OwnedFd>, sectors: u32) -> io::Result<()> {
    let start = Arc::new(Barrier::new(sockets.len()));
    let threads = (1..).zip(sockets).map(|(stamp, socket)| {
        let start = start.clone();
        aside(move || {
            start.wait();
            let (sent, got) = one(socket, stamp, sectors)?;
            println!("{sent:016x} {got:016x}");
            Ok(())
        })
    });
    let threads: Vec<JoinHandle<io::Result<()>>> = threads.collect();
    threads
        .into_iter()
        .try_for_each(|thread| thread.join().expect("no panic"))
}

fn one(socket: OwnedFd, stamp: u32, sectors: u32) -> io::Result<(u64, u64)> {
    let mut writer = File::from(socket.try_clone()?);
    let sending = aside(move || {
        let (mut sum, mut sector) = (Sum::default(), [0; SECTOR]);
        for place in 0..sectors {
            fill(place.into(), stamp, &mut sector);
            sum.add(&sector);
            writer.write_all(&sector)?;
        }
        shutdown(&writer, Shutdown::Write)?;
        io::Result::Ok(sum.value())
    });
    let mut got = Vec::new();
    File::from(socket).read_to_end(&mut got)?;
    let mut sum = Sum::default();
    sum.add(&got);
    Ok((sending.join().expect("no panic")?, sum.value()))
}

#[expect(
    clippy::disallowed_methods,
    reason = "a program of the guest's, not a device"
)]
fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    thread::spawn(work)
}
