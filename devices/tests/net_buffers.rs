//! Frames into receive buffers of any size, while memory is replaced and the queue stops or starts:
//! what the driver is given is whole frames, in as many buffers as their headers say.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test panics where it fails, and its numbers are small"
)]

use std::collections::VecDeque;

use proptest::prelude::*;
use vudev_devices::Net;
use vudev_devices::net::feature;
use vudev_frontend::{Buffer, Token};

mod common;

use common::card::{HEADER, RECEIVE, come, frame, start};
use common::{Rig, run_with};

#[derive(Clone, Debug)]
enum Step {
    /// A chain of buffers of these sizes.
    Post(Vec<usize>),
    Frame(usize),
    Settle,
    NewMemory,
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let size = prop_oneof![1 => 1..HEADER, 6 => HEADER..200, 2 => 200..1600_usize];
    prop_oneof![
        9 => proptest::collection::vec(size, 1..4).prop_map(Step::Post),
        6 => (14..1500_usize).prop_map(Step::Frame),
        4 => Just(Step::Settle),
        1 => Just(Step::NewMemory),
        1 => Just(Step::Restart),
    ]
}

#[derive(Default)]
struct Driver {
    posted: Vec<(Token, Vec<Buffer>)>,
    sent: VecDeque<Vec<u8>>,
    came: usize,
    /// Of a frame that is not whole yet: its bytes, and how many buffers it goes on in.
    part: (Vec<u8>, u16),
}

impl Driver {
    fn post(&mut self, net: &mut Rig<Net>, sizes: &[usize]) {
        let buffers: Vec<_> = sizes.iter().map(|size| net.allocate(*size, 1)).collect();
        let token = net.send(RECEIVE, &[], &buffers);
        self.posted.push((token, buffers));
    }

    fn frame(&mut self, wire: &std::os::unix::net::UnixDatagram, length: usize) {
        let sent = frame(length, (length % 251) as u8);
        come(wire, &sent);
        self.sent.push_back(sent);
    }

    fn collect(&mut self, net: &mut Rig<Net>) {
        while let Some(used) = net.ring(RECEIVE).poll_used().unwrap() {
            let at = self
                .posted
                .iter()
                .position(|it| it.0 == used.token)
                .unwrap();
            let (_, buffers) = self.posted.swap_remove(at);
            let mut bytes: Vec<u8> = buffers.iter().flat_map(|it| net.bytes(*it)).collect();
            let (part, more) = &mut self.part;
            if used.written == 0 {
                assert_eq!(*more, 0, "in the midst of a frame");
                continue;
            }
            let full = bytes.len();
            bytes.truncate(used.written as usize);
            if *more == 0 {
                *more = u16::from_le_bytes([bytes[10], bytes[11]]);
            }
            *more -= 1;
            assert!(*more == 0 || bytes.len() == full, "a gap");
            part.extend_from_slice(&bytes);
            if *more == 0 {
                let came = part.split_off(HEADER);
                part.clear();
                // Those before it were too long for what there was.
                while self.sent.pop_front().expect("one that was sent") != came {}
                self.came += 1;
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        cases: 48,
        ..Default::default()
    })]

    #[test]
    fn what_comes_is_whole_whatever_the_buffers_and_whatever_becomes_of_them(
        steps in proptest::collection::vec(step(), 0..60),
    ) {
        run_with(16, async |handle| {
            let (mut net, wire) = start(&handle, feature::MRG_RXBUF);
            let mut driver = Driver::default();
            for step in &steps {
                match step {
                    Step::Post(sizes) if driver.posted.len() < 30 => driver.post(&mut net, sizes),
                    Step::Post(_) => {}
                    Step::Frame(length) if driver.sent.len() < 8 => {
                        driver.frame(&wire, *length);
                    }
                    Step::Frame(_) | Step::Settle => net.settle().await,
                    Step::NewMemory => net.replace_memory().await,
                    Step::Restart => {
                        net.stop_queue(RECEIVE).await;
                        net.start_queue(RECEIVE);
                    }
                }
                driver.collect(&mut net);
            }
            // And it goes on.
            let last = driver.came;
            (0..20).for_each(|_| driver.post(&mut net, &[2048]));
            driver.frame(&wire, 1499);
            while !driver.sent.is_empty() {
                net.settle().await;
                driver.collect(&mut net);
            }
            assert!(driver.came > last);
        });
    }
}
