//! What the tests of this crate share: seeds of properties.

#![allow(dead_code, unreachable_pub, reason = "each test takes what it needs")]

use std::hash::{BuildHasher, RandomState};

use proptest::prelude::*;
use proptest::test_runner::{RngSeed, TestRunner};

/// Runs properties; a failure is run again with `VUDEV_SEED=<the printed seed>`.
pub fn runner(cases: u32) -> TestRunner {
    let seed = std::env::var("VUDEV_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| RandomState::new().hash_one(0_u8));
    println!("VUDEV_SEED={seed}");
    TestRunner::new(ProptestConfig {
        cases,
        failure_persistence: None,
        // A case that waits in vain takes seconds.
        max_shrink_time: 20_000,
        rng_seed: RngSeed::Fixed(seed),
        ..Default::default()
    })
}
