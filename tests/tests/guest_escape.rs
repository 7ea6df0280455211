//! The device that tries to break out of its jail, with a real function of a device VM in its
//! hands: under the policies of devices that are reached through one, VFIO does nothing more for
//! it, and its ring no more than for one behind a socket (see `intruder.rs`, and `vudev-jail` on
//! what these policies allow beside those).

#![expect(
    clippy::unwrap_used,
    reason = "a suite whose own set-up fails has nothing to test"
)]

#[path = "support/device_vm.rs"]
mod device_vm;

use std::time::Instant;

use device_vm::{DeviceVm, Function};
use vudev_frontend::{FrontEnd, LIMIT, Parked};
use vudev_jail::Embedded;
use vudev_jail::ring::allow_list;
use vudev_tests::attempt::RESULT_PENDING;
use vudev_tests::intruder::{Attempt, FLAG, Filtered, OPERATION, attempts, vfio};
use vudev_tests::{Assets, Guest, static_program};

/// The number of an attempt, it, and its member.
type Case = (usize, &'static Attempt, u16);

/// Makes an attempt; `None` if the device has died of it.
fn attempt(front: &mut FrontEnd, (number, _, member): Case) -> Option<i32> {
    let mut bytes = [0; 8];
    bytes[..2].copy_from_slice(&u16::try_from(number).unwrap().to_le_bytes());
    bytes[2..4].copy_from_slice(&member.to_le_bytes());
    let connection = front.connection();
    connection.set_config(8, 0, &bytes).ok()?;
    let deadline = Instant::now() + LIMIT;
    loop {
        let result = connection.config(1, 4).ok()?;
        let result = i32::from_le_bytes(result.try_into().unwrap());
        if result != RESULT_PENDING || Instant::now() > deadline {
            return Some(result);
        }
    }
}

/// Operations that every kernel of a device VM knows end here: Linux 6.12 has `IORING_OP_LISTEN`.
const OPERATIONS: u16 = 58;

/// And flags: it has `IOSQE_CQE_SKIP_SUCCESS`.
const FLAGS: u16 = 7;

/// What the ring's listed operations on registered memory are tried with.
const UNREGISTERED: &str = "memory that is not registered";

/// Operations and flags that are not listed, and memory.
fn of_the_ring(policy: &str) -> Vec<Case> {
    /// Holds up all that comes after it (see `intruder.rs`).
    const DRAIN: u16 = 1;
    let list = allow_list(policy, &Embedded).unwrap();
    let mut cases = Vec::new();
    for (number, attempt) in attempts().into_iter().enumerate() {
        let members: Vec<u16> = match attempt.name {
            OPERATION => (0..OPERATIONS)
                .filter(|opcode| {
                    !list
                        .opcodes
                        .iter()
                        .any(|listed| u16::from(*listed) == *opcode)
                })
                .collect(),
            FLAG => (0..FLAGS)
                .filter(|bit| list.flags & 1 << bit == 0 && *bit != DRAIN)
                .collect(),
            _ if attempt.name.ends_with(UNREGISTERED) => vec![0],
            _ => continue,
        };
        cases.extend(members.into_iter().map(|member| (number, attempt, member)));
    }
    cases
}

/// What is asked of VFIO.
fn of_vfio() -> impl Iterator<Item = Case> {
    let all = attempts().into_iter().enumerate();
    all.filter(|(_, attempt)| vfio::names().any(|name| name == attempt.name))
        .map(|(number, attempt)| (number, attempt, 0))
}

/// Makes all of these attempts as a device of this kind; how many end it.
fn intrude(
    vm: &mut DeviceVm,
    mut parked: Parked,
    (kind, policy): (&str, &str),
    vfio: impl Iterator<Item = Case>,
) -> (usize, Parked) {
    let start = |vm: &mut DeviceVm, parked: Parked| {
        vm.start_program("vudev-escape", &format!("--{kind} vhost=00:10.0"), 1);
        parked.resume().unwrap()
    };
    let mut front = start(vm, parked);
    let cases = of_the_ring(policy);
    for case @ (_, made, member) in &cases {
        let Filtered::Fails(errnos) = made.filtered else {
            panic!("{}: a device dies of it", made.name);
        };
        let result = attempt(&mut front, *case);
        let refused = result.is_some_and(|result| errnos.contains(&-result));
        assert!(refused, "{kind}: {} [{member}]: {result:?}", made.name);
    }
    let mut calls = 0;
    for case @ (_, made, _) in vfio {
        assert_eq!(attempt(&mut front, case), None, "{kind}: {}", made.name);
        // Its descriptors are closed with it, which resets the function for the next one.
        parked = front.vanish().unwrap();
        vm.logged(&format!("its policy forbids: {}(", made.call()));
        vm.run("wait $vudev || :");
        front = start(vm, parked);
        calls += 1;
    }
    println!("{kind}: {} of the ring, {calls} calls", cases.len());
    assert!(cases.len() > 50);
    vm.run("kill $vudev; wait $vudev || :");
    (calls, front.vanish().unwrap())
}

#[test]
fn a_device_with_a_function_in_its_hands_gets_nothing_more_of_vfio_or_its_ring() {
    let (function, parked) = Function::new(|front| front.queue_size(16));
    let guest = function.plug(Guest::new(&Assets::find().unwrap()));
    let mut vm = DeviceVm::start(guest, &[&static_program("vudev-escape").unwrap()]);
    vm.run("give-to-vfio 00:10.0");
    let block = ("as-block", "block_device_vvu");
    let (calls, parked) = intrude(&mut vm, parked, block, of_vfio());
    assert_eq!(calls, 8);
    // The policies differ in what the device itself does, and the ring's most.
    let serial = ("as-serial", "serial_device_vvu");
    let (calls, _) = intrude(&mut vm, parked, serial, of_vfio().take(2));
    assert_eq!(calls, 2);
    vm.end();
}
