//! What a stream's packets cost, to the host and from it: operations, enters, calls, allocations
//! and copies. In a binary of its own, since the allocator is replaced.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test panics where it fails, and its numbers are small"
)]

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};

use vudev_devices::vsock::{Connect, Vsock};
use vudev_executor::Handle;
use vudev_frontend::Buffer;
use vudev_frontend::vsock::{HEADER, HOST, Packet, RECEIVE, STREAM, TRANSMIT, op};
use vudev_virtio::testing::allocations::CountingAllocator;

mod common;

use common::costs::{Costs, wake_ups};
use common::{Rig, run};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const CID: u32 = 3;
const IN: usize = RECEIVE as usize;
const OUT: usize = TRANSMIT as usize;

/// Bytes of a packet's data: many such fit into a socket.
const LENGTH: usize = 1000;
/// Rounds after which everything that is kept for later has been made.
const WARM: usize = 20;

/// A guest with a connection to a program.
struct Connected {
    guest: Rig<Vsock>,
    program: UnixStream,
    _folder: tempfile::TempDir,
}

impl Connected {
    async fn new(handle: &Handle) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("v")).unwrap();
        let (socket, program) = UnixStream::pair().unwrap();
        let mut socket = Some(socket);
        let socket = move || socket.take().unwrap().into();
        let socket = std::cell::RefCell::new(socket);
        let connect: Connect = Box::new(move |_| {
            let socket = (socket.borrow_mut())();
            Box::pin(async { Ok(socket) })
        });
        let vsock = Vsock::new(handle, CID, listener.into(), connect);
        let mut connected = Self {
            guest: Rig::start(handle, vsock, 0),
            program,
            _folder: folder,
        };
        let request = connected.packet(op::REQUEST, &[]);
        connected.guest.send(OUT, &[request], &[]);
        let _ = connected.guest.used(OUT).await;
        let answer = connected.guest.allocate(HEADER, 1);
        connected.guest.send(IN, &[], &[answer]);
        assert_eq!(connected.guest.used(IN).await.written, HEADER as u32);
        connected
    }

    /// A packet in one buffer.
    fn packet(&self, op: u16, data: &[u8]) -> Buffer {
        let packet = Packet {
            from: CID.into(),
            to: HOST,
            from_port: 5000,
            to_port: 80,
            kind: STREAM,
            op,
            // More than is ever sent here.
            buffer: 1 << 30,
            ..Packet::default()
        };
        self.guest.put(&packet.with_data(data).bytes())
    }
}

/// What so many packets may cost once everything has warmed up, in so many operations.
fn check(round: usize, depth: usize, operations: u64, costs: Costs) {
    // They keep their order, so each operation follows the one before; and one enter sees the kick.
    let enters = costs.enters.min(operations + 1);
    let expected = Costs {
        operations,
        at_once: 0,
        enters,
        calls: 1,
        allocations: 0,
        copied: (depth * HEADER) as u64,
    };
    assert!(round < WARM || costs == expected, "{depth}: {costs:?}");
}

#[test]
fn packets_to_the_host_cost_two_operations_at_most_and_a_copy_of_each_header() {
    for depth in [1, 32] {
        run(async |handle| {
            let mut connected = Connected::new(&handle).await;
            let data = [b'.'; LENGTH];
            let packet = connected.packet(op::RW, &data);
            for round in 0..=WARM {
                let chain = (&[packet][..], &[][..]);
                let costs = Costs::of(&mut connected.guest, OUT, chain, depth, || ()).await;
                let mut seen = vec![0; depth * LENGTH];
                connected.program.read_exact(&mut seen).unwrap();
                assert_eq!(seen, data.repeat(depth));
                // The first, and all that came meanwhile.
                check(round, depth, depth.min(2) as u64, costs);
            }
            assert_eq!(wake_ups(&connected.guest).await, 0);
        });
    }
}

#[test]
fn a_packet_from_the_host_costs_one_read_and_a_copy_of_its_header() {
    for depth in [1, 32] {
        run(async |handle| {
            let mut connected = Connected::new(&handle).await;
            let data = [b'.'; LENGTH];
            let all = data.repeat(depth);
            let buffer = connected.guest.allocate(HEADER + LENGTH, 1);
            for round in 0..=WARM {
                let chain = (&[][..], &[buffer][..]);
                let program = &mut connected.program;
                let sent = || program.write_all(&all).unwrap();
                let costs = Costs::of(&mut connected.guest, IN, chain, depth, sent).await;
                assert_eq!(connected.guest.bytes(buffer)[HEADER..], data);
                check(round, depth, depth as u64, costs);
            }
            assert_eq!(wake_ups(&connected.guest).await, 0);
        });
    }
}
