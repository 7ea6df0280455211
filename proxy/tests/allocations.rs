//! A proxy that has warmed up allocates nothing for a message, a register, a kick or a doorbell,
//! and enters the kernel a known number of times.

use std::cell::RefCell;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::pin::pin;

use futures_util::future::{Either, select};
use vudev_executor::{Executor, Kick};
use vudev_frontend::Connection;
use vudev_frontend::message::{REPLY, VERSION, frame, request};
use vudev_proxy::testing::{DOORBELLS, DeviceVm, FIRST_KICK_VECTOR, await_event, event};
use vudev_proxy::{OPERATIONS, Parts, Proxy, SharedMemory};
use vudev_virtio::testing::allocations::{CountingAllocator, allocations};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// Everything that goes on in steady state, once.
fn round(vm: &mut DeviceVm, front: &Connection, kick: &OwnedFd, call: &OwnedFd) {
    front.raw(&frame(1, VERSION, &[]), &[]).expect("room");
    assert_eq!(vm.receive(), frame(1, VERSION, &[]));
    vm.transmit(&frame(1, VERSION | REPLY, &[7; 8]));
    front.outcome().expect("an answer");
    rustix::io::write(kick, &1_u64.to_ne_bytes()).expect("room");
    vm.interrupted(FIRST_KICK_VECTOR);
    vm.write(DOORBELLS, 0, &[0, 0]);
    await_event(call, "call");
}

/// Two VMs around a proxy: `mark` has the proxy's thread count, before and after.
fn both_sides(folder: &std::path::Path, mark: &OwnedFd, counted: &OwnedFd) {
    let mut vm = DeviceVm::start(&folder.join("vfio"));
    let front = Connection::open(folder.join("vhost")).expect("a proxy");
    vm.bring_up();
    let (kick, call) = (event(), event());
    for (number, event) in [
        (request::SET_VRING_KICK, &kick),
        (request::SET_VRING_CALL, &call),
    ] {
        let message = frame(number, VERSION, &0_u64.to_ne_bytes());
        front.raw(&message, &[event.as_fd()]).expect("room");
        vm.receive();
    }
    for rounds in [50, 500, 0] {
        (0..rounds).for_each(|_| round(&mut vm, &front, &kick, &call));
        rustix::io::write(mark, &1_u64.to_ne_bytes()).expect("room");
        await_event(counted, "count");
    }
}

#[test]
#[expect(clippy::disallowed_methods, reason = "both VMs beside the proxy")]
fn a_warm_proxy_allocates_nothing_and_enters_seldom() {
    let folder = tempfile::tempdir().expect("a folder");
    let listen = |name| UnixListener::bind(folder.path().join(name)).expect("a socket");
    let parts = Parts {
        clients: listen("vfio").into(),
        shared_memory: SharedMemory::Trapped { bytes: 1 << 20 },
        identity: Default::default(),
        uuid: [0; 16],
    };
    let front_ends = listen("vhost").into();
    let (mark, counted) = (event(), event());
    let clone = |event: &OwnedFd| event.try_clone().expect("a descriptor");
    let (place, theirs) = (folder.path().to_owned(), (clone(&mark), clone(&counted)));
    let clients = std::thread::spawn(move || both_sides(&place, &theirs.0, &theirs.1));
    let executor = Executor::with_operations(OPERATIONS).expect("a ring");
    let handle = executor.handle();
    let proxy = Proxy::new(handle, parts).expect("a proxy");
    let mut marks = Kick::new(handle, mark).expect("an eventfd");
    let counts = RefCell::new(Vec::with_capacity(3));
    let count = async {
        for _ in 0..3 {
            marks.wait().await.expect("a mark");
            counts
                .borrow_mut()
                .push((allocations(), handle.stats().enters));
            rustix::io::write(&counted, &1_u64.to_ne_bytes()).expect("room");
        }
    };
    let end = executor.run(async {
        let (run, count) = (pin!(proxy.run(front_ends)), pin!(count));
        matches!(select(run, count).await, Either::Right(_))
    });
    assert!(end.expect("a ring"), "the proxy has ended by itself");
    clients.join().expect("both VMs");
    let counts = counts.take();
    let [(allocations, enters), (allocations_after, enters_after), _] = counts[..] else {
        panic!("three marks");
    };
    let allocated = allocations_after - allocations;
    assert_eq!(allocated, 0, "{allocated} allocations in 500 rounds");
    // A round is three stores of the device VM's, at three each for header, payload and answer; a
    // message in two pieces, a message back, and a kick.
    let entered = enters_after - enters;
    assert!(entered <= 500 * 13, "{entered} enters in 500 rounds");
    println!("{entered} enters");
}
