//! A device VM that writes anything anywhere, and a front-end that sends anything meanwhile: the
//! proxy answers, and works for both once they come to their senses.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod common;

use std::os::fd::AsFd;

use common::runner;
use proptest::collection::vec;
use proptest::prelude::*;
use vudev_frontend::Connection;
use vudev_frontend::message::{REPLY, VERSION, frame};
use vudev_proxy::SharedMemory;
use vudev_proxy::testing::{
    BACKEND_UP, CONFIGURATION, DOORBELLS, DeviceVm, Running, SHARED_MEMORY, VIRTIO, event, longs,
    ram_file,
};

/// BAR 1, which has the MSI-X table.
const MSIX: u32 = 1;

/// What either of them does next.
#[derive(Clone, Debug)]
enum Deed {
    /// A load or a store of the device VM's, at this register.
    Load(u32, u64, usize),
    Store(u32, u64, Vec<u8>),
    /// Something in its queues.
    Scribble(u64, u16),
    /// A message through the tx queue, as it should be or not.
    Transmit(Vec<u8>),
    /// A message of the front-end's, with descriptors.
    Send(Vec<u8>, usize),
    /// Another front-end.
    Reconnect,
}

/// Registers that do something, and their neighbours.
fn place() -> impl Strategy<Value = (u32, u64)> {
    let near = |base: u64| (base.saturating_sub(4)..base + 64).boxed();
    prop_oneof![
        6 => (Just(VIRTIO), 0..0x40_u64),
        2 => (Just(VIRTIO), near(0x1000)),
        3 => (Just(VIRTIO), near(0x2000)),
        3 => (Just(VIRTIO), near(0x3000)),
        1 => (Just(MSIX), 0..0xff8_u64),
        2 => (Just(DOORBELLS), 0..0x240_u64),
        2 => (Just(DOORBELLS), near(0x2000)),
        1 => (Just(SHARED_MEMORY), 0..0x10_0000_u64),
        2 => (Just(CONFIGURATION), 0..0xf8_u64),
    ]
}

fn message() -> impl Strategy<Value = Vec<u8>> {
    let number = prop_oneof![8 => 0..45_u32, 1 => any::<u32>()];
    let flags = prop_oneof![
        4 => Just(VERSION),
        4 => Just(VERSION | REPLY),
        1 => any::<u32>(),
    ];
    let payload = prop_oneof![
        4 => (0..70_u64).prop_map(|value| value.to_ne_bytes().to_vec()),
        2 => Just(Vec::new()),
        2 => vec(any::<u8>(), 0..80),
        2 => vec(0..3_u64, 5).prop_map(|fields| {
            let regions = longs(&fields[1..]);
            [vec![1, 0, 0, 0, 0, 0, 0, 0], regions].concat()
        }),
    ];
    (number, flags, payload).prop_map(|(number, flags, payload)| frame(number, flags, &payload))
}

fn deed() -> impl Strategy<Value = Deed> {
    let byte = prop_oneof![3 => 0..16_u8, 1 => any::<u8>()];
    let width = prop_oneof![Just(1_usize), Just(2), Just(4), Just(8)];
    prop_oneof![
        3 => (place(), 1..9_usize).prop_map(|((region, at), len)| Deed::Load(region, at, len)),
        8 => (place(), width, vec(byte, 8)).prop_map(|((region, at), width, mut data)| {
            data.truncate(width);
            Deed::Store(region, at, data)
        }),
        2 => (0..0x3000_u64, any::<u16>()).prop_map(|(at, value)| Deed::Scribble(at * 2, value)),
        2 => message().prop_map(Deed::Transmit),
        4 => (message(), 0..3_usize).prop_map(|(bytes, files)| Deed::Send(bytes, files)),
        1 => Just(Deed::Reconnect),
    ]
}

fn carry_out(deed: Deed, vm: &mut DeviceVm, front: &mut Connection, running: &Running) {
    match deed {
        Deed::Load(region, at, len) => drop(vm.read(region, at, len)),
        Deed::Store(region, at, data) => vm.write(region, at, &data),
        Deed::Scribble(at, value) => vm.area.write(at, &value.to_le_bytes()),
        Deed::Transmit(message) => vm.offer_transmission(&message),
        Deed::Send(message, files) => {
            let (event, file) = (event(), ram_file(4096));
            let files = &[event.as_fd(), file.as_fd()][..files];
            // It may be closed by now.
            let _ = front.raw(&message, files);
        }
        Deed::Reconnect => *front = Connection::open(running.vhost()).unwrap(),
    }
}

fn survives(shared_memory: SharedMemory) {
    let running = Running::start(shared_memory);
    let mut vm = DeviceVm::start(&running.vfio());
    let deeds = vec(deed(), 1..60);
    let vm = std::cell::RefCell::new(&mut vm);
    runner(150)
        .run(&deeds, |deeds| {
            let vm = &mut **vm.borrow_mut();
            let mut front = Connection::open(running.vhost()).unwrap();
            vm.bring_up();
            for deed in deeds {
                carry_out(deed, vm, &mut front, &running);
            }
            drop(front);
            vm.client.reset().unwrap();
            vm.set_up();
            let probe = Connection::open(running.vhost()).unwrap();
            probe.raw(&frame(4711, VERSION, &[]), &[]).unwrap();
            loop {
                vm.set_status(BACKEND_UP);
                // Those that waited in the backlog come first, with whatever they had sent.
                let mut message = Vec::new();
                while message != frame(4711, VERSION, &[]) {
                    vm.poll_until(|vm| vm.rx.used != vm.rx_index() || vm.status() == 0);
                    if vm.rx.used == vm.rx_index() {
                        break;
                    }
                    message = vm.receive();
                }
                if message == frame(4711, VERSION, &[]) {
                    break;
                }
            }
            drop(probe);
            vm.await_status(0);
            Ok(())
        })
        .unwrap();
}

#[test]
fn a_hostile_device_vm_and_front_end_are_outlived_with_trapped_memory() {
    survives(SharedMemory::Trapped { bytes: 1 << 20 });
}

#[test]
fn a_hostile_device_vm_and_front_end_are_outlived_with_a_ram_file() {
    survives(SharedMemory::RamFile(ram_file(1 << 20).into()));
}
