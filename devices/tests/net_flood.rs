//! A tap that always has a frame, and none that the guest's buffers have room for: none of them
//! comes, and yet the card lets go of the buffers as soon as it is asked to.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test panics where it fails, and its numbers are small"
)]

use std::fs::File;

use vudev_devices::Net;
use vudev_devices::net::feature;
use vudev_executor::Handle;

mod common;

use common::card::{HEADER, RECEIVE, config, post};
use common::{Rig, run, wait_until};

/// Frames that are read in a row, before all others have their turn.
const FRAMES_IN_A_ROW: u64 = 128;

/// A card whose tap gives zeros, as many as there is room for and one more.
fn start(handle: &Handle, features: u64) -> Rig<Net> {
    let tap = File::open("/dev/zero").unwrap();
    let net = Net::new(handle, config(), vec![tap.into()]).unwrap();
    Rig::start(handle, net, features)
}

/// Waits until so many more frames have been read.
async fn flood(handle: &Handle, frames: u64) {
    let before = handle.stats().at_once;
    wait_until(handle, || handle.stats().at_once - before >= frames).await;
}

#[test]
fn under_a_flood_of_frames_that_nobody_takes_buffers_are_let_go_of_when_memory_is_replaced() {
    run(async |handle| {
        for (features, size) in [
            (0, 2048),
            (feature::MRG_RXBUF, 2048),
            (feature::MRG_RXBUF, 40),
        ] {
            let mut net = start(&handle, features);
            post(&mut net, 8, size);
            for _ in 0..20 {
                flood(&handle, 3 * FRAMES_IN_A_ROW).await;
                assert!(net.in_flight(RECEIVE) > 0);
                let before = handle.stats().at_once;
                net.replace_memory().await;
                let frames = handle.stats().at_once - before;
                assert!(frames <= 3 * FRAMES_IN_A_ROW, "{frames} frames later");
            }
            // They were all put back, and are again when the queue stops.
            assert_eq!(net.stop_queue(RECEIVE).await, 0);
            assert!(net.ring(RECEIVE).poll_used().unwrap().is_none());
        }
    });
}

#[test]
fn under_a_flood_buffers_that_cannot_be_used_come_back_and_the_queue_stops() {
    run(async |handle| {
        let mut net = start(&handle, feature::MRG_RXBUF);
        // Room for a header, and for no frame: more buffers are asked for at every frame.
        post(&mut net, 1, HEADER);
        flood(&handle, 1).await;
        for _ in 0..50 {
            post(&mut net, 4, HEADER - 1);
            for _ in 0..4 {
                assert_eq!(net.used(RECEIVE).await.written, 0);
            }
            assert_eq!(net.in_flight(RECEIVE), 1);
            net.replace_memory().await;
            // The one with room was taken before those that came back, so that it came back too.
            assert_eq!(net.used(RECEIVE).await.written, 0);
            post(&mut net, 1, HEADER);
            flood(&handle, 1).await;
        }
        let sent = 50 * 5 + 1;
        assert_eq!(net.stop_queue(RECEIVE).await, sent - 1);
    });
}
