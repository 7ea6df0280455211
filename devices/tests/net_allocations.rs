//! Counts what the network card allocates for a frame, which is nothing. In a binary of its own,
//! since the allocator is replaced.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test panics where it fails, and its numbers are small"
)]

use std::os::unix::net::UnixDatagram;

use vudev_devices::Net;
use vudev_devices::net::feature;
use vudev_virtio::testing::allocations::{CountingAllocator, allocations};

mod common;

use common::card::config;
use common::{Rig, run};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// Frames of a burst, each way.
const BURSTS: [usize; 2] = [1, 32];
/// Frames after which every vector that is lent is one of those that came back.
const WARM: usize = 320;
/// Receive buffers of a frame.
const BUFFERS: usize = 3;

#[test]
fn frames_allocate_nothing_once_the_card_has_warmed_up() {
    BURSTS.into_iter().for_each(frames_allocate_nothing);
}

fn frames_allocate_nothing(burst: usize) {
    run(async |handle| {
        let (wire, tap) = UnixDatagram::pair().unwrap();
        let net = Net::new(&handle, config(), vec![tap.into()]).unwrap();
        let mut net = Rig::start(&handle, net, feature::MRG_RXBUF);
        let mut bytes = [0; 600];
        let (mut posted, mut sent) = (0, 0);
        let warm = WARM / burst;
        for round in 0..warm + 8 {
            // Three buffers a frame, and some that stay for the next.
            for _ in 0..burst * BUFFERS {
                let buffer = net.allocate(200, 2);
                net.ring(0).add(&[], &[buffer]).unwrap();
                let out = net.put(&[0; 72]);
                if posted % BUFFERS == 0 {
                    net.ring(1).add(&[out], &[]).unwrap();
                    sent += 1;
                }
                posted += 1;
            }
            let before = allocations();
            net.ring(0).kick().unwrap();
            net.ring(1).kick().unwrap();
            for _ in 0..burst {
                wire.send(&[0; 512]).unwrap();
            }
            while net.ring(0).used_index().unwrap() != posted as u16 || !net.is_idle(1, sent) {
                handle.yield_now().await;
            }
            let allocated = allocations() - before;
            assert!(
                round < warm || allocated == 0,
                "{allocated} for {burst} frames each way"
            );
            for _ in 0..burst * BUFFERS {
                let _ = net.used(0).await;
            }
            for _ in 0..burst {
                let _ = net.used(1).await;
                wire.recv(&mut bytes).unwrap();
            }
        }
    });
}
