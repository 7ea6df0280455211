//! What frames cost the executor, and what the card waits for. What they allocate is counted in
//! `net_allocations`: nothing.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test panics where it fails, and its numbers are small"
)]

use std::time::Duration;

use vudev_devices::net::feature;
use vudev_executor::{Executor, Faults, Handle};

mod common;

use common::card::{HEADER, RECEIVE, TRANSMIT, come, frame, post, start, start_with};
use common::costs::{Costs, wake_ups};
use common::{run, wait_until};

/// The costs of what `work` does.
async fn costs(handle: &Handle, work: impl AsyncFnOnce()) -> Costs {
    let before = Costs::so_far(handle);
    work().await;
    Costs::so_far(handle) - before
}

/// Longer than a driver is waited for that has never had room for the longest frame.
const SHORT_WAIT: Duration = Duration::from_millis(5);

/// Frames at once for which costs are counted.
const DEPTHS: [u16; 2] = [1, 32];

#[test]
fn frames_out_cost_one_system_call_each_one_enter_and_one_call_together() {
    for depth in DEPTHS {
        run(async |handle| {
            let (mut net, wire) = start(&handle, 0);
            net.settle().await;
            for mark in 0..depth {
                let bytes = [&[0; HEADER][..], &frame(60, mark as u8)].concat();
                let buffer = net.put(&bytes);
                net.ring(TRANSMIT).add(&[buffer], &[]).unwrap();
            }
            let costs = costs(&handle, async || {
                net.ring(TRANSMIT).kick().unwrap();
                wait_until(&handle, || net.is_idle(TRANSMIT, depth)).await;
                // The call comes with the end of the turn.
                handle.yield_now().await;
            })
            .await;
            // The enter is the one that sees the kick; another may look for more.
            assert!(costs.enters <= 2, "{depth} {costs:?}");
            let enters = costs.enters;
            let expected = Costs {
                operations: 0,
                at_once: depth.into(),
                enters,
                calls: 1,
                allocations: 0,
                copied: u64::from(depth) * HEADER as u64,
            };
            assert_eq!(costs, expected, "{depth}");
            let mut buffer = [0; 2048];
            for mark in 0..depth {
                let count = wire.recv(&mut buffer).unwrap();
                assert_eq!(buffer[HEADER..count], frame(60, mark as u8), "in order");
            }
        });
    }
}

#[test]
fn frames_in_cost_one_system_call_each_one_operation_and_one_call_together() {
    for depth in DEPTHS {
        run(async |handle| {
            let (mut net, wire) = start(&handle, feature::MRG_RXBUF);
            let buffers = post(&mut net, 64, 2048);
            net.settle().await;
            let index = depth;
            let costs = costs(&handle, async || {
                (0..depth).for_each(|mark| come(&wire, &frame(60, mark as u8)));
                let used = || net.ring(RECEIVE).used_index().unwrap() == index;
                wait_until(&handle, used).await;
                handle.yield_now().await;
            })
            .await;
            assert!(costs.enters <= 3, "{depth} {costs:?}");
            let enters = costs.enters;
            let expected = Costs {
                // The read that waits for the next frame.
                operations: 1,
                // The first frame came to the read that waited; the last attempt finds none.
                at_once: depth.into(),
                enters,
                calls: 1,
                allocations: 0,
                copied: u64::from(depth) * HEADER as u64,
            };
            assert_eq!(costs, expected, "{depth}");
            for (mark, buffer) in (0..depth).zip(buffers) {
                assert_eq!(
                    net.bytes(buffer)[HEADER..HEADER + 60],
                    frame(60, mark as u8)
                );
            }
        });
    }
}

#[test]
fn an_idle_card_is_not_woken() {
    run(async |handle| {
        let (mut net, wire) = start(&handle, feature::MRG_RXBUF);
        post(&mut net, 64, 2048);
        come(&wire, &frame(60, 1));
        let _ = net.used(RECEIVE).await;
        assert_eq!(wake_ups(&net).await, 0);
    });
}

#[test]
fn a_flood_of_frames_leaves_everyone_else_their_turn() {
    run(async |handle| {
        let (mut net, wire) = start(&handle, feature::MRG_RXBUF);
        net.settle().await;
        let mut came = 0;
        while wire
            .send(&[&[0; HEADER][..], &frame(60, 1)].concat())
            .is_ok()
        {
            came += 1;
        }
        // Frames that are longer than all buffers cost the queue no chain.
        post(&mut net, 1, 40);
        let before = handle.stats().at_once;
        handle.yield_now().await;
        handle.yield_now().await;
        assert!(came > 128, "{came} frames fit into the socket");
        assert!(handle.stats().at_once - before <= 2 * 128);
    });
}

#[test]
fn a_driver_that_had_room_for_the_longest_frame_is_waited_for_and_no_frame_is_lost() {
    // The longest frame is 64 KiB then.
    let features = feature::MRG_RXBUF | feature::GUEST_CSUM | feature::GUEST_TSO4;
    let executor = Executor::simulated(1, Faults::default());
    let handle = executor.handle().clone();
    let waited = executor.run(async {
        let (mut net, wire) = start_with(&handle, features, true);
        post(&mut net, 20, 4096);
        // 80 KiB were there, and 20 KiB are left: too little for what comes then.
        come(&wire, &frame(60_000, 1));
        for _ in 0..15 {
            let _ = net.used(RECEIVE).await;
        }
        come(&wire, &frame(40_000, 2));
        handle.sleep(SHORT_WAIT).await;
        // Who waits with buffers in hand lets go of them.
        net.replace_memory().await;
        handle.sleep(SHORT_WAIT).await;
        assert_eq!(net.ring(RECEIVE).used_index().unwrap(), 15);
        post(&mut net, 20, 4096);
        for _ in 0..10 {
            assert!(net.used(RECEIVE).await.written > 0);
        }
    });
    waited.unwrap();
}

#[test]
fn a_driver_that_has_less_room_than_it_had_is_not_waited_for_without_end() {
    let features = feature::MRG_RXBUF | feature::GUEST_CSUM | feature::GUEST_TSO4;
    run(async |handle| {
        let (mut net, wire) = start(&handle, features);
        post(&mut net, 20, 4096);
        come(&wire, &frame(60_000, 1));
        for _ in 0..15 {
            let _ = net.used(RECEIVE).await;
        }
        // One wait lies before these, and not one before each: that would be four seconds.
        let before = handle.now();
        for mark in 0..20 {
            come(&wire, &frame(60, mark));
            assert_eq!(net.used(RECEIVE).await.written, 72);
            post(&mut net, 1, 4096);
        }
        assert!(handle.now() - before < Duration::from_secs(3));
    });
}

#[test]
fn buffers_that_come_after_all_patience_are_used_for_the_next_frame() {
    let features = feature::MRG_RXBUF | feature::GUEST_CSUM | feature::GUEST_TSO4;
    run(async |handle| {
        let (mut net, wire) = start(&handle, features);
        post(&mut net, 1, 4096);
        handle.sleep(SHORT_WAIT).await;
        // The card has one buffer in hand, and reads into it by now.
        for (count, came) in [(20, 60_000), (3, 8_000)] {
            post(&mut net, count, 4096);
            handle.sleep(SHORT_WAIT).await;
            come(&wire, &frame(came, 1));
            let mut left = HEADER + came;
            while left > 0 {
                left -= net.used(RECEIVE).await.written as usize;
            }
        }
    });
}
