//! The example works, and the document shows the example.

use std::rc::Rc;

use vudev_executor::Executor;
use vudev_transports::direct::{Direct, DirectRing};
use vudev_virtio::spec::feature;
use vudev_virtio::testing::Guest;

#[path = "../examples/null.rs"]
pub mod null;

#[test]
fn the_document_s_code_is_the_example() {
    let document = include_str!("../../docs/writing-a-device.md");
    let (_, code) = document.split_once("```rust\n").unwrap();
    let (code, _) = code.split_once("```\n").unwrap();
    assert!(
        code == include_str!("../examples/null.rs"),
        "copy examples/null.rs into the document"
    );
}

#[test]
fn the_document_counts_as_the_test_does() {
    let bare = |code: &str| code.replace([' ', '\n'], "");
    let document = include_str!("../../docs/writing-a-device.md");
    let (_, counts) = document
        .split_once("```rust\nlet before = handle.stats();")
        .unwrap();
    let (counts, _) = counts.split_once("```\n").unwrap();
    assert!(bare(include_str!("example.rs")).contains(&bare(counts)));
}

#[test]
fn the_example_is_short_enough_to_copy() {
    assert!(include_str!("../examples/null.rs").lines().count() < 80);
}

#[test]
fn the_example_runs() {
    null::main().unwrap();
}

#[test]
fn a_driver_gets_zeros_and_a_chain_without_room_comes_back() {
    let executor = Executor::with_operations(8).unwrap();
    let guest = Guest::new(1 << 20);
    let ring = guest.ring(16);
    let run = executor.run(async {
        let (handle, device) = (executor.handle(), Rc::new(null::Null));
        let mut direct = Direct::new(handle, device, guest.memory(), feature::FRAMEWORK).unwrap();
        direct
            .start(DirectRing::polled(0, 16, ring.addresses()))
            .unwrap();
        let room_for: [(&[u32], u32); 3] = [(&[16], 16), (&[5000, 3000], 4096), (&[], 0)];
        for (room, written) in room_for {
            let wrong_way: &[&[u8]] = if room.is_empty() {
                &[b"nobody reads this"]
            } else {
                &[]
            };
            ring.add(wrong_way, room);
            let used = ring.next_used(handle).await;
            assert_eq!(used.written, written);
            assert!(used.bytes[..written as usize].iter().all(|byte| *byte == 0));
        }
        assert_eq!(direct.stop(0).await.unwrap(), 3);
    });
    run.unwrap();
}

#[test]
fn thirty_two_requests_cost_two_enters_at_most_and_one_call() {
    let executor = Executor::with_operations(8).unwrap();
    let guest = Guest::new(1 << 20);
    let ring = guest.ring(64);
    let run = executor.run(async {
        let (handle, device) = (executor.handle(), Rc::new(null::Null));
        // A driver without EVENT_IDX is called in each turn in which something was used.
        let mut direct = Direct::new(handle, device, guest.memory(), feature::VERSION_1).unwrap();
        let mut queue = DirectRing::polled(0, 64, ring.addresses());
        queue.kick = Some(ring.kick_descriptor());
        queue.call = Some(ring.call_descriptor());
        direct.start(queue).unwrap();
        // The first one has the queue look at its ring, and wait for kicks.
        ring.add(&[], &[16]);
        ring.next_used(handle).await;
        handle.yield_now().await;
        let before = handle.stats();
        for _ in 0..32 {
            ring.add(&[], &[16]);
        }
        for _ in 0..32 {
            ring.next_used(handle).await;
        }
        // The call comes with the end of the turn at the latest.
        handle.yield_now().await;
        let after = handle.stats();
        assert!(after.enters - before.enters <= 2);
        assert_eq!(after.calls - before.calls, 1);
    });
    run.unwrap();
}
